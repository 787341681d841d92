"""Draw what the units of one model detect: counts over all seeds, pictures of the first."""

from nnscan import drawings, exhibits, figures
from nnscan.artifacts import read_frame
from nnscan.broden import read_broden
from nnscan.data import read_dataset
from nnscan.dissection import Feed
from nnscan.jobs import job
from nnscan.training import restore

with job(snakemake):
    files, params, out, save = snakemake.input, snakemake.params, snakemake.output, figures.save_figure
    dataset, units = read_dataset(files.data), read_frame(files.units)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    feed = Feed.like(dataset, params.size)
    layers = units.sort_values("depth")["layer"].unique().tolist()
    counts = figures.by_checkpoint(files.detectors, params.checkpoints, params.seeds)
    save(out.detectors, figures.unique_detectors(counts[counts["checkpoint"] == "well_trained"]))
    save(out.detectors_over_training, drawings.detectors_over_training(counts))
    save(out.rotation, figures.rotation(figures.by_seed(files.rotations, params.seeds)))
    concepts, exemplars = read_broden(files.concepts), read_frame(files.exemplars)
    labels = dict(zip(layers, figures.short_layers(layers), strict=True))
    shown = {
        labels[name]: exhibits.unit_exhibits(
            model, concepts, feed, units, exemplars, name, upsampling=params.upsampling
        )
        for name in exhibits.shown_layers(layers)
    }
    save(out.unit_galleries, figures.unit_galleries(shown))
    reasons = exhibits.unit_reasons(model, dataset, units, layers[-1])
    save(out.unit_explanations, drawings.unit_explanations(reasons, layers[-1]))
