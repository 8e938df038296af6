# `make demo` and `make test` need Python 3.11 or newer, make and a package index; everything else they install.
PYTHON ?= python3
# More arguments for pip, for example --extra-index-url https://download.pytorch.org/whl/cpu for PyTorch's CPU build.
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: demo smoke test test-slow lint parity ledger families calls faults configs walkthrough clean help

help: ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/installed ## train on the copy task, then decode with beam search
	$(BIN)/python train.py --task copy
	$(BIN)/python generate.py --beam 4

smoke: .venv/smoked ## the library in a minute, without PyTorch and transformers
	$(BIN)/python -m pytest -m smoke --numprocesses 2

test: .venv/tested ## the tests, under ten minutes on two cores
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadgroup --durations 10

test-slow: .venv/tested ## the tests that take longer, under half an hour
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m pytest -m "slow and not optimised and not alone" --numprocesses 2 --dist loadgroup --durations 0
	$(BIN)/python -m pytest -m optimised --numprocesses 2 --dist loadgroup --durations 0

lint: .venv/linted ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

parity: .venv/tested ## measure the distances to PyTorch and Hugging Face again
	PYTHONPATH=tests:tests/parity $(BIN)/python tests/parity/report.py > docs/parity.md

ledger: .venv/tested ## the slow tests of all families: the slow run draws a third of the further ones, by DRAW=0
	DRAW=all $(BIN)/python -m pytest -m slow tests/parity --numprocesses 2 --dist loadgroup

families: .venv/tested ## list the families that open and those that do not, in docs/families.md
	PYTHONPATH=tests:tests/parity $(BIN)/python tests/parity/family_list.py > docs/families.md

# Compiled as the tests are: quickly.
QUICKLY := JAX_DISABLE_MOST_OPTIMIZATIONS=1 OMP_NUM_THREADS=1 PYTHONPATH=.:tests:tests/parity:tests/faults \
	XLA_FLAGS="$$($(BIN)/python tests/compilation.py)"
SEED ?= $(shell date +%s)

CALLS ?= 10000
calls: .venv/tested ## draw CALLS calls of generate() (10000), compare with transformers, count
	$(QUICKLY) $(BIN)/python tests/parity/drawn.py --calls $(CALLS) --seed $(SEED)

configs: .venv/tested ## set every key of every family's config.json to other values, compare with transformers
	$(QUICKLY) $(BIN)/python tests/faults/configs.py --seed $(SEED)

FAULTS := loading saving kills disks damage command_lines interrupts calls soak
faults: .venv/tested ## break everything that can break, count what fails: under an hour
	@for name in $(FAULTS); do $(QUICKLY) $(BIN)/python tests/faults/$$name.py --seed $(SEED) || failed=1; done; exit $${failed:-0}

walkthrough: .venv/tested ## execute docs/walkthrough.py into the notebook beside it
	$(BIN)/python tests/test_walkthrough.py docs/walkthrough.ipynb

clean: ## remove the environment and everything made
	rm -rf .venv build dist *.egg-info runs

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxformer needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet $(PIP_ARGS) --editable '.[all]'
	@touch $@

.venv/smoked: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet $(PIP_ARGS) --editable '.[smoke]'
	@touch $@ .venv/installed

.venv/tested: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet $(PIP_ARGS) --editable '.[test]'
	@touch $@ .venv/installed .venv/smoked

.venv/linted: .venv/tested
	$(BIN)/pip install --quiet $(PIP_ARGS) --editable '.[test,lint]'
	@touch $@
