"""Name the concept that each unit of a network detects."""

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.broden import read_broden
from nnscan.data import read_dataset
from nnscan.dissection import Feed, detector_counts, network_dissection
from nnscan.jobs import job
from nnscan.models import select_layers
from nnscan.training import restore

with job(snakemake):
    files, params, out = snakemake.input, snakemake.params, snakemake.output
    dataset, settings = read_dataset(files.data), dict(params.dissection)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    feed, broden = Feed.like(dataset, settings.pop("size")), read_broden(files.concepts)
    broden.check()
    layers = select_layers(model, feed.inputs(feed.pixels(broden, range(1))), settings.pop("layers"))
    units, exemplars = network_dissection(model, broden, feed, layers, **settings)
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(files.weights),
        concepts=params.state,
        seed=snakemake.wildcards.seed,
        code=params.code,
    )
    counts = detector_counts(units, settings["detector"])
    write_frame(out.units, units, origin)
    write_frame(out.exemplars, exemplars, origin)
    write_frame(out.detectors, counts.assign(of=counts["layer"].map(units["layer"].value_counts())), origin)
