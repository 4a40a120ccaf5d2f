"""pydantic-ai."""

import asyncio

from checks import base, check, model, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

chat_model = OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{base}/v1", api_key="unused"))
settings = {"max_tokens": 8}


class Colour(BaseModel):
    name: str


@check("run")
def plain():
    assert Agent(chat_model).run_sync("Name a colour.", model_settings=settings).output


@check("stream")
def stream():
    async def streamed():
        async with Agent(chat_model).run_stream("Name a colour.", model_settings=settings) as answer:
            return "".join([text async for text in answer.stream_text(delta=True)])

    assert asyncio.run(streamed())


@check("history")
def history():
    agent = Agent(chat_model, instructions="Be brief.")
    first = agent.run_sync("Name a colour.", model_settings=settings)
    assert agent.run_sync("Another.", model_settings=settings, message_history=first.all_messages()).output


@check("JSON schema", needs="json")
def json_schema():
    agent = Agent(chat_model, output_type=NativeOutput(Colour))
    assert isinstance(agent.run_sync("Name a colour.", model_settings={"max_tokens": 100}).output.name, str)


@check("tools", needs="tools")
def tools():
    agent = Agent(chat_model, output_type=Colour)
    assert isinstance(agent.run_sync("Name a colour.", model_settings={"max_tokens": 100}).output.name, str)


run()
