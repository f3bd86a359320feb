# `make demo` shows the agent at work on real packets; `make test` proves it.
# Both need root (network namespaces) on a Debian-like machine, and install what they miss.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BPF    := ipmasq_agent/planes/bpf
BYTECODE := $(BPF)/masq.bpf.o

# Tests wait for the kernel about as long as they compute: three fill two cores.
WORKERS ?= $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))

.PHONY: demo bench test test-long lint tools clean
.DEFAULT_GOAL := help

help: ## this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

demo: $(BYTECODE) ## the lab: which source address does each destination see, as the ConfigMap changes
	@$(BIN)/ipmasq-agent lab run

bench: $(VENV)/bench $(BYTECODE) ## iptables beside eBPF, measured here in two minutes
	@$(BIN)/ipmasq-agent bench --quick

test: $(VENV)/ready $(BYTECODE) lint ## lint, types, layer contracts, and every test but the long ones
	$(BIN)/python -m pytest -q -m "not long" -n $(WORKERS) --dist worksteal

test-long: $(VENV)/long $(BYTECODE) ## fuzzing, soak runs, and the eBPF programs on Linux 6.1 in an emulator
	$(BIN)/python -m pytest -q -m long --timeout=3600

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

INSTALL := $(BIN)/pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt

$(VENV)/agent: pyproject.toml constraints.txt scripts/install-tools
	@scripts/install-tools
	@echo "installing the agent and its lab into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --config-settings editable_mode=compat --editable '.[lab]'
	@touch $@

$(VENV)/bench: $(VENV)/agent
	@scripts/install-tools bench
	@$(INSTALL) --config-settings editable_mode=compat --editable '.[bench]'
	@touch $@

$(VENV)/ready: $(VENV)/agent
	@scripts/install-tools test
	@echo "installing what the tests need into $(VENV) ..."
	@$(INSTALL) --config-settings editable_mode=compat --editable '.[test]'
	@touch $@

$(VENV)/long: $(VENV)/ready
	@scripts/install-tools long
	@touch $@

$(BYTECODE): $(VENV)/agent $(wildcard $(BPF)/*.c $(BPF)/*.h) $(BPF)/compile
	@$(BPF)/compile

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis $(BYTECODE)
