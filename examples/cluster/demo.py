#!/usr/bin/env python3
"""A cluster on this machine: NATS, etcd, two routers, and three workers with simulated GPUs.

Starts everything on free ports with temporary folders, sends prompts through both routers, and shows three things: every
message on NATS while requests flow (KV events, what routers have in flight, no byte of a request), the keys in etcd, and both
routers' views of the workers. The exit code is not 0 if a prompt served through one router is not recognised by the other.
Needs only Python's standard library.
"""

import argparse
import base64
import collections
import contextlib
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECRET = "the points are set for the morning freight"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def binary():
    named = os.environ.get("SIGNALBOX_BINARY")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    for path in [named] if named else [target / "release/runtime", target / "debug/runtime"]:
        if pathlib.Path(path).is_file():
            return str(path)
    sys.exit("the binary is not built: run `make build`, or name it in SIGNALBOX_BINARY")


def call(url, body=None):
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers, json.load(answer)


def wait_for(what, ask, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, KeyError, IndexError):
            found = ask()
            if found:
                return found
        time.sleep(0.01)
    sys.exit(f"not within {seconds} s: {what}")


class Listener(threading.Thread):
    """Subscribes to all subjects, like `nats sub '>'`, in NATS' text protocol."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.reader = self.socket.makefile("rb")
        self.reader.readline()
        self.socket.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nSUB > 1\r\nPING\r\n')
        self.messages = []

    def run(self):
        with contextlib.suppress(OSError, ValueError):
            while line := self.reader.readline():
                words = line.split()
                if words[0] in (b"MSG", b"HMSG"):
                    payload = self.reader.read(int(words[-1]) + 2)[:-2]
                    self.messages.append((words[1].decode(), payload))
                elif words[0] == b"PING":
                    self.socket.sendall(b"PONG\r\n")


def described(subject, payload):
    """Describes a message in one line; runtime/event-plane/README.md has the layout of KV events."""
    if ".kv_events." in subject and len(payload) >= 22 and payload[0] == 1:
        epoch, sequence, events = struct.unpack_from("<QQI", payload, 2)
        return f"{len(payload):5} bytes  batch {sequence} of epoch {epoch}: {events} events"
    if ".sync." in subject:
        return f"{len(payload):5} bytes  {payload.decode()[:110]}"
    return f"{len(payload):5} bytes"


class Cluster:
    def __init__(self, folder):
        self.folder, self.processes = pathlib.Path(folder), []
        self.nats, self.etcd = free_port(), free_port()
        self.start("nats-server", "--addr=127.0.0.1", f"--port={self.nats}", "--jetstream", f"--store_dir={folder}/nats")
        peer = free_port()
        urls = f"http://127.0.0.1:{self.etcd}"
        self.start(
            "etcd", f"--data-dir={folder}/etcd", f"--listen-client-urls={urls}", f"--advertise-client-urls={urls}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        )
        self.planes = [f"--events=nats://127.0.0.1:{self.nats}", f"--discovery=etcd://127.0.0.1:{self.etcd}"]

    def start(self, *command):
        name = pathlib.Path(command[0]).name + str(len(self.processes))
        with open(self.folder / f"{name}.log", "wb") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    def router(self, name):
        http, admin = free_port(), free_port()
        self.start(
            binary(), "serve", *self.planes, f"--router-id={name}", f"--http=127.0.0.1:{http}",
            f"--admin=127.0.0.1:{admin}", "--policy=replica-synced",
        )
        return f"http://127.0.0.1:{http}", f"http://127.0.0.1:{admin}"

    def worker(self, name):
        self.start(
            binary(), "worker", "--engine=sim", "--speedup=5", *self.planes, f"--id={name}", "--listen=127.0.0.1:0"
        )

    def etcd_keys(self):
        everything = {"key": base64.b64encode(b"/signalbox/").decode(), "range_end": base64.b64encode(b"/signalbox0").decode()}
        _, answer = call(f"http://127.0.0.1:{self.etcd}/v3/kv/range", everything)
        return [(base64.b64decode(kv["key"]).decode(), base64.b64decode(kv["value"]).decode()) for kv in answer["kvs"]]

    def stop(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()


def show(cluster):
    listener = wait_for("NATS takes connections", lambda: Listener(cluster.nats))
    listener.start()
    for number in range(3):
        cluster.worker(f"worker-{number}")
    routers = [cluster.router("router-a"), cluster.router("router-b")]

    def workers(admin):
        return call(f"{admin}/admin/v1/workers")[1]["workers"]

    def is_ready(worker):
        return worker["state"] == "ready" and worker["kv_events"] == "following"

    for _, admin in routers:
        wait_for("both routers have three workers", lambda: sum(map(is_ready, workers(admin))) == 3)
    print(f"NATS at {cluster.nats}, etcd at {cluster.etcd}, routers at {', '.join(http for http, _ in routers)}\n")

    model = call(f"{routers[0][0]}/v1/models")[1]["data"][0]["id"]
    listener.messages.clear()
    (first_router, _), (second_router, second_admin) = routers
    prompt = " ".join(f"{SECRET} number {number}," for number in range(40))
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8}
    print("a prompt of about 400 words, through router-a and then through router-b:")
    headers, answer = call(f"{first_router}/v1/chat/completions", body)
    worker = headers["x-signalbox-worker"]
    print(f"  router-a  {worker}  {answer['usage']['prompt_tokens']} tokens, overlap {headers['x-signalbox-overlap-blocks']} blocks")

    def is_in_sync(view):
        return view["index_blocks"] > 0 and view["other_routers"]["requests"] == 0

    ended = time.monotonic()
    wait_for(
        "router-b has the prompt in its index, and the end of its request",
        lambda: is_in_sync(next(w for w in workers(second_admin) if w["card"]["id"] == worker)),
    )
    print(f"  router-b received both within {1000 * (time.monotonic() - ended):.0f} ms")
    headers, answer = call(f"{second_router}/v1/chat/completions", body)
    print(f"  router-b  {headers['x-signalbox-worker']}  {answer['usage']['prompt_tokens']} tokens, overlap {headers['x-signalbox-overlap-blocks']} blocks")
    recognised = headers["x-signalbox-worker"] == worker and int(headers["x-signalbox-overlap-blocks"]) > 0
    time.sleep(1.2)  # each router sends a digest once a second

    messages = list(listener.messages)
    print(f"\nmessages on NATS meanwhile: {len(messages)}, by subject:")
    for subject, count in sorted(collections.Counter(subject for subject, _ in messages).items()):
        sizes = [len(payload) for of, payload in messages if of == subject]
        if subject.startswith("signalbox."):
            print(f"  {count:4} x {subject}, {sum(sizes)} bytes")
    others = sum(1 for subject, _ in messages if not subject.startswith("signalbox."))
    print(f"  {others:4} x of NATS itself (acknowledgements, deliveries, heartbeats)")
    print("the first messages:")
    for subject, payload in [message for message in messages if message[0].startswith("signalbox.")][:8]:
        print(f"  {subject:42} {described(subject, payload)}")
    leaked = sum(SECRET.encode() in payload for _, payload in messages)
    print(f"messages with a byte of the request in them: {leaked}")

    print("\nthe keys in etcd:")
    for key, value in cluster.etcd_keys():
        print(f"  {key}\n      {value[:140]}…")

    print("\nthe view of each router:")
    for name, (_, admin) in zip(["router-a", "router-b"], routers):
        index = call(f"{admin}/admin/v1/index")[1]["workers"]
        view = [f"{w['card']['id']}: {w['index_blocks']} blocks, digest {index[w['card']['id']]['digest']}" for w in workers(admin)]
        print(f"  {name}  " + "\n            ".join(view))
    if not recognised or leaked:
        sys.exit("router-b did not recognise the prompt" if not recognised else "a request crossed NATS")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave everything running until Enter is pressed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signalbox-cluster-") as folder:
        cluster = Cluster(folder)
        try:
            show(cluster)
            if arguments.keep:
                input("\nEnter stops everything. ")
        except SystemExit:
            for log in sorted(cluster.folder.glob("runtime*.log")):
                print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
            raise
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
