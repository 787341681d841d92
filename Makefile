# `make results` runs the main job on the embedded default, `make test` passes the tests.
# Both set up .venv on first use and need only Python >= 3.11 and PyPI.

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
BIN := .venv/bin
STUDY ?= config/config.yaml

.PHONY: results test test-cluster report check format config bench audit fuzz

# checked first, because Snakemake's reader can run code that a study's file holds (docs/security.md)
results: .venv/installed
	$(BIN)/nnscan check $(STUDY)
	$(BIN)/snakemake --cores $(CORES) --configfile $(STUDY) --quiet host reason

report: .venv/installed
	$(BIN)/nnscan check $(STUDY)
	$(BIN)/snakemake --configfile $(STUDY) --report results/snakemake_report.zip

test: .venv/installed
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder --durations 30

# a real Slurm cluster of one node, from Debian's packages: as root, on Debian
test-cluster: .venv/cluster
	$(BIN)/python -m pytest tests/cluster --durations 0

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

# needs a database of known holes: PyPI's; what none can be found for is an error, not a success
audit: .venv/installed
	test -x .venv/audit/bin/pip-audit || $(BIN)/python -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	PIPAPI_PYTHON_LOCATION=$(BIN)/python .venv/audit/bin/pip-audit --local --strict --skip-editable --progress-spinner off

# 50 times as many examples as in `make test`: half an hour
fuzz: .venv/installed
	HYPOTHESIS_PROFILE=campaign $(BIN)/python -m pytest tests/fuzz -o addopts= --import-mode=importlib

config: .venv/installed
	$(BIN)/python -m nnscan.configuration

# what is not compiled now is when it is first imported: most of it never
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nnscan needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(INSTALL) '.[dev]'
	touch $@

.venv/cluster: pyproject.toml | .venv/bin/python
	$(INSTALL) '.[dev,cluster,peers]'
	touch .venv/installed $@
