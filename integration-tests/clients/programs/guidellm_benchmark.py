"""guidellm, as a command: a short benchmark of chats."""

import pathlib
import subprocess
import sys
import tempfile

from checks import base, check, run

# Prompts are made up with it; any will do. `make tokenizers` fetches it, so that nothing is fetched here.
tokenizer = str(pathlib.Path(__file__).resolve().parents[3] / ".local/tokenizers/qwen3")
binary = pathlib.Path(sys.executable).parent / "guidellm"


@check("benchmark")
def benchmark():
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "benchmark", "--target", base, "--rate-type", "synchronous", "--max-requests", "5"]
        command += ["--processor", tokenizer]
        command += ["--data", "prompt_tokens=32,output_tokens=8", "--output-path", f"{folder}/report.json"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr.strip().splitlines()[-1:]


run()
