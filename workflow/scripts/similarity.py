"""Similarity values of every filter for every class, by both methods."""

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.averages import read_averages
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.models import select_layers
from nnscan.similarities import similarities
from nnscan.training import restore

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params = snakemake.params
    model = restore(params.model["source"], params.model["options"], dataset, snakemake.input.weights)
    averages = read_averages(snakemake.input.averages)
    table = similarities(model, averages, select_layers(model, averages["simple"], params.layers))
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(snakemake.input.weights),
        averages=file_digest(snakemake.input.averages),
        seed=snakemake.wildcards.seed,
        code=params.code,
    )
    write_frame(snakemake.output.similarity, table, origin)
