"""Retrain the model cut after the layer where similarity peaks."""

from pathlib import Path

from nnscan.artifacts import provenance, read_frame, write_frame
from nnscan.data import read_dataset
from nnscan.interventions import layer_removal
from nnscan.jobs import job
from nnscan.similarities import chosen_similarities, mean_curve
from nnscan.training import Protocol, model_builder

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, seed = snakemake.params, int(snakemake.wildcards.seed)
    similarity = chosen_similarities(read_frame(snakemake.input.similarity), params.method)
    origin = provenance(model=params.model, data=dataset.digest, seed=seed, code=params.code)
    table, histories = layer_removal(
        lambda kept: model_builder(
            params.model["source"], {**params.model["options"], "convolutions": kept}, dataset
        )(),
        mean_curve(similarity)[: params.convolutions],
        dataset,
        Protocol(**params.protocol),
        Path(snakemake.output.layers).parent / "layers",
        seed,
        origin,
    )
    write_frame(snakemake.output.layers, table, origin)
    write_frame(snakemake.output.histories, histories, origin)
