"""Render the tables beside the published ones, and judge the claims; of all runs, or marked as those of some."""

from dataclasses import replace
from pathlib import Path

from nnscan.claims import evaluate_claims, read_claims
from nnscan.contents import CONTENTS, TABLES
from nnscan.errors import ArtifactError
from nnscan.jobs import job
from nnscan.rendering import marked_as_partial, render, write_csv
from nnscan.tables import Run, read_published

with job(snakemake):
    params, folder = snakemake.params, Path(snakemake.output.claims).parent
    runs = [
        Run(dataset, model, seed, Path(params.root) / dataset / model / f"seed{seed}", frozenset(names))
        for dataset, model, seed, names in params.runs
    ]
    if not runs:
        raise ArtifactError(f"none of the {params.of} runs is complete; {params.root}/missing.md says why")
    published = Path(snakemake.input.claims).parent
    partial = f"partial: {len(runs)} of {params.of} runs" if len(runs) < params.of else ""
    for name in params.tables:
        table, frame = TABLES[name], TABLES[name].function(runs, read_published(published, name))
        if partial:
            table, frame = replace(table, title=f"{table.title} ({partial})"), marked_as_partial(frame, partial)
        render(frame, table, folder / "tables")
    shown = {*params.tables, *params.figures}
    claims = [claim for claim in read_claims(snakemake.input.claims) if CONTENTS[claim.table].shown in shown]
    judged = evaluate_claims(claims, runs)
    write_csv(snakemake.output.claims, marked_as_partial(judged, partial) if partial else judged)
