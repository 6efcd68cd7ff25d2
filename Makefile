PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-long lint types keys bench-alignment soak clean

install: $(VENV)/.installed

$(VENV)/.installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("alignloop needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12 " ) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/alignloop run configs/demo.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

test: lint types
	$(BIN)/pytest -n 2 --dist loadfile --durations 15

# What is left out of `make test` for its time: more pairs of stage and ZeRO profile.
test-long: install
	$(BIN)/pytest -m long -n 2

# After a key of a stage, or its recipe version, has changed.
keys: install
	$(BIN)/python -m stages.describe

# Five seeds of the demo's world, with parts removed and controls: docs/alignment.md. Runs that are there are reused.
bench-alignment: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.alignment world

# The demo killed at 50 random moments: every file must come out as in the run that was left alone.
soak: install
	$(BIN)/python -m benchmarks.soak --kills 50

clean:
	rm -rf $(VENV) build *.egg-info
