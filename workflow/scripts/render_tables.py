"""Render the tables beside the published ones, and judge the claims."""

from pathlib import Path

from nnscan.claims import evaluate_claims, read_claims
from nnscan.contents import TABLES
from nnscan.jobs import job
from nnscan.rendering import render, write_csv
from nnscan.tables import Run, read_published

with job(snakemake):
    root = Path(snakemake.output.claims).parent
    runs = [
        Run(dataset, model, seed, root / dataset / model / f"seed{seed}", frozenset(names))
        for dataset, model, seed, names in snakemake.params.runs
    ]
    published = Path(snakemake.input.claims).parent
    for name in snakemake.params.tables:
        render(TABLES[name].function(runs, read_published(published, name)), TABLES[name], root / "tables")
    write_csv(snakemake.output.claims, evaluate_claims(read_claims(snakemake.input.claims), runs))
