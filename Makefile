# Needs only Python 3.10 or newer: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The tests are many small runs, which are faster with one thread per worker.
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo bench cuda test check lint format docs test-install test-lowest test-hostile dist clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed 's/:.*  ## /\t/' | expand -t 16

setup:  ## create .venv with all dependencies (about two minutes; skipped if unchanged)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "setup: $(PYTHON) is missing or older than 3.10: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) .ci/setup_env.py $(VENV) -e '.[dev]'

demo: setup  ## evaluate base, Arrow and GenKnowSub on a small model
	@unset OMP_NUM_THREADS; $(BIN)/gks-eval demo

# ARGS are arguments of the benchmark: make bench ARGS="--rows layer --repeats 4"
bench: setup  ## compare with PEFT and lm-eval: layers, models, evaluations, start-up
	@unset OMP_NUM_THREADS; $(BIN)/python -m benchmarks $(ARGS)

# Needs no network once .venv exists.
cuda: setup  ## on a machine with a GPU: GPU tests, and a benchmark of Phi-3-mini's full size in bf16 and NF4
	$(BIN)/python -m pytest tests/cuda
	@unset OMP_NUM_THREADS; $(BIN)/python -m benchmarks --rows full --device cuda \
	  --dtype bfloat16 --json cuda.json $(ARGS)

test: setup  ## run all tests except the install and hostile tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## run lint and test, as CI does

format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# MkDocs prints an advertisement unless the variable is set.
docs: setup  ## build the documentation in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs build --strict

test-install: setup  ## install into fresh environments and test them (some minutes)
	$(BIN)/python -m pytest -m install tests/install

# The tests that depend most on other packages. Mixing old and new releases causes warnings, which are
# not errors here.
LOWEST_TESTS ?= tests/unit tests/parity tests/integration/test_grid.py
# safetensors 0.5 cannot write complex numbers, torch 2.6 does not detect a disk that is full up to a few
# bytes, and transformers 5.0 gives another reason for refusing two models.
NOT_LOWEST = 'tests/unit/library/test_peft_adapter.py::test_bad_adapters[complex]' \
  'tests/unit/training/test_limits.py::test_a_disk_that_fills_under_a_checkpoint_is_a_sentence[10]' \
  'tests/unit/scoring/test_support.py::test_models_that_cannot_say_why[FalconConfig-changes1-ALiBi]' \
  'tests/unit/scoring/test_support.py::test_models_that_cannot_say_why[GPTNeoConfig-changes2-local]'
test-lowest:  ## run the main tests on the lowest versions in pyproject.toml, in .venv-lowest
	@$(PYTHON) .ci/setup_env.py --constraints .ci/lowest.txt .venv-lowest \
	  -e '.[demo,train,ray,evidence]' pytest pytest-xdist hypothesis
	.venv-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile -W default $(LOWEST_TESTS) \
	  $(foreach test,$(NOT_LOWEST),--deselect $(test))

test-hostile: setup  ## test killed commands, full disks and odd paths (about an hour)
	$(BIN)/python -m pytest -m hostile -s

dist: setup  ## build a wheel and a source archive in dist/
	rm -rf dist
	$(BIN)/python -m build

clean:  ## remove everything that can be generated again, including .venv
	rm -rf $(VENV) .venv-lowest dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
