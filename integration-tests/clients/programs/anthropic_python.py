"""Anthropic's Python client, with an engine that has /v1/messages."""

import anthropic
from checks import base, check, model, run

client = anthropic.Anthropic(base_url=base, api_key="unused", max_retries=0, timeout=120)
request = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Name a colour."}]}


@check("messages")
def messages():
    assert client.messages.create(**request).content[0].text


@check("stream")
def stream():
    with client.messages.stream(**request) as events:
        assert "".join(events.text_stream)


run()
