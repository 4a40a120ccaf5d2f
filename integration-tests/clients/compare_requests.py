"""The requests that `compare.py` sends: 100 of every kind, the same in every run."""

import json
import random
from typing import NamedTuple

# The context of the engine that the answers are recorded from, in tokens.
CONTEXT = 4096

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up a word",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"word":"x"}'}}


class Request(NamedTuple):
    """A request; `MODEL` in its path or body stands for the served model."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: tuple = ()


def user(text):
    return {"role": "user", "content": text}


CONVERSATIONS = [
    [user("Why is the sky blue?")],
    [{"role": "system", "content": "Be brief."}, user("Hello")],
    [{"role": "developer", "content": "Be brief."}, user("Hello")],
    [user([{"type": "text", "text": "Count to"}, {"type": "text", "text": "three"}])],
    [user("Hi"), {"role": "assistant", "content": "Hello!"}, user("Who are you?")],
    [user("Hi"), {"role": "assistant", "content": None, "refusal": "No."}, user("Why?")],
    [user("x?"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1", "content": "y"}],
    [{"role": "user", "name": "ann", "content": "Größe? 日本語 🙂"}],
    [user("")],
]

# Members that may go together, of chats and completions, and of one of them.
COMMON = [
    {"n": 2, "temperature": 0.8, "seed": 4}, {"n": 3, "temperature": 0.7, "seed": 3}, {"stop": "a"}, {"stop": ["\n", "e"]}, {"stop": []}, {"seed": 7},
    {"seed": -1}, {"temperature": 0.5, "top_p": 0.5, "seed": 1}, {"temperature": 2, "top_k": 5, "seed": 1},
    {"presence_penalty": 1, "frequency_penalty": -0.5}, {"logit_bias": {"5": 10}}, {"logit_bias": {}}, {"user": "ann"},
    {"min_tokens": 2}, {"ignore_eos": True}, {"top_k": -1}, {"top_k": 0}, {"temperature": 0.9, "min_p": 0.1, "seed": 2},
    {"repetition_penalty": 1.2}, {"stop_token_ids": [2]}, {"bad_words": ["the"]}, {"return_token_ids": True},
    {"cache_salt": "tenant"}, {"metadata": {"a": "b"}}, {"store": False}, {"service_tier": "auto"}, {"request_id": "mine"},
    {"max_tokens": None, "max_completion_tokens": 3}, {"stop": None, "seed": None}, {"unknown_member": 1}, {"skip_special_tokens": True},
    {"include_stop_str_in_output": False}, {"length_penalty": 1.0}, {"priority": 0},
]  # fmt: skip
CONSTRAINTS = [
    {"response_format": {"type": "text"}}, {"response_format": {"type": "json_object"}, "max_tokens": 20},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}, "max_tokens": 20},
    {"structured_outputs": {"choice": ["yes", "no"]}}, {"structured_outputs": {"regex": "[0-9]{3}"}},
    {"structured_outputs": {"json": SCHEMA}, "max_tokens": 20},
]  # fmt: skip
CHAT = COMMON + CONSTRAINTS + [
    {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}, {"logprobs": False}, {"max_completion_tokens": 2},
    {"add_generation_prompt": False}, {"chat_template_kwargs": {"a": 1}}, {"add_special_tokens": True},
    {"tools": [TOOL], "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": "required", "max_tokens": 40},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}, "max_tokens": 40},
    {"parallel_tool_calls": False}, {"tools": []}, {"modalities": ["text"]}, 
    {"n": 2, "logprobs": True, "top_logprobs": 1, "temperature": 1},
    {"messages": [user("Say"), {"role": "assistant", "content": "One, two,"}], "continue_final_message": True,
     "add_generation_prompt": False},
]  # fmt: skip
COMPLETION = COMMON + CONSTRAINTS + [
    {"logprobs": 0}, {"logprobs": 3}, {"echo": True}, {"echo": True, "logprobs": 1}, {"prompt": [1, 2, 3]},
    {"prompt": ["One", "Two"]}, {"prompt": [[1, 2], [3, 4, 5]], "n": 2, "temperature": 1}, {"echo": True, "logprobs": 1, "max_tokens": 0},
    {"prompt": ["One", "Two"], "echo": True, "logprobs": 2}, {"add_special_tokens": False}, {"best_of": 1}, {"suffix": None},
    {"n": 2, "logprobs": 1, "temperature": 1}, {"prompt": "x", "max_tokens": 1}, {"prompt": "日本語 🙂"},
]  # fmt: skip
STREAM = [
    {}, {"stream_options": {"include_usage": True}}, {"stream_options": {"include_usage": False}}, {"stream_options": None},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
]  # fmt: skip

# Bodies that a route refuses: what is changed in a right one.
WRONG_COMMON = [
    {"model": "nope"}, {"model": 7}, {"model": None}, {"temperature": -1}, {"temperature": "hot"}, {"top_p": 0}, {"top_p": 1.5},
    {"top_k": -2}, {"n": 2}, {"n": 0}, {"n": -1}, {"n": "two"}, {"n": 1.5}, {"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": "x"},
    {"max_tokens": 1_000_000}, {"presence_penalty": 3}, {"frequency_penalty": -3}, {"stop": 5}, {"stop": [""]}, {"seed": "x"},
    {"stream": "maybe"}, {"stream_options": {"include_usage": True}}, {"logit_bias": {"a": 1}},
    {"logit_bias": {"99999999": 1}}, {"min_tokens": 100}, {"min_tokens": -1}, {"min_p": 2}, {"repetition_penalty": 0},
    {"stop_token_ids": ["a"]}, {"stop_token_ids": [99999999]}, {"bad_words": [1]}, {"cache_salt": ""},
    {"response_format": {"type": "other"}}, {"response_format": 7}, {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "bogus"}}}},
    {"structured_outputs": {"regex": "a("}}, {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    {"structured_outputs": {}}, {"priority": 3}, {"user": 5},
]  # fmt: skip
WRONG_CHAT = [
    {"messages": None}, {"messages": []}, {"messages": "hi"}, {"messages": [5]}, {"messages": [{"role": "user"}]},
    {"messages": [{"content": "hi"}]}, {"messages": [{"role": "robot", "content": "hi"}]}, {"messages": [user(5)]},
    {"messages": [user([{"type": "text"}])]}, {"messages": [user([{"type": "other"}])]},
    {"messages": [user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])]},
    {"messages": [user("word " * 5000)]}, {"messages": [user("word " * 5000)], "stream": True}, {"top_logprobs": 2},
    {"logprobs": True, "top_logprobs": 100}, {"logprobs": "x"}, {"tools": [TOOL]}, {"tools": 5}, {"tools": [{"type": "x"}]},
    {"tool_choice": "required"}, {"tools": [TOOL], "tool_choice": "some"}, {"max_completion_tokens": 0},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "none"}}}, {"chat_template": "{{ 1 }}"},
    {"add_generation_prompt": True, "continue_final_message": True}, {"chat_template_kwargs": 5},
]  # fmt: skip
WRONG_COMPLETION = [
    {"prompt": None}, {"prompt": ""}, {"prompt": []}, {"prompt": 5}, {"prompt": [1, 99999999]}, {"prompt": [[]]},
    {"prompt": ["a", [1]]}, {"prompt": [1, "a"]}, {"prompt": "word " * 5000}, {"logprobs": 100}, {"logprobs": -2},
    {"suffix": "x"}, {"echo": "x"}, {"best_of": 3},
]  # fmt: skip
WRONG_TOKENIZE = [{"prompt": 5}, {"model": "nope"}, {"prompt": None}, {"prompt": None, "messages": []}, {"prompt": [1]}]
WRONG_RAW = [
    (b"", ()), (b"{nope", ()), (b"[]", ()), (b"5", ()), (b"null", ()), (b'"x"', ()), (b"{}", ()), (b"\xff\xfe", ()),
    (b'{"model":"MODEL","messages":[{"role":"user","content":"Hi"}],"max_tokens":1}', (("content-type", "text/plain"),)),
    (b'{"model":"MODEL","messages":[{"role":"user","content":"Hi"}],"max_tokens":1}', (("content-type", ""),)),
]  # fmt: skip
WRONG_ROUTES = [
    ("GET", "/v1/chat/completions"), ("PUT", "/v1/completions"), ("DELETE", "/v1/models"), ("POST", "/v1/models"),
    ("GET", "/nonexistent"), ("POST", "/v1/nonexistent"), ("GET", "/v1/models/nope"), ("GET", "/tokenize"), ("GET", "/v1"),
]  # fmt: skip


def chat_body(**more):
    return {"model": "MODEL", "messages": CONVERSATIONS[0], "max_tokens": 3, "temperature": 0} | more


def completion_body(**more):
    return {"model": "MODEL", "prompt": "One, two, three,", "max_tokens": 3, "temperature": 0} | more


def post(name, path, body, headers=()):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"content-type": "application/json"} | dict(headers)
    return Request(name, "POST", path, raw, tuple(item for item in given.items() if item[1]))


def named(*members):
    """A name that says what is special about a request."""
    return json.dumps(merged(*members), ensure_ascii=False)


def merged(*members):
    return {name: value for each in members for name, value in each.items()}


def mixed(source, path, base, choices, *more):
    """100 requests: each choice alone, then pairs of choices."""
    for i in range(100):
        picked = [choices[i]] if i < len(choices) else source.sample(choices, 2)
        picked += [source.choice(list_of) for list_of in more]
        if path.endswith("chat/completions") and i >= len(choices):
            picked.insert(0, {"messages": source.choice(CONVERSATIONS)})
        yield post(named(*picked), path, base(**merged(*picked)))


def tokenize(source):
    texts = ["", "Hello world", "日本語 🙂", "<|im_start|>x<|im_end|>", " spaces  and\ttabs\n", "word " * 300]
    for i in range(80):
        more = {"return_token_strs": source.random() < 0.5, "add_special_tokens": source.random() < 0.5}
        if i % 2:
            body = {"model": "MODEL", "prompt": source.choice(texts)} | more
        else:
            body = {"model": "MODEL", "messages": source.choice(CONVERSATIONS)} | more
            if i % 8 == 0:
                body["add_generation_prompt"] = False
        yield post(f"tokenize {named(body)}", "/tokenize", body)
    for i in range(20):
        tokens = [source.randrange(49_000) for _ in range(i)]
        yield post(f"detokenize {tokens}", "/detokenize", {"model": "MODEL", "tokens": tokens})


def models(source):
    paths = ["/v1/models", "/v1/models?x=1", "/health", "/v1/models/", "//v1/models"]
    for i in range(100):
        headers = source.choice([(), (("accept", "application/json"),), (("authorization", "Bearer x"),)])
        yield Request(f"{paths[i % len(paths)]} {headers}", "GET", paths[i % len(paths)], b"", headers)


def errors(source):
    chat, completions = "/v1/chat/completions", "/v1/completions"
    for path, base, wrong in [
        (chat, chat_body, WRONG_COMMON + WRONG_CHAT), (completions, completion_body, WRONG_COMMON + WRONG_COMPLETION),
        ("/tokenize", lambda **more: {"model": "MODEL", "prompt": "x"} | more, WRONG_TOKENIZE),
    ]:  # fmt: skip
        for members in wrong:
            body = base(**members)
            absent = [name for name, value in members.items() if value is None]
            for name in absent:
                del body[name]
            yield post(f"{path} {named(members)}", path, body)
    for path in [chat, completions, "/tokenize", "/detokenize"]:
        for raw, headers in WRONG_RAW:
            yield post(f"{path} {raw!r} {headers}", path, raw, headers)
    for method, path in WRONG_ROUTES:
        yield Request(f"{method} {path}", method, path, b"{}", (("content-type", "application/json"),))


def all_requests():
    """The requests of every kind."""
    source = random.Random(14)
    chat, completions = "/v1/chat/completions", "/v1/completions"
    stream = [{"stream": True} | more for more in STREAM]
    return {
        "chat": list(mixed(source, chat, chat_body, CHAT)),
        "chat stream": list(mixed(source, chat, chat_body, CHAT, stream)),
        "completion": list(mixed(source, completions, completion_body, COMPLETION)),
        "completion stream": list(mixed(source, completions, completion_body, COMPLETION, stream)),
        "tokenize": list(tokenize(source)),
        "models": list(models(source)),
        "error": list(errors(source)),
    }
