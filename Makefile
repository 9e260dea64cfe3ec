# make demo: the main job on the embedded models. make test: everything that CI checks.
# Both make their own environment in .venv, from nothing but Python 3.11 or newer and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes as tests/conftest.py says. One that has nothing left takes tests from another, whatever
# their file.
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal
# Many tests start processes: compiled once, even where containers turn that off.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo pictures examples test pytest quick lint style types layers env clean
demo: $(VENV)/.installed
	$(BIN)/ledom demo --out out/demo

# The README's pictures, of the version at hand: the demo's report and the page of ledom serve.
pictures: demo $(VENV)/.installed-dev
	$(BIN)/python docs/picture.py out/demo/report.html docs/report.png
	$(BIN)/python docs/picture.py serve docs/page.png

# The types are checked beside the tests, which leave a core idle while they start and end.
test: $(VENV)/.installed-dev
	$(MAKE) --jobs lint pytest

pytest: $(VENV)/.installed-dev
	$(PYTEST)

# The recorded examples of the page of ledom serve, made by the embedded pair.
examples: $(VENV)/.installed-dev
	$(BIN)/python docs/record_examples.py src/ledom/serve/page/examples.json

# What most changes need: no lint of types, and no test that takes long.
quick: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow"

lint: style types layers

style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-cache

env: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ledom needs Python 3.11 or newer; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# Python compiles what is imported when it is imported: half of the installation's time saved. What
# every test process imports is compiled here, once, rather than by all of them at the same time.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing ledom and what it needs into $(VENV): about a minute, once."
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	-$(BIN)/python -m pytest --collect-only > /dev/null
	touch $@

clean:
	rm -rf $(VENV) out build src/*.egg-info
