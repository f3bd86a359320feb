# `make demo` shows the agent at work on real packets; `make test` proves it.
# Both need root (network namespaces) on a Debian-like machine, and install what they miss.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BPF    := ipmasq_agent/planes/bpf
BYTECODE := $(BPF)/masq.bpf.o

# Tests wait for the kernel about as long as they compute: three fill two cores.
WORKERS ?= $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))

.PHONY: demo bench test test-long seccomp reliability docs lint dist lock clean
.DEFAULT_GOAL := help

help: ## this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

demo: $(BYTECODE) ## the lab: which source address does each destination see, as the ConfigMap changes
	@$(BIN)/ipmasq-agent lab run

bench: $(VENV)/bench $(BYTECODE) ## iptables beside eBPF, measured here in two minutes
	@$(BIN)/ipmasq-agent bench --quick

test: $(VENV)/ready $(BYTECODE) lint ## lint, types, layer contracts, and every test but the long ones
	$(BIN)/python -m pytest -q -m "not long" -n $(WORKERS) --dist worksteal

test-long: $(VENV)/long $(BYTECODE) ## fuzzing, soak runs, and the eBPF programs on Linux 6.1 in an emulator
	$(BIN)/python -m pytest -q -m long --timeout=3600

seccomp: $(VENV)/ready $(BYTECODE) ## deploy/seccomp written anew: what agents of all data planes are seen to call
	@$(BIN)/python -m tests.kernel.seccomp

reliability: $(VENV)/ready $(BYTECODE) ## ten times each fault, with traffic; the table of docs/reliability.md
	@notes=$$(mktemp -d) && IPMASQ_RELIABILITY=$$notes $(BIN)/python -m pytest -q -m long -n $(WORKERS) --timeout=3600 \
		tests/faults/test_reliability.py tests/faults/test_api.py tests/faults/test_node.py && $(BIN)/python -m tests.faults.table $$notes docs/reliability.md

docs: $(VENV)/ready ## the pages as a site, in site/, and man pages, in site/man/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@$(BIN)/python scripts/reference.py man site/man
	@echo "open site/index.html; man -l site/man/ipmasq-agent.1"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

# Nothing is installed but what requirements/ has the hash of.
PIP := $(BIN)/pip install --quiet --quiet --disable-pip-version-check
INSTALL := $(PIP) --require-hashes --requirement

$(VENV)/agent: pyproject.toml hatch_build.py requirements/agent.txt requirements/lab.txt \
		requirements/build.txt scripts/install-tools
	@scripts/install-tools
	@echo "installing the agent and its lab into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) requirements/lab.txt --requirement requirements/build.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/bench: $(VENV)/agent requirements/bench.txt
	@scripts/install-tools bench
	@$(INSTALL) requirements/bench.txt
	@touch $@

$(VENV)/ready: $(VENV)/agent requirements/bench.txt requirements/test.txt requirements/helm.txt scripts/install-helm
	@scripts/install-tools test
	@echo "installing what the tests need into $(VENV) ..."
	@$(INSTALL) requirements/test.txt
	@scripts/install-helm
	@touch $@

$(VENV)/long: $(VENV)/ready requirements/fuzz.txt
	@scripts/install-tools long
	@$(INSTALL) requirements/fuzz.txt
	@touch $@

dist: $(VENV)/agent ## what a release is, in dist/: wheel, source, SBOM, chart, SHA256SUMS; the same wherever it is built
	@scripts/dist

lock: $(VENV)/agent ## requirements/ anew, after a change of pyproject.toml; ARGS=--upgrade for the newest of all
	@$(INSTALL) requirements/lock.txt
	@scripts/lock $(ARGS)

$(BYTECODE): $(VENV)/agent $(wildcard $(BPF)/*.c $(BPF)/*.h) $(BPF)/compile
	@$(BPF)/compile

clean: ## remove the virtual environment, caches and what was built
	rm -rf $(VENV) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis $(BYTECODE)
