"""Train a generator of images for the codes of a network."""

from nnscan.artifacts import file_digest, provenance
from nnscan.data import read_dataset
from nnscan.fitting import Fitting
from nnscan.jobs import job
from nnscan.maximisation import train_generator
from nnscan.training import restore

with job(snakemake):
    files, params, seed = snakemake.input, snakemake.params, int(snakemake.wildcards.seed)
    dataset = read_dataset(files.data)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    origin = provenance(
        model=params.model, data=dataset.digest, checkpoint=file_digest(files.weights), seed=seed, code=params.code
    )
    train_generator(model, dataset, Fitting(params.steps), snakemake.output.weights.rpartition("/")[0], seed, origin)
