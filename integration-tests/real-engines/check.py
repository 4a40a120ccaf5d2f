"""check.py DIR RUNTIME: starts two vLLM engines and `runtime up` in front of them, and checks what Signalbox promises.

Prints each check and what was measured. The exit code is 1 if a check fails, with the reason; the logs stay in DIR/logs.
"""

import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request

import msgspec
import xxhash
import zmq

MODEL = "smollm2"
FOLDER = "SmolLM2-135M-Instruct"
# vLLM's CPU build takes multiples of 32 only.
BLOCK = 32
WORDS = (
    "signal track train lever station points driver morning freight platform whistle bridge tunnel junction under over "
    "through between slowly quietly passes waits leaves arrives carries follows red green yellow narrow long early late"
).split()
# Starting takes two minutes on two cores, and twice as long for two engines at once.
START_S = 600
# A prompt of 1,500 tokens takes seconds on one core.
ANSWER_S = 600
INDEX_S = 20


class CheckFailed(Exception):
    """A promise that does not hold."""


def check(holds, message):
    if not holds:
        raise CheckFailed(message)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(seconds, message, poll):
    """Polls until it returns something true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := poll():
            return found
        time.sleep(0.2)
    raise CheckFailed(f"not within {seconds} s: {message}")


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


class Process:
    """A child with its log, ended with everything it started."""

    def __init__(self, arguments, log, environment=None):
        self.log = log
        self.child = subprocess.Popen(
            arguments,
            stdout=open(log, "ab"),
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )

    def check_runs(self):
        check(self.child.poll() is None, f"{self.child.args[0]} has ended; see {self.log}")

    def kill(self):
        # The engine's other processes are in its session too, and may outlive it.
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()


class Engine:
    """A vLLM on this machine's CPU, with the flags that examples/vllm recommends."""

    def __init__(self, root, name):
        self.root, self.name = root, name
        self.port, self.events, self.replay = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # How a worker of `runtime up` is named after its upstream.
        self.worker = f"127-0-0-1-{self.port}"
        self.process = None

    def start(self):
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "topic": "kv-events",
            # Only an endpoint with a star is bound.
            "endpoint": f"tcp://*:{self.events}",
            "replay_endpoint": f"tcp://*:{self.replay}",
        }
        self.process = Process(
            [
                f"{self.root}/venv/bin/vllm", "serve", f"{self.root}/{FOLDER}",
                "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self.port),
                "--dtype", "bfloat16", "--max-model-len", "4096", "--max-num-seqs", "8", "--enforce-eager",
                "--block-size", str(BLOCK), "--enable-prompt-tokens-details",
                "--kv-events-config", json.dumps(events),
            ],
            self.root / "logs" / f"{self.name}.log",
            {
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": "1",
            },
        )

    def wait(self):
        def healthy():
            self.process.check_runs()
            try:
                return urllib.request.urlopen(f"{self.url}/health", timeout=2).status == 200
            except OSError:
                return False

        eventually(START_S, f"{self.name} is healthy", healthy)

    def replayed(self):
        """The batches of events that the engine still has, as (number, events)."""
        dealer = zmq.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, 10_000)
        dealer.connect(f"tcp://127.0.0.1:{self.replay}")
        dealer.send_multipart([b"", struct.pack(">q", 0)])
        batches = []
        try:
            while True:
                *_, number, payload = dealer.recv_multipart()
                number = struct.unpack(">q", number)[0]
                if number < 0:
                    return batches
                batches.append((number, msgspec.msgpack.decode(payload)[1]))
        finally:
            dealer.close()

    def digest(self):
        """Blocks and digest that a router's index should hold: worked out from the replay, with Signalbox's hashes.

        The hash of a block is in runtime/protocol/src/block.rs, the digest of a set in runtime/kv-index/src/index.rs.
        """
        ours, held = {None: xxhash.xxh3_64_intdigest(f"signalbox.block.v1\0{MODEL}\0\0".encode())}, set()
        batches = self.replayed()
        check(not batches or batches[0][0] == 0, f"{self.name} no longer replays its first events")
        for _, events in batches:
            for event in events:
                if event["type"] == "AllBlocksCleared":
                    held.clear()
                elif event["type"] == "BlockRemoved":
                    held.difference_update(event["block_hashes"])
                else:
                    parent, size = ours[event["parent_block_hash"]], event["block_size"]
                    check(size == BLOCK, f"{self.name} has blocks of {size} tokens")
                    for at, engine_hash in enumerate(event["block_hashes"]):
                        tokens = event["token_ids"][at * size : (at + 1) * size]
                        parent = xxhash.xxh3_64_intdigest(struct.pack(f"<{size}I", *tokens), seed=parent)
                        ours[engine_hash] = parent
                        held.add(engine_hash)
        digest = sum(mixed(ours[engine_hash]) for engine_hash in held) % 2**64
        return len(held), f"{digest:016x}"


def mixed(block):
    """The part of one block on a worker's device in a digest."""
    bits = (block + 0x9E3779B97F4A7C15) % 2**64
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
    return bits ^ (bits >> 31)


class Router:
    """`runtime up` in front of engines."""

    def __init__(self, runtime, engines, log):
        self.runtime = runtime
        self.http, self.admin = free_port(), free_port()
        self.url, self.admin_url = f"http://127.0.0.1:{self.http}", f"http://127.0.0.1:{self.admin}"
        upstreams = [argument for engine in engines for argument in ("--upstream", engine.url)]
        self.process = Process(
            [runtime, "--log", "info", "up", "--http", f"127.0.0.1:{self.http}",
             "--admin", f"127.0.0.1:{self.admin}", *upstreams],
            log,
        )
        self.wait_for(len(engines))

    def wait_for(self, workers):
        def ready():
            self.process.check_runs()
            try:
                known = self.workers()
            except OSError:
                return False
            return sum(worker["state"] == "ready" for worker in known) == workers

        eventually(120, f"the router has {workers} workers", ready)

    def workers(self):
        return get(f"{self.admin_url}/admin/v1/workers")["workers"]

    def indexed(self, worker):
        held = get(f"{self.admin_url}/admin/v1/index")["workers"].get(worker, {})
        return held.get("blocks", 0), held.get("digest", "0" * 16)

    def metric(self, name):
        """The sum of a metric's series."""
        with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(\{{|\s)", line))

    def post(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=ANSWER_S)
        started = time.monotonic()
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        took = time.monotonic() - started
        check(answer.status == 200, f"{path}: {answer.status} {text[:300]!r}")
        headers = dict(answer.getheaders())
        connection.close()
        return (text if body.get("stream") else json.loads(text)), headers, took


class Stream:
    """A streamed chat that is read to its end by a thread of its own."""

    def __init__(self, router, body):
        self.router, self.body = router, {**body, "stream": True, "stream_options": {"include_usage": True}}
        self.text, self.ids, self.finish, self.usage, self.done = "", set(), None, None, False
        self.started = threading.Event()

    def read(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.router.http, timeout=ANSWER_S)
        connection.request("POST", "/v1/chat/completions", json.dumps(self.body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise CheckFailed(f"a stream: {answer.status} {answer.read()[:300]!r}")
        while line := answer.readline():
            if not line.startswith(b"data: "):
                continue
            data = line[len(b"data: "):].strip()
            if data == b"[DONE]":
                self.done = True
                continue
            self.take(json.loads(data))
        connection.close()

    def take(self, chunk):
        check("error" not in chunk, f"a stream failed: {chunk}")
        self.ids.add(chunk["id"])
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            self.text += choice["delta"].get("content") or ""
            self.finish = choice["finish_reason"] or self.finish
        if len(self.text) > 40:
            self.started.set()

    def check_whole(self):
        """One answer, with one id, every token counted, an end, and no end twice."""
        check(self.done and self.finish is not None, f"a stream has no end: {self.text!r}")
        check(len(self.ids) == 1, f"a stream has the ids {self.ids}")
        check(self.usage is not None, "a stream has no usage")
        if self.finish == "length":
            check(self.usage["completion_tokens"] == self.body["max_tokens"], f"a stream counts {self.usage}")


def read_all(streams, meanwhile=lambda: None):
    with concurrent.futures.ThreadPoolExecutor(len(streams)) as pool:
        reads = [pool.submit(stream.read) for stream in streams]
        meanwhile()
        for read in reads:
            read.result()
    for stream in streams:
        stream.check_whole()


def text(seed, words):
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) for _ in range(words))


def chat(seed, words, **more):
    messages = [
        {"role": "system", "content": "You continue stories."},
        {"role": "user", "content": f"Story {seed}: {text(seed, words)}"},
    ]
    return {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0, **more}


def doctor(router, engines, expected):
    """Runs `runtime doctor`, prints its page, and checks its exit code."""
    upstreams = [argument for engine in engines for argument in ("--upstream", engine.url)]
    done = subprocess.run([router.runtime, "doctor", *upstreams], capture_output=True, text=True, timeout=ANSWER_S)
    print(done.stdout, end="")
    check(done.returncode == expected, f"doctor ended with {done.returncode}, not {expected}: {done.stderr}")


def same_prompt_twice(router):
    body = chat(1, 1000)
    first, headers, cold = router.post("/v1/chat/completions", body)
    worker, prompt = headers["x-signalbox-worker"], first["usage"]["prompt_tokens"]

    def again():
        answer, headers, warm = router.post("/v1/chat/completions", body)
        return headers["x-signalbox-overlap-blocks"] != "0" and (answer, headers, warm)

    again, headers, warm = eventually(INDEX_S, "the prompt is in the index", again)
    check(headers["x-signalbox-worker"] == worker, "the repeated prompt went to the other engine")
    check(headers.get("x-signalbox-kv") == "exact", f"x-signalbox-kv: {headers.get('x-signalbox-kv')}")
    cached, whole = again["usage"]["prompt_tokens_details"]["cached_tokens"], prompt // BLOCK * BLOCK
    check(cached >= 0.8 * whole, f"{cached} of {whole} tokens in whole blocks were cached")
    print(f"the same {prompt} tokens twice: same engine, {cached} of {whole} cached; {cold:.2f} s, then {warm:.2f} s")


def five_prompts_are_spread(router):
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda seed: router.post("/v1/chat/completions", chat(seed, 400)), range(10, 15)))
    workers = [headers["x-signalbox-worker"] for _, headers, _ in answers]
    check(len(set(workers)) == 2, f"five prompts at once went to {set(workers)}")
    print("five long prompts at once:", ", ".join(f"{workers.count(name)} to {name}" for name in sorted(set(workers))))


def mixed_requests(router, count):
    """Chats and completions, streamed and not, many with a common beginning."""

    def one(number):
        source = random.Random(1000 + number)
        words = source.choice([5, 30, 60, 120])
        more = {"stream": source.random() < 0.5}
        if source.random() < 0.5:
            body = chat(source.randrange(40), words, **more)
            return router.post("/v1/chat/completions", body)[1]
        prompt = text(source.randrange(40), words)
        body = {"model": MODEL, "prompt": prompt, "max_tokens": source.randrange(1, 40), "temperature": 0, **more}
        return router.post("/v1/completions", body)[1]

    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(one, range(count)))
    states = {header.get("x-signalbox-kv") for header in headers}
    print(f"{count} mixed requests in {time.monotonic() - started:.0f} s; x-signalbox-kv: {', '.join(map(str, states))}")


def index_equals_replay(router, engines):
    for engine in engines:
        def equal():
            expected, found = engine.digest(), router.indexed(engine.worker)
            return expected == found and expected

        blocks, digest = eventually(INDEX_S, f"the index holds what {engine.name} replays", equal)
        print(f"{engine.name}: the index equals the replay: {blocks} blocks, digest {digest}")


def kill_under_streams(router, victim):
    """Kills an engine once all its clients have read a part of their answers: the other engine continues them."""
    bodies = [chat(200 + number, 60, max_tokens=120) for number in range(8)]
    undisturbed, disturbed = ([Stream(router, body) for body in bodies] for _ in range(2))
    read_all(undisturbed)

    def kill():
        for stream in disturbed:
            check(stream.started.wait(ANSWER_S), "a stream does not begin")
        victim.process.kill()

    read_all(disturbed, kill)
    continued = router.metric("signalbox_requests_continued_total")
    check(continued > 0, "no stream was continued by the other engine")
    equal = sum(before.text == after.text for before, after in zip(undisturbed, disturbed))
    print(
        f"{victim.name} killed under {len(bodies)} streams: {continued:.0f} continued, all whole, "
        f"{equal} equal to the undisturbed answer"
    )


def kill_and_restart(router, engines):
    victim = engines[0]
    kill_under_streams(router, victim)
    eventually(60, "the killed engine's blocks are gone", lambda: router.indexed(victim.worker)[0] == 0)
    print(f"{victim.name}: its blocks are gone from the index")
    doctor(router, [victim], 2)
    router.post("/v1/chat/completions", chat(77, 50))
    victim.start()
    victim.wait()
    router.wait_for(len(engines))

    def back():
        for seed in range(5):
            router.post("/v1/chat/completions", chat(random.random() + seed, 200))
        return router.indexed(victim.worker)[0] > 0

    eventually(300, "the restarted engine is in use, and its blocks are in the index", back)
    print(f"{victim.name} started again: it is used, and its blocks are in the index")
    index_equals_replay(router, engines)


def main(root, runtime):
    (root / "logs").mkdir(exist_ok=True)
    engines = [Engine(root, "engine-0"), Engine(root, "engine-1")]
    processes = []
    try:
        for engine in engines:
            engine.start()
        started = time.monotonic()
        for engine in engines:
            engine.wait()
        print(f"two vLLM engines are up after {time.monotonic() - started:.0f} s: {engines[0].url} {engines[1].url}")
        router = Router(runtime, engines, root / "logs" / "runtime.log")
        processes.append(router.process)
        doctor(router, engines, 0)
        same_prompt_twice(router)
        five_prompts_are_spread(router)
        mixed_requests(router, 200)
        index_equals_replay(router, engines)
        kill_and_restart(router, engines)
        doctor(router, engines, 0)
        print("all checks passed")
    finally:
        for process in processes + [engine.process for engine in engines if engine.process]:
            process.kill()


if __name__ == "__main__":
    try:
        main(pathlib.Path(sys.argv[1]), sys.argv[2])
    except CheckFailed as failure:
        sys.exit(f"failed: {failure}")
