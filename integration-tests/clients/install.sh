#!/usr/bin/env bash
# Installs the client programs that `run.sh` runs: Python packages in virtual environments, one for each group that agrees on
# its dependencies, and npm packages. Usage: install.sh [GROUP...]; the folder is CLIENTS_DIR, by default .local/clients.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dir=${CLIENTS_DIR:-$here/../../.local/clients}
mkdir -p "$dir"

# A group of Python packages, installed once for each text of its list.
python_group() {
    local name=$1 stamp
    shift
    stamp="$dir/$name/.installed"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$*" ] && return
    "${PYTHON:-python3}" -m venv "$dir/$name"
    "$dir/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
    printf %s "$*" >"$stamp"
}

install() {
    case $1 in
    # Continuous integration installs this group alone.
    core) python_group core 'openai>=2,<4' 'anthropic>=0.40,<1' 'langchain-openai>=0.3,<2' 'litellm>=1.60,<2' ;;
    agents) python_group agents 'instructor>=1.7,<2' 'pydantic-ai-slim[openai]>=1,<2' 'llm>=0.20,<1' ;;
    inspect) python_group inspect 'inspect-ai>=0.3.100' 'openai>=2,<4' ;;
    lm-eval) python_group lm-eval 'lm-eval[api]>=0.4.9,<0.5' ;;
    aiperf) python_group aiperf 'aiperf>=0.2' ;;
    # Newer versions need torch, with 5 GB of libraries for GPUs.
    guidellm) python_group guidellm 'guidellm>=0.3,<0.4' ;;
    schemathesis) python_group schemathesis 'schemathesis>=4,<5' ;;
    node)
        mkdir -p "$dir/node"
        cp "$here/package.json" "$dir/node/package.json"
        npm install --prefix "$dir/node" --no-audit --no-fund --loglevel=error
        ;;
    *)
        echo "install.sh: $1 is not a group; the groups are: ${groups[*]}" >&2
        return 2
        ;;
    esac
}

groups=(core agents inspect lm-eval aiperf guidellm schemathesis node)
[ $# -gt 0 ] || set -- "${groups[@]}"
for group in "$@"; do
    install "$group"
done
