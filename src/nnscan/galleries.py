"""Pictures for the figures that need the network: learning images of chosen neurons, filters with their outliers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from nnscan.components import LayerComponents
from nnscan.data import Dataset
from nnscan.figures import Cloud, Portrait
from nnscan.scanner import learning_images


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
    portraits = []
    for (_, layer), group in frame.groupby(["depth", "layer"], sort=True):
        ends = [(True, group.drop_duplicates("filter").head(count))]
        ends += [(False, group.iloc[::-1].drop_duplicates("filter").head(count))]
        for strongest, neurons in ends:
            for neuron in neurons.to_dict("records"):
                height, width = shapes.loc[str(layer)]
                index = (neuron["filter"] * height + neuron["row"]) * width + neuron["column"]
                x = dataset.inputs("test", np.array([neuron["sample"]]))
                image = learning_images(model, torch.from_numpy(x[0]), str(layer), [int(index)])[0].sum(0).numpy()
                title = f"{name} {neuron['score']:.3g}\nfilter {neuron['filter']}"
                portraits.append(Portrait(str(layer), title, strongest, dataset.display(x)[0], image))
    return portraits


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
