# make demo   a real DPO file, made by a small real model on this machine
# make test   all tests;  make test-fast  the quick ones;  make check  format, lint, types, import direction
# make bench  the benchmarks, with their tables

export PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt
DEMO ?= outputs/demo
MODEL := $(BIN)/rlaif models get smollm2

.PHONY: demo test test-fast check bench clean

# The small model is no judge, as planted checks find out: --accept-judge goes on all the same, to show the machinery.
demo: .venv/.installed
	$(MODEL)
	$(BIN)/rlaif generate prompts/examples/demo.jsonl --policy smollm2 --out $(DEMO) --limit 10 --max-tokens 200 --judge pairwise --accept-judge

test: .venv/.installed-dev
	$(MODEL)
	$(BIN)/python -m pytest

test-fast: .venv/.installed-dev
	$(BIN)/python -m pytest -m "not slow"

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

bench: .venv/.installed-dev
	$(MODEL)
	for name in http_client engine rates kills memory damage local export check fit ranking; do $(BIN)/python benchmarks/$$name.py || exit 1; done

.venv/.installed: pyproject.toml constraints/cpu.txt .ci/venv
	sh .ci/venv
	$(PIP) -e '.[gguf]'
	touch $@

.venv/.installed-dev: pyproject.toml constraints/cpu.txt .ci/venv
	sh .ci/venv
	$(PIP) -e '.[dev,gguf,local,math]'
	touch $@ .venv/.installed

clean:
	rm -rf .venv build dist $(DEMO)
