"""litellm, as a library."""

import litellm
from checks import base, check, model, run

messages = [{"role": "user", "content": "Name a colour."}]
options = {"api_base": f"{base}/v1", "api_key": "unused", "max_tokens": 8, "num_retries": 0}


@check("completion")
def completion():
    answer = litellm.completion(model=f"openai/{model}", messages=messages, **options)
    assert answer.choices[0].message.content


@check("stream")
def stream():
    chunks = litellm.completion(model=f"openai/{model}", messages=messages, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@check("text_completion")
def text_completion():
    answer = litellm.text_completion(model=f"text-completion-openai/{model}", prompt="Name a colour:", **options)
    assert answer.choices[0].text


@check("text_completion of several prompts")
def several_prompts():
    prompts = ["One", "Two", "Three"]
    answer = litellm.text_completion(model=f"text-completion-openai/{model}", prompt=prompts, **options)
    assert len(answer.choices) == 3


@check("hosted_vllm")
def hosted_vllm():
    answer = litellm.completion(model=f"hosted_vllm/{model}", messages=messages, **options)
    assert answer.choices[0].message.content


@check("JSON schema", needs="json")
def json_schema():
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    answer = litellm.completion(
        model=f"openai/{model}", messages=messages, response_format=form, **options | {"max_tokens": 100}
    )
    assert answer.choices[0].message.content.startswith("{")


run()
