# make help lists the targets. Quoted paths throughout: the checkout may lie in a folder with spaces.
PYTHON ?= python3
RECIPE ?= notes
EPOCHS ?=
SEEDS ?= 0
TEACHERS ?= resnet cnn
JOBS ?= 1
PY := .venv/bin/python

.PHONY: help setup reproduce test clean
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | awk -F ':.*## ' '{ printf "%-12s%s\n", $$1, $$2 }'
	@echo
	@echo 'make reproduce RECIPE=notes|best EPOCHS=N SEEDS="0 1 2" TEACHERS="resnet cnn" JOBS=N'

setup: .venv/installed  ## virtual environment in .venv, and the data set, found or fetched
	@$(PY) -m common.data

.venv/installed: requirements.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'error: $(PYTHON) is not there, or older than Python 3.11, as the packages need;' \
	            'name another with make PYTHON=python3.12' >&2; exit 2; }
	@"$(PYTHON)" -m venv .venv
	@echo 'installing the packages of requirements.lock into .venv (about 6 GB: torch brings CUDA)'
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --no-compile \
	  -r requirements.lock
	@$(PY) -m compileall -qq -j 0 -x /tests/ .venv/lib || true # on all cores; some of torch is for newer Pythons
	@touch $@

reproduce: setup  ## train every network on the real data, then write the report
	@$(PY) reproduce.py --recipe $(RECIPE) --seeds $(SEEDS) --teachers $(TEACHERS) \
	  --jobs $(JOBS) $(if $(EPOCHS),--epochs $(EPOCHS))

test: setup  ## ruff, then all tests
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pytest -n auto

clean:  ## remove the virtual environment; data/, runs/ and report/ stay
	@rm -rf .venv
