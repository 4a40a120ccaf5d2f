#!/usr/bin/env python3
"""Writes the token ids that vLLM 0.32 computes for the chats of one family, FAMILY.jsonl beside this file.

usage: parity.py TOKENIZER_FOLDER < chats.jsonl > FAMILY.jsonl
needs: pip install jinja2==3.1.6 tokenizers==0.23.*

A line of the input is {"name", "messages", "tools", "kwargs", "ids"[, "vllm"]}: `ids` are those of transformers 5.24,
`vllm` those of vLLM's own preparation of the messages where they are others. Lines {"prompt", "ids"} are raw texts.

The input's ids were computed with the tools as the client sent them. vLLM reads tools into its schema first
(`ChatCompletionToolsParam`, `FunctionDefinition`) and renders what the schema has: its members in its order, absent
ones as null. Where this changes the tools, this script renders the chat again, with Jinja2 and the tokenizer, and
writes the new ids as `ids` and the former as `own`. It checks itself first: rendered as sent, the chat must give the
ids of the input.
"""
import json
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers


def vllm_tool(tool):
    function = tool["function"]
    printed = {name: function.get(name) for name in ("name", "description", "parameters")}
    printed |= {name: function[name] for name in ("strict", "defer_loading") if function.get(name) is not None}
    return {"type": "function", "function": printed}


def main():
    folder = sys.argv[1]
    config = json.load(open(f"{folder}/tokenizer_config.json"))
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, **({"ensure_ascii": False} | options))
    template = environment.from_string(config["chat_template"])
    names = ["bos_token", "eos_token", "pad_token", "unk_token"]
    special = {name: config[name] for name in names if config.get(name)}
    special = {name: token if isinstance(token, str) else token["content"] for name, token in special.items()}

    def encoded(chat, tools):
        variables = {"add_generation_prompt": True, "documents": None} | special | chat["kwargs"]
        text = template.render(messages=chat["messages"], tools=tools, **variables)
        return tokenizer.encode(text, add_special_tokens=False).ids

    for line in sys.stdin:
        line = json.loads(line)
        line["ids"] = line.pop("vllm", None) or line["ids"]
        if "messages" in line:
            tools = line["tools"]
            printed = [vllm_tool(tool) for tool in tools] if tools is not None else None
            if json.dumps(printed) != json.dumps(tools):
                assert encoded(line, tools) == line["ids"], line["name"]
                ids = encoded(line, printed)
                if ids != line["ids"]:
                    line["own"], line["ids"] = line["ids"], ids
            line = {name: value for name, value in line.items() if value not in (None, {})}
        print(json.dumps(line, ensure_ascii=False, separators=(",", ":")))


main()
