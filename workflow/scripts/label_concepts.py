"""Write CamVid's frames in Broden's format, with color names beside its classes."""

from nnscan.broden import camvid, write_broden
from nnscan.jobs import job

with job(snakemake):
    settings = snakemake.params.settings
    classes, frames = camvid(settings["root"])
    unlabelled = [name for name in classes if name == "unlabelled"]
    sizes = {name: settings[name] for name in ("side", "tile")}
    write_broden(snakemake.output.concepts, frames, classes, unlabelled=unlabelled, **sizes)
