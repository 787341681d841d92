"""Mask the most and the least diverse filters of each layer."""

from nnscan.artifacts import file_digest, provenance, read_frame, write_frame
from nnscan.data import read_dataset
from nnscan.interventions import diversity_masking
from nnscan.jobs import job
from nnscan.training import restore, split_tensors

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, seed = snakemake.params, int(snakemake.wildcards.seed)
    model = restore(params.model["source"], params.model["options"], dataset, snakemake.input.weights)
    table = diversity_masking(
        model,
        *split_tensors(dataset, "test"),
        read_frame(snakemake.input.diversity),
        params.filters,
        params.draws,
        seed,
    )
    origin = provenance(
        data=dataset.digest, checkpoint=file_digest(snakemake.input.weights), seed=seed, code=params.code
    )
    write_frame(snakemake.output.masking, table, origin)
