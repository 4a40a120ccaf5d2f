#!/usr/bin/env python3
"""Checks with schemathesis that every answer is one that `/openapi.json` names, and none is a 5xx.

    conformance.py [--examples 1000] [--binary target/debug/runtime]

`--examples` is the number of examples for each route, of which there are some twenty. `install.sh schemathesis` has installed it.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from run import root, router, served_model

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--binary", default=root / "target/debug/runtime")
    options = parser.parse_args()
    clients = pathlib.Path(os.environ.get("CLIENTS_DIR", root / ".local/clients"))
    # A small KV cache bounds the context, and so the answers that no limit is given for.
    engine = ["--engine", "sim", "--speedup", "0", "--kv-tokens", "512"]
    with router(options.binary, engine) as base, tempfile.TemporaryDirectory() as folder:
        with urllib.request.urlopen(f"{base}/openapi.json", timeout=10) as answer:
            document = json.load(answer)
        # Few would ask for the model that is served.
        for schema in document["components"]["schemas"].values():
            if "model" in schema.get("properties", {}) and "usage" not in schema["properties"]:
                schema["properties"]["model"]["enum"] = [served_model(base)]
        source = pathlib.Path(folder, "openapi.json")
        source.write_text(json.dumps(document))
        program = clients / "schemathesis/bin/schemathesis"
        command = [program, "run", source, "--url", base, "--checks", CHECKS, "--max-examples", str(options.examples)]
        command += ["--phases", "examples,coverage,fuzzing", "--continue-on-failure"]
        sys.exit(subprocess.run(command, cwd=folder).returncode)


main()
