"""Checks with OpenAI's official client. Usage: openai_client.py http://host:port model"""

import asyncio
import sys

import openai

base, model = sys.argv[1:]
# No retries, so that every error is visible.
options = {"base_url": f"{base}/v1", "api_key": "unused", "max_retries": 0, "timeout": 60}
client = openai.OpenAI(**options)
messages = [
    {"role": "system", "content": "You are a signalman of few words."},
    {"role": "user", "content": [{"type": "text", "text": "May the train pass? " * 30}]},
]


def whole_answers():
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=12, seed=3)
    assert answer.object == "chat.completion" and answer.model == model
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.usage.prompt_tokens > 60
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = client.chat.completions.with_raw_response.create(model=model, messages=messages, max_tokens=12, seed=3)
    assert again.headers["x-signalbox-worker"] and "@" in again.headers["x-signalbox-policy"]
    again = again.parse()
    assert again.choices[0].message.content == answer.choices[0].message.content
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached >= 0.9 * (again.usage.prompt_tokens - 16), again.usage
    return answer.choices[0].message.content


def streams(expected):
    text, finish, usage = "", None, None
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=12, seed=3, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        usage = chunk.usage or usage
    assert text == expected, (text, expected)
    assert finish in ("stop", "length")
    assert usage.completion_tokens > 0 and usage.prompt_tokens_details.cached_tokens > 0


def completions():
    answer = client.completions.create(model=model, prompt="The 8:15 to", max_tokens=5, n=2, logprobs=1, seed=1)
    assert answer.object == "text_completion" and len(answer.choices) == 2
    assert all(choice.text and choice.logprobs.tokens for choice in answer.choices)
    stream = client.completions.create(model=model, prompt="The 8:15 to", max_tokens=5, seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    ids = client.completions.create(model=model, prompt=[100, 101, 102], max_tokens=1)
    assert ids.usage.prompt_tokens == 3


def models():
    served = client.models.list().data
    assert [one.id for one in served] == [model]
    assert client.models.retrieve(model).id == model


def errors():
    def raised(kind, **changes):
        arguments = {"model": model, "messages": messages, "max_tokens": 1} | changes
        try:
            client.chat.completions.create(**arguments)
        except openai.APIStatusError as error:
            assert type(error) is kind, (type(error), kind)
            assert error.request_id, "x-request-id"
            return error
        raise AssertionError(f"{changes} raised no error")

    assert raised(openai.BadRequestError, max_tokens=-1).param == "max_tokens"
    assert raised(openai.BadRequestError, temperature=9).type == "invalid_request_error"
    assert raised(openai.BadRequestError, extra_body={"typical_p": 0.5}).param == "typical_p"
    assert raised(openai.NotFoundError, model="nobody").param == "model"
    long = [{"role": "user", "content": "word " * 200_000}]
    assert raised(openai.BadRequestError, messages=long).code == "context_length_exceeded"


async def many_at_once():
    async with openai.AsyncOpenAI(**options) as many:
        async def one(number):
            own = [{"role": "user", "content": f"Train number {number}?"}]
            stream = await many.chat.completions.create(model=model, messages=own, max_tokens=8, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*(one(number) for number in range(20)))
        assert all(answers)


streams(whole_answers())
completions()
models()
errors()
asyncio.run(many_at_once())
print("all checks passed")
