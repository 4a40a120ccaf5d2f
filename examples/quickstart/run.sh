#!/bin/sh
# Runs demo.py; its docstring describes it. Arguments are passed on: the router's address, see --help.
set -eu
if ! command -v python3 >/dev/null; then
    echo "python3 is missing: install it (Debian: apt-get install python3) and run this again" >&2
    exit 1
fi
exec python3 "$(dirname "$0")/demo.py" "$@"
