"""Scan every neuron for one shard of the test samples."""

import numpy as np
import torch

from nnscan.artifacts import file_digest, provenance
from nnscan.data import read_dataset, stratified_sample
from nnscan.jobs import job
from nnscan.models import select_layers, smooth_operations
from nnscan.moments import write_moments
from nnscan.scanner import scan_samples
from nnscan.training import restore

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    test, scan = dataset.splits["test"], snakemake.params.scan
    chosen = stratified_sample(test.labels, scan["samples"], seed=0)
    samples = np.array_split(chosen, snakemake.params.shards)[int(snakemake.wildcards.shard)]
    model = restore(
        snakemake.params.model["source"], snakemake.params.model["options"], dataset, snakemake.input.weights
    )
    x = torch.from_numpy(dataset.inputs("test", samples))
    parts = scan_samples(
        model,
        x,
        None if test.foreground is None else test.foreground[samples],
        select_layers(model, x, scan["layers"]),
        scan["block"],
        samples,
        scan["precision"],
        progress=True,
    )
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(snakemake.input.weights),
        seed=snakemake.wildcards.seed,
        code=snakemake.params.code,
        linearised=", ".join(smooth_operations(model, x)) or "no: the network is piecewise linear",
    )
    write_moments(snakemake.output.scan, parts, len(samples), origin)
