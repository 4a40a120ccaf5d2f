"""Sends a long prompt twice, and another one: prints where each goes, how much of it was cached, and when its answer starts.

Run it against `runtime up` with at least two workers. The exit code is 1 if the second request does not go to the same worker,
if less than nine tenths of its prompt are cached, if (with a real model) its answer does not start three times sooner, or if
the other prompt does not go to another worker.
"""

import argparse
import http.client
import json
import os
import random
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

WORDS = (
    "signal track train lever station points driver morning freight platform whistle bridge tunnel junction the a of "
    "under over through between slowly quickly quietly passes waits leaves arrives carries follows red green yellow "
    "narrow long early late heavy light north south river valley town coal grain mail clock"
).split()
# A prompt has at least as many tokens; the example needs 600.
PROMPT_WORDS = 700
# Longest wait until the router has the worker's new KV blocks in its index. It takes milliseconds.
INDEX_SECONDS = 5


class ExampleError(Exception):
    """The reason why the example does not show what it promises."""


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ExampleError(f"no answer from {url} ({reason}); start a router with `make run` or `runtime up`") from error


def long_prompt(seed):
    """A text that was never sent before, so that no part of it is cached."""
    source = random.Random(seed)
    return "Continue this story: " + " ".join(source.choice(WORDS) for _ in range(PROMPT_WORDS))


def chat(url, model, prompt):
    """Streams an answer; returns its headers, its token counts and when its first token came."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 16,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=600)
    # The time of the connect is not measured.
    connection.connect()
    sent = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise ExampleError(f"the request was refused with {answer.status}: {answer.read().decode()}")
    first, usage = None, None
    for line in answer:
        if not line.startswith(b"data: "):
            continue
        first = first or time.monotonic()
        if line.strip() == b"data: [DONE]":
            break
        event = json.loads(line[len(b"data: "):])
        if "error" in event:
            raise ExampleError(f"the answer ended with an error: {event['error']['message']}")
        usage = event.get("usage") or usage
    connection.close()
    return {
        "worker": answer.headers["x-signalbox-worker"],
        "policy": answer.headers["x-signalbox-policy"],
        "overlap": int(answer.headers["x-signalbox-overlap-blocks"]),
        "prompt": usage["prompt_tokens"],
        "cached": usage["prompt_tokens_details"]["cached_tokens"],
        "ttft_ms": (first - sent) * 1000,
    }


def show(name, answer):
    print(
        f"{name:<18} {answer['worker']:<12} {answer['cached']:>5} of {answer['prompt']} tokens cached   "
        f"first token after {answer['ttft_ms']:7.1f} ms   ({answer['policy']}, overlap {answer['overlap']} blocks)"
    )


def wait_for_index(admin, worker, blocks):
    """Waits for the worker's KV events, which reach the router a moment after the answer."""
    end = time.monotonic() + INDEX_SECONDS
    while time.monotonic() < end:
        index = get(f"{admin}/admin/v1/index")
        if index["workers"].get(worker, {}).get("blocks", 0) >= blocks:
            return
        time.sleep(0.01)


def demonstrate(url, admin):
    health = get(f"{url}/health")
    workers = [instance for instance in health["instances"] if instance["state"] == "ready"]
    if len(workers) < 2:
        raise ExampleError(f"{len(workers)} worker is ready and two are needed; start the router with --workers 2, or wait a moment")
    model = get(f"{url}/v1/models")["data"][0]["id"]
    block_size = get(f"{admin}/admin/v1/workers")["workers"][0]["card"]["block_size"]
    print(f"{model} on {len(workers)} workers at {url}\n")

    # Not measured: the first request of each process takes longer than later ones.
    for _ in workers:
        chat(url, model, "Hello!")

    seed = time.time_ns()
    first = chat(url, model, long_prompt(seed))
    show("a long prompt", first)
    wait_for_index(admin, first["worker"], first["prompt"] // block_size)
    again = chat(url, model, long_prompt(seed))
    show("the same again", again)
    other = chat(url, model, long_prompt(seed + 1))
    show("another long one", other)

    print(f"\nThe first token came {first['ttft_ms'] / again['ttft_ms']:.1f} times sooner the second time.")
    if first["prompt"] < 600:
        raise ExampleError(f"the prompt has {first['prompt']} tokens; at least 600 are needed")
    if again["worker"] != first["worker"]:
        raise ExampleError(f"the second request went to {again['worker']}, not to {first['worker']}, which has the prompt")
    if again["cached"] < 0.9 * again["prompt"]:
        raise ExampleError(f"only {again['cached']} of {again['prompt']} tokens were cached the second time")
    if workers[0]["engine"] == "sim":
        print("A simulated GPU takes about as long for a short prefill as for a long one, so the times are not checked.")
    elif again["ttft_ms"] * 3 > first["ttft_ms"]:
        raise ExampleError(f"{again['ttft_ms']:.1f} ms is not a third of {first['ttft_ms']:.1f} ms")
    if other["worker"] == first["worker"]:
        raise ExampleError(f"the other prompt went to {first['worker']} too")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--url", default=os.environ.get("SIGNALBOX_URL", "http://127.0.0.1:8000"))
    arguments.add_argument("--admin", default=os.environ.get("SIGNALBOX_ADMIN_URL", "http://127.0.0.1:9090"))
    given = arguments.parse_args()
    try:
        demonstrate(given.url.rstrip("/"), given.admin.rstrip("/"))
    except ExampleError as error:
        sys.exit(f"quickstart: {error}")
    print("All checks passed.")


if __name__ == "__main__":
    main()
