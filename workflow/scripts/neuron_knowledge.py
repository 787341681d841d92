"""What the neurons of each layer know, and how near their learning images are to feature maps and inputs."""

import torch

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.data import read_dataset, stratified_sample
from nnscan.jobs import job
from nnscan.knowledge import sample_distances, scan_knowledge, winning_neurons
from nnscan.training import restore

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, out, labels = snakemake.params, snakemake.output, dataset.splits["test"].labels
    model = restore(params.model["source"], params.model["options"], dataset, snakemake.input.weights)
    knowledge, agreement = scan_knowledge(snakemake.input.shards, lambda samples: dataset.inputs("test", samples))
    compared = stratified_sample(labels, params.knowledge["samples"], seed=0)
    shown = stratified_sample(labels, min(params.knowledge["winners"], len(labels)), seed=0)
    distances = sample_distances(
        model,
        torch.from_numpy(dataset.inputs("test", compared)),
        params.knowledge["neurons"],
        int(snakemake.wildcards.seed),
    )
    winners = winning_neurons(model, torch.from_numpy(dataset.inputs("test", shown)))
    winners["sample"] = shown[winners["sample"]]
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(snakemake.input.weights),
        scan="+".join(map(file_digest, snakemake.input.shards)),
        seed=snakemake.wildcards.seed,
        code=params.code,
    )
    for name, frame in zip(out.keys(), (knowledge, agreement, distances, winners), strict=True):
        write_frame(out[name], frame, origin)
