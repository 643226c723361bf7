# Everything sets itself up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
export PYTHONDONTWRITEBYTECODE :=  # or pytest would rewrite the assertions of every test file in each run

.PHONY: demo test test-slow test-all test-versions lint clean

demo: $(READY)
	$(BIN)/comrope demo

test: $(READY)
	$(PYTEST) -m "not slow"

test-slow: $(READY)
	$(PYTEST) -m "slow and not campaign"  # python -m tests.faults runs these

test-all: test test-slow

test-versions: $(READY)
	$(BIN)/python -m tests.versions

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf .venv .versions runs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
