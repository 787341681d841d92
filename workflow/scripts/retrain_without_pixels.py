"""Retrain a network without the pixels that explanations point at (ROAR)."""

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.atlas import setting_of
from nnscan.data import read_dataset
from nnscan.explainers import chosen
from nnscan.faithfulness import retrained_accuracy
from nnscan.jobs import job
from nnscan.training import Protocol, model_builder, restore

with job(snakemake):
    files, params, seed = snakemake.input, snakemake.params, int(snakemake.wildcards.seed)
    methods, dataset = chosen(params.methods), read_dataset(files.data)
    source, options = params.model["source"], params.model["options"]
    model = restore(source, options, dataset, files.weights)
    protocol = Protocol(**params.protocol | {"epochs": params.epochs})
    build, setting = model_builder(source, options, dataset), setting_of(dataset, seed, infiller=files.infiller)
    table = retrained_accuracy(model, build, dataset, methods, protocol, seed, setting)
    origin = provenance(
        data=dataset.digest, checkpoint=file_digest(files.weights), seed=seed, code=params.code, protocol=protocol
    )
    write_frame(snakemake.output.scores, table, origin)
