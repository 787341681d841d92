"""Count the concepts that the last dissected layer detects while its representation is rotated."""

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.broden import read_broden
from nnscan.data import read_dataset
from nnscan.dissection import Feed, rotation_counts
from nnscan.jobs import job
from nnscan.models import select_layers
from nnscan.training import restore

with job(snakemake):
    files, params, seed = snakemake.input, snakemake.params, int(snakemake.wildcards.seed)
    dataset, settings = read_dataset(files.data), dict(params.dissection)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    feed, broden = Feed.like(dataset, settings.pop("size")), read_broden(files.concepts)
    layers = select_layers(model, feed.inputs(feed.pixels(broden, range(1))), settings.pop("layers"))
    table = rotation_counts(model, broden, feed, layers[-1], seed=seed, **settings)
    origin = provenance(
        data=dataset.digest, checkpoint=file_digest(files.weights), concepts=params.state, seed=seed, code=params.code
    )
    write_frame(snakemake.output.rotations, table, origin)
