"""Train a ProtoPNet on the convolutional part of a well-trained network."""

from nnscan.artifacts import file_digest, provenance
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.prototypes import PrototypeProtocol, train_prototypes
from nnscan.training import restore

with job(snakemake):
    files, params, seed = snakemake.input, snakemake.params, int(snakemake.wildcards.seed)
    dataset = read_dataset(files.data)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    origin = provenance(
        model=params.model, data=dataset.digest, checkpoint=file_digest(files.weights), seed=seed, code=params.code
    )
    protocol = PrototypeProtocol(**params.prototypes, augmentation=params.augmentation)
    train_prototypes(model, dataset, protocol, snakemake.output.weights.rpartition("/")[0], seed, origin)
