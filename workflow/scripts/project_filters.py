"""Filter images of one checkpoint for the samples of the anomaly search, as points in two dimensions."""

import torch

from nnscan.artifacts import file_digest, provenance
from nnscan.components import write_components
from nnscan.data import read_dataset, stratified_sample
from nnscan.jobs import job
from nnscan.models import select_layers
from nnscan.training import restore

with job(snakemake):
    params = snakemake.params
    dataset = read_dataset(snakemake.input.data)
    samples = stratified_sample(dataset.splits["train"].labels, params.anomaly["samples"], seed=0)
    x = torch.from_numpy(dataset.inputs("train", samples))
    for weights, components in zip(snakemake.input.weights, snakemake.output.components, strict=True):
        model = restore(params.model["source"], params.model["options"], dataset, weights)
        origin = provenance(
            data=dataset.digest, checkpoint=file_digest(weights), seed=snakemake.wildcards.seed, code=params.code
        )
        layers = select_layers(model, x, params.layers)
        write_components(components, model, x, layers, samples, params.anomaly["source"], origin)
