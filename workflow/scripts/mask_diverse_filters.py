"""Mask the most and the least diverse filters of each layer, also by diversities without one element of FQ."""

from nnscan.artifacts import file_digest, provenance, read_frame, write_frame
from nnscan.data import read_dataset
from nnscan.interventions import ablation_masking, diversity_masking
from nnscan.jobs import job
from nnscan.training import restore, split_tensors

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, seed = snakemake.params, int(snakemake.wildcards.seed)
    model = restore(params.model["source"], params.model["options"], dataset, snakemake.input.weights)
    x, y = split_tensors(dataset, "test")
    table = diversity_masking(model, x, y, read_frame(snakemake.input.diversity), params.filters, params.draws, seed)
    ablation = ablation_masking(model, x, y, read_frame(snakemake.input.ablation), params.filters)
    origin = provenance(
        data=dataset.digest, checkpoint=file_digest(snakemake.input.weights), seed=seed, code=params.code
    )
    write_frame(snakemake.output.masking, table, origin)
    write_frame(snakemake.output.ablation, ablation, origin)
