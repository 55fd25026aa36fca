# The whole developer interface. `make help` lists it; any target that needs the environment
# makes it first, and skips that in well under a second when it is current.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
# cpu or cuda: which build of vLLM. By default the one that this machine can run.
VARIANT ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
# Passed on by `serve`, `demo`, `bench` and the tests, as in: make test ARGS="-k steering"
ARGS ?=
# Helm is built from source by Go, since no package index carries its binary.
HELM_VERSION := v4.3.1

# Limits the tests to an older instruction set than the processor's: avx2, avx512 or avx512_bf16, as
# in: make test ISA=avx2; see tests/isa.
ISA ?=
ifneq ($(ISA),)
export TEST_ISA := $(ISA)
export PYTHONPATH := $(CURDIR)/tests/isa
endif

# The wheels of torch are large: allow a slow index more than uv's 30 seconds of silence.
export UV_HTTP_TIMEOUT ?= 300

PY := .venv/bin/python
UV := .venv/bin/uv

# The environment is current when a stamp exists that is named after everything it was made from.
PINS := requirements/build.txt requirements/$(VARIANT).txt requirements/dev.txt
SETUP_INPUTS := $(PINS) pyproject.toml client/python/pyproject.toml
SETUP_STAMP := .venv/setup-$(VARIANT)-$(shell cat $(SETUP_INPUTS) 2>/dev/null | cksum | cut -d' ' -f1).stamp
# The clients in other languages, each after the tool that it takes. Those whose tools are missing are
# left out, and said to be. CLIENTS=go builds and checks one.
CLIENT_TOOLS := go:go typescript:npm rust:cargo java:mvn
client_of = $(firstword $(subst :, ,$(1)))
tool_of = $(lastword $(subst :, ,$(1)))
CLIENTS := $(foreach pair,$(CLIENT_TOOLS),$(if $(shell command -v $(call tool_of,$(pair))),$(call client_of,$(pair))))
NO_CLIENTS := $(foreach pair,$(CLIENT_TOOLS),$(if $(shell command -v $(call tool_of,$(pair))),,$(call client_of,$(pair))))
HELM_STAMP := .tools/helm-$(HELM_VERSION).stamp
PROTOC_STAMP := .tools/protoc-$(shell cksum <requirements/proto.txt | cut -d' ' -f1).stamp
PEERS_STAMP := .tools/peers-$(shell cksum <requirements/peers.txt | cut -d' ' -f1).stamp

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=... is passed on; VARIANT=cpu|cuda (now $(VARIANT)) picks the build of vLLM;"
	@echo "  ISA=avx2|avx512|avx512_bf16 limits the tests to that instruction set."

##### Run

.PHONY: setup
setup: $(SETUP_STAMP) ## Make .venv with everything pinned (about 5 minutes the first time)

.PHONY: demo
demo: setup ## Start a server with the embedded model, fetch activations, steer, compare
	@$(PY) examples/demo.py $(ARGS)

.PHONY: serve
serve: setup ## Run a server in the foreground: make serve ARGS="--model ..."
	@exec .venv/bin/actserve-server serve $(ARGS)

.PHONY: bench
bench: setup ## Measure throughput and latency against plain vLLM
	@$(PY) -m bench $(ARGS)

##### Check

.PHONY: test test-shared-engine test-engines test-contract test-others test-conformance test-clients
test: setup helm-tool protoc-tool clients ## Run every test, those with real models included; in parts without ARGS
ifeq ($(ARGS),)
	@echo "parts, three at a time side by side; each says how it went when it ends"
	@$(MAKE) --jobs=3 --output-sync=target --keep-going \
	  test-shared-engine test-engines test-contract test-others test-conformance test-clients
else
	@$(PY) -m pytest $(ARGS)
endif

# The long ones come first, so that none is left alone at the end. Engines keep a core busy, and those
# of the other half another; tests/integration/conftest.py gives each its own.
test-shared-engine:
	@TEST_HALF=0 $(PY) -m pytest -m shared_engine tests/integration

test-engines:
	@TEST_HALF=1 $(PY) -m pytest -m "not shared_engine" tests/integration

test-contract:
	@$(PY) -m pytest tests/contract

test-conformance:
	@$(PY) -m pytest tests/conformance

test-clients: $(CLIENTS:%=test-client-%)

test-client-%:
	@$(MAKE) -C client/$* test

test-others:
	@$(PY) -m pytest --ignore tests/integration --ignore tests/contract --ignore tests/conformance

.PHONY: conformance
conformance: setup clients ## Hold every client to the same cases, and print a table of them
	@$(PY) -m pytest tests/conformance --every-case $(ARGS)

.PHONY: isolation
isolation: setup ## Run the isolation test at length: 500 requests, three seeds, compiled and eager
	@ISOLATION_REQUESTS=$${ISOLATION_REQUESTS:-500} ISOLATION_SEEDS=$${ISOLATION_SEEDS:-3} \
	  ISOLATION_MODES=$${ISOLATION_MODES:-compiled,eager} \
	  $(PY) -m pytest -s tests/integration/test_isolation.py $(ARGS)

.PHONY: two-machines
two-machines: setup ## Split a small model over two processes as over two machines, and compare it with one
	@TWO_MACHINES=1 $(PY) -m pytest -s tests/integration/test_two_machines.py $(ARGS)

.PHONY: durability
durability: setup ## Kill a server 200 times on each database while vectors, monitors and alerts are stored; stop a watcher of alerts for a minute
	@DURABILITY_KILLS=$${DURABILITY_KILLS:-200} STOPPED_S=$${STOPPED_S:-60} \
	  $(PY) -m pytest -s tests/contract/test_durability.py tests/contract/test_stopped_watcher.py $(ARGS)

.PHONY: fuzz
fuzz: setup ## Send a server 50,000 made-up requests, and each decoder as many made-up inputs: answers or stated refusals
	@FUZZ_CASES=$${FUZZ_CASES:-50000} $(PY) -m pytest -s tests/contract/test_fuzz.py $(ARGS)
	@FUZZ_CASES=$${FUZZ_CASES:-50000} $(PY) -m tests.fuzzing.guided

.PHONY: circuit-tracer
circuit-tracer: peers-tool ## Whether circuit-tracer still makes the graphs that ours are held to; ARGS=--write takes what it makes
	@PYTHONPATH=server .tools/peers/bin/python -m scripts.circuit_tracer_graphs $(ARGS)

.PHONY: load
load: setup ## Load a server with 500 streams for ten minutes, then by weighted tenants, and beside captures: 20 minutes
	@$(PY) -m pytest -s tests/load $(ARGS)

.PHONY: test-fast
test-fast: setup protoc-tool ## Run the tests that need no model
	@$(PY) -m pytest --ignore tests/integration -m "not integration and not slow" $(ARGS)

.PHONY: test-client-versions
test-client-versions: setup ## Test the client with the oldest and newest of what it needs, on each Python
	@$(PY) scripts/client_versions.py $(ARGS)

.PHONY: lint lint-python lint-types lint-proto lint-docker lint-docs lint-clients lint-explorer lint-versions
lint: lint-python lint-types lint-proto lint-docker lint-docs lint-clients lint-explorer ## Check style, types, the contract, stubs, Dockerfile, docs, the clients and the explorer

lint-clients: lint-versions $(CLIENTS:%=lint-client-%)

# The page is what is served, and is not built; only its types and form are checked, by the tools of the
# TypeScript client.
EXPLORER := server/actserve_server/explorer
NODE_TOOLS := client/typescript/node_modules

lint-explorer: setup
ifneq ($(filter typescript,$(CLIENTS)),)
	@$(MAKE) -C client/typescript node_modules/.package-lock.json
	@$(NODE_TOOLS)/.bin/tsc -p $(EXPLORER)
	@$(NODE_TOOLS)/.bin/prettier --config client/typescript/.prettierrc.json --check $(EXPLORER) '!**/scales.css'
	@$(PY) scripts/explorer_scales.py --check
else
	@echo "make lint-explorer: npm is not here, the types of the explorer are not checked"
endif

lint-versions: setup
	@$(PY) scripts/version.py --check

lint-client-%: setup
	@echo "make lint: client/$*"
	@$(MAKE) -C client/$* check

lint-python: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

lint-types: setup
	@$(PY) -m pyright
	@$(PY) -m mypy

lint-proto: setup protoc-tool
	@.venv/bin/buf lint
	@.venv/bin/buf format --diff --exit-code proto
	@.venv/bin/buf breaking proto --against proto/accepted.binpb
	@$(PY) scripts/stubs.py --check
	@$(PY) scripts/blocking_client.py --check

lint-docker: setup
	@.venv/bin/hadolint --config docker/hadolint.yaml Dockerfile

# A page that is not in the navigation, or a link that leads nowhere, is an error.
lint-docs: docs

##### Document

# A notice of the theme's makers about its successor is no warning of ours.
export NO_MKDOCS_2_WARNING := 1

.PHONY: docs
docs: setup ## Build the documentation, with the references made from the code, into build/docs
	@$(PY) -m mkdocs build --strict

.PHONY: docs-serve
docs-serve: setup ## Show the documentation on localhost:8000 while you write it
	@$(PY) -m mkdocs serve $(ARGS)

##### Change

.PHONY: format
format: setup ## Format Python and protos, and mend what ruff can
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .
	@.venv/bin/buf format --write proto
	@test ! -x $(NODE_TOOLS)/.bin/prettier || $(NODE_TOOLS)/.bin/prettier --config client/typescript/.prettierrc.json --log-level warn --write $(EXPLORER) '!**/scales.css'

.PHONY: proto
proto: setup protoc-tool ## Regenerate what is made: the stubs of every language, the blocking client, the chart's settings
	@$(PY) scripts/stubs.py
	@$(PY) scripts/blocking_client.py
	@$(PY) scripts/chart_settings.py
	@for each in $(CLIENTS); do $(MAKE) -C client/$$each proto; done

.PHONY: version
version: setup ## Set the version of every package: make version VERSION=0.2.0
	@$(PY) scripts/version.py $(VERSION)

##### Clients in other languages

.PHONY: clients
clients: $(NO_CLIENTS:%=no-client-%) $(CLIENTS:%=client-%) ## Build the clients in other languages, with their examples and drivers

client-%:
	@echo "make clients: client/$*"
	@$(MAKE) -C client/$* driver

no-client-%:
	@echo "make clients: client/$* is left out, its tools are not here"

.PHONY: packages
packages: setup helm-tool ## Build every package as it would be published, into build/packages
	@$(PY) scripts/packages.py $(ARGS)

.PHONY: sbom
sbom: setup ## Write what the images hold of Python packages, as CycloneDX, into build/sbom
	@$(PY) scripts/packages.py --out build/sbom sbom

.PHONY: release
release: setup helm-tool ## Build, sign and describe a release: make release VERSION=0.2.0 KEY=~/.ssh/id, or DRY_RUN=1
	@$(PY) scripts/release.py $(VERSION) $(if $(DRY_RUN),--dry-run) $(if $(KEY),--key $(KEY)) $(ARGS)

.PHONY: try-packages
try-packages: packages clients ## Install every package into an empty project, and run its sample there
	@$(PY) scripts/try_packages.py $(ARGS)

.PHONY: accept-contract
accept-contract: setup ## Take proto/ as the contract that `make lint` compares with
	@.venv/bin/buf build proto --exclude-source-info -o proto/accepted.binpb

.PHONY: accept-chart
accept-chart: setup helm-tool ## Take what the chart makes of its examples as what the tests compare with
	@$(PY) scripts/accept_chart.py

COMPILE = UV_CUSTOM_COMPILE_COMMAND="make requirements" $(UV) pip compile --quiet --universal \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-package actserve \
	--override requirements/overrides.common.txt

.PHONY: requirements
requirements: ## Pin requirements/*.txt again from pyproject.toml (ARGS=--upgrade for newer releases)
	@test -x $(UV) || { echo "make requirements: run \`make setup\` first, it brings uv"; exit 1; }
	@$(COMPILE) $(ARGS) --group build -o requirements/build.txt
	@$(COMPILE) $(ARGS) --group proto -o requirements/proto.txt
	@$(COMPILE) $(ARGS) --group peers -o requirements/peers.txt
	@$(COMPILE) $(ARGS) --override requirements/overrides.cpu.txt --extra cpu --extra postgres --extra smollm2 \
		pyproject.toml -o requirements/cpu.txt
	@$(COMPILE) $(ARGS) --extra cuda --extra postgres --extra smollm2 pyproject.toml -o requirements/cuda.txt
	@$(COMPILE) $(ARGS) --override requirements/overrides.dev.txt --group dev -c requirements/cpu.txt \
		-o requirements/dev.txt
	@git diff --stat -- requirements

.PHONY: clean
clean: ## Remove caches and builds; .venv and .tools stay
	@rm -rf build dist client/*/build client/*/target client/typescript/node_modules client/python/build client/python/dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . \( -name .venv -o -name .tools -o -name .git \) -prune -o -name __pycache__ -print0 \
		| xargs -0 -r rm -rf

##### How the environment is made

$(SETUP_STAMP):
	@test "$$(uname -sm)" = "Linux x86_64" \
		|| { echo "make setup: the pinned packages are for Linux on x86-64, this is $$(uname -sm)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
		|| { echo "make setup: needs Python 3.11 to 3.14; name one with PYTHON=python3.11"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "make setup: installing vLLM for $(VARIANT) and the tools into .venv"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt
	@# Compiled once here: where Python is told to write no bytecode, each process of an engine would
	@# else spend ten seconds on compiling vLLM.
	@$(UV) pip sync --python $(PY) --quiet --compile-bytecode --require-hashes $(PINS)
	@# Without isolation, so that the builds use the pinned hatchling.
	@$(UV) pip install --python $(PY) --quiet --no-deps --no-build-isolation -e client/python -e .
	@rm -f .venv/setup-*.stamp
	@touch $@

# Not a part of setup, since it installs on the system and takes root; `.ci/run` calls it.
.PHONY: services
services: ## Install what tests talk to: Debian's PostgreSQL, Prometheus, Chromium and HAProxy (as root)
	@missing=; \
	test -n "$$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null)" || missing="$$missing postgresql"; \
	command -v prometheus >/dev/null && command -v promtool >/dev/null || missing="$$missing prometheus"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	test -x /usr/sbin/haproxy || command -v haproxy >/dev/null || missing="$$missing haproxy"; \
	test -z "$$missing" || { \
		echo "make services: installing$$missing"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }

.PHONY: helm-tool
helm-tool: $(HELM_STAMP) ## Build helm for the chart tests (a few minutes, once)

$(HELM_STAMP):
	@if command -v go >/dev/null; then \
		echo "make helm-tool: building helm $(HELM_VERSION)"; \
		mkdir -p .tools/bin; \
		GOBIN="$(CURDIR)/.tools/bin" CGO_ENABLED=0 \
			go install -trimpath -ldflags='-s -w' helm.sh/helm/v4/cmd/helm@$(HELM_VERSION) \
			2> >(grep -v '^go: downloading' >&2); \
		rm -f .tools/helm-*.stamp; \
		touch $@; \
	else \
		echo "make helm-tool: no Go here to build helm with; the chart tests use the helm on PATH or skip"; \
	fi

.PHONY: protoc-tool
protoc-tool: $(PROTOC_STAMP) ## Install the protoc that makes the Python stubs

# On a Python that its wheels are for; uv fetches one where there is none.
$(PROTOC_STAMP): | setup
	@$(UV) venv --quiet --clear --python '>=3.10,<3.13' .tools/protoc
	@$(UV) pip sync --python .tools/protoc/bin/python --quiet --require-hashes requirements/proto.txt
	@rm -f .tools/protoc-*.stamp
	@touch $@

.PHONY: peers
peers: peers-tool ## Make again what the tests have of other projects, and compare it with what is checked in
	@.tools/peers/bin/python scripts/peer_dictionaries.py --check

.PHONY: peers-tool
peers-tool: $(PEERS_STAMP) ## Install the projects that ours is compared with into .tools/peers (2 minutes, once)

$(PEERS_STAMP): | setup
	@$(UV) venv --quiet --clear --python '>=3.11,<3.14' .tools/peers
	@$(UV) pip sync --python .tools/peers/bin/python --quiet --require-hashes requirements/peers.txt
	@rm -f .tools/peers-*.stamp
	@touch $@
