# Every target sets up its own virtual environment when it has to. Start with `make mnist`.
#   make mnist ARGS="--seed 3"      more words for the command
#   make PYTHON=python3.12 test     another Python
#   make VENV=/elsewhere/venv test  another place for the environment

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
# One stamp for what a user needs, one for what a developer needs; each is as new as pyproject.toml.
CORE := $(BIN)/.installed-core
DEV := $(BIN)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help mnist test test-slow docs lint bench gpu wheel clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

mnist: $(CORE) ## Train the reference network on MNIST; keep record, weights, pictures.
	$(BIN)/constrained-cnn train mnist-12k $(ARGS)

test: $(DEV) ## Run the tests, in a random order, without the slow ones and those for a GPU.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

test-slow: $(DEV) ## Run the slow tests.
	$(BIN)/python -m pytest -q -m "slow and not gpu" --timeout 3600 $(ARGS)

docs: $(DEV) ## Build the documentation into docs/_build/html and run its examples.
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build/html
	$(BIN)/python -m sphinx -q -n -W --keep-going -b doctest docs docs/_build/doctest

lint: $(DEV) ## Check style, types and import contracts.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: $(DEV) ## Time a training step beside its rivals.
	$(BIN)/python -m benchmarks.trainers $(ARGS)

gpu: $(DEV) ## On a machine with a GPU: its tests, the timings, and the accuracies of many seeds.
	$(BIN)/python -m pytest -q -m gpu --timeout 3600
	$(BIN)/python -m benchmarks.trainers --device cuda
	$(BIN)/python -m benchmarks.many_seeds --device cuda
	for executor in eager graph; do $(BIN)/constrained-cnn train mnist-12k --data mnist --seeds 0-15 \
	  --device cuda --executor $$executor --out runs/gpu/$$executor --resume-if-begun || exit 1; done
	$(BIN)/python -m benchmarks.compare_arms runs/gpu/eager runs/gpu/graph \
	  --out benchmarks/results/executors-cuda.json
	for recipe in mnist-12k mnist-12k-source; do $(BIN)/constrained-cnn train $$recipe --data mnist \
	  --seeds 0-63 --device cuda --out runs/gpu/$$recipe --resume-if-begun || exit 1; done

wheel: $(DEV) ## Build the wheel into dist/.
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

clean: ## Remove what was built; the environment, data and runs stay.
	rm -rf build dist docs/_build docs/_static/generated .mypy_cache .ruff_cache .pytest_cache \
	  .hypothesis .import_linter_cache
	find constrained_cnn tests docs benchmarks examples -name __pycache__ -prune -exec rm -rf {} + \
	  2>/dev/null || true

# An environment that was already there is used as it is, if its Python is new enough.
define check_environment
$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: the\
 environment VENV=$(VENV) has $$($(BIN)/python -V 2>&1), and 3.11 or newer is needed;\
 remove it, or name another: make VENV=.venv-new ..." >&2; exit 1; }
endef

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: PYTHON=$(PYTHON): there is no such\
	 command; name a Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make:\
	 PYTHON=$(PYTHON) is $$($(PYTHON) -V 2>&1), and 3.11 or newer is needed; name another:\
	 make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: PYTHON=$(PYTHON) cannot\
	 make a virtual environment; install its venv module (on Debian and Ubuntu: apt install\
	 python3-venv)" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

$(CORE): pyproject.toml | $(BIN)/python
	@$(check_environment)
	@echo "Installing constrained_cnn and PyTorch into $(VENV): up to 5.6 GB, a minute or two, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@$(check_environment)
	@echo "Installing constrained_cnn, PyTorch and the development tools into $(VENV):" \
	  "up to 5.6 GB, a minute or two, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,docs]"
	@touch $(CORE) $@
