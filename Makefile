# Everything sets itself up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-versions lint clean

demo: $(READY)
	$(BIN)/comrope demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

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
