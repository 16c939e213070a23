# make up      the whole product on this machine, from a bare checkout
# make check   what CI runs: format, lint, types, import contracts, tests
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One is enough for `up`; the rest of the tools come with the second.
UP_STAMP  := $(VENV)/.installed-up
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Two are the cores of a small machine; each worker of the tests loads TensorFlow.
TEST_WORKERS ?= 2
# A worker that ends takes its tests with it: the run says so and ends, where xdist may wait for them for ever.
PARALLEL = -n $(TEST_WORKERS) --dist loadgroup --max-worker-restart=0
UV_LOCK := $(BIN)/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-strip-extras --no-emit-index-url --custom-compile-command "make lock"

.PHONY: help up install test check fmt lint types arch e2e browser chaos messages year proto train bench lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

up: $(UP_STAMP) ## run everything here; Ctrl-C stops it (ARGS="--port 9000")
	@exec $(BIN)/tollgate up $(ARGS)

install: $(DEV_STAMP) ## the virtual environment with every tool

test: $(DEV_STAMP) browser ## the whole test suite; needs no running service
	$(BIN)/pytest $(PARALLEL) $(ARGS)

check: $(DEV_STAMP) browser ## format, lint, types, contracts, tests with coverage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@rm -f .coverage .coverage.*
	$(BIN)/pytest $(PARALLEL) --cov --cov-report= $(ARGS)
	$(BIN)/coverage report --skip-covered
	$(BIN)/coverage report --fail-under=100 --include='app/accounts/*,app/auth.py,app/keys.py,app/key_terms.py,app/key_cache.py,app/admission.py,app/metering.py,app/settlements.py,app/recovery.py,app/partitions.py,app/billing/*'

fmt: $(DEV_STAMP) ## format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(DEV_STAMP) ## ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV_STAMP) ## mypy --strict
	$(BIN)/mypy

arch: $(DEV_STAMP) ## import contracts
	$(BIN)/lint-imports

e2e: $(DEV_STAMP) browser ## the end-to-end tests alone
	$(BIN)/pytest tests/e2e $(ARGS)

chaos: $(DEV_STAMP) ## a hundred kills under load; after each the books compared (ARGS="--seed 7")
	$(BIN)/python -m tests.chaos --kills 100 $(ARGS)

browser: ## Debian's Chromium, for the tests that look at pages
	@scripts/install-chromium.sh

messages: $(DEV_STAMP) ## bring the portal's catalogues up to date with its texts
	scripts/update-messages.sh

year: $(DEV_STAMP) ## twelve customers, a year on Stripe's clock; every invoice against the rows (ARGS="--seed 8")
	$(BIN)/python -m tests.year $(ARGS)

proto: $(DEV_STAMP) ## write the gRPC stubs anew from app/rpc/engine.proto
	PATH="$(abspath $(BIN)):$$PATH" python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. \
		--mypy_out=quiet:. --mypy_grpc_out=quiet:. app/rpc/engine.proto

train: $(DEV_STAMP) ## train the starter models again
	scripts/train-starters.sh

bench: $(UP_STAMP) ## a minute of mixed load, then the books compared (ARGS="--minutes 20")
	$(BIN)/tollgate bench soak --minutes 1 --concurrency 64 $(ARGS)

lock: $(DEV_STAMP) ## pin the newest versions that fit pyproject.toml
	$(UV_LOCK) --upgrade -o requirements.lock \
		--extra build --extra embedded --extra engine-cpu --extra train --extra dev
	$(UV_LOCK) --constraint requirements.lock -o requirements-up.lock --extra build --extra embedded --extra engine-cpu
	$(UV_LOCK) --constraint requirements.lock -o requirements-api.lock --extra build
	$(UV_LOCK) --constraint requirements.lock -o requirements-engine-gpu.lock --extra build --extra engine-gpu

clean: ## forget the virtual environment and every cache; data stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Tollgate needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# Hashes first, then ourselves without looking anything up again.
$(UP_STAMP): requirements-up.lock pyproject.toml | $(BIN)/python
	@test -e $(DEV_STAMP) || echo "Installing; the first time this takes a few minutes."
	$(PIP) install --require-hashes -r requirements-up.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_STAMP): requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@ $(UP_STAMP)
