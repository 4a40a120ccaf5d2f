#!/bin/sh
# Runs demo.py; its docstring describes it. Needs python3, nats-server, etcd and the binary (`make build`).
set -eu
for program in python3 nats-server etcd; do
    if ! PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null; then
        echo "$program is missing: run \`make deps\`, or install it yourself, and run this again" >&2
        exit 1
    fi
done
PATH="$PATH:/usr/sbin" exec python3 "$(dirname "$0")/demo.py" "$@"
