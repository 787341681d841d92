"""Draw the prototypes of one model, and which of them a right and a wrong answer rest on; of the first seed."""

import torch

from nnscan import drawings, exhibits, figures
from nnscan.artifacts import read_csv
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.prototypes import load_prototypes
from nnscan.training import model_builder

with job(snakemake):
    files, params, out, save = snakemake.input, snakemake.params, snakemake.output, figures.save_figure
    dataset, table = read_dataset(files.data), read_csv(files.prototypes)
    model = model_builder(params.model["source"], params.model["options"], dataset)()
    network = load_prototypes(files.weights, model, torch.from_numpy(dataset.inputs("train")[:1]))
    images = sorted(set(table["image"]))
    sources = {image: dataset.display(dataset.inputs("train", [image])[0]) for image in images}
    save(out.prototypes, drawings.prototype_sheet(table, sources))
    for path, right in ((out.likeness, True), (out.likeness_wrong, False)):
        found = exhibits.likenesses(network, dataset, right)
        save(path, drawings.likeness_page(found, dataset.classes))
