# Two commands matter: `make run` serves a real model on this machine, `make test` runs every test.
# Both install and fetch what is missing first (Debian packages as root or by sudo; the rest into .local/).

CARGO ?= cargo
PYTHON ?= python3
MODEL := .local/models/SmolLM2-135M-Instruct.Q4_1.gguf
VENV := .local/venv
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The whole: the router and the real engine. A router alone: `cargo build --release`.
FEATURES := --features runtime/llama,signalbox-integration-tests/llama,signalbox-http/bench-support

.PHONY: run test build deps model tokenizer wrk policies policies-check client-tests-venv bench help

help: ## Say what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | column -t -s '	'

run: build model ## Serve SmolLM2 from two workers at http://127.0.0.1:8000
	exec $(TARGET)/release/runtime up $(ARGS)

build: deps ## Build the release binary with the real engine
	$(CARGO) build --release --package runtime --features llama

test: deps model client-tests-venv ## Run every test
	$(CARGO) build --workspace --bins --examples $(FEATURES)
	SIGNALBOX_POLICY_TOOLS=$(abspath $(TARGET))/debug/examples runtime/scripts/build-policies.sh --check
	$(CARGO) test --workspace $(FEATURES)
	cd policies && $(CARGO) native-test --workspace

deps: ## Install the Debian packages a build needs, where they are missing
	@runtime/scripts/install-deps.sh

model: ## Fetch the demonstration model (98 MB) into .local/
	@runtime/scripts/fetch-model.sh >/dev/null

policies: ## Build the policies from source into policies/built/
	runtime/scripts/build-policies.sh

policies-check: ## Build the policies from source; fail if one decides otherwise than the committed one
	runtime/scripts/build-policies.sh --check

# Not the worker's: it times the real engine, and is built with that alone.
BENCHED := kv-index policy-host request-plane router tokenize
bench: deps tokenizer wrk ## Run the benches; `runtime/docs/performance.md` says what they measure
	$(CARGO) bench $(BENCHED:%=--package signalbox-%) --package runtime --features signalbox-router/bench-support --bench '*'

tokenizer: ## Fetch the tokenizer that the benches use (11 MB) into .local/
	@runtime/scripts/fetch-tokenizer.sh >/dev/null

wrk:
	@command -v wrk >/dev/null || runtime/scripts/install-deps.sh wrk

client-tests-venv: $(VENV)/.openai ## Install OpenAI's Python client for the tests

$(VENV)/.openai:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check 'openai>=2,<4'
	@touch $@
