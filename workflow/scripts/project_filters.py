"""Filter images of one checkpoint for the samples of the anomaly search, as points in two dimensions."""

import torch

from nnscan.artifacts import file_digest, provenance
from nnscan.components import write_components
from nnscan.data import read_dataset, stratified_sample
from nnscan.jobs import job
from nnscan.models import select_layers
from nnscan.training import restore

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    samples = stratified_sample(dataset.splits["train"].labels, snakemake.params.anomaly["samples"], seed=0)
    model = restore(
        snakemake.params.model["source"], snakemake.params.model["options"], dataset, snakemake.input.weights
    )
    x = torch.from_numpy(dataset.inputs("train", samples))
    write_components(
        snakemake.output.components,
        model,
        x,
        select_layers(model, x, snakemake.params.layers),
        samples,
        snakemake.params.anomaly["source"],
        provenance(
            data=dataset.digest,
            checkpoint=file_digest(snakemake.input.weights),
            seed=snakemake.wildcards.seed,
            code=snakemake.params.code,
        ),
    )
