# Everything a developer or a newcomer runs. `make demo` and `make test` set up what they need.
SHELL := /bin/bash
VENV ?= .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# One thread a process: on few cores more threads than cores make everything slower.
export OMP_NUM_THREADS ?= 1
export ORT_DISABLE_TELEMETRY := 1
WAIT ?= 1
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup check test test-fast demo bench docs golden format clean

help: ## Say what there is.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup: $(STAMP) ## Make .venv with everything, and install Mosquitto and Chromium where missing.

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	scripts/setup.sh $(VENV)
	@touch $@

check: $(STAMP) ## Format, lint, types, import contracts.
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## Format the code and mend what the linter can.
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

test: $(STAMP) ## The whole suite: real models, broker, agents, browser.
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile

test-fast: $(STAMP) ## The everyday suite, under five minutes.
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not browser"

demo: $(STAMP) ## Convert, publish, flash, deploy, predict, roll back; then leave the fleet view open.
	$(PYTHON) -m examples.demo $(if $(filter 0,$(WAIT)),--no-wait,)

bench: $(STAMP) ## Figures side by side with what they must beat; results in build/bench.
	$(PYTHON) -m tests.bench

docs: $(STAMP) ## Build the documentation into site/.
	$(VENV)/bin/mkdocs build --strict

golden: $(STAMP) ## Rewrite the golden wire bytes; review the diff.
	$(PYTHON) -m pytest tests/contract -q --rewrite-golden

clean: ## Remove what was built, not the environment.
	rm -rf build dist site
