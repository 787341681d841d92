"""Train one model from one seed: the regular training, or the long one that overfits."""

from nnscan.artifacts import provenance
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.training import Protocol, model_builder, train

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    model, seed = snakemake.params.model, int(snakemake.wildcards.seed)
    train(
        model_builder(model["source"], model["options"], dataset),
        dataset,
        Protocol(**snakemake.params.protocol),
        folder=snakemake.output.history.rpartition("/")[0],
        seed=seed,
        origin=provenance(model=model, data=dataset.digest, seed=seed, code=snakemake.params.code),
        phase=snakemake.params.phase,
        history=snakemake.params.history,
    )
