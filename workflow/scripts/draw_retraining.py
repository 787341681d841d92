"""Draw the accuracy of networks that were trained without the pixels that methods point at, over all seeds."""

from nnscan import figures, sheets
from nnscan.explainers import METHODS
from nnscan.jobs import job

with job(snakemake):
    files, own = snakemake.input, snakemake.wildcards
    titles = {name: method.title for name, method in METHODS.items()}
    heading = f"Remove and retrain: {own.model} on {own.dataset}"
    curves = sheets.retraining_curves(figures.by_seed(files.scores, snakemake.params.seeds), titles, heading)
    figures.save_figure(snakemake.output.retraining_curves, curves)
