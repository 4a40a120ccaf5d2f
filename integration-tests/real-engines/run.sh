#!/usr/bin/env bash
# run.sh DIR [RUNTIME]: puts Signalbox in front of two real vLLM engines on this machine's CPU and checks what it promises.
#
# DIR gets the engines and the model (7 GB; installed on the first run, see install.sh) and their logs. RUNTIME is the
# binary, target/debug/runtime by default. Needs 8 GB of memory; takes some 10 minutes on two cores, without installing.
# The exit code is 0 if every check holds.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
dir=$(realpath -m "${1:?usage: run.sh DIR [RUNTIME]}")
runtime=$(realpath "${2:-${CARGO_TARGET_DIR:-$here/../../target}/debug/runtime}")
[ -x "$runtime" ] || { echo "$runtime does not exist: build it with cargo build, or give another one" >&2; exit 2; }
"$here/install.sh" "$dir"
exec "$dir/venv/bin/python" "$here/check.py" "$dir" "$runtime"
