#!/usr/bin/env python3
"""Runs client programs against a router and prints a table of what works.

    run.py [--engine sim|llama] [--able text,json,tools] [--binary target/debug/runtime] [PROGRAM...]

`install.sh` has installed the programs. Each starts against its own `runtime up`. Without names, all programs that are
installed run. The exit status is 1 if a check failed. A check of what the engine cannot do passes if the request is refused.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import urllib.request

here = pathlib.Path(__file__).resolve().parent
root = here.parent.parent

# The program, its group in `install.sh`, its package, and the engine it needs if not one of this repository.
PROGRAMS = {
    "openai (Python)": ("core", "openai", "openai_python.py", None),
    "langchain-openai": ("core", "langchain-openai", "langchain.py", None),
    "litellm": ("core", "litellm", "litellm_library.py", None),
    "anthropic (Python)": ("core", "anthropic", "anthropic_python.py", "fake"),
    "instructor": ("agents", "instructor", "instructor_library.py", None),
    "pydantic-ai": ("agents", "pydantic-ai-slim", "pydantic_ai_library.py", None),
    "llm": ("agents", "llm", "llm_command.py", None),
    "inspect-ai": ("inspect", "inspect-ai", "inspect_evaluation.py", None),
    "lm-eval": ("lm-eval", "lm-eval", "lm_eval_harness.py", None),
    "guidellm": ("guidellm", "guidellm", "guidellm_benchmark.py", None),
    "aiperf": ("aiperf", "aiperf", "aiperf_benchmark.py", None),
    "openai (npm)": ("node", "openai", "openai_node.mjs", None),
    "AI SDK": ("node", "ai", "ai_sdk.mjs", None),
    "promptfoo": ("node", "promptfoo", "promptfoo_evaluation.mjs", None),
    "anthropic (npm)": ("node", "@anthropic-ai/sdk", "anthropic_node.mjs", "fake"),
}

# Longest time for one program. On a busy machine of two cores a benchmark takes minutes.
PROGRAM_SECONDS = 900


def started(command):
    """Starts a process, and returns it with an iterator over its lines."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    return process, iter(process.stdout.readline, "")


@contextlib.contextmanager
def router(binary, arguments):
    """A router with its workers; gives the address of its API."""
    command = [binary, "up", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", *arguments]
    process, lines = started(command)
    try:
        base = None
        for line in lines:
            if found := re.search(r"OpenAI API\s+(http://\S+)", line):
                base = found[1].removesuffix("/v1").rstrip("/")
            if line.startswith("ready"):
                break
        if process.poll() is not None or base is None:
            raise RuntimeError(f"{' '.join(command)} is not ready")
        # What it prints later must not fill the pipe.
        threading.Thread(target=lambda: [None for _ in lines], daemon=True).start()
        yield base
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def fake_engine(binary):
    """An engine next door that has /v1/messages."""
    process, lines = started([pathlib.Path(binary).parent / "examples" / "fake_engine"])
    try:
        yield next(lines).strip()
    finally:
        process.terminate()
        process.wait(30)


def version(clients, group, package):
    if group == "node":
        return json.loads((clients / "node/node_modules" / package / "package.json").read_text())["version"]
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.check_output([clients / group / "bin/python", "-c", code], text=True).strip()


def results(clients, group, script, environment):
    """The lines of a program's checks."""
    interpreter = clients / group / "bin/python"
    command = [interpreter, here / "programs" / script]
    if group == "node":
        # Modules are looked for beside the script.
        folder = clients / "node/programs"
        folder.mkdir(exist_ok=True)
        for source in (here / "programs").glob("*.mjs"):
            (folder / source.name).write_text(source.read_text())
        command = ["node", folder / script]
    try:
        ended = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, timeout=PROGRAM_SECONDS, stdin=subprocess.DEVNULL
        )
        output, status = ended.stdout, ended.returncode
    except subprocess.TimeoutExpired as late:
        output, status = (late.stdout or b"").decode(), 1
    checks = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if status and all(check["ok"] for check in checks):
        checks.append({"check": "the program", "ok": False, "error": f"ended with status {status}"})
    return checks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", help=", ".join(PROGRAMS))
    parser.add_argument("--engine", default="sim", choices=["sim", "llama"])
    parser.add_argument("--able", default="text,json,tools,min_tokens", help="what the engine can do: text,json,tools,min_tokens")
    parser.add_argument("--binary", default=root / "target/debug/runtime")
    options = parser.parse_args()
    clients = pathlib.Path(os.environ.get("CLIENTS_DIR", root / ".local/clients"))
    if unknown := [name for name in options.programs if name not in PROGRAMS]:
        parser.error(f"{unknown[0]} is no program; the programs are: {', '.join(PROGRAMS)}")
    names = options.programs or [name for name in PROGRAMS if (clients / PROGRAMS[name][0]).is_dir()]
    arguments = ["--engine", options.engine]
    arguments += ["--speedup", "10"] if options.engine == "sim" else []
    failed = False
    print(f"| program | version | works ({options.engine}) | refused, because the engine cannot | fails |\n|---|---|---|---|---|")
    for name in names:
        group, package, script, engine = PROGRAMS[name]
        with contextlib.ExitStack() as stack:
            own = arguments
            if engine:
                own = ["--upstream", stack.enter_context(fake_engine(options.binary))]
            base = stack.enter_context(router(options.binary, own))
            environment = dict(os.environ, SIGNALBOX_BASE=base, SIGNALBOX_ABLE=options.able)
            environment["SIGNALBOX_ENGINE"] = engine or options.engine
            environment |= {"SIGNALBOX_CLIENTS": str(clients), "SIGNALBOX_MODEL": served_model(base)}
            environment |= {"OPENAI_API_KEY": "unused", "PYTHONDONTWRITEBYTECODE": "1"}
            checks = results(clients, group, script, environment)
        works = [check["check"] for check in checks if check["ok"] and "refused" not in check]
        refused = [check["check"] for check in checks if "refused" in check]
        fails = [f"{check['check']}: {check['error']}" for check in checks if not check["ok"]]
        failed |= bool(fails) or not checks
        cells = [name, version(clients, group, package), "; ".join(works), "; ".join(refused), "; ".join(fails)]
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)
    sys.exit(failed)


def served_model(base):
    """The name of the one served model."""
    for _ in range(100):
        with urllib.request.urlopen(f"{base}/v1/models", timeout=10) as answer:
            if models := json.load(answer)["data"]:
                return models[0]["id"]
        time.sleep(0.1)
    raise RuntimeError("no model is served")


if __name__ == "__main__":
    main()
