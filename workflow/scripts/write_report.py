"""Write the study's report: tables, claims with verdicts, figures and provenance on one page."""

import json
from pathlib import Path

from nnscan.artifacts import read_provenance
from nnscan.contents import TABLES
from nnscan.jobs import job
from nnscan.rendering import read_csv
from nnscan.report import Study, write_report

with job(snakemake):
    params, root = snakemake.params, Path(snakemake.params.root)
    datasets, models, seeds = (list(dict.fromkeys(column)) for column in list(zip(*params.runs, strict=True))[:3])
    artefacts = [root / dataset / "data.h5" for dataset in datasets]
    for dataset, model, seed, names in params.runs:
        measured = [name for name in names if name.startswith(("metrics/", "explainers/"))]
        artefacts += [root / dataset / model / f"seed{seed}" / name for name in measured]
    origins = {str(path.relative_to(root)): read_provenance(path) for path in artefacts}
    shown = ("data", "scan", "components", "checkpoint", "code", "created")
    provenance = [{"artefact": name, **{key: origin.get(key, "") for key in shown}} for name, origin in origins.items()]
    first = origins[f"{datasets[0]}/data.h5"]
    study = Study(
        f"{params.study} (partial)" if params.missing else params.study,
        "What every neuron and every filter of these networks has learned, tested by masking and pruning, beside the "
        "published tables.",
        datasets,
        models,
        seeds,
        first["machine"],
        json.loads(first["versions"]),
    )
    tables = [(TABLES[name], read_csv(path)) for name, path in zip(params.tables, snakemake.input.tables, strict=True)]
    claims = read_csv(snakemake.input.claims)
    page = snakemake.output.report
    pages = {figure: own for figure, own in params.pages.items() if Path(own).is_file()}  # not all of a partial study
    write_report(page, study, tables, claims, params.figures, provenance, pages, params.missing)
