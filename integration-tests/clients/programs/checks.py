"""Named checks of one client program. Each prints one line of JSON: its name, whether it passed, and why not."""

import json
import os
import sys
import traceback

base = os.environ["SIGNALBOX_BASE"]
model = os.environ["SIGNALBOX_MODEL"]
# What the engine can do: `text`, and `json` or `tools` if it constrains answers.
able = os.environ.get("SIGNALBOX_ABLE", "text").split(",")
checks = []


def check(what, needs="text"):
    """Adds a check of the function; `needs` names what it asks of the engine beyond text."""
    return lambda function: checks.append((what, needs, function)) or function


def run():
    failed = False
    for what, needs, function in checks:
        line = {"check": what}
        try:
            function()
            line["ok"] = True
        except Exception as error:  # noqa: BLE001: every failure is a result
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            # An engine that cannot do it must say so, rather than answer something else.
            refused = "400" in str(error) or "BadRequest" in f"{type(error).__name__} {error}"
            if needs not in able and refused:
                line |= {"ok": True, "refused": reason}
            else:
                line |= {"ok": False, "error": reason}
                failed = True
                traceback.print_exc(file=sys.stderr)
        print(json.dumps(line), flush=True)
    sys.exit(failed)
