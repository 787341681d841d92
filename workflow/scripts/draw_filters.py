"""Draw the filters that rank first by each property, and the anomaly filters along the overfitting training."""

from nnscan import figures, galleries
from nnscan.artifacts import read_frame
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.training import restore

with job(snakemake):
    files, params, out = snakemake.input, snakemake.params, snakemake.output
    dataset = read_dataset(files.data)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    strongest = galleries.strongest_filter_images(model, dataset, read_frame(files.properties), params.layer)
    figures.save_figure(out.strongest_filters, figures.strongest_filters(*strongest))
    seeds = params.seeds if files.counts else []
    losses, counts = (figures.by_seed(paths, seeds) for paths in (files.losses, files.counts))
    figures.save_figure(out.anomaly_history, figures.anomaly_history(losses, counts))
