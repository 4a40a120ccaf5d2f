"""OpenAI's Python client."""

import os

import openai
from checks import base, check, model, run
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0, timeout=120)
messages = [{"role": "user", "content": "Name a colour."}]


class Colour(BaseModel):
    name: str


@check("chat")
def chat():
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=8, seed=1)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 8


@check("chat stream")
def chat_stream():
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens <= 8 and chunks[0].choices[0].delta.role == "assistant"


@check("several prompts")
def several_prompts():
    request = {"model": model, "prompt": ["One", "Two", "Three"], "n": 2, "max_tokens": 4, "seed": 1}
    answer = client.completions.create(**request)
    assert [choice.index for choice in answer.choices] == list(range(6)), answer
    assert answer.usage.completion_tokens <= 24 and len({answer.id}) == 1
    texts = [""] * 6
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in answer.choices]
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens and len({chunk.id for chunk in chunks}) == 1


@check("prompt log probabilities")
def scored_prompt():
    request = {"model": model, "echo": True, "logprobs": 2}
    scored = client.completions.create(**request, prompt="The sky is blue", max_tokens=0).choices[0]
    tokens = scored.logprobs.tokens
    assert scored.text == "The sky is blue" == "".join(tokens) and scored.logprobs.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in scored.logprobs.token_logprobs[1:])
    more = client.completions.create(**request, prompt="The sky is blue", max_tokens=2).choices[0]
    # Zero means equal, up to the rounding of differently sized batches.
    for a, b in zip(more.logprobs.token_logprobs[1:], scored.logprobs.token_logprobs[1:]):
        assert abs(a - b) < 0.2, (a, b)
    assert len(more.logprobs.tokens) == len(tokens) + 2


@check("scores equal those of the generation")
def scores_of_generation():
    if os.environ.get("SIGNALBOX_ENGINE") != "llama":
        return  # A simulated engine makes up both.
    prompt = "The capital of France is"
    request = {"model": model, "temperature": 0, "logprobs": 1}
    generated = client.completions.create(**request, prompt=prompt, max_tokens=6).choices[0]
    scored = client.completions.create(**request, prompt=prompt + generated.text, max_tokens=0, echo=True).choices[0]
    again = scored.logprobs.tokens[-6:], scored.logprobs.token_logprobs[-6:]
    assert again[0] == generated.logprobs.tokens, (again[0], generated.logprobs.tokens)
    for a, b in zip(again[1], generated.logprobs.token_logprobs):
        assert abs(a - b) < 0.2, (again[1], generated.logprobs.token_logprobs)


@check("many choices")
def many_choices():
    # A worker of llama.cpp takes 72 sequences by default.
    n = 64 if os.environ.get("SIGNALBOX_ENGINE") == "llama" else 128
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=1, n=n)
    assert len(answer.choices) == n


@check("models, one by name")
def models():
    assert client.models.retrieve(model).id == client.models.list().data[0].id == model


@check("unknown model")
def unknown_model():
    try:
        client.chat.completions.create(model="nobody", messages=messages)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found" and error.param == "model"
    else:
        raise AssertionError("no error")


@check(".parse", needs="json")
def parse():
    answer = client.chat.completions.parse(model=model, messages=messages, response_format=Colour, max_tokens=100)
    assert isinstance(answer.choices[0].message.parsed.name, str)


@check("tools", needs="tools")
def tools():
    tool = {"type": "function", "function": {"name": "paint", "parameters": Colour.model_json_schema()}}
    answer = client.chat.completions.create(
        model=model, messages=messages, tools=[tool], tool_choice="required", max_tokens=100
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "paint"


@check("responses")
def responses():
    request = {"model": model, "instructions": "Be brief.", "input": "Name a colour.", "max_output_tokens": 8}
    answer = client.responses.create(**request)
    assert answer.output_text and answer.usage.output_tokens <= 8 and answer.status in ("completed", "incomplete")
    kinds, text = [], ""
    for event in client.responses.create(**request, stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), kinds
    assert event.response.output_text == text and event.response.usage.output_tokens <= 8


@check("responses: .parse and tools", needs="json")
def parsed_responses():
    parsed = client.responses.parse(model=model, input="Name a colour.", text_format=Colour, max_output_tokens=100)
    assert isinstance(parsed.output_parsed.name, str)
    tool = {"type": "function", "name": "paint", "parameters": Colour.model_json_schema(), "strict": True}
    request = {"model": model, "tools": [tool], "tool_choice": "required", "max_output_tokens": 100}
    output = client.responses.create(**request, input="Paint it.").output
    # At the limit of tokens the beginning of a further call is text.
    call = next(item for item in output if item.type == "function_call")
    assert call.name == "paint", call
    history = [{"role": "user", "content": "Paint it."}, call, {"type": "function_call_output", "call_id": call.call_id, "output": "done"}]
    assert client.responses.create(model=model, input=history, max_output_tokens=8).output_text


run()
