"""lm-eval on a tiny task of this folder, by completions and by chats."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from checks import base, check, model, run

here = pathlib.Path(__file__).parent.parent / "tasks"
binary = pathlib.Path(sys.executable).parent / "lm_eval"


def evaluate(kind, path, task, *more, batch=4):
    with tempfile.TemporaryDirectory() as folder:
        for source in here.glob("*.yaml"):
            text = source.read_text().replace("COLOURS", str(here / "colours.jsonl"))
            (pathlib.Path(folder) / source.name).write_text(text)
        arguments = f"model={model},base_url={base}{path},num_concurrent=1,max_retries=1"
        command = [binary, "--model", kind, "--model_args", arguments, "--tasks", task, "--include_path", folder]
        command += ["--batch_size", str(batch), "--output_path", f"{folder}/results", *more]
        # The task is a file: nothing is looked for at the hub.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        if ended.returncode:
            raise RuntimeError(ended.stderr.strip().splitlines()[-1])
        results = next(pathlib.Path(folder, "results").rglob("results*.json"))
        return json.loads(results.read_text())["results"][task]


@check("local-completions: multiple choice, batches of 4")
def multiple_choice():
    accuracy = evaluate("local-completions", "/v1/completions", "colours_choice")["acc,none"]
    assert 0 <= accuracy <= 1
    print(f"lm-eval: accuracy {accuracy}", file=sys.stderr)


@check("local-completions: text")
def text():
    evaluate("local-completions", "/v1/completions", "colours_text")


@check("local-chat-completions: text")
def chat():
    evaluate("local-chat-completions", "/v1/chat/completions", "colours_text", "--apply_chat_template", batch=1)


run()
