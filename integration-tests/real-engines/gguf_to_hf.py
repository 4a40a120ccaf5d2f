"""gguf_to_hf.py FILE.gguf FOLDER: writes a GGUF model as a Hugging Face folder in bfloat16, for engines that read no GGUF."""

import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

source, folder = pathlib.Path(sys.argv[1]), sys.argv[2]
unpacked = GgufConfig(gguf_file=source.name, dequantize=True)
model = AutoModelForCausalLM.from_pretrained(
    source.parent, gguf_file=source.name, quantization_config=unpacked, dtype=torch.bfloat16
)
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
