"""Write the weights of one model before its first step of training."""

from nnscan.artifacts import provenance
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.training import initialise, model_builder

with job(snakemake):
    dataset, params = read_dataset(snakemake.input.data), snakemake.params
    seed = int(snakemake.wildcards.seed)
    build = model_builder(params.model["source"], params.model["options"], dataset)
    origin = provenance(model=params.model, data=dataset.digest, seed=seed, code=params.code)
    initialise(build, snakemake.output.weights, seed, origin)
