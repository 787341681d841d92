"""Prune the most and the least similar neurons of each layer."""

from nnscan.artifacts import file_digest, provenance, read_frame, write_frame
from nnscan.data import read_dataset
from nnscan.interventions import neuron_pruning
from nnscan.jobs import job
from nnscan.similarities import chosen_similarities, filter_similarity
from nnscan.training import restore, split_tensors

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, seed = snakemake.params, int(snakemake.wildcards.seed)
    model = restore(params.model["source"], params.model["options"], dataset, snakemake.input.weights)
    similarity = chosen_similarities(read_frame(snakemake.input.similarity), params.method)
    table = neuron_pruning(
        model,
        *split_tensors(dataset, "test"),
        filter_similarity(similarity),
        params.fraction,
        params.draws,
        seed,
    )
    origin = provenance(
        data=dataset.digest, checkpoint=file_digest(snakemake.input.weights), seed=seed, code=params.code
    )
    write_frame(snakemake.output.pruning, table, origin)
