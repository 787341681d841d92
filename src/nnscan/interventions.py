"""Interventions: masking filters, pruning neurons and removing layers, and what they do to a model.

*Masking* zeroes a filter's output map; *pruning* zeroes its parameters. Both act where the filter's value is formed,
after its batch normalisation: a filter without weights would still pass on its normalisation's shift. Every
intervention stands beside random ones of the same size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from nnscan.artifacts import read_csv
from nnscan.data import Dataset
from nnscan.errors import LayerError, ModelError, did_you_mean
from nnscan.models import NeuronLayer, device_of, evaluation, find_layer, logits, parameter_count
from nnscan.suffixes import Change, Suffix, find_suffix, zeroed
from nnscan.training import Protocol, evaluate, train

log = logging.getLogger(__name__)

Filters = Mapping[str, Sequence[int]]
Way = Callable[[nn.Module, Tensor, Filters], AbstractContextManager[None]]
RANKINGS = ("T_m", "T_v", "T_c", "T_cor")


def _filter_count(model: nn.Module, layer: NeuronLayer) -> int:
    return len(model.get_submodule(layer.weights).weight)  # type: ignore[arg-type]


def _check_filters(model: nn.Module, layer: NeuronLayer, filters: Sequence[int]) -> None:
    count = _filter_count(model, layer)
    wrong = [index for index in filters if not 0 <= index < count]
    if wrong:
        raise LayerError(f"the layer {layer.name!r} has the filters 0 to {count - 1}; asked for {wrong}")


def _check_maskable(model: nn.Module, layer: NeuronLayer, x: Tensor) -> None:
    """Refuse a layer whose activation module does not map 0 to 0."""
    if layer.activation is None:
        return
    activation = model.get_submodule(layer.activation)
    with torch.no_grad():
        at_zero = activation(x.new_zeros(1, _filter_count(model, layer), 1, 1, device=device_of(model)))
    if bool((at_zero != 0).any()):
        raise ModelError(
            f"filters of {layer.name!r} cannot be masked: its activation {type(activation).__name__} turns 0 "
            f"into {float(at_zero.flatten()[0]):.3g}"
        )


@contextmanager
def masked(model: nn.Module, x: Tensor, filters: Filters) -> Iterator[None]:
    """Zero the output maps of filters inside the block; hooks are removed afterwards.

    The filter's value is zeroed after its batch normalisation and before its activation, which is the same as after the
    activation where that maps 0 to 0. In a residual block this removes the filter's own contribution to the sum.

    Args:
        model: Any network.
        x: An input (N, C, H, W) for a probe pass that finds what follows each layer.
        filters: Filters to mask, by layer.

    Raises:
        LayerError: A layer or filter does not exist.
        ModelError: A layer's activation does not map 0 to 0.
    """
    with ExitStack() as stack:
        for name, chosen in filters.items():
            layer = find_layer(model, x, name)
            _check_filters(model, layer, chosen)
            _check_maskable(model, layer, x)
            stack.enter_context(zeroed(model.get_submodule(layer.name), chosen))
        yield


@contextmanager
def pruned(model: nn.Module, x: Tensor, filters: Filters) -> Iterator[None]:
    """Zero the parameters of filters inside the block, batch normalisation included; they come back afterwards.

    Args:
        model: Any network.
        x: An input (N, C, H, W) for a probe pass.
        filters: Filters to prune, by layer.

    Raises:
        LayerError: A layer or filter does not exist.
    """
    kept: list[tuple[Tensor, list[int], Tensor]] = []
    try:
        with torch.no_grad():
            for name, chosen in filters.items():
                layer = find_layer(model, x, name)
                _check_filters(model, layer, chosen)
                for owner in dict.fromkeys((layer.weights, layer.name)):
                    parameters: Iterator[Tensor] = model.get_submodule(owner).parameters(recurse=False)
                    for parameter in parameters:
                        kept.append((parameter, list(chosen), parameter[list(chosen)].clone()))
                        parameter[list(chosen)] = 0
        yield
    finally:
        with torch.no_grad():
            for parameter, chosen, values in reversed(kept):  # what was kept first are the true values
                parameter[chosen] = values


def masked_result(model: nn.Module, x: Tensor, y: Tensor, filters: Filters) -> tuple[float, float]:
    """Return loss and accuracy with filters masked."""
    with masked(model, x, filters):
        return evaluate(model, x, y)


class LayerMasking:
    """Masks or prunes filters of one layer again and again: what does not depend on them is computed once.

    Only the part of the network behind the layer runs for each choice of filters, only for the samples on which one of
    them shows, and several choices make one pass (`suffixes`). Where that part cannot be run alone the network runs
    whole for each choice, which is logged.

    Args:
        model: The model.
        x: Inputs (N, C, H, W).
        y: Labels (N,).
        layer: The layer.
        way: `masked` or `pruned`.
        batch_size: Images in one pass through the part before the layer.

    Raises:
        LayerError: The model has no such layer.
        ModelError: The layer's activation does not map 0 to 0, and filters are to be masked.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, layer: str, way: Way = masked, batch_size: int = 128
    ) -> None:
        self.model, self.x, self.y, self.way, self.batch_size = model, x, y, way, batch_size
        self.layer = find_layer(model, x, layer)
        self.suffix: Suffix | None = None
        if way is masked:
            _check_maskable(model, self.layer, x)
        elif not _pruning_is_masking(model, self.layer, x):
            log.info("pruning filters of %s is more than masking: the network runs whole each time", self.layer.name)
            return
        with evaluation(model):
            self.suffix = find_suffix(model, self.layer.name, x)

    def each(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return losses and accuracies (K,) with each filter alone masked or pruned."""
        return self.results([[index] for index in range(_filter_count(self.model, self.layer))])

    def results(self, choices: Sequence[Sequence[int]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return losses and accuracies (choices,) with choices of filters masked or pruned.

        Raises:
            LayerError: A filter does not exist.
        """
        for filters in choices:
            _check_filters(self.model, self.layer, filters)
        if self.suffix is None:
            found = []
            for filters in tqdm(choices, desc=self.layer.name, unit="choice", delay=5):
                with self.way(self.model, self.x, {self.layer.name: filters}):
                    found.append(evaluate(self.model, self.x, self.y))
            losses, accuracies = np.array(found, np.float64).reshape(-1, 2).T
            return losses, accuracies
        totals = torch.zeros(2, len(choices), dtype=torch.float64)
        parts = list(zip(torch.split(self.x, self.batch_size), torch.split(self.y, self.batch_size), strict=True))
        with evaluation(self.model), torch.no_grad():
            for part, labels in tqdm(parts, desc=self.layer.name, unit="batch", delay=5):
                device = device_of(self.model)
                totals += self._sums(self.suffix, part.to(device), labels.to(device), choices).cpu()
        losses, accuracies = (totals / len(self.x)).numpy()
        return losses, accuracies

    @staticmethod
    def _sums(suffix: Suffix, x: Tensor, y: Tensor, choices: Sequence[Sequence[int]]) -> Tensor:
        """Return the sums of losses and of right answers over samples, (2, choices)."""
        incoming, others = suffix.before(x)
        blank = suffix.chain(torch.zeros_like(suffix.layer(incoming[:1])))
        kept = suffix.keep(incoming, others)
        channels = [torch.tensor(sorted(set(filters)), dtype=torch.int64, device=x.device) for filters in choices]
        shows = (kept.maps != blank).flatten(2).any(2) if kept.maps.ndim > 2 else kept.maps != blank
        wanted = shows.new_zeros(len(choices), shows.shape[1])
        for number, chosen in enumerate(channels):
            wanted[number, chosen] = True
        affected = wanted.float() @ shows.float().T > 0
        intact = _verdicts(kept.scores, y)
        sums = intact @ (~affected).double().T
        for pairs in suffix.passes(kept, affected):
            numbers, sizes = torch.unique_consecutive(pairs[:, 0], return_counts=True)
            changes = [
                Change(samples, channels[number], blank[:, channels[number]])
                for number, samples in zip(numbers.tolist(), torch.split(pairs[:, 1], sizes.tolist()), strict=True)
            ]
            sums.index_add_(1, pairs[:, 0], _verdicts(suffix.scores(kept, changes), y[pairs[:, 1]]))
        return sums


def _verdicts(scores: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each sample and whether the answer is right, (2, n)."""
    losses = nn.functional.cross_entropy(scores, y, reduction="none")
    return torch.stack([losses.double(), (scores.argmax(1) == y).double()])


def _pruning_is_masking(model: nn.Module, layer: NeuronLayer, x: Tensor) -> bool:
    """Return whether zeroed parameters make the filters' maps zero and do nothing else, on one sample.

    A normalisation without parameters of its own would leave its shift; a module that is called twice, or whose
    parameters serve another one too, would change more than this layer.
    """
    filters = list(range(0, _filter_count(model, layer), 2))
    scores = []
    with evaluation(model), torch.no_grad():
        for context in (pruned(model, x, {layer.name: filters}), zeroed(model.get_submodule(layer.name), filters)):
            with context:
                scores.append(logits(model(x[:1].to(device_of(model), copy=True))))
    return torch.equal(*scores)


def _random_filters(count: int, size: int, draws: int, seed: int) -> list[list[int]]:
    """Return random choices of filters, the same for the same seed."""
    generator = np.random.default_rng(seed)
    return [sorted(generator.choice(count, size, replace=False).tolist()) for _ in range(draws)]


def diversity_masking(
    model: nn.Module, x: Tensor, y: Tensor, diversity: pd.DataFrame, count: int = 20, draws: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Mask the most and the least diverse filters of each layer, and random ones.

    A layer in which all filters are equally diverse, as where they have too few neurons for a cluster, is left out.

    Args:
        model: The model.
        x: Held-out inputs (N, C, H, W).
        y: Labels (N,).
        diversity: The result of `quantity.diversity`; ties are broken by fewer noise neurons, then by filter number.
        count: Filters at each end of the ranking; at most a quarter of the layer, at least one.
        draws: Random choices.
        seed: Seed of the random choices.

    Returns:
        layer, depth, group (top, bottom, random), draw, filters, loss, loss_change (percent of the unmasked loss),
        accuracy (0 to 1).

    Source: Dou Hui, doctoral slides, table 4-3.
    """
    base, _ = evaluate(model, x, y)
    rows = []
    for (depth, layer), frame in diversity.groupby(["depth", "layer"]):
        if _alike(frame):
            continue
        masking = LayerMasking(model, x, y, str(layer))
        top, bottom = _diversity_ends(frame, count)
        size = len(top)
        groups = [("top", 0, top), ("bottom", 0, bottom)]
        groups += [
            ("random", draw, chosen) for draw, chosen in enumerate(_random_filters(len(frame), size, draws, seed))
        ]
        results = masking.results([chosen for _, _, chosen in groups])
        for (group, draw, _), loss, accuracy in zip(groups, *results, strict=True):
            rows.append((layer, depth, group, draw, size, loss, 100 * (loss - base) / base, accuracy))
    return pd.DataFrame(rows, columns=["layer", "depth", "group", "draw", "filters", "loss", "loss_change", "accuracy"])


def _alike(frame: pd.DataFrame) -> bool:
    """Return whether all filters of a layer have as many clusters and as much noise: none is more diverse."""
    return frame[["clusters", "noise"]].drop_duplicates().shape[0] == 1


def _diversity_ends(frame: pd.DataFrame, count: int) -> tuple[list[int], list[int]]:
    """Return the most and the least diverse filters of a layer: `count` each, at most a quarter of it."""
    ranking = frame.sort_values(["clusters", "noise", "filter"], ascending=[False, True, True])["filter"].tolist()
    size = max(1, min(count, len(ranking) // 4))
    return ranking[:size], ranking[-size:]


def ablation_masking(model: nn.Module, x: Tensor, y: Tensor, ablation: pd.DataFrame, count: int = 20) -> pd.DataFrame:
    """Mask the most and the least diverse filters of each layer, by diversities without one element of FQ.

    A layer in which all filters are equally diverse whatever is left out has no rows.

    Args:
        model: The model.
        x: Held-out inputs (N, C, H, W).
        y: Labels (N,).
        ablation: The result of `quantity.diversity_ablation`; ties as in `diversity_masking`.
        count: Filters at each end of the ranking; at most a quarter of the layer, at least one.

    Returns:
        without (the element left out), layer, depth, group (top, bottom), filters, loss, loss_change (percent of the
        unmasked loss), accuracy (0 to 1).

    Source: Dou Hui, doctoral slides, table 4-4.
    """
    base, _ = evaluate(model, x, y)
    rows = []
    for (depth, layer), frames in ablation.groupby(["depth", "layer"]):
        if all(_alike(frame) for _, frame in frames.groupby("without")):
            continue
        groups = [
            (without, group, chosen)
            for without, frame in frames.groupby("without", sort=False)
            for group, chosen in zip(("top", "bottom"), _diversity_ends(frame, count), strict=True)
        ]
        results = LayerMasking(model, x, y, str(layer)).results([chosen for *_, chosen in groups])
        for (without, group, chosen), loss, accuracy in zip(groups, *results, strict=True):
            rows.append((without, layer, depth, group, len(chosen), loss, 100 * (loss - base) / base, accuracy))
    columns = ["without", "layer", "depth", "group", "filters", "loss", "loss_change", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def aipc(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layer: str,
    rankings: Mapping[str, NDArray[np.floating]],
    steps: int = 10,
    draws: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the accuracy curves of masking a layer's filters step by step, from the highest score down.

    Args:
        model: The model.
        x: Held-out inputs (N, C, H, W).
        y: Labels (N,).
        layer: The layer.
        rankings: Score of each filter (K,) by the ranking's name; random orders are added as "random".
        steps: Steps from no filter to all filters.
        draws: Random orders.
        seed: Seed of the random orders.

    Returns:
        layer, ranking, draw, fraction (masked share, 0 to 1), accuracy (0 to 1), change (percentage points).

    Source: Dou Hui, doctoral slides, ch. 5 (accuracy-interpretable-property curve).
    """
    count = len(next(iter(rankings.values())))
    orders = [(name, 0, np.argsort(-scores, kind="stable").tolist()) for name, scores in rankings.items()]
    generator = np.random.default_rng(seed)
    orders += [("random", draw, generator.permutation(count).tolist()) for draw in range(draws)]
    sizes = list(dict.fromkeys(np.round(np.linspace(0, count, steps + 1)).astype(int).tolist()))
    points = [(name, draw, size, order[:size]) for name, draw, order in orders for size in sizes]
    _, accuracies = LayerMasking(model, x, y, layer).results([[], *(chosen for *_, chosen in points)])
    base = accuracies[0]
    rows = [
        (layer, name, draw, size / count, accuracy, 100 * (accuracy - base))
        for (name, draw, size, _), accuracy in zip(points, accuracies[1:], strict=True)
    ]
    return pd.DataFrame(rows, columns=["layer", "ranking", "draw", "fraction", "accuracy", "change"])


def experiment_layer(layer: str, layers: Sequence[str]) -> str:
    """Return the name of the layer whose filters an experiment masks.

    Args:
        layer: The setting: "last" for the deepest of the scanned layers, or a name.
        layers: The scanned layers, in order of depth.

    Raises:
        LayerError: The layer was not scanned.
    """
    name = layers[-1] if layer == "last" else layer
    if name not in layers:
        raise LayerError(f"experiments.layer {name!r} was not scanned{did_you_mean(name, layers)}")
    return name


def property_masking(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    properties: pd.DataFrame,
    layer: str = "last",
    steps: int = 10,
    draws: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the AIPC curves of one layer for the rankings by T_m, T_v, T_c and T_cor.

    Args:
        model: The model.
        x: Held-out inputs (N, C, H, W).
        y: Labels (N,).
        properties: Interpretable properties: layer, depth, filter, T_m, T_v, T_c, T_cor.
        layer: A layer of the table, or "last" for the deepest.
        steps: See `aipc`.
        draws: See `aipc`.
        seed: See `aipc`.

    Raises:
        LayerError: The table has no such layer.
    """
    name = experiment_layer(layer, properties.sort_values("depth")["layer"].unique().tolist())
    frame = properties[properties["layer"] == name].sort_values("filter")
    rankings = {ranking: frame[ranking].to_numpy(np.float64) for ranking in RANKINGS}
    return aipc(model, x, y, name, rankings, steps, draws, seed)


def type_masking(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layer: str,
    types: Mapping[str, Sequence[int] | NDArray[np.int64]],
    checkpoint: str,
    draws: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Mask all filters of a type together, and as many random filters of the layer.

    Args:
        model: The model.
        x: Held-out inputs (N, C, H, W).
        y: Labels (N,).
        layer: The layer.
        types: The filters of each type by its name (`properties.filter_types`).
        checkpoint: Name of the checkpoint, for the table.
        draws: Random choices.
        seed: Seed of the random choices.

    Returns:
        checkpoint, layer, type, group (type, random), draw, filters (masked), proportion (of the layer's filters, 0 to
        1), accuracy_lost (percentage points, positive for a loss); empty where there are no types.

    Source: Dou Hui, doctoral slides, table 5-3.
    """
    masking = LayerMasking(model, x, y, layer)
    total = _filter_count(model, masking.layer)
    choices: list[tuple[str, str, int, list[int]]] = []
    for name, members in types.items():
        filters = [int(index) for index in members]
        choices.append((name, "type", 0, filters))
        choices += [
            (name, "random", draw, chosen)
            for draw, chosen in enumerate(_random_filters(total, len(filters), draws, seed))
        ]
    _, (base, *accuracies) = masking.results([[], *(chosen for *_, chosen in choices)])
    rows = [
        (checkpoint, layer, name, group, draw, len(chosen), len(chosen) / total, 100 * (base - accuracy))
        for (name, group, draw, chosen), accuracy in zip(choices, accuracies, strict=True)
    ]
    columns = ["checkpoint", "layer", "type", "group", "draw", "filters", "proportion", "accuracy_lost"]
    return pd.DataFrame(rows, columns=columns)


def curve_area(fraction: NDArray[np.floating], change: NDArray[np.floating]) -> float:
    """Return the area between a curve of accuracy changes and zero, positive for losses, in percentage points."""
    return float(-np.trapezoid(change, fraction))


def anomaly_masking(
    model: nn.Module, x: Tensor, y: Tensor, anomalies: pd.DataFrame, checkpoint: str, draws: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Mask all anomaly filters together, and as many random filters of the same layers.

    Args:
        model: The model.
        x: Validation inputs (N, C, H, W).
        y: Labels (N,).
        anomalies: The table of anomaly filters: layer, filter, is_anomaly.
        checkpoint: Name of the checkpoint, for the table.
        draws: Random choices.
        seed: Seed of the random choices.

    Returns:
        checkpoint, group (anomaly, random), draw, filters, accuracy_change (percentage points); empty where no filter
        is an anomaly.

    Source: Dou Hui, doctoral slides, table 6-5.
    """
    found = anomalies[anomalies["is_anomaly"]]
    chosen = {str(layer): group["filter"].tolist() for layer, group in found.groupby("layer")}
    total = {str(layer): len(group) for layer, group in anomalies.groupby("layer")}
    choices: list[tuple[str, int, dict[str, list[int]]]] = []
    if chosen:
        choices.append(("anomaly", 0, chosen))
        by_layer = {
            layer: _random_filters(total[layer], len(filters), draws, seed) for layer, filters in chosen.items()
        }
        choices += [
            ("random", draw, {layer: drawn[draw] for layer, drawn in by_layer.items()}) for draw in range(draws)
        ]
    base = evaluate(model, x, y)[1]
    if len(chosen) == 1:
        (layer,) = chosen
        accuracies = LayerMasking(model, x, y, layer).results([filters[layer] for *_, filters in choices])[1].tolist()
    else:
        accuracies = [masked_result(model, x, y, filters)[1] for *_, filters in choices]
    rows = [
        (checkpoint, group, draw, len(found), 100 * (accuracy - base))
        for (group, draw, _), accuracy in zip(choices, accuracies, strict=True)
    ]
    return pd.DataFrame(rows, columns=["checkpoint", "group", "draw", "filters", "accuracy_change"])


def single_masking(
    model: nn.Module, splits: Mapping[str, tuple[Tensor, Tensor]], anomalies: pd.DataFrame, checkpoint: str
) -> pd.DataFrame:
    """Mask each anomaly filter alone.

    Args:
        model: The model.
        splits: Inputs (N, C, H, W) and labels (N,) of each split by name.
        anomalies: The table of anomaly filters: layer, depth, filter, is_anomaly.
        checkpoint: Name of the checkpoint, for the table.

    Returns:
        checkpoint, layer, depth, filter, split, accuracy_change (percentage points); empty where no filter is an
        anomaly.

    Source: Dou Hui, doctoral slides, table 6-4.
    """
    rows = []
    for (depth, layer), found in anomalies[anomalies["is_anomaly"]].groupby(["depth", "layer"]):
        filters = found["filter"].tolist()
        for split, (x, y) in splits.items():
            choices = [[], *([index] for index in filters)]
            _, (base, *accuracies) = LayerMasking(model, x, y, str(layer)).results(choices)
            rows += [
                (checkpoint, layer, depth, index, split, 100 * (accuracy - base))
                for index, accuracy in zip(filters, accuracies, strict=True)
            ]
    return pd.DataFrame(rows, columns=["checkpoint", "layer", "depth", "filter", "split", "accuracy_change"])


@torch.inference_mode(False)
def sample_gradients(model: nn.Module, x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """Return the L2 norm of each sample's gradient of the cross-entropy with respect to all parameters, (N,)."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = {name: value.detach() for name, value in model.named_buffers()}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        scores = logits(torch.func.functional_call(model, {**values, **buffers}, (image[None].clone(),)))
        return nn.functional.cross_entropy(scores, label[None])

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    chunk = max(1, min(64, 100_000_000 // parameter_count(model)))
    norms, device = [], device_of(model)
    with evaluation(model):
        for start in range(0, len(x), chunk):
            part = slice(start, start + chunk)
            gradients = per_sample(parameters, x[part].detach().to(device), y[part].to(device))
            squares = [gradient.double().flatten(1).square().sum(1) for gradient in gradients.values()]
            norms.append(torch.stack(squares).sum(0).sqrt())
    return torch.cat(norms).cpu().numpy()


def outlier_gradients(
    model: nn.Module, x: Tensor, y: Tensor, samples: NDArray[np.int64], outliers: pd.DataFrame, checkpoint: str
) -> pd.DataFrame:
    """Return the mean gradient norm of outlier samples and of the others.

    Args:
        model: The model.
        x: The samples of the anomaly search (N, C, H, W).
        y: Labels (N,).
        samples: Identifiers of the samples (N,).
        outliers: Outlier samples of filters: sample (identifier), is_anomaly; those of anomaly filters count.
        checkpoint: Name of the checkpoint, for the table.

    Returns:
        checkpoint, group (outlier, normal), gradient (mean L2 norm; NaN for an empty group), samples.

    Source: Dou Hui, doctoral slides, table 6-3.
    """
    norms = sample_gradients(model, x, y)
    is_outlier = np.isin(samples, outliers[outliers["is_anomaly"]]["sample"].to_numpy())
    rows = []
    for group, members in (("outlier", is_outlier), ("normal", ~is_outlier)):
        mean = float(norms[members].mean()) if members.any() else float("nan")
        rows.append((checkpoint, group, mean, int(members.sum())))
    return pd.DataFrame(rows, columns=["checkpoint", "group", "gradient", "samples"])


def neuron_pruning(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    similarities: pd.DataFrame,
    fraction: float = 0.4,
    draws: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Prune the most and the least similar neurons of each layer alone, without fine-tuning, and random ones.

    Args:
        model: The model.
        x: Test inputs (N, C, H, W).
        y: Labels (N,).
        similarities: layer, depth, filter and similarity, the filter's mean over classes.
        fraction: Share of the layer's neurons to prune, rounded to whole neurons, at least one.
        draws: Random choices.
        seed: Seed of the random choices.

    Returns:
        layer, depth, neurons (of the layer), group (most, least, random), draw, fraction, accuracy (0 to 1).

    Source: Wang Xinyuan, bachelor's thesis, ch. 5.2, table 5-1.
    """
    rows = []
    for (depth, layer), frame in similarities.groupby(["depth", "layer"]):
        order = frame.sort_values(["similarity", "filter"], ascending=[False, True])["filter"].tolist()
        size = max(1, round(fraction * len(order)))
        groups = [("most", 0, order[:size]), ("least", 0, order[-size:])]
        groups += [
            ("random", draw, chosen) for draw, chosen in enumerate(_random_filters(len(order), size, draws, seed))
        ]
        _, accuracies = LayerMasking(model, x, y, str(layer), pruned).results([chosen for *_, chosen in groups])
        for (group, draw, _), accuracy in zip(groups, accuracies, strict=True):
            rows.append((layer, depth, len(order), group, draw, fraction, accuracy))
    return pd.DataFrame(rows, columns=["layer", "depth", "neurons", "group", "draw", "fraction", "accuracy"])


def layer_removal(
    build: Callable[[int], nn.Module],
    curve: Sequence[float],
    dataset: Dataset,
    protocol: Protocol,
    folder: str | Path,
    seed: int,
    origin: Mapping[str, str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Retrain the model cut after the layer where the similarity curve peaks, one layer later, and whole.

    Args:
        build: Returns the model with its first n convolutions.
        curve: Mean similarity of each convolution of the whole model, in order of depth.
        dataset: Data.
        protocol: Training of the original model; the overfitting phase is left out.
        folder: A working folder for the trainings' checkpoints.
        seed: The seed.
        origin: Provenance.

    Returns:
        The results: convolutions, chosen (whether the curve peaks there), parameters, accuracy and loss on the test
        split after the last epoch. And the histories of these trainings: convolutions, chosen, then the columns of
        `training.HISTORY`.

    Source: Wang Xinyuan, bachelor's thesis, ch. 5.1, figs 5-2 and 5-3.
    """
    peak = int(np.argmax(curve)) + 1
    regular = Protocol(**{**vars(protocol), "overfitting_epochs": 0})
    rows, histories = [], []
    for convolutions in sorted({peak, min(peak + 1, len(curve)), len(curve)}):
        own = Path(folder) / f"convolutions{convolutions}"
        results = train(
            lambda kept=convolutions: build(kept),  # type: ignore[misc]
            dataset, regular, own, seed,
            {**origin, "model": f"{origin.get('model')}/{convolutions}"},
        )  # fmt: skip
        last = results[(results["checkpoint"] == "third3") & (results["split"] == "test")].iloc[0]
        count = parameter_count(build(convolutions))
        rows.append((convolutions, convolutions == peak, count, float(last["accuracy"]), float(last["loss"])))
        history = read_csv(own / "history.csv")
        history.insert(0, "chosen", convolutions == peak)
        history.insert(0, "convolutions", convolutions)
        histories.append(history)
    table = pd.DataFrame(rows, columns=["convolutions", "chosen", "parameters", "accuracy", "loss"])
    return table, pd.concat(histories, ignore_index=True)
