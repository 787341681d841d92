"""Similarity values of every filter by both methods, five similarity measures, and the results of each class."""

import torch

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.averages import read_averages, read_confidences
from nnscan.backprop import guided_scores
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.measures import compare
from nnscan.models import device_of, select_layers
from nnscan.similarities import class_results, similarities
from nnscan.training import restore

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, out = snakemake.params, snakemake.output
    model = restore(params.model["source"], params.model["options"], dataset, snakemake.input.weights)
    averages = read_averages(snakemake.input.averages)
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(snakemake.input.weights),
        averages=file_digest(snakemake.input.averages),
        seed=snakemake.wildcards.seed,
        code=params.code,
    )
    table = similarities(model, averages, select_layers(model, averages["simple"], params.layers))
    write_frame(out.similarity, table, origin)
    simple = averages["simple"]
    visualisations = guided_scores(model, simple.to(device_of(model)), range(len(simple))).cpu()
    write_frame(out.measures, compare(simple.numpy(), visualisations.numpy()), origin)
    inputs, labels = torch.from_numpy(dataset.inputs("test")), dataset.splits["test"].labels
    confidences = read_confidences(snakemake.input.averages)
    write_frame(out.classes, class_results(model, inputs, labels, dataset.classes, confidences), origin)
