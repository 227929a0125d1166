# `make quickstart` and `make test` need Python 3.11 or 3.12 and a package index; both set up .venv by themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
RANKS ?= 2
PARTS := shards/mmsa_shards kernels/mmsa_kernels kernels/benchmarks mmsa_dist launch tests benchmarks docs/hooks.py

# One thread a process: two ranks on two cores get in each other's way with more.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup quickstart test test-slow lint format docs clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(VENV)/.installed  ## .venv with the locked dependencies and this package

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 12); sys.exit(None if ok else "mmsa-dist needs Python 3.11 or 3.12, not %d.%d; say make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@echo "setting up $(VENV) (about 2.5 GB the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --no-deps --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: setup  ## molecules -> shards -> pre-training -> vectors -> probe -> report, on 2,628 drugs
	@PATH="$(abspath $(BIN)):$$PATH" RANKS=$(RANKS) RUN=$(RUN) bash launch/quickstart.sh

test: setup  ## the tests, in about 16 minutes of two cores
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" $(ARGS)

test-slow: setup  ## the full forms of the tests
	@$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

lint: setup  ## ruff and mypy, benchmarks too
	@$(BIN)/ruff check $(PARTS)
	@$(BIN)/ruff format --check $(PARTS)
	@$(BIN)/mypy
	@$(BIN)/mypy benchmarks/*.py kernels/benchmarks/*.py

format: setup  ## puts the code into its form
	@$(BIN)/ruff check --fix $(PARTS)
	@$(BIN)/ruff format $(PARTS)

docs: setup  ## the documentation as a site, in build/site
	@$(BIN)/mkdocs build --strict --quiet --site-dir build/site
	@echo "open build/site/index.html in a browser"

clean:  ## removes .venv and caches, leaves runs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
