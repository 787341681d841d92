"""Draw the explanations of one model on one data set, and what the similarity values say of neurons and layers."""

from nnscan import figures, galleries
from nnscan.artifacts import read_frame
from nnscan.averages import read_averages
from nnscan.data import read_dataset
from nnscan.explanations import read_scanned
from nnscan.gradients import BACKPROPAGATIONS
from nnscan.jobs import job
from nnscan.pages import similarity_page
from nnscan.training import restore

with job(snakemake):
    files, params, out, save = snakemake.input, snakemake.params, snakemake.output, figures.save_figure
    dataset = read_dataset(files.data)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    scanned = read_scanned(files.shards, **params.quantity)
    samples, titles, maps = galleries.explanation_columns(model, dataset, scanned)
    shown = [maps[name] for name in ("NNS", "FQ", "TIP", "CAM", "Grad-CAM", "backpropagation")]
    save(out.explanations, figures.explanations(samples, titles, shown, "nnscan's maps beside other explanations"))
    four = [maps[name] for name in BACKPROPAGATIONS]
    save(out.backpropagations, figures.explanations(samples, titles, four, "Four ways back to the pixels"))
    similarities = figures.by_seed(files.similarity, params.seeds)
    first = similarities[(similarities["seed"] == params.seeds[0]) & (similarities["average"] == "most")]
    results = read_frame(files.classes)
    worst = int(results.loc[results["accuracy"].idxmin(), "class"])
    average = read_averages(files.averages)["most"][worst]
    own = first[(first["class"] == worst) & (first["method"] == params.method)]
    neurons, visualisation = galleries.similar_neurons(model, average, worst, own)
    name = figures.plain(dataset.classes[worst])
    heading = f"Least and most similar neurons, class {name}, similarity by method {params.method}"
    picture = dataset.display(average.numpy())
    save(out.similar_neurons, figures.similar_neurons(neurons, picture, visualisation, heading))
    histories = figures.by_seed(files.histories, params.seeds) if files.histories else None
    save(out.cut_training, figures.cut_training(histories))
    save(out.similarity_measures, figures.similarity_measures(figures.by_seed(files.measures, params.seeds)))
    title = f"Similarity of neurons to the class averages: {params.model['name']} on {snakemake.wildcards.dataset}"
    similarity_page(out.page, similarities, dataset.classes, title)
