#!/usr/bin/env bash
# Installs nnscan itself into the new environment; start Snakemake from the project's root folder.
set -euo pipefail
test -f pyproject.toml || { echo "start Snakemake from nnscan's root folder, where pyproject.toml is" >&2; exit 1; }
python -m pip install --no-deps --editable .
