"""A long prompt, twice, and another one: where each goes, how much of it was cached, how soon it starts.

Run it against `runtime up` with two workers or more. It exits with 1 when the second time is not on the same worker,
not at least nine tenths cached or, with a real model, not three times sooner, or when the other prompt does not go to
another worker.
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
# At least as many tokens: 600 are asked for, and real prompts are longer still.
PROMPT_WORDS = 700
# How long the router may take to hear of the worker's new KV blocks. It is milliseconds.
NEWS_SECONDS = 5


class Trouble(Exception):
    """What keeps the demonstration from being one, in a sentence."""


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise Trouble(f"nothing answers at {url} ({reason}); start it with `make run` or `runtime up`") from error


def long_prompt(seed):
    """Words nobody sent before, so that nothing of them can be cached yet."""
    source = random.Random(seed)
    return "Continue this story: " + " ".join(source.choice(WORDS) for _ in range(PROMPT_WORDS))


def chat(url, model, prompt):
    """Streams an answer; tells its headers, its token counts and when its first token came."""
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
    # Connecting is not what is measured.
    connection.connect()
    sent = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise Trouble(f"the request was refused with {answer.status}: {answer.read().decode()}")
    first, usage = None, None
    for line in answer:
        if not line.startswith(b"data: "):
            continue
        first = first or time.monotonic()
        if line.strip() == b"data: [DONE]":
            break
        event = json.loads(line[len(b"data: "):])
        if "error" in event:
            raise Trouble(f"the answer broke off: {event['error']['message']}")
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


def tell(name, seen):
    print(
        f"{name:<18} {seen['worker']:<12} {seen['cached']:>5} of {seen['prompt']} tokens cached   "
        f"first token after {seen['ttft_ms']:7.1f} ms   ({seen['policy']}, {seen['overlap']} blocks known)"
    )


def wait_for_news(admin, worker, blocks):
    """The router learns of KV blocks from the worker's events, a moment after the answer."""
    end = time.monotonic() + NEWS_SECONDS
    while time.monotonic() < end:
        index = get(f"{admin}/admin/v1/index")
        if index["workers"].get(worker, {}).get("blocks", 0) >= blocks:
            return
        time.sleep(0.01)


def demonstrate(url, admin):
    health = get(f"{url}/health")
    workers = [instance for instance in health["instances"] if instance["state"] == "ready"]
    if len(workers) < 2:
        raise Trouble(f"{len(workers)} worker is ready and two are needed; start with --workers 2, or wait a moment")
    model = get(f"{url}/v1/models")["data"][0]["id"]
    block_size = get(f"{admin}/admin/v1/workers")["workers"][0]["card"]["block_size"]
    print(f"{model} on {len(workers)} workers at {url}\n")

    # Not one of the measured requests: the first request of a process pays for what later ones find ready.
    for _ in workers:
        chat(url, model, "Hello!")

    seed = time.time_ns()
    first = chat(url, model, long_prompt(seed))
    tell("a long prompt", first)
    wait_for_news(admin, first["worker"], first["prompt"] // block_size)
    again = chat(url, model, long_prompt(seed))
    tell("the same again", again)
    other = chat(url, model, long_prompt(seed + 1))
    tell("another long one", other)

    print(f"\nThe first token came {first['ttft_ms'] / again['ttft_ms']:.1f} times sooner the second time.")
    if first["prompt"] < 600:
        raise Trouble(f"the prompt has {first['prompt']} tokens; 600 were to be shown")
    if again["worker"] != first["worker"]:
        raise Trouble(f"the second time went to {again['worker']}, not to {first['worker']} which has the prompt")
    if again["cached"] < 0.9 * again["prompt"]:
        raise Trouble(f"only {again['cached']} of {again['prompt']} tokens were cached the second time")
    if workers[0]["engine"] == "sim":
        print("Simulated GPUs take 16.5 ms for any prefill however short, so how much sooner is not judged.")
    elif again["ttft_ms"] * 3 > first["ttft_ms"]:
        raise Trouble(f"{again['ttft_ms']:.1f} ms is not a third of {first['ttft_ms']:.1f} ms")
    if other["worker"] == first["worker"]:
        raise Trouble(f"the other prompt went to {first['worker']} too")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--url", default=os.environ.get("SIGNALBOX_URL", "http://127.0.0.1:8000"))
    arguments.add_argument("--admin", default=os.environ.get("SIGNALBOX_ADMIN_URL", "http://127.0.0.1:9090"))
    given = arguments.parse_args()
    try:
        demonstrate(given.url.rstrip("/"), given.admin.rstrip("/"))
    except Trouble as trouble:
        sys.exit(f"quickstart: {trouble}")
    print("As promised.")


if __name__ == "__main__":
    main()
