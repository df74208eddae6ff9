# One virtual environment, made by whatever target needs it first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check cov bench bench-full guard interop faults soak fuzz format compose-check compose-test clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dialback needs Python 3.11 or newer; try make PYTHON=python3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(READY) ## Make the virtual environment with everything in it

demo: $(READY) ## The main job: a server, two workers, a kill, streamed answers
	$(BIN)/dialback demo

test: $(READY) ## All tests, on a real nats-server
	$(BIN)/python -m pytest

check: $(READY) compose-check ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

cov: $(READY) ## Tests with branch coverage; fails under 90 %
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

BENCH ?=
bench: $(READY) ## Ratios to the peers, in minutes; BENCH='--only b' for a part
	$(BIN)/python -m benchmarks --save .bench/short.json $(BENCH)

bench-full: $(READY) ## Full loads, written into docs/performance.md with its chart
	$(BIN)/python -m benchmarks --full --rounds 5 --save .bench/full.json --write docs/performance.md $(BENCH)

guard: $(READY) ## Did a hot path become much slower? (counts instructions)
	$(BIN)/python -m benchmarks.guard

interop: $(READY) ## Real Dynamo peers, releases 1.3.1 and 1.6.1, on either end
	$(BIN)/python tests/interop/environments.py
	$(BIN)/python -m pytest tests/interop

FAULTS ?=
faults: $(READY) ## Fault tests: kills, freezes, restarts, a cluster; FAULTS='-m ci' for the short ones
	$(BIN)/python -m pytest tests/faults $(FAULTS)

SECONDS ?= 60
SEED ?=
soak: $(READY) ## Mixed traffic under random faults for SECONDS; SEED repeats a run
	PYTHONPATH=tests $(BIN)/python -m faults.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

fuzz: $(READY) ## Coverage-guided fuzzing for SECONDS (decoder, control message)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python -m fuzz --seconds $(SECONDS)

format: $(READY) ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

COMPOSE = $(shell test -x $(BIN)/docker-compose && echo $(BIN)/docker-compose || echo docker compose)
compose-check: $(READY) ## Is docker-compose.yml valid? (needs no engine)
	$(COMPOSE) -f docker-compose.yml --profile '*' config --quiet

compose-test: ## Build and run docker-compose.yml for real (needs a container engine)
	tests/compose/run.sh

clean: ## Remove what make made
	rm -rf $(VENV) build dist .coverage* .mypy_cache .ruff_cache .pytest_cache
