"""32 clients stream answers while the policy is swapped 200 times. No request fails.

The policies take turns: kv-aware, round-robin, and one that the example uploads. The exit code is 1 if a request failed, or
if an answer names another policy.
"""

import argparse
import collections
import http.client
import json
import os
import pathlib
import random
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

CLIENTS = 32
SWAPS = 200
WORDS = "signal track train lever station points driver morning freight platform whistle bridge tunnel".split()
COMPONENT = pathlib.Path(__file__).resolve().parents[2] / "policies/built/round-robin.wasm"


class ExampleError(Exception):
    """The reason why the example does not show what it promises."""


def call(url, method="GET", body=None):
    request = urllib.request.Request(url, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise ExampleError(f"{method} {url} was refused with {error.code}: {error.read().decode()}") from error
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ExampleError(f"no answer from {url} ({reason}); start a router with `runtime up --engine sim`") from error


class Clients:
    """Threads that stream one answer after another and record the result of each."""

    def __init__(self, url, model):
        self.url, self.model = urllib.parse.urlsplit(url), model
        self.stop = threading.Event()
        self.progress = threading.Condition()
        self.answers = 0
        self.by_policy = collections.Counter()
        self.failures = []
        self.threads = [threading.Thread(target=self.stream_on, args=(number,)) for number in range(CLIENTS)]

    def stream_on(self, number):
        source = random.Random(number)
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port or 80, timeout=120)
        while not self.stop.is_set():
            prompt = " ".join(source.choice(WORDS) for _ in range(40))
            try:
                policy, failure = self.stream(connection, prompt), None
            except (ExampleError, OSError, http.client.HTTPException, ValueError) as error:
                policy, failure = None, f"{type(error).__name__}: {error}"
                connection.close()
            with self.progress:
                self.answers += 1
                if failure is None:
                    self.by_policy[policy] += 1
                else:
                    self.failures.append(failure)
                self.progress.notify_all()
        connection.close()

    def stream(self, connection, prompt):
        """Reads one answer to its end; returns the policy that chose its worker."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        events = [line[6:] for line in answer.read().split(b"\n") if line.startswith(b"data: ")]
        if answer.status != 200 or not events or events[-1] != b"[DONE]":
            raise ExampleError(f"{answer.status}, ends with {events[-1:]}")
        return answer.headers["x-signalbox-policy"]

    def wait_for_an_answer(self):
        with self.progress:
            before = self.answers
            if not self.progress.wait_for(lambda: self.answers > before, timeout=120):
                raise ExampleError("no client got an answer for two minutes")


def demonstrate(url, admin):
    model = call(f"{url}/v1/models")["data"][0]["id"]
    if not COMPONENT.is_file():
        raise ExampleError(f"{COMPONENT} does not exist; `make policies` builds it")
    record = call(f"{admin}/admin/v1/policies?name=mine", "POST", COMPONENT.read_bytes())
    print(f"uploaded mine@{record['version']}, sha256 {record['digest'][:12]}…")
    active = f"{admin}/admin/v1/models/{urllib.parse.quote(model)}/policy"
    before = call(active)["active"]["policy"]

    clients = Clients(url, model)
    known, swap_times = {before}, []
    for thread in clients.threads:
        thread.start()
    try:
        for swap in range(SWAPS):
            # Each policy decides at least one request before the next swap.
            clients.wait_for_an_answer()
            name = ("round-robin", "mine", "kv-aware")[swap % 3]
            requested = time.monotonic()
            known.add(call(active, "PUT", json.dumps({"policy": name}).encode())["active"]["policy"])
            swap_times.append(time.monotonic() - requested)
        clients.wait_for_an_answer()
    finally:
        clients.stop.set()
        for thread in clients.threads:
            thread.join()
        call(active, "PUT", json.dumps({"policy": before}).encode())

    swap_times.sort()
    median = swap_times[len(swap_times) // 2] * 1000
    print(f"{SWAPS} swaps with {CLIENTS} clients on {model}; median {median:.1f} ms")
    for policy, count in sorted(clients.by_policy.items()):
        print(f"  {count:>6} answers decided by {policy}")
    print(f"{clients.answers} requests, failures = {len(clients.failures)}")
    if clients.failures:
        raise ExampleError(f"a request failed: {clients.failures[0]}")
    if unexpected := set(clients.by_policy) - known:
        raise ExampleError(f"policies decided that were not activated: {', '.join(sorted(unexpected))}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--url", default=os.environ.get("SIGNALBOX_URL", "http://127.0.0.1:8000"))
    arguments.add_argument("--admin", default=os.environ.get("SIGNALBOX_ADMIN_URL", "http://127.0.0.1:9090"))
    given = arguments.parse_args()
    try:
        demonstrate(given.url.rstrip("/"), given.admin.rstrip("/"))
    except ExampleError as error:
        sys.exit(f"hot-swap: {error}")


if __name__ == "__main__":
    main()
