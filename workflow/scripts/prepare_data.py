"""Read a data set, cut its splits and masks, write it as one file."""

from nnscan.artifacts import provenance
from nnscan.data import Foreground, load_dataset, write_dataset
from nnscan.jobs import job

with job(snakemake):
    settings = dict(snakemake.params.dataset)
    del settings["name"]
    dataset = load_dataset(settings.pop("source"), **{**settings, "foreground": Foreground(**settings["foreground"])})
    write_dataset(snakemake.output.data, dataset, provenance(data=dataset.digest, code=snakemake.params.code))
