"""instructor."""

import instructor
import openai
from checks import base, check, model, run
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0, timeout=120)
request = {"model": model, "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 100}


class Colour(BaseModel):
    name: str


def structured(mode):
    answer = instructor.from_openai(client, mode=mode)
    return answer.chat.completions.create(response_model=Colour, max_retries=0, **request)


@check("plain chat")
def plain():
    answer = instructor.from_openai(client).chat.completions.create(response_model=None, **request)
    assert answer.choices[0].message.content


@check("JSON schema", needs="json")
def json_schema():
    assert isinstance(structured(instructor.Mode.JSON_SCHEMA).name, str)


@check("tools", needs="tools")
def tools():
    assert isinstance(structured(instructor.Mode.TOOLS).name, str)


run()
