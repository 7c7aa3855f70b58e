# On a fresh machine with Python 3.10 or newer and nothing else: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The tests are many small runs: a core each serves them better than threads that wait.
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo bench test check lint format test-install test-lowest test-hostile dist clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed 's/:.*  ## /\t/' | expand -t 16

setup:  ## an environment in .venv with everything (about two minutes; nothing when unchanged)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "setup: $(PYTHON) is missing or older than 3.10: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) .ci/setup_env.py $(VENV) -e '.[dev]'

demo: setup  ## base, Arrow and GenKnowSub on a small model, side by side
	@unset OMP_NUM_THREADS; $(BIN)/gks-eval demo

# ARGS are the benchmark's own: make bench ARGS="--rows layer --repeats 4"
bench: setup  ## this package and its peers side by side: layers, models, evaluations, start-up
	@unset OMP_NUM_THREADS; $(BIN)/python -m benchmarks $(ARGS)

test: setup  ## all tests but those of the installation
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## what has to pass before a change goes in

format: setup  ## set the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-install: setup  ## install into fresh environments and use them (some minutes)
	$(BIN)/python -m pytest -m install tests/install

# What rests on the dependencies most. Old releases beside new ones warn; here that is no error.
LOWEST_TESTS ?= tests/unit tests/parity tests/integration/test_grid.py
# safetensors 0.5 cannot write complex numbers, torch 2.6 does not notice a full disk under a few
# bytes, and two models of transformers 5.0 are refused for another reason than later ones.
NOT_LOWEST = 'tests/unit/library/test_peft_adapter.py::test_bad_adapters[complex]' \
  'tests/unit/training/test_limits.py::test_a_disk_that_fills_under_a_checkpoint_is_a_sentence[10]' \
  'tests/unit/scoring/test_support.py::test_models_that_cannot_say_why[FalconConfig-changes1-ALiBi]' \
  'tests/unit/scoring/test_support.py::test_models_that_cannot_say_why[GPTNeoConfig-changes2-local]'
test-lowest:  ## the main tests on the lowest versions that pyproject.toml allows, in .venv-lowest
	@$(PYTHON) .ci/setup_env.py --constraints .ci/lowest.txt .venv-lowest \
	  -e '.[demo,train,ray,evidence]' pytest pytest-xdist hypothesis
	.venv-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile -W default $(LOWEST_TESTS) \
	  $(foreach test,$(NOT_LOWEST),--deselect $(test))

test-hostile: setup  ## kill, starve and confuse the commands (about 15 minutes)
	$(BIN)/python -m pytest -m hostile tests/hostile -s

dist: setup  ## a wheel and a source archive in dist/
	rm -rf dist
	$(BIN)/python -m build

clean:  ## remove everything that can be made again, .venv too
	rm -rf $(VENV) .venv-lowest dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
