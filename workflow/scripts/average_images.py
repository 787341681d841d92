"""Class-average images of the training split: simple, data-driven and network-driven."""

from nnscan.artifacts import file_digest, provenance
from nnscan.averages import average_kinds, confidences, write_averages
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.training import restore

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    model = restore(
        snakemake.params.model["source"], snakemake.params.model["options"], dataset, snakemake.input.weights
    )
    averages = average_kinds(
        model,
        dataset.inputs("train"),
        dataset.splits["train"].labels,
        len(dataset.classes),
        **snakemake.params.averages,
    )
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(snakemake.input.weights),
        seed=snakemake.wildcards.seed,
        code=snakemake.params.code,
    )
    matrices = {kind: confidences(model, images) for kind, images in averages.items()}
    write_averages(snakemake.output.averages, averages, dataset.classes, origin, matrices)
