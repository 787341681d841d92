"""Read a data set, cut its splits and masks, write it as one file."""

from nnscan.artifacts import provenance
from nnscan.data import Foreground, load_dataset, write_dataset
from nnscan.jobs import job
from nnscan.store import shared

with job(snakemake):
    params = snakemake.params
    settings = {key: value for key, value in params.dataset.items() if key not in ("name", "source")}
    # the same files under another root are the same data
    identity = {"dataset": {**params.dataset, "root": None}, "files": params.files, "code": params.code}
    with shared(snakemake.rule, snakemake.output, identity) as present:
        if not present:
            dataset = load_dataset(
                params.dataset["source"], **{**settings, "foreground": Foreground(**settings["foreground"])}
            )
            write_dataset(snakemake.output.data, dataset, provenance(data=dataset.digest, code=params.code))
