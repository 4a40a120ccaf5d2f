#!/usr/bin/env python3
"""Compares the answers of two servers, request by request: a vLLM, and Signalbox in front of it or with its own engine.

    compare.py record http://VLLM answers.json          # asks, and keeps the answers
    compare.py same   http://VLLM|answers.json http://SIGNALBOX
    compare.py like   http://VLLM|answers.json http://SIGNALBOX

`same` is for `runtime up --upstream`: status, media type and every member of an answer are equal, but for ids, dates, counts of
cached tokens and texts (whose sampling depends on what else an engine computes). `like` is for an engine of this repository:
status and media type are equal, and the members have the same names and types. Either prints the differences that
`compare_accepted.py` does not list, with the first request that has them, and exits with 1 if there is one.
`compare_requests.py` has the requests.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import pathlib
import sys
import urllib.parse
import urllib.request
from typing import NamedTuple

from compare_accepted import accepted
from compare_requests import all_requests

# The names of members whose values differ from answer to answer.
CHANGING = {
    "id", "created", "cached_tokens", "created_cache_tokens", "system_fingerprint", "root", "timestamp", "arguments",
}  # fmt: skip
# The names of members that are the model's: they follow from how an engine rounds.
TEXTS = {
    "content", "text", "token", "bytes", "logprob", "token_logprobs", "tokens", "top_logprobs", "token_ids", "text_offset",
    "finish_reason", "stop_reason", "completion_tokens", "total_tokens", "name",
}  # fmt: skip
ANSWER_SECONDS = 120


class Answer(NamedTuple):
    status: int
    media: str
    body: str


def ask(base, model, request):
    """The server's answer to the request."""
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=ANSWER_SECONDS)
    try:
        path, body = request.path.replace("MODEL", model), request.body.replace(b"MODEL", model.encode())
        connection.putrequest(request.method, path, skip_accept_encoding=True)
        if body or request.method == "POST":
            connection.putheader("content-length", str(len(body)))
        for name, value in request.headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace").replace(json.dumps(model), '"MODEL"')
        media = (answer.getheader("content-type") or "").partition(";")[0]
        return Answer(answer.status, media, text)
    except TimeoutError:
        return Answer(0, "", f"no answer within {ANSWER_SECONDS} s")
    finally:
        connection.close()


def answers(source):
    """The answers of a server, or those that a file has, by kind."""
    if not source.startswith("http"):
        kinds = json.loads(pathlib.Path(source).read_text())
        return {kind: [Answer(*answer) for answer in each] for kind, each in kinds.items()}
    with urllib.request.urlopen(f"{source}/v1/models", timeout=30) as listed:
        model = json.load(listed)["data"][0]["id"]
    found = {}
    # Two at a time, so that an engine on two cores answers within its time.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for kind, requests in all_requests().items():
            found[kind] = list(pool.map(lambda request: ask(source, model, request), requests))
            print(f"{source}: {len(requests)} of the kind {kind}", file=sys.stderr)
    return found


def document(answer):
    """What an answer has: a JSON value, or the events of a stream, or a text."""
    if answer.media == "text/event-stream":
        events = [line.removeprefix("data: ") for line in answer.body.split("\n") if line.startswith("data: ")]
        return [json.loads(event) if event.startswith("{") else event for event in events]
    try:
        return json.loads(answer.body)
    except ValueError:
        return answer.body


def kind_of(value):
    if isinstance(value, bool):
        return "bool"
    names = {type(None): "null", str: "str", int: "number", float: "number", list: "list", dict: "object"}
    return names[type(value)]


def differences(expected, found, path, mode):
    """How `found` differs from `expected`; both are JSON values at `path`. Tokens are compared `exact`."""
    if kind_of(expected) != kind_of(found):
        yield f"type {path}: {kind_of(expected)} -> {kind_of(found)}"
    elif isinstance(expected, dict) and path.endswith("top_logprobs[]") and "token" not in expected:
        return  # Of completions: its names are texts.
    elif isinstance(expected, dict):
        for name in expected.keys() | found.keys():
            place = f"{path}.{name}"
            if name not in found:
                yield f"absent {place}: {kind_of(expected[name])}"
            elif name not in expected:
                yield f"added {place}: {kind_of(found[name])}"
            else:
                yield from differences(expected[name], found[name], place, mode)
        if mode == "same" and expected.keys() == found.keys() and list(expected) != list(found):
            yield f"order {path}"
    elif isinstance(expected, list):
        if path.endswith("top_logprobs"):
            expected, found = expected[:1], found[:1]
        name = path.rpartition(".")[2].rstrip("[]")
        if len(expected) != len(found) and (mode == "exact" or name not in TEXTS):
            yield f"length {path}"
        yield from dict.fromkeys(
            difference
            for one, other in zip(expected, found)
            for difference in differences(one, other, f"{path}[]", mode)
        )
    elif mode != "like" and expected != found:
        name = path.rpartition(".")[2].rstrip("[]")
        if mode == "exact" or name not in CHANGING | TEXTS:
            yield f"value {path}: {expected!r} -> {found!r}"[:200]


def sorted_events(events):
    """The first event of each sort that a stream has: how many there are depends on time and text."""
    first = {}
    for event in events:
        if not isinstance(event, dict):
            sort = str(event)
        elif not event.get("choices"):
            sort = "usage" if event.get("usage") else "error"
        else:
            (choice, *_) = event["choices"]
            ends = "the end" if choice.get("finish_reason") else "a token"
            sort = "the role" if "role" in choice.get("delta", {}) else f"{ends} of choice {choice['index']}"
        first.setdefault(sort, event)
    return first


def compared(expected, found, mode):
    """The differences of two answers."""
    if (expected.status, expected.media) != (found.status, found.media):
        return [f"status {expected.status} {expected.media} -> {found.status} {found.media}"]
    one, other = document(expected), document(found)
    if expected.media != "text/event-stream":
        return list(differences(one, other, "$", mode))
    one, other = sorted_events(one), sorted_events(other)
    found = [f"absent event: {sort}" for sort in one if sort not in other]
    found += [f"added event: {sort}" for sort in other if sort not in one]
    for sort in one.keys() & other.keys():
        found += differences(one[sort], other[sort], "$", mode)
    return list(dict.fromkeys(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["record", "same", "like"])
    parser.add_argument("reference")
    parser.add_argument("other")
    options = parser.parse_args()
    reference = answers(options.reference)
    if options.mode == "record":
        pathlib.Path(options.other).write_text(json.dumps(reference, ensure_ascii=False))
        return
    other = answers(options.other)
    failed, reasons = False, collections.Counter()
    for kind, requests in all_requests().items():
        equal, known, wrong = 0, 0, {}
        for request, expected, found in zip(requests, reference[kind], other[kind], strict=True):
            mode = "exact" if kind == "tokenize" else options.mode
            all_found = compared(expected, found, mode)
            why = [accepted(options.mode, request, difference) for difference in all_found]
            reasons.update({reason for reason in why if reason})
            open_ones = [difference for difference, reason in zip(all_found, why) if not reason]
            equal, known = equal + (not all_found), known + bool(all_found and not open_ones)
            for difference in open_ones:
                wrong.setdefault(difference, []).append((request, expected, found))
        print(f"{kind}: {len(requests)} requests, {equal} equal, {known} with accepted differences only")
        for difference, all_of in wrong.items():
            request, expected, found = all_of[0]
            print(f"  {difference}\n    {len(all_of)} times, as {request.name[:120]}")
            print(f"    {expected.status} {expected.body[:200]!r}\n    {found.status} {found.body[:200]!r}")
            failed = True
    for reason, count in reasons.most_common():
        print(f"accepted, {count} requests: {reason}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
