# Everything a newcomer needs, each from nothing: `make demo`, `make test`. Needs make and Python 3.11 or later.
#
#   make test PYTHON=python3.12     another interpreter
#   make test ARGS="-k lora -x"     arguments for pytest (demo: for trimtab run)
#   make test JOBS=8                more test processes
#   make setup QUIET=               all that pip has to say

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=
QUIET ?= --quiet

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --constraint constraints.txt
# What an installation depends on: repeated commands skip it until one of these changes.
SETUP := pyproject.toml constraints.txt src/trimtab/_version.py
# One compute thread a test process (two processes with two threads each are slower than that on two cores), and no
# test may reach for a model hub.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test setup lint format types contracts unit bench clean

help: ## show this list
	@echo "Usage: make TARGET [PYTHON=python3.12] [ARGS=...] [JOBS=2]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.lab ## set up, then fine-tune a real model in full and by adapters, and compare
	@echo "==> trimtab run recipes/quickstart.yaml"
	@$(BIN)/trimtab run recipes/quickstart.yaml $(ARGS)

test: lint types contracts unit ## set up, then lint, types, import contracts and all tests

setup: $(VENV)/.all ## make .venv with everything for development

lint: $(VENV)/.all ## ruff: mistakes, style, format
	@echo "==> Lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.all ## ruff: repair what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.all ## mypy: strict in the core
	@echo "==> Types"
	@$(BIN)/mypy

contracts: $(VENV)/.all ## import-linter: who may import whom
	@echo "==> Import contracts"
	@$(BIN)/lint-imports

unit: $(VENV)/.all ## pytest, without lint and types
	@echo "==> Tests, $(JOBS) at a time"
	@$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 10 $(ARGS)

bench: $(VENV)/.all ## say how each benchmark is run
	@echo "Benchmarks take the machine for themselves, so they are run one by one:"
	@for f in benchmarks/[a-z]*.py; do [ ! -e "$$f" ] || echo "  $(BIN)/python $$f"; done
	@echo "Each prints its table beside its baseline and says where it writes its results."

clean: ## remove .venv and caches (not runs/)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# ------------------------------------------------------------------------------------------------- set-up

# An environment, remade from nothing if an earlier attempt was cut short.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "error: there is no '$(PYTHON)'. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python3"; \
	    exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); Trimtab needs 3.11 or later. Name one: make PYTHON=python3.11"; \
	    exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "error: $(PYTHON) cannot make virtual environments (its venv or ensurepip module is missing)."; \
	    echo "       On Debian and Ubuntu: apt-get install python3-venv"; \
	    exit 1; }
	@echo "==> Making a virtual environment in $(VENV) ($$($(PYTHON) -V))"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# What failed is said by pip itself, just above the last line.
define install
	@echo "==> Installing $(1) (the first time: some minutes)"
	@$(PIP_INSTALL) --editable "$(2)" || { \
	    echo "error: the set-up did not finish; the reason is above (more of it: make setup QUIET=)."; \
	    echo "       The same command tries again."; \
	    exit 1; }
	@touch $@
endef

$(VENV)/.lab: $(VENV)/.made $(SETUP)
	$(call install,the library and the workbench,.[lab])

$(VENV)/.all: $(VENV)/.lab $(SETUP)
	$(call install,the tools for tests,.[lab$(comma)dev])

comma := ,
