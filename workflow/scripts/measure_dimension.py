"""Measure the intrinsic dimension of a network's representations, layer by layer."""

import torch

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.data import read_dataset, stratified_sample
from nnscan.dimension import layer_dimensions
from nnscan.jobs import job
from nnscan.training import restore

with job(snakemake):
    files, params, out = snakemake.input, snakemake.params, snakemake.output
    dataset = read_dataset(files.data)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    labels = dataset.splits["train"].labels
    samples = stratified_sample(labels, min(params.dimension["samples"], len(labels)), seed=0)
    images = torch.from_numpy(dataset.inputs("train", samples))
    table, blocks = layer_dimensions(model, images, params.dimension["layers"])
    origin = provenance(
        data=dataset.digest, checkpoint=file_digest(files.weights), seed=snakemake.wildcards.seed, code=params.code
    )
    write_frame(out.dimension, table, origin)
    write_frame(out.blocks, blocks, origin)
