"""Checks of a router in front of engines, with the official clients. Usage: next_door_clients.py http://host:port model"""

import sys

import anthropic
import openai

base, model = sys.argv[1:]
# No retries, so that every error is visible.
client = openai.OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0, timeout=60)
claude = anthropic.Anthropic(base_url=base, api_key="unused", max_retries=0, timeout=60)
messages = [
    {"role": "system", "content": "You are a signalman of few words."},
    {"role": "user", "content": "May the train pass? " * 30},
]
weather = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
tools = [{"type": "function", "function": weather}]


def chats():
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
    text = answer.choices[0].message.content
    assert text and answer.usage.completion_tokens <= 12, answer
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
    assert chunks[-1].usage.prompt_tokens == answer.usage.prompt_tokens


def tool_calls():
    answer = client.chat.completions.create(model=model, messages=messages, tools=tools, tool_choice="required", max_tokens=200)
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, answer.choices[0].finish_reason) == ("get_weather", "tool_calls"), answer
    name, arguments = "", ""
    for chunk in client.chat.completions.create(model=model, messages=messages, tools=tools, max_tokens=200, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert (name, arguments) == ("get_weather", call.function.arguments)


def completions():
    answer = client.completions.create(model=model, prompt=["The 8:15 to", "The goods train"], max_tokens=5, logprobs=1)
    assert len(answer.choices) == 2 and all(choice.logprobs.tokens for choice in answer.choices)
    stream = client.completions.create(model=model, prompt="The 8:15 to", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def responses():
    request = {"model": model, "input": "May the train pass?", "instructions": "Be brief.", "max_output_tokens": 8}
    answer = client.responses.create(**request)
    assert answer.output_text and answer.usage.output_tokens <= 8, answer
    events = list(client.responses.create(**request, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer.output_text


def embeddings():
    answer = client.embeddings.create(model=model, input=["a train", "a bridge"], encoding_format="float")
    assert len(answer.data) == 2 and answer.data[0].embedding != answer.data[1].embedding


def anthropic_messages():
    request = {"model": model, "max_tokens": 8, "system": "Be brief.", "messages": [messages[1]]}
    answer = claude.messages.create(**request)
    assert answer.content[0].text and answer.usage.output_tokens <= 8, answer
    with claude.messages.stream(**request) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
        assert stream.get_final_message().stop_reason == answer.stop_reason
    tool = {"name": weather["name"], "description": weather["description"], "input_schema": weather["parameters"]}
    used = claude.messages.create(**request | {"max_tokens": 200, "tools": [tool], "tool_choice": {"type": "any"}})
    assert (used.content[0].type, used.content[0].name, used.stop_reason) == ("tool_use", "get_weather", "tool_use"), used


def errors():
    def raised(kind, call):
        try:
            call()
        except kind as error:
            return error
        raise AssertionError(f"no {kind.__name__}")

    chat = client.chat.completions.create
    refused = raised(openai.BadRequestError, lambda: chat(model=model, messages=messages, temperature=-1))
    assert refused.param == "temperature" and "must be non-negative" in refused.message
    raised(openai.NotFoundError, lambda: chat(model="nobody", messages=messages))
    raised(anthropic.NotFoundError, lambda: claude.messages.create(model="nobody", max_tokens=1, messages=[messages[1]]))


chats()
tool_calls()
completions()
responses()
embeddings()
anthropic_messages()
errors()
print("all checks passed")
