#!/usr/bin/env python3
"""Compares the llama engine with llama-cpp-python on the same file, number of threads and work.

    python3 -m venv V && V/bin/pip install llama-cpp-python
    cargo build --release -p signalbox-worker --features llama --benches      # prints the path of the bench binary
    V/bin/python runtime/worker/benches/llama_oracle.py BENCH [--model PATH] [--threads N] [--rounds N]

The two are timed in turns, and the best round counts, because other work on the machine slows both. The greedy answers
to 20 prompts are compared token by token. They are equal if both use the same CPU instructions: pip builds for the
machine it runs on, the engine is built for AVX2 unless GGML_AVX512=ON GGML_AVX512_VNNI=ON is set. The last digits of
llama.cpp's sums depend on the instructions, and so small a model soon has a near tie between two tokens.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

import llama_cpp

MODEL = pathlib.Path(__file__).parents[3] / ".local/models/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = [
    "What is the capital of France?", "Name three primary colours.", "Write a haiku about rain.",
    "Explain what a hash table is.", "Who wrote Hamlet?", "What is 17 times 3?",
    "Translate 'good morning' into Spanish.", "Why is the sky blue?", "List the planets of the solar system.",
    "Tell me a short story about a fox.", "What does HTTP stand for?", "How do bees make honey?",
    "Give me a recipe for pancakes.", "What is the tallest mountain on Earth?", "Describe a sunset in one sentence.",
    "What is the difference between a list and a tuple in Python?", "Who painted the Mona Lisa?",
    "How many legs does a spider have?", "Write a polite email asking for a day off.", "What causes tides?",
]


def prompts(model):
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return [model.tokenize(chat.format(q).encode(), add_bos=False, special=True) for q in QUESTIONS]


def oracle_speed(model, vocab, tokens):
    prompt = [300 + (time.time_ns() + 104729 * i) % (vocab - 300) for i in range(512)]
    model.reset()
    start = time.perf_counter()
    model.eval(prompt)
    prefill = 512 / (time.perf_counter() - start)
    model.reset()
    model.eval(prompt[:32])
    start = time.perf_counter()
    for _ in range(tokens):
        model.eval([model.sample(temp=0.0, repeat_penalty=1.0)])
    return prefill, tokens / (time.perf_counter() - start)


def oracle_greedy(model, prompt, tokens):
    model.reset()
    model.eval(prompt)
    answer = []
    for _ in range(tokens):
        token = model.sample(temp=0.0, repeat_penalty=1.0)
        answer.append(token)
        model.eval([token])
    return answer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--args", default="", help="more arguments for the bench")
    args = parser.parse_args()
    common = ["--model", args.model, "--threads", str(args.threads), *args.args.split()]
    model = llama_cpp.Llama(args.model, n_ctx=2048, n_batch=512, n_threads=args.threads, n_threads_batch=args.threads,
                            flash_attn=True, verbose=False)

    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        asked = prompts(model)
        json.dump(asked, file)
        file.flush()
        out = subprocess.run([args.bench, "greedy", file.name, "--tokens", str(args.tokens), *common],
                             check=True, capture_output=True, text=True).stdout
        ours = [json.loads(line) for line in out.splitlines()]
    agreed = []
    for prompt, answer, question in zip(asked, ours, QUESTIONS, strict=True):
        other = oracle_greedy(model, prompt, args.tokens)
        same = next((i for i, (a, b) in enumerate(zip(answer, other)) if a != b), args.tokens)
        agreed.append(same)
        if same < args.tokens:
            print(f"differs at {same}: {question}")
    whole = sum(n == args.tokens for n in agreed)
    print(f"greedy: {whole} of {len(agreed)} answers of {args.tokens} tokens are equal; "
          f"{sum(agreed)} of {args.tokens * len(agreed)} tokens before the first difference")
    if args.skip_speed:
        return

    best = {"prefill": [0.0, 0.0], "decode": [0.0, 0.0]}
    for _ in range(args.rounds):
        prefill, decode = oracle_speed(model, model.n_vocab(), 128)
        line = json.loads(subprocess.run([args.bench, "--rounds", "1", *common], check=True, capture_output=True,
                                         text=True).stdout.splitlines()[-1])
        print(f"llama.cpp prefill {prefill:.1f} decode {decode:.1f}   engine {line}", flush=True)
        for name, theirs in (("prefill", prefill), ("decode", decode)):
            best[name] = [max(best[name][0], theirs), max(best[name][1], line[f"{name}_tok_s"])]
    for name, (theirs, mine) in best.items():
        print(f"{name}: llama.cpp {theirs:.1f} tokens/s, engine {mine:.1f}: {mine / theirs:.2f}")


main()
