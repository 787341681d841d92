"""Train one model from one seed: the regular training, or the long one that overfits."""

from nnscan.artifacts import provenance
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.models import chosen_device
from nnscan.store import shared
from nnscan.training import Protocol, model_builder, train

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, seed = snakemake.params, int(snakemake.wildcards.seed)
    identity = {**dict(params.items()), "data": dataset.digest, "seed": seed, "device": chosen_device().type}
    with shared(snakemake.rule, snakemake.output, identity) as present:
        if not present:
            train(
                model_builder(params.model["source"], params.model["options"], dataset),
                dataset,
                Protocol(**params.protocol),
                folder=snakemake.output.history.rpartition("/")[0],
                seed=seed,
                origin=provenance(model=params.model, data=dataset.digest, seed=seed, code=params.code),
                phase=params.phase,
                history=params.history,
            )
