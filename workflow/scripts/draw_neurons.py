"""Draw what the neurons of one model know: measures over all seeds, pictures of the first."""

import pandas as pd

from nnscan import figures, galleries
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.moments import read_layers
from nnscan.tables import MODELS
from nnscan.training import restore

with job(snakemake):
    files, params, out, save = snakemake.input, snakemake.params, snakemake.output, figures.save_figure
    dataset = read_dataset(files.data)
    model = restore(params.model["source"], params.model["options"], dataset, files.weights)
    name = MODELS.get(params.model["name"], params.model["name"])
    processes = [galleries.learning_process(name, model, dataset)]
    amounts = [figures.by_seed(files.knowledge, params.seeds).assign(model=name)]
    for companion in params.companion:  # the fully connected network of the study, where there is one
        other = restore(companion["source"], companion["options"], dataset, files.companion_weights[0])
        title = MODELS.get(companion["name"], companion["name"])
        processes.insert(0, galleries.learning_process(title, other, dataset))
        amounts.insert(0, figures.by_seed(files.companion_knowledge, companion["seeds"]).assign(model=title))
    save(out.learning_process, figures.learning_process(processes))
    save(out.knowledge, figures.knowledge(pd.concat(amounts, ignore_index=True)))
    save(out.distances, figures.distances(figures.by_seed(files.distances, params.seeds)))
    contests = galleries.contests(model, dataset)
    save(out.winners, figures.winners(figures.by_seed(files.winners, params.seeds), contests))
    save(out.feature_maps, figures.feature_maps(*galleries.map_pairs(read_layers(files.shards), dataset)))
    by_layer = figures.by_seed(files.quantity, params.seeds)
    save(out.quantity_correlation, figures.quantity_correlation(by_layer))
    save(out.quantity_ablation, figures.quantity_ablation(by_layer))
