"""Anomaly filters in the checkpoints along the overfitting training, beside the well-trained and overfitted ones."""

import torch

from nnscan.anomaly import anomaly_history, network_anomalies
from nnscan.artifacts import file_digest, provenance, read_csv, read_frame, write_frame
from nnscan.components import layer_components
from nnscan.data import read_dataset, stratified_sample
from nnscan.jobs import job
from nnscan.models import select_layers
from nnscan.training import Protocol, kept_epochs, restore

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, files, seed = snakemake.params, snakemake.input, int(snakemake.wildcards.seed)
    settings = dict(params.anomaly)
    source, count = settings.pop("source"), settings.pop("samples")
    samples = stratified_sample(dataset.splits["train"].labels, count, seed=0)
    x = torch.from_numpy(dataset.inputs("train", samples))
    epochs = kept_epochs(Protocol(**params.protocol), "overfitting", len(files.weights))
    best = int(read_csv(files.history)["validation_loss"].idxmin()) + 1
    well_trained, overfitted = map(read_frame, files.anomaly)
    found = [("well_trained", best, well_trained)]
    for (name, epoch), weights in zip(epochs.items(), files.weights, strict=False):  # the overfitted one comes last
        model = restore(params.model["source"], params.model["options"], dataset, weights)
        components = dict(layer_components(model, x, select_layers(model, x, params.layers), source))
        found.append((name, epoch, network_anomalies(samples, components, seed, **settings)[0]))
    found.append(("overfitted", epochs["overfitted"], overfitted))
    origin = provenance(
        data=dataset.digest, checkpoint="+".join(map(file_digest, files.weights)), seed=seed, code=params.code
    )
    write_frame(snakemake.output.history, anomaly_history(found), origin)
