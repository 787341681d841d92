"""Pictures for the figures that need the network: images of chosen neurons, filters with outliers, explanations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnscan.backprop import guided_backpropagation, guided_scores
from nnscan.components import LayerComponents
from nnscan.data import Dataset, stratified_sample
from nnscan.errors import ModelError
from nnscan.explainers import EXPLAINERS
from nnscan.explanations import Scanned
from nnscan.figures import (
    Cloud,
    Contest,
    MapColumn,
    MapPair,
    Portrait,
    Process,
    SimilarNeuron,
    evenly,
    numbered_layers,
    plain,
    short_layers,
)
from nnscan.interventions import RANKINGS, experiment_layer
from nnscan.knowledge import score_images
from nnscan.maps import filter_map, neuron_map
from nnscan.models import capture, device_of, is_convolutional, network_layers, prepare
from nnscan.moments import Moments
from nnscan.scanner import filter_images, learning_images, ungated_layers
from nnscan.scores import answers
from nnscan.similarities import layers_of
from nnscan.sweeps import enlarged


def quantity_portraits(model: nn.Module, dataset: Dataset, quantities: pd.DataFrame, count: int = 4) -> list[Portrait]:
    """Return learning images of the neurons of the largest and of the smallest positive FQ of each layer.

    Where there are no foreground masks, SSIM takes the place of FQ. One neuron of a filter is shown at most.

    Args:
        model: The model.
        dataset: Its data; the samples are those of the test split.
        quantities: The result of `quantity.neuron_quantity`.
        count: Neurons at each end.
    """
    name = "FQ" if quantities["fq"].notna().any() else "SSIM"
    score = quantities["fq"] if name == "FQ" else quantities["ssim"]
    frame = quantities.assign(score=score).query("score > 0").sort_values(["score", "filter"], ascending=[False, True])
    shapes = quantities.groupby("layer")[["row", "column"]].max() + 1
    open_layers = ungated_layers(model, network_layers(model, torch.from_numpy(dataset.inputs("test", np.array([0])))))
    portraits = []
    for (_, layer), group in frame.groupby(["depth", "layer"], sort=True):
        ends = [(True, group.drop_duplicates("filter").head(count))]
        ends += [(False, group.iloc[::-1].drop_duplicates("filter").head(count))]
        for strongest, neurons in ends:
            for neuron in neurons.to_dict("records"):
                height, width = shapes.loc[str(layer)]
                index = (neuron["filter"] * height + neuron["row"]) * width + neuron["column"]
                x = dataset.inputs("test", np.array([neuron["sample"]]))
                one, gate = torch.from_numpy(x[0]), layer not in open_layers
                image = learning_images(model, one, str(layer), [int(index)], gate)[0].sum(0).cpu().numpy()
                title = f"{name} {neuron['score']:.3g}\nfilter {neuron['filter']}"
                portraits.append(Portrait(str(layer), name, title, strongest, dataset.display(x)[0], image))
    return portraits


def strongest_filter_images(
    model: nn.Module, dataset: Dataset, properties: pd.DataFrame, layer: str, count: int = 4
) -> tuple[str, dict[str, int], NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return the images of the filter that ranks first by each property, for some test images.

    Args:
        model: The model.
        dataset: Its data; the samples are those of the test split.
        properties: The interpretable properties of all filters.
        layer: The layer as `experiments.layer` names it: "last", or a name.
        count: How many samples, balanced over classes.

    Returns:
        The layer, the filter by property, the samples (n, C, H, W) in [0, 1], and the images (n, H, W) by property.
    """
    name = experiment_layer(layer, properties.sort_values("depth")["layer"].unique().tolist())
    frame = properties[properties["layer"] == name]
    filters = {ranking: int(frame["filter"].iloc[int(frame[ranking].to_numpy().argmax())]) for ranking in RANKINGS}
    x = dataset.inputs("test", stratified_sample(dataset.splits["test"].labels, count, seed=0))
    distinct = list(dict.fromkeys(filters.values()))
    images = filter_images(model, torch.from_numpy(x), name, distinct).sum(2).cpu().numpy()
    by_ranking = {ranking: images[:, distinct.index(index)] for ranking, index in filters.items()}
    return name, filters, dataset.display(x), by_ranking


def anomaly_clouds(
    dataset: Dataset,
    components: Mapping[str, LayerComponents],
    samples: NDArray[np.int64],
    anomalies: pd.DataFrame,
    outliers: pd.DataFrame,
    count: int = 4,
) -> list[Cloud]:
    """Return the points of some filters with their outliers: anomalies first, then filters with outliers, by CH index.

    Args:
        dataset: The data; the samples are those of the train split.
        components: Points of the filters by layer.
        samples: The samples' positions in the train split (N,).
        anomalies: The table of anomaly filters.
        outliers: Outlier samples of filters: layer, filter, sample.
        count: How many filters.
    """
    ranked = anomalies.dropna(subset=["ch"]).sort_values(["is_anomaly", "unbalanced", "ch"], ascending=False)
    frame = ranked.head(count)
    clouds = []
    for row in frame.to_dict("records"):
        layer, number = row["layer"], row["filter"]
        found = outliers[(outliers["layer"] == layer) & (outliers["filter"] == number)]["sample"].to_numpy()
        verdict = "anomaly" if row["is_anomaly"] else "no anomaly"
        shown = found[:3]
        clouds.append(
            Cloud(
                f"{layer} filter {number}: {verdict}\nCH {row['ch']:.3g}, K = {row['k']}, outliers {len(found)}",
                components[layer].points[number],
                np.flatnonzero(np.isin(samples, found)),
                dataset.display(dataset.inputs("train", shown)) if len(shown) else np.empty((0, 1, 1, 1)),
            )
        )
    return clouds


def learning_process(title: str, model: nn.Module, dataset: Dataset, count: int = 3, most: int = 12) -> Process:
    """Return the learning images of the most activated neuron of each layer, linear ones too, for some test images.

    Args:
        title: The network's name.
        model: The model.
        dataset: Its data.
        count: Test images, of different classes as far as possible.
        most: Layers that are shown at most, evenly over the depth.

    Source: Dou Hui, doctoral slides, figure 3-7; which neurons it shows is not stated.
    """
    chosen = stratified_sample(dataset.splits["test"].labels, count, seed=0)
    x = torch.from_numpy(dataset.inputs("test", chosen))
    found = network_layers(model, x)
    labels = numbered_layers([layer.convolutional for layer in found])
    places = evenly(len(found), most)
    probe = prepare(model)
    with torch.no_grad(), capture(probe, [layer.name for layer in found]) as outputs:
        probe(x.to(device_of(model), copy=True))
    images = [
        [
            learning_images(model, one, found[place].name, [int(outputs[found[place].name][row].argmax())])[0]
            .sum(0)
            .cpu()
            .numpy()
            for place in places
        ]
        for row, one in enumerate(x)
    ]
    return Process(title, [labels[place] for place in places], list(dataset.display(x.numpy())), images)


def contests(model: nn.Module, dataset: Dataset, count: int = 2, outputs: int = 10) -> list[Contest]:
    """Return the learning images of the highest class scores for some test images, with their scaled distances.

    Args:
        model: The model.
        dataset: Its data.
        count: Test images, of different classes as far as possible.
        outputs: Class scores that are shown, the highest first.
    """
    chosen = stratified_sample(dataset.splits["test"].labels, count, seed=0)
    x = dataset.inputs("test", chosen)
    scores, images = (found.cpu() for found in score_images(model, torch.from_numpy(x)))
    result = []
    for one, values, learned in zip(x, scores, images.numpy(), strict=True):
        order = values.argsort(descending=True)[:outputs].tolist()
        unit = one / np.linalg.norm(one)
        distances = [np.linalg.norm(learned[place] / (np.linalg.norm(learned[place]) or 1) - unit) for place in order]
        titles = [f"{plain(dataset.classes[place])}: {far:.2f}" for place, far in zip(order, distances, strict=True)]
        result.append(Contest(dataset.display(one), titles, [learned[place].sum(0) for place in order]))
    return result


def map_pairs(
    layers: Iterable[tuple[str, Moments]], dataset: Dataset, count: int = 5
) -> tuple[NDArray[np.floating], list[MapPair]]:
    """Return the first scanned sample, and feature map and learning image of its most activated filters in each layer.

    Args:
        layers: Layer names and their moments with absolute images, in depth order (`moments.read_layers`).
        dataset: The data; the samples are those of the test split.
        count: Filters of each layer.
    """
    pairs: list[MapPair] = []
    for layer, moments in layers:
        maps = np.maximum(moments.layers[layer]["activation"][0], 0)
        images = moments.absolute_images[layer][0]
        sample = dataset.display(dataset.inputs("test", moments.samples[:1]))[0]
        if maps.shape[1:] == (1, 1):
            continue
        ranked = np.argsort(-maps.mean((1, 2)), kind="stable")[:count]
        pairs += [MapPair(layer, f"filter {place}", maps[place], images[place]) for place in ranked.tolist()]
    return sample, pairs


def explanation_columns(
    model: nn.Module, dataset: Dataset, scanned: Scanned, count: int = 4
) -> tuple[NDArray[np.floating], list[str], dict[str, MapColumn]]:
    """Return some scanned samples with the maps of nnscan and of all explainers.

    Explained is the class that the network gives to a sample. What is not defined for the network or the data has a
    reason in place of maps.

    Args:
        model: The model.
        dataset: Its data; the samples are those of the test split.
        scanned: What the scan says of its samples.
        count: Samples, of different classes as far as possible.

    Returns:
        Samples (n, C, H, W) in [0, 1], a title for each, and the maps by name: NNS, FQ, TIP, and `EXPLAINERS`.

    Source: Dou Hui, doctoral slides, figures 3-14 and 5-6; Wang Xinyuan, bachelor's thesis, figure 3-7.
    """
    labels = dataset.splits["test"].labels[scanned.samples]
    chosen = stratified_sample(labels, min(count, len(labels)), seed=0)
    inputs = dataset.inputs("test", scanned.samples[chosen])
    x = torch.from_numpy(inputs).to(device_of(model))
    classes = answers(model, x)
    names = [plain(name) for name in dataset.classes]
    titles = [
        names[label] if answer == label else f"{names[label]}, taken\nfor {names[answer]}"
        for label, answer in zip(labels[chosen].tolist(), classes, strict=True)
    ]
    absolute = torch.from_numpy(scanned.absolute[chosen]).sum(1)
    columns = {"NNS": MapColumn("NNS", enlarged(absolute, scanned.block).numpy())}
    if np.isfinite(scanned.quantities[chosen]).all():
        found = neuron_map(model, x, scanned.layer, scanned.quantities[chosen], scanned.block)
        columns["FQ"] = MapColumn("FQ", found.cpu().numpy())
    else:
        columns["FQ"] = MapColumn("FQ", None, "FQ needs foreground masks, and the data have none")
    columns["TIP"] = MapColumn("TIP", filter_map(model, x, scanned.layer).cpu().numpy())
    for name, explain in EXPLAINERS.items():
        try:
            columns[name] = MapColumn(name, explain(model, x, classes).cpu().numpy())
        except ModelError as error:
            columns[name] = MapColumn(name, None, str(error).partition(";")[0])
    return dataset.display(inputs), titles, columns


def similar_neurons(
    model: nn.Module, average: Tensor, number: int, similarities: pd.DataFrame, count: int = 8
) -> tuple[list[SimilarNeuron], NDArray[np.floating]]:
    """Return the least and the most similar neurons of some layers, with their images for a class average.

    Neurons that are not active have a zero image and are left out, as in the thesis. Shown are the first, second,
    middle and last layer (the thesis: 0, 1, 4 and 7 of 8), of each at most half of the neurons at either end.

    Args:
        model: A network that guided backpropagation is defined for.
        average: The class average (C, H, W), as fed to the network.
        number: The class.
        similarities: Similarity values of this class, kind of average and one method: layer, depth, filter, similarity.
        count: Neurons at each end.

    Returns:
        The neurons, and the image (C, H, W) of the class score.

    Source: Wang Xinyuan, bachelor's thesis, ch. 4.3.1, figures 4-14 to 4-17.
    """
    x = average[None].to(device_of(model))
    names = similarities.sort_values("depth")["layer"].unique().tolist()
    _, rectified = layers_of(model, x, names)
    labels = short_layers(names, is_convolutional(model))
    neurons: list[SimilarNeuron] = []
    for place in sorted({0, min(1, len(names) - 1), len(names) // 2, len(names) - 1}):
        layer = names[place]
        images = guided_backpropagation(model, x, layer, rectify=rectified[layer])[0].cpu().numpy()
        own = similarities[similarities["layer"] == layer].sort_values(["similarity", "filter"])
        active = own[np.abs(images[own["filter"]]).max((1, 2, 3)) > 0]
        size = min(count, len(active) // 2)
        for most, part in ((False, active.head(size)), (True, active.iloc[::-1].head(size))):
            for row in part.to_dict("records"):
                title = f"filter {row['filter']}\n{row['similarity']:.3f}"
                neurons.append(SimilarNeuron(labels[place], most, title, images[row["filter"]]))
    return neurons, guided_scores(model, x, [number])[0].cpu().numpy()
