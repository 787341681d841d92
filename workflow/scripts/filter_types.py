"""Types of filters by foreground and background after each third of the training, and what masking them costs."""

import pandas as pd
import torch

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.data import read_dataset, stratified_sample
from nnscan.interventions import experiment_layer, type_masking
from nnscan.jobs import job
from nnscan.models import select_layers
from nnscan.properties import area_means, filter_types
from nnscan.training import THIRDS, restore, split_tensors

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    test, params, seed = dataset.splits["test"], snakemake.params, int(snakemake.wildcards.seed)
    samples = stratified_sample(test.labels, params.samples, seed=0)
    x = torch.from_numpy(dataset.inputs("test", samples))
    foreground = None if test.foreground is None else test.foreground[samples]
    parts = []
    for name, weights in zip(THIRDS, snakemake.input.weights, strict=True):
        model = restore(params.model["source"], params.model["options"], dataset, weights)
        layer = experiment_layer(params.layer, select_layers(model, x, params.layers))
        means = area_means(model, x, foreground, layer)
        types = filter_types(means["T_m_foreground"], means["T_m_background"], params.share)
        parts.append(type_masking(model, *split_tensors(dataset, "test"), layer, types, name, params.draws, seed))
    origin = provenance(
        data=dataset.digest, checkpoint="+".join(map(file_digest, snakemake.input.weights)), seed=seed, code=params.code
    )
    write_frame(snakemake.output.types, pd.concat(parts, ignore_index=True), origin)
