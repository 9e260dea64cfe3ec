# make demo: the main job on the embedded models. make test: everything that CI checks.
# Both make their own environment in .venv, from nothing but Python 3.11 or newer and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two threads share the work of two cores; more processes than cores slow every one of them.
export TOKENIZERS_PARALLELISM ?= true

.PHONY: demo picture test lint env clean
demo: $(VENV)/.installed
	$(BIN)/ledom demo --out out/demo

# The README's picture, of the version at hand: the demo's report as a browser shows it.
picture: demo
	$(BIN)/python docs/picture.py out/demo/report.html docs/report.png

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

env: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ledom needs Python 3.11 or newer; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing ledom and what it needs into $(VENV): about a minute, once."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out build src/*.egg-info
