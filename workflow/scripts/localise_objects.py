"""How well CAM, Grad-CAM and the FQ map locate the objects of the scanned samples."""

import torch

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.data import read_dataset
from nnscan.evaluation import localisation
from nnscan.explanations import read_scanned
from nnscan.jobs import job
from nnscan.training import restore

with job(snakemake):
    dataset, params = read_dataset(snakemake.input.data), snakemake.params
    model = restore(params.model["source"], params.model["options"], dataset, snakemake.input.weights)
    scanned = read_scanned(snakemake.input.shards, **params.quantity)
    foreground = dataset.splits["test"].foreground
    table = localisation(
        model,
        torch.from_numpy(dataset.inputs("test", scanned.samples)),
        None if foreground is None else foreground[scanned.samples],
        scanned,
    )
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(snakemake.input.weights),
        scan="+".join(map(file_digest, snakemake.input.shards)),
        seed=snakemake.wildcards.seed,
        code=params.code,
    )
    write_frame(snakemake.output.localisation, table, origin)
