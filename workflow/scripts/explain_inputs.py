"""Explain what a network answers to some scanned samples, by all methods."""

from nnscan.artifacts import file_digest, provenance
from nnscan.atlas import draw_atlas, explained_samples, setting_of, write_atlas
from nnscan.data import read_dataset
from nnscan.explainers import chosen
from nnscan.explanations import read_scanned
from nnscan.jobs import job
from nnscan.metrics import inputs_of
from nnscan.training import restore

with job(snakemake):
    files, params, seed = snakemake.input, snakemake.params, int(snakemake.wildcards.seed)
    methods, dataset = chosen(params.methods), read_dataset(files.data)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    scanned = read_scanned(files.shards, **params.quantity)
    scanned = scanned.part(explained_samples(dataset, scanned, params.samples))
    setting = setting_of(dataset, seed, scanned, files.infiller)
    inputs = inputs_of(model, dataset, "test", scanned.samples, setting)
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(files.weights),
        scan="+".join(map(file_digest, files.shards)),
        infiller="+".join(map(file_digest, files.infiller)),
        seed=seed,
        code=params.code,
    )
    write_atlas(snakemake.output.atlas, draw_atlas(model, inputs, methods), origin)
