# Everything that the README tells people to type. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup up test check lint format bench bench-peers bench-smoke bare lock clean cluster cluster-down test-cluster

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## A virtual environment with devloop and what its tests need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "devloop needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q devloop tui
	@touch $@

up: setup ## Run the example in the TUI
	$(BIN)/devloop up

test: setup ## The tests that need nothing but this machine
	$(BIN)/python -m pytest -n 2 -m 'not cluster' tests

check: lint test ## Lint, format, types, import contracts, then the tests

bare: ## README's commands as a stranger types them: in a root file system made for it (as root, on Debian)
	$(PYTHON) -m tests.bare

lint: setup ## Lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## The figures that the README quotes, beside their peers
	$(BIN)/python -m benchmarks

bench-peers: setup ## Install what devloop is measured against, into a cache outside the checkout
	$(BIN)/python -m benchmarks.peers --install

bench-smoke: setup ## Each benchmark for one short round: that it works, not how fast it is
	$(BIN)/python -m benchmarks --quick

lock: ## Write constraints.txt anew from the newest versions that pyproject.toml allows
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	(echo '# Exact versions that CI runs with; made by `make lock`.'; \
	 .lock/bin/python -m pip freeze --exclude-editable) > constraints.txt
	rm -rf .lock

clean: ## Remove what was built here
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .devloop build *.egg-info

cluster: setup ## Build and start a real Kubernetes for the tests (as root; the first time takes minutes)
	$(BIN)/python -m tests.cluster.kube up

cluster-down: setup ## Stop it, and leave nothing of it behind
	$(BIN)/python -m tests.cluster.kube down

test-cluster: setup ## The tests that need a cluster: this one, or that of DEVLOOP_TEST_KUBECONFIG
	$(BIN)/python -m pytest -m cluster tests/cluster/test_lifecycle.py; alone=$$?; \
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m cluster tests/cluster \
	  --ignore tests/cluster/test_lifecycle.py && exit $$alone
