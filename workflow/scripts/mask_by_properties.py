"""Mask filters step by step in the order of each interpretable property."""

from nnscan.artifacts import file_digest, provenance, read_frame, write_frame
from nnscan.data import read_dataset
from nnscan.interventions import property_masking
from nnscan.jobs import job
from nnscan.training import restore, split_tensors

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, seed = snakemake.params, int(snakemake.wildcards.seed)
    model = restore(params.model["source"], params.model["options"], dataset, snakemake.input.weights)
    table = property_masking(
        model,
        *split_tensors(dataset, "test"),
        read_frame(snakemake.input.properties),
        params.layer,
        params.steps,
        params.draws,
        seed,
    )
    origin = provenance(
        data=dataset.digest, checkpoint=file_digest(snakemake.input.weights), seed=seed, code=params.code
    )
    write_frame(snakemake.output.aipc, table, origin)
