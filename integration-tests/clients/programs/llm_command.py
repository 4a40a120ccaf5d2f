"""Simon Willison's `llm`, as a command."""

import os
import pathlib
import subprocess
import sys
import tempfile

from checks import base, check, model, run

folder = tempfile.TemporaryDirectory()
pathlib.Path(folder.name, "extra-openai-models.yaml").write_text(
    f"- model_id: served\n  model_name: {model}\n  api_base: {base}/v1\n  supports_schema: true\n"
    f"- model_id: served-completions\n  model_name: {model}\n  api_base: {base}/v1\n  completion: true\n"
)
binary = pathlib.Path(sys.executable).parent / "llm"


def llm(*arguments):
    environment = os.environ | {"LLM_USER_PATH": folder.name}
    ended = subprocess.run(
        [binary, *arguments], capture_output=True, text=True, env=environment, timeout=120, stdin=subprocess.DEVNULL
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1])
    return ended.stdout.strip()


@check("prompt")
def prompt():
    assert llm("-m", "served", "-o", "max_tokens", "8", "Name a colour.")


@check("prompt, not streamed")
def not_streamed():
    assert llm("-m", "served", "--no-stream", "-o", "max_tokens", "8", "Name a colour.")


@check("completion")
def completion():
    assert llm("-m", "served-completions", "-o", "max_tokens", "8", "The colours are")


@check("conversation")
def conversation():
    llm("-m", "served", "-o", "max_tokens", "8", "Name a colour.")
    assert llm("-c", "-o", "max_tokens", "8", "Another.")


@check("schema", needs="json")
def schema():
    assert llm("-m", "served", "--schema", "name, shade", "-o", "max_tokens", "100", "Name a colour.").startswith("{")


run()
