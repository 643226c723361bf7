# Everything sets itself up: a virtual environment in .venv with the versions of constraints.txt, or with the newest by
# CONSTRAINTS=/dev/null.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
READY := .venv/.ready

SCHEMA := $(BIN)/check-jsonschema --quiet --builtin-schema
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
export PYTHONDONTWRITEBYTECODE :=  # or pytest would rewrite the assertions of every test file in each run

.PHONY: demo docs test test-slow test-all test-versions wheel lint clean

demo: $(READY)
	$(BIN)/comrope demo

test: $(READY)
	$(PYTEST) -m "not slow"

test-slow: $(READY)
	$(PYTEST) -m "slow and not campaign"  # python -m tests.faults runs these

test-all: test test-slow

test-versions: $(READY)
	$(BIN)/python -m tests.versions

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(READY)
	$(BIN)/python -m tests.wheel --out dist

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff

clean:
	rm -rf .venv .versions dist runs site

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@
