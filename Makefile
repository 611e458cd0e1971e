# Everything that the README tells people to type. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# HASHED=1, as CI has it: every package is what requirements-ci.txt has the hash of, setuptools too. uv installs them in a
# tenth of pip's time. An editable package has no hash, so that one comes after the others, and `pip check` looks at all.
INSTALL = $(if $(HASHED),$(PIP) install --require-hashes --no-deps -r requirements-uv.txt && \
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --no-deps -r requirements-ci.txt && \
	$(PIP) install --no-deps --no-build-isolation -e . && $(PIP) check,\
	$(PIP) install -c constraints.txt -e '.[dev]')

.DEFAULT_GOAL := help
.PHONY: help setup up test check lint format bench bench-peers bench-smoke bare lock hashes audit sbom clean
.PHONY: cluster cluster-down test-cluster

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## A virtual environment with devloop and what its tests need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "devloop needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL)
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

lock: ## Write constraints.txt anew from the newest versions that pyproject.toml allows, and the hashes
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	(echo '# Exact versions that CI runs with; made by `make lock`.'; \
	 .lock/bin/python -m pip freeze --exclude-editable) > constraints.txt
	rm -rf .lock
	$(MAKE) hashes

hashes: ## Write requirements-ci.txt and the agent's requirements.txt anew from constraints.txt: versions with hashes
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	echo setuptools > .lock/build.in
	$(COMPILE) -c constraints.txt pyproject.toml --extra dev .lock/build.in -o .lock/ci.txt
	$(COMPILE) -c constraints.txt devloop/agent/requirements.in -o .lock/agent.txt
	echo uv | $(COMPILE) - -o .lock/uv.txt
	(echo '# What CI installs, with the hashes of all files of each version; made by `make hashes`.'; \
	 cat .lock/ci.txt) > requirements-ci.txt
	(echo '# What installs them, with its hashes; made by `make hashes`.'; cat .lock/uv.txt) > requirements-uv.txt
	(echo '# requirements.in with what it needs, by hashes; the Dockerfile and the test cluster install exactly these.'; \
	 echo '# Made by `make hashes`.'; cat .lock/agent.txt) > devloop/agent/requirements.txt
	rm -rf .lock

# For each platform and Python: `--universal`. No address of an index gets into the files.
COMPILE = .lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --no-emit-index-url --no-emit-find-links

audit: setup ## Known vulnerabilities of what CI and the agent's image install (pip-audit, in an environment of its own)
	@$(BIN)/python -m tools.audit $(if $(WHERE_POSSIBLE),--where-possible) requirements-ci.txt requirements-uv.txt devloop/agent/requirements.txt

sbom: setup ## The bill of materials of IMAGE=NAME (CycloneDX), from Docker, as devloop-agent.cdx.json
	@test -n "$(IMAGE)" || { echo 'make sbom IMAGE=REGISTRY/devloop-agent:VERSION' >&2; exit 2; }
	container=$$($(DOCKER) create $(IMAGE)) && { \
	 $(DOCKER) export $$container | $(BIN)/python -m tools.sbom --name $(IMAGE) - > devloop-agent.cdx.json; code=$$?; \
	 $(DOCKER) rm $$container >/dev/null; exit $$code; }

DOCKER ?= docker

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
