PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-long lint types keys docs bench bench-full bench-gpu bench-data bench-alignment soak clean

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
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .

types: install
	$(BIN)/pyright

test: lint types
	$(BIN)/pytest -n 2 --dist loadfile --durations 15

# Tests that `make test` leaves out because they take long: more pairs of stage and ZeRO profile, an installed wheel.
test-long: install
	$(BIN)/pytest -m long -n 2

# Run this after a change of a stage's keys, traits or recipe version.
keys: install
	$(BIN)/python -m commands.describe_keys
	$(BIN)/python -m pipeline.recipe.reference
	$(BIN)/python -m pipeline.recipe.stage_reference

# The documentation as a site, build/docs/index.html: it opens from the disk and loads nothing. A broken link fails.
docs: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Speed and memory compared with TRL, generate() and vLLM on the same machine: docs/benchmarks.md. Needs BASE_MODEL (a
# model folder) and PAIRS (a file of preferences). Optional: INSTRUCTIONS (files of dialogs), VLLM_PYTHON (the Python of
# an environment with vLLM) and OPTIONS (as --quick). Measurements are kept, so a stopped benchmark can be resumed.
needs = $(if $($(1)),,$(error make $@ needs $(1)=PATH, $(2)))
bench: install
	$(call needs,BASE_MODEL,the folder of a small causal model)$(call needs,PAIRS,a file of preferences)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.speed table --base_model "$(BASE_MODEL)" --pairs "$(PAIRS)" \
		--instructions $(INSTRUCTIONS) --vllm_python "$(VLLM_PYTHON)" $(OPTIONS)

# The grid of three model sizes, row lengths and batch sizes. Needs BASE_MODEL, whose tokenizer it uses.
bench-full: install
	$(call needs,BASE_MODEL,the folder of a small causal model)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.speed grid --base_model "$(BASE_MODEL)" $(OPTIONS)

# Training beside TRL on one GPU, and its checks, in nine minutes without downloads: docs/benchmarks-gpu.md. The same
# command again measures the parts that are missing. Without a GPU it tries everything with tiny models.
bench-gpu: install
	$(BIN)/python -m benchmarks.speed gpu $(OPTIONS)

# Curation of synthetic chat rows with planted duplicates, contamination and another language: minutes, memory, recall.
# 100,000 and a million rows, 3 GB of files in runs/bench-data: docs/benchmarks-data.md. A trial has
# OPTIONS="--rows 20000 --page trial.md".
bench-data: install
	$(BIN)/python -m benchmarks.data --page docs/benchmarks-data.md $(OPTIONS)

# Five seeds of the demo's world, with ablations and controls: docs/alignment.md. Finished runs are reused.
bench-alignment: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.alignment world

# Kills the demo at 50 random moments; every file must be identical to that of an undisturbed run.
soak: install
	$(BIN)/python -m benchmarks.soak --kills 50

clean:
	rm -rf $(VENV) build *.egg-info
