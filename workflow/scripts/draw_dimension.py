"""Draw the intrinsic dimension of one model by layer, over all seeds, and beside the test errors of all models."""

import pandas as pd

from nnscan import drawings, figures
from nnscan.artifacts import read_csv, read_frame
from nnscan.correlation import error_correlation
from nnscan.errors import DataError
from nnscan.jobs import job
from nnscan.tables import MODELS

with job(snakemake):
    files, params, out, save = snakemake.input, snakemake.params, snakemake.output, figures.save_figure
    tables = figures.by_checkpoint(files.dimensions, params.checkpoints, params.seeds)
    labels = {"well_trained": "trained", "untrained": "untrained", "shuffled": "trained on shuffled labels"}
    by_network = {labels[name]: tables[tables["checkpoint"] == name] for name in params.checkpoints}
    save(out.dimension, drawings.dimension_curves(by_network))
    save(out.dimension_blocks, drawings.dimension_blocks(read_frame(files.blocks)))
    rows = []
    for name, dimension, results in zip(params.networks, files.every_dimension, files.every_result, strict=True):
        hidden, table = read_frame(dimension).iloc[-2], read_csv(results).set_index(["checkpoint", "split"])
        error = 1 - table.loc[("well_trained", "test"), "accuracy"]
        rows.append((MODELS.get(name, name), hidden["dimension"], hidden["sd"], error))
    runs = pd.DataFrame(rows, columns=["network", "dimension", "sd", "error"])
    try:
        correlation = error_correlation(runs["dimension"], runs["error"])
    except DataError:
        correlation = None  # the figure says so
    save(out.dimension_errors, drawings.dimension_errors(runs, correlation))
