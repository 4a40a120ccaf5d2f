"""langchain-openai."""

from checks import base, check, model, run
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

options = {"base_url": f"{base}/v1", "api_key": "unused", "model": model, "max_retries": 0, "max_tokens": 8}
chat_model = ChatOpenAI(**options)


class Colour(BaseModel):
    """A colour."""

    name: str


@check("invoke")
def invoke():
    assert chat_model.invoke("Name a colour.").content


@check("stream")
def stream():
    assert "".join(chunk.content for chunk in chat_model.stream("Name a colour."))


@check("batch of chats")
def batch():
    assert all(answer.content for answer in chat_model.batch(["One", "Two", "Three"]))


@check("batch of prompts")
def prompts():
    answers = OpenAI(**options).generate(["One", "Two", "Three"])
    assert len(answers.generations) == 3 and all(one[0].text for one in answers.generations)
    assert answers.llm_output["token_usage"]["completion_tokens"] <= 24


@check("structured output", needs="json")
def structured():
    structured = ChatOpenAI(**options | {"max_tokens": 100}).with_structured_output(Colour, method="json_schema")
    assert isinstance(structured.invoke("Name a colour.").name, str)


@check("tools", needs="tools")
def tools():
    bound = ChatOpenAI(**options | {"max_tokens": 100}).bind_tools([Colour], tool_choice="required")
    assert bound.invoke("Name a colour.").tool_calls[0]["name"] == "Colour"


run()
