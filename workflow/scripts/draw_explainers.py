"""Draw what methods of explanation show of one model, pictures of the first seed, and how they rank over all seeds."""

import pandas as pd

from nnscan import exhibits, figures, rankings, sheets
from nnscan.artifacts import read_frame
from nnscan.atlas import read_atlas, read_images
from nnscan.data import read_dataset
from nnscan.explainers import METHODS
from nnscan.jobs import job

with job(snakemake):
    files, own, out, save = snakemake.input, snakemake.wildcards, snakemake.output, figures.save_figure
    dataset = read_dataset(files.data)
    of = f"{own.model} on {own.dataset}"
    shown = exhibits.explained_images(dataset, read_atlas(files.atlas), METHODS)
    save(out.contact_sheet, sheets.contact_sheet(*shown, f"Explanations of {of}"))
    images, refusals = read_images(files.images)
    painted = exhibits.painted_images(dataset, images, refusals, read_frame(files.judged), METHODS)
    save(out.synthesis, sheets.synthesis(painted, dataset.classes, f"Images of classes for {of}"))
    titles = {name: method.title for name, method in METHODS.items()}
    scores = [read_frame(path) for path in files.scores]
    curves = sheets.faithfulness_curves(pd.concat(scores), titles, f"Deletion and insertion, {of}")
    save(out.faithfulness_curves, curves)
    rows = [row for one in scores for row in rankings.means(one)]
    save(out.explainer_ranks, sheets.explainer_ranks(rankings.wide(rows), titles, f"Methods of explanation, {of}"))
