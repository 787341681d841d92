# `make results` runs the main job on the embedded default, `make test` passes the tests.
# Both set up .venv on first use and need only Python >= 3.11 and PyPI.

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
BIN := .venv/bin
STUDY ?= config/config.yaml

.PHONY: results test report check format config bench

results: .venv/installed
	$(BIN)/snakemake --cores $(CORES) --configfile $(STUDY) --quiet host reason

report: .venv/installed
	$(BIN)/snakemake --configfile $(STUDY) --report results/snakemake_report.zip

test: .venv/installed
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

bench: .venv/installed
	$(BIN)/python benchmarks/run.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

config: .venv/installed
	$(BIN)/python -m nnscan.configuration

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nnscan needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
