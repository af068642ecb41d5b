# `make demo` and `make test` need nothing but a Python of 3.11 or later and the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint format heldout clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tatok needs Python 3.11 or later; run make PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	@rm -rf demo-output
	$(BIN)/tatok demo --output demo-output

test: setup
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Held-out figures of the default checkpoint, as its card quotes them.
HELDOUT ?= ../shared/corpus/photos-heldout-0000.tar
heldout: setup
	$(BIN)/tatok eval $(HELDOUT) --tokens 56

clean:
	rm -rf $(VENV) demo-output .pytest_cache .ruff_cache .mypy_cache .hypothesis
