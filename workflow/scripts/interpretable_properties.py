"""Interpretable properties, activation value and sensitivity of every filter."""

import torch

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.data import read_dataset, stratified_sample
from nnscan.jobs import job
from nnscan.moments import read_layers
from nnscan.properties import filter_table
from nnscan.training import restore

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    test, params = dataset.splits["test"], snakemake.params
    model = restore(params.model["source"], params.model["options"], dataset, snakemake.input.weights)
    samples = stratified_sample(test.labels, params.properties["samples"], seed=0)
    table = filter_table(
        model,
        read_layers(snakemake.input.shards),
        lambda scanned: (
            dataset.inputs("test", scanned),
            None if test.foreground is None else test.foreground[scanned],
        ),
        torch.from_numpy(dataset.inputs("test", samples)),
        torch.from_numpy(test.labels[samples]),
        exact=params.properties["sensitivity"] == "exact",
    )
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(snakemake.input.weights),
        seed=snakemake.wildcards.seed,
        code=params.code,
    )
    write_frame(snakemake.output.properties, table, origin)
