"""Mask anomaly filters, together and one by one; measure the gradients of their outlier samples."""

import pandas as pd
import torch

from nnscan.artifacts import file_digest, provenance, read_frame, write_frame
from nnscan.data import read_dataset, stratified_sample
from nnscan.interventions import anomaly_masking, outlier_gradients, single_masking
from nnscan.jobs import job
from nnscan.training import restore, split_tensors

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, files, seed = snakemake.params, snakemake.input, int(snakemake.wildcards.seed)
    labels = dataset.splits["train"].labels
    samples = stratified_sample(labels, params.samples, seed=0)
    x, y = torch.from_numpy(dataset.inputs("train", samples)), torch.from_numpy(labels[samples])
    splits = {split: split_tensors(dataset, split) for split in ("train", "validation")}
    masking, single, gradients = [], [], []
    for name, weights, anomaly, outliers in zip(
        params.checkpoints, files.weights, files.anomaly, files.outliers, strict=True
    ):
        model = restore(params.model["source"], params.model["options"], dataset, weights)
        found = read_frame(anomaly)
        masking.append(anomaly_masking(model, *splits["validation"], found, name, params.draws, seed))
        single.append(single_masking(model, splits, found, name))
        gradients.append(outlier_gradients(model, x, y, samples, read_frame(outliers), name))
    origin = provenance(
        data=dataset.digest, checkpoint="+".join(map(file_digest, files.weights)), seed=seed, code=params.code
    )
    write_frame(snakemake.output.masking, pd.concat(masking, ignore_index=True), origin)
    write_frame(snakemake.output.single, pd.concat(single, ignore_index=True), origin)
    write_frame(snakemake.output.gradients, pd.concat(gradients, ignore_index=True), origin)
