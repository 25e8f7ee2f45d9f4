# The commands of the README. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test check format bench notebooks docs wheel clean

help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with the tested versions

# constraints.txt pins what the tests ran with; pyproject.toml says what else is expected to work
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, found " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP) ## the whole way once, in demo/
	$(BIN)/jdm-seg demo demo

test: $(STAMP) ## the whole test suite
	$(BIN)/python -m pytest

check: $(STAMP) ## format, lint, types, docstrings, import order
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_docstrings.py
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(STAMP) ## mend what format and lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## timings, as ratios within one run
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_metrics.py
	$(BIN)/python scripts/bench_inference.py
	$(BIN)/python scripts/bench_scan.py
	$(BIN)/python scripts/bench_training.py

notebooks: $(STAMP) ## build the .ipynb from their .py sources, executed
	$(BIN)/python scripts/build_notebooks.py

docs: $(STAMP) ## site/: guides and reference, every link checked
	$(BIN)/python -m mkdocs --quiet build --strict

wheel: $(STAMP) ## dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## remove what make made, but not data
	rm -rf $(VENV) demo dist build site
