"""aiperf, as a command: a short benchmark of chats, with and without a shortest answer."""

import os
import pathlib
import subprocess
import sys
import tempfile

from checks import base, check, model, run

binary = pathlib.Path(sys.executable).parent / "aiperf"


def profile(*more):
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "profile", "--model", model, "--url", base, "--endpoint-type", "chat", "--streaming"]
        command += ["--request-count", "8", "--concurrency", "2", "--isl", "32", "--osl", "8", "--ui", "none"]
        # `builtin` is fetched at the first use. A folder with a `tokenizer.json` is read as it is, unless the hub is offline:
        # then the program looks for the folder's name in the hub's cache.
        tokenizer = os.environ.get("SIGNALBOX_TOKENIZER", "builtin")
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        command += ["--tokenizer", tokenizer, "--artifact-dir", folder, *more]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert ended.returncode == 0, (ended.stderr or ended.stdout).strip().splitlines()[-1:]
        report = next(pathlib.Path(folder).rglob("*aiperf.json")).read_text()
        assert '"request_count"' in report or "request_count" in report, report[:300]


@check("benchmark")
def benchmark():
    profile()


@check("benchmark with min_tokens", needs="min_tokens")
def shortest_answer():
    profile("--extra-inputs", "min_tokens:8")


run()
