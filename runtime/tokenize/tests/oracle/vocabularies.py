#!/usr/bin/env python3
"""Writes two small vocabularies, and the token ids that their own libraries give for some texts.

needs: pip install sentencepiece==0.2.* tiktoken==0.1*

sentencepiece/tokenizer.model is trained as Llama 2's: byte pairs with bytes for unknown characters, and text left as it
is. tiktoken/tiktoken.model has the words of Kimi. Both are trained on the texts of this file, so that they are small.
"""
import base64
import io
import json
import pathlib

import sentencepiece
import tiktoken
import tiktoken._educational

FOLDER = pathlib.Path(__file__).parent
TEXTS = [
    "Hello world", " leading", "trailing ", "  two  spaces  ", "", " ", "a", "The quick brown fox jumps over the lazy dog.",
    "tokens tokenize tokenizers tokenization", "I'll we've DON'T it's", "1234567890 3.14 10,000", "line\nline\n\nline\r\n",
    "\ttab\t\ttab", "naïve café déjà vu", "日本語のテキスト 中文文本 混合mixed文字", "한국어 텍스트", "Привет, мир!", "😀🎉👩‍👩‍👧",
    "fn main() { println!(\"{}\", x_1); }", "<s> </s> <unk>", "▁under ▁ score", "e\u0301 n\u0303", "\u200b\u00a0\u3000",
    "CamelCaseWords ABCdef XMLHttpRequest", "a" * 40, "!?!?!?....----", "https://example.org/a/b?c=d&e=f#g",
]
CORPUS = TEXTS + [
    "The router finds the worker that holds the blocks of a prompt and sends the request to it.",
    "Tokens of the same text are the same tokens; the template writes the turns of a conversation.",
    "int main(void) { return 0; } def f(x): return x + 1",
]
PATTERN = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])


def write(folder, ids):
    lines = [json.dumps({"text": text, "ids": ids(text)}, ensure_ascii=False) for text in TEXTS]
    (FOLDER / folder / "ids.jsonl").write_text("\n".join(lines) + "\n")


model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS * 3), model_writer=model, model_type="bpe", vocab_size=560, byte_fallback=True,
    normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
    allow_whitespace_only_pieces=True, character_coverage=0.98, user_defined_symbols=["<tool>"],
)
(FOLDER / "sentencepiece/tokenizer.model").write_bytes(model.getvalue())
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
write("sentencepiece", processor.encode)

ranks = tiktoken._educational.SimpleBytePairEncoding.train(
    "\n".join(CORPUS * 2), 420, r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
).mergeable_ranks
lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
(FOLDER / "tiktoken/tiktoken.model").write_text("\n".join(lines) + "\n")
encoding = tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
write("tiktoken", encoding.encode_ordinary)
