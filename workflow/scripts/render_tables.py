"""Render the tables beside the published ones, and judge the claims; of all runs, or marked as those of some."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from nnscan.claims import Claim, evaluate_claims, read_claims
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
    asking = {stage: [run for run in runs if stage in params.stages[run.model]] for stage in params.shown.values()}
    for name in params.tables:
        own = asking[params.shown[name]]
        table, frame = TABLES[name], TABLES[name].function(own, read_published(published, name))
        if partial:
            table, frame = replace(table, title=f"{table.title} ({partial})"), marked_as_partial(frame, partial)
        render(frame, table, folder / "tables")
    claims: dict[str, list[Claim]] = {}
    for claim in read_claims(snakemake.input.claims):
        if CONTENTS[claim.table].shown in params.shown:
            claims.setdefault(params.shown[CONTENTS[claim.table].shown], []).append(claim)
    judged = pd.concat([evaluate_claims(own, asking[stage]) for stage, own in claims.items()], ignore_index=True)
    write_csv(snakemake.output.claims, marked_as_partial(judged, partial) if partial else judged)
