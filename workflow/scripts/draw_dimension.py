"""Draw the intrinsic dimension of one model by layer, over all seeds, and beside the test errors of all models."""

import pandas as pd

from nnscan import drawings, figures
from nnscan.artifacts import read_csv, read_frame
from nnscan.correlation import error_correlation
from nnscan.errors import DataError
from nnscan.jobs import job
from nnscan.systems import hidden_and_error
from nnscan.tables import MODELS

with job(snakemake):
    files, params, out, save = snakemake.input, snakemake.params, snakemake.output, figures.save_figure
    tables = figures.by_checkpoint(files.dimensions, params.checkpoints, params.seeds)
    labels = {"well_trained": "trained", "untrained": "untrained", "shuffled": "trained on shuffled labels"}
    by_network = {labels[name]: tables[tables["checkpoint"] == name] for name in params.checkpoints}
    save(out.dimension, drawings.dimension_curves(by_network))
    save(out.dimension_blocks, drawings.dimension_blocks(read_frame(files.blocks)))
    rows = [
        {"network": MODELS.get(name, name), **row}
        for name, dimension, results in zip(params.networks, files.every_dimension, files.every_result, strict=True)
        for row in hidden_and_error(read_frame(dimension), read_csv(results))
    ]
    runs = pd.DataFrame(rows, columns=["network", "dimension", "sd", "error"])
    try:
        correlation = error_correlation(runs["dimension"], runs["error"])
    except DataError as error:
        correlation = str(error)  # the figure says so
    save(out.dimension_errors, drawings.dimension_errors(runs, correlation))
