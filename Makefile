# Each target sets up what it needs in $(VENV) and is cheap to run again; `make` alone lists them.
# Another Python: PYTHON=python3.12 make test

PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
ARGS ?=

BIN := $(abspath $(VENV))/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --root-user-action=ignore \
	--constraint constraints.txt --editable
export PATH := $(BIN):$(PATH)

.PHONY: help demo test check clean

help:
	@echo "make demo    adapt the nano model to simulated driving, print the scores, write the report (runs/demo)"
	@echo "make test    run the tests"
	@echo "make check   lint, formatting, types"
	@echo "make clean   remove the virtual environment and caches; keeps runs/"

demo: $(VENV)/.demo
	@minivl demo $(ARGS)

test: $(VENV)/.dev
	@scripts/test $(ARGS)

check: $(VENV)/.dev
	@scripts/check

clean:
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one like this: PYTHON=python3.12 make test" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@echo '*' > $(VENV)/.gitignore
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once, some minutes) ..."
	@$(PIP_INSTALL) '.[report,sim,synth]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) with the developer's tools (once, some minutes) ..."
	@$(PIP_INSTALL) '.[dev]'
	@touch $@
