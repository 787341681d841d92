"""Draw the figures of one model on one data set: measures over all seeds, pictures of the first."""

from nnscan import figures, galleries
from nnscan.artifacts import read_frame
from nnscan.averages import read_averages, read_confidences
from nnscan.components import read_components
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.models import is_convolutional
from nnscan.training import restore

with job(snakemake):
    files, params, save = snakemake.input, snakemake.params, figures.save_figure
    dataset = read_dataset(files.data)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    averages = {kind: dataset.display(images.numpy()) for kind, images in read_averages(files.averages).items()}
    quantities = figures.by_seed(files.quantity, params.seeds)
    anomalies = figures.by_checkpoint(files.anomaly, params.checkpoints, params.seeds)
    last = anomalies[(anomalies["checkpoint"] == params.checkpoints[-1]) & (anomalies["seed"] == params.seeds[0])]
    samples, components = read_components(files.components)
    out = snakemake.output
    save(out.class_averages, figures.class_averages(averages, dataset.classes, read_confidences(files.averages)))
    portraits = galleries.quantity_portraits(model, dataset, quantities[quantities["seed"] == params.seeds[0]])
    save(out.learning_images, figures.learning_images(portraits, is_convolutional(model)))
    save(out.quantity, figures.quantity(quantities))
    similarities = figures.by_seed(files.similarity, params.seeds)
    save(out.similarity, figures.similarity(similarities, dataset.classes, is_convolutional(model)))
    save(out.aipc, figures.aipc(figures.by_seed(files.aipc, params.seeds)))
    histories = [*files.history, *files.overfitted]
    save(out.training, figures.training(figures.by_seed(histories, [*params.seeds, *params.seeds][: len(histories)])))
    clouds = galleries.anomaly_clouds(dataset, components, samples, last, read_frame(files.outliers))
    save(out.anomaly, figures.anomaly(anomalies, clouds))
