"""Train the network that fills hidden pixels of a data set's images."""

from nnscan.artifacts import provenance
from nnscan.data import read_dataset
from nnscan.fitting import Fitting
from nnscan.infilling import train_infiller
from nnscan.jobs import job

with job(snakemake):
    params = snakemake.params
    dataset = read_dataset(snakemake.input.data)
    origin = provenance(data=dataset.digest, code=params.code)
    train_infiller(dataset, Fitting(params.steps), snakemake.output.weights.rpartition("/")[0], 0, origin)
