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
        command += ["--tokenizer", os.environ.get("SIGNALBOX_TOKENIZER", "builtin"), "--artifact-dir", folder, *more]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"HF_HUB_OFFLINE": "1"})
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
