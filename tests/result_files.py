"""Small result files whose numbers are known by hand, and how tests read what is made of them."""

import math
from pathlib import Path

import pandas as pd

from nnscan.artifacts import write_frame
from nnscan.contents import TABLES
from nnscan.tables import Run, read_published


def put(run: Run, path: str, rows: list[dict]) -> None:
    if path.endswith(".csv"):
        (run.folder / path).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(run.folder / path, index=False)
    else:
        write_frame(run.folder / path, pd.DataFrame(rows), {})


def make_runs(folder: Path, model: str, seeds=(0, 1, 2), dataset: str = "digits") -> list[Run]:
    return [Run(dataset, model, seed, folder / dataset / model / f"seed{seed}") for seed in seeds]


def quantities(layers: dict[str, list[tuple[float, float, float, float]]]) -> list[dict]:
    return [
        {"layer": layer, "depth": depth, "ssim": luminance * contrast * structure, "fq": fq}
        for depth, (layer, neurons) in enumerate(layers.items())
        for luminance, contrast, structure, fq in neurons
    ]


def alexnet_quantities(runs: list[Run]) -> None:
    # SSIM of layer a: (1 + 0.5) / 2; FQ of layer a: 0.2, 0.3, 0.4 over the seeds
    for run in runs:
        shift = 0.1 * run.seed
        others = {layer: [(0.5, 0.5, 1.0, 0.5)] for layer in "bcde"}
        put(
            run,
            "metrics/well_trained/quantity.parquet",
            quantities({"a": [(1, 1, 1, 0.1 + shift), (0.5, 1, 1, 0.3 + shift)], **others}),
        )


def put_knowledge(run: Run, layers: dict[str, tuple[float, float]]) -> None:
    """Write intensity and count of each layer."""
    rows = [
        {"layer": layer, "depth": depth, "intensity": intensity, "count": count}
        for depth, (layer, (intensity, count)) in enumerate(layers.items())
    ]
    put(run, "metrics/well_trained/knowledge.parquet", rows)


def put_agreement(run: Run, layers: dict[str, list[tuple[float, float, float]]]) -> None:
    """Write agreement, iou and iou_any of each layer's samples above 5 %; above 0 they are halves."""
    rows = [
        {"layer": layer, "depth": depth, "sample": sample, "binarised": name, "filters": 3,
         "agreement": scale * agreement, "iou": scale * iou, "iou_any": scale * iou_any}
        for depth, (layer, samples) in enumerate(layers.items())
        for sample, (agreement, iou, iou_any) in enumerate(samples)
        for name, scale in (("above 5 %", 1.0), ("above 0", 0.5))
    ]  # fmt: skip
    put(run, "metrics/well_trained/agreement.parquet", rows)


def put_distances(run: Run, layers: dict[str, tuple[bool, list[tuple[float, float]]]]) -> None:
    """Write whether each layer is convolutional, and the scaled distances to own and other samples of its neurons."""
    rows = [
        {"layer": layer, "depth": depth, "convolutional": convolutional, "neuron": neuron, "samples": 5,
         "own": 10 * own, "other": 20 * other, "own_scaled": own, "other_scaled": other}
        for depth, (layer, (convolutional, neurons)) in enumerate(layers.items())
        for neuron, (own, other) in enumerate(neurons)
    ]  # fmt: skip
    put(run, "metrics/well_trained/distances.parquet", rows)


def put_winners(run: Run, distances: list[list[tuple[float, float]]]) -> None:
    """Write distance and scaled distance of each sample's class scores; the first is always the winner."""
    rows = [
        {"sample": sample, "output": output, "score": -1.0 * output, "winner": output == 0,
         "distance": distance, "distance_scaled": scaled}
        for sample, outputs in enumerate(distances)
        for output, (distance, scaled) in enumerate(outputs)
    ]  # fmt: skip
    put(run, "metrics/well_trained/winners.parquet", rows)


def put_layer_quantities(run: Run, layers: list[dict[str, float]], **measures: list[float]) -> None:
    """Write the correlation of each layer by the element left out; other measures of the whole by layer."""
    rows = [
        {"layer": f"l{depth}", "depth": depth, "places": 4, "without": without, "mean": 0.5,
         "variance": measures.get("variance", [0.1] * len(layers))[depth], "correlation": value,
         "correlation_active": measures.get("active", [value] * len(layers))[depth]}
        for depth, values in enumerate(layers)
        for without, value in values.items()
    ]  # fmt: skip
    put(run, "metrics/well_trained/quantity_layers.parquet", rows)


def put_ablation(run: Run, changes: dict[str, list[tuple[float, float]]]) -> None:
    """Write the loss changes of top and bottom by the element left out and layer."""
    rows = [
        {"without": without, "layer": f"l{depth}", "depth": depth, "group": group, "filters": 4 + depth,
         "loss_change": change}
        for without, layers in changes.items()
        for depth, pair in enumerate(layers)
        for group, change in zip(("top", "bottom"), pair, strict=True)
    ]  # fmt: skip
    put(run, "experiments/ablation_masking.parquet", rows)


def put_curves(run: Run, drops: dict[str, float]) -> None:
    # the change falls linearly to -drop at half and stays there: area = drop / 4 + drop / 2
    rows = [
        {"layer": "z", "ranking": ranking, "draw": 0, "fraction": fraction, "change": -drop * min(1.0, 2 * fraction)}
        for ranking, drop in drops.items()
        for fraction in (0.0, 0.5, 1.0)
    ]
    put(run, "experiments/aipc.parquet", rows)


def put_properties(run: Run, **columns: list[float]) -> None:
    filler = {name: [1.0, 2.0, 3.0, 4.0] for name in ("T_m", "T_v", "T_c", "T_cor", "AVoU", "SoU")}
    first = pd.DataFrame({"layer": "a", "depth": 0, **{name: values[::-1] for name, values in filler.items()}})
    last = pd.DataFrame({"layer": "b", "depth": 1, **filler, **columns})
    write_frame(run.folder / "metrics/well_trained/properties.parquet", pd.concat([last, first]), {})


def put_anomalies(run: Run, checkpoint: str, count: int) -> None:
    # of ten filters: three more have a high CH index, two more are unbalanced, one of these with high activation
    rows = [
        {
            "layer": "a",
            "depth": 0,
            "filter": k,
            "unbalanced": k < count + 2,
            "high_ch": k < count or k >= 7,
            "high_activation": k < count + 1,
            "is_anomaly": k < count,
            "is_anomaly_0.005": k < count - 1,
            "is_anomaly_0.05": k < count + 1,
        }
        for k in range(10)
    ]
    put(run, f"metrics/{checkpoint}/anomaly.parquet", rows)


def put_history(run: Run, counts: dict[int, int], well_trained: int = 9) -> None:
    rows = [{"checkpoint": "well_trained", "epoch": 1, "is_anomaly": well_trained}]
    rows += [
        {"checkpoint": f"overfitting{epoch}", "epoch": epoch, "is_anomaly": count} for epoch, count in counts.items()
    ]
    put(run, "metrics/anomaly_history.parquet", rows)


def put_single(run: Run, changes: list[tuple[float, float]], checkpoint: str = "overfitted") -> None:
    # changes of the training and of the validation accuracy, filter by filter; filters of two layers share numbers
    rows = [
        {
            "checkpoint": checkpoint,
            "layer": "ab"[k % 2],
            "depth": k % 2,
            "filter": k // 2,
            "split": split,
            "accuracy_change": change,
        }
        for k, pair in enumerate(changes)
        for split, change in zip(("train", "validation"), pair, strict=True)
    ]
    put(run, "experiments/anomaly_single.parquet", rows)


def put_types(run: Run, types: dict[str, tuple[float, list[float], float]]) -> None:
    # by type: proportion, accuracy lost in each phase, accuracy lost without random filters (two draws, 1 apart)
    rows = [
        {
            "checkpoint": f"third{phase}",
            "layer": "z",
            "type": name,
            "group": group,
            "draw": draw,
            "filters": round(10 * proportion),
            "proportion": proportion,
            "accuracy_lost": value,
        }
        for name, (proportion, lost, random) in types.items()
        for phase, own in enumerate(lost, start=1)
        for group, draw, value in (("type", 0, own), ("random", 0, random - 0.5), ("random", 1, random + 0.5))
    ]
    put(run, "experiments/filter_types.parquet", rows)


def put_masking(run: Run, anomaly: float, random: list[float]) -> None:
    rows = [{"checkpoint": "overfitted", "group": "anomaly", "draw": 0, "filters": 4, "accuracy_change": anomaly}]
    rows += [
        {"checkpoint": "overfitted", "group": "random", "draw": draw, "filters": 4, "accuracy_change": value}
        for draw, value in enumerate(random)
    ]
    put(run, "experiments/anomaly_masking.parquet", rows)


def put_results(run: Run, accuracy: float, test_loss: float) -> None:
    rows = [
        {"checkpoint": checkpoint, "split": split, "loss": loss, "accuracy": accuracy - 0.1 * (checkpoint == "third1")}
        for checkpoint in ("third1", "third3")
        for split, loss in (("train", 0.25), ("test", test_loss))
    ]
    put(run, "training/results.csv", rows)


def put_pruning(run: Run, accuracies: dict[str, tuple[float, float, list[float]]], fraction: float = 0.4) -> None:
    rows = [
        {
            "layer": layer,
            "depth": depth,
            "neurons": 64,
            "group": group,
            "draw": draw,
            "fraction": fraction,
            "accuracy": value,
        }
        for depth, (layer, (most, least, random)) in enumerate(accuracies.items())
        for group, values in (("most", [most]), ("least", [least]), ("random", random))
        for draw, value in enumerate(values)
    ]
    put(run, "experiments/pruning.parquet", rows)


def put_layers(run: Run, chosen: int, results: dict[int, tuple[int, float]]) -> None:
    rows = [
        {
            "convolutions": convolutions,
            "chosen": convolutions == chosen,
            "parameters": parameters,
            "accuracy": accuracy,
            "loss": 1.0,
        }
        for convolutions, (parameters, accuracy) in results.items()
    ]
    put(run, "experiments/layers.parquet", rows)


def put_localisation(run: Run, overlaps: dict[str, list[float]]) -> None:
    """Write the IoU of each method's samples at half of the range; at a fifth it is half as large."""
    rows = [
        {"sample": sample, "method": method, "threshold": threshold, "iou": iou * scale}
        for method, values in overlaps.items()
        for sample, iou in enumerate(values)
        for threshold, scale in ((0.5, 1.0), (0.2, 0.5))
    ]
    put(run, "metrics/well_trained/localisation.parquet", rows)


def put_detectors(run: Run, checkpoint: str, layers: dict[str, dict[str, tuple[int, int, int]]], of: int = 20) -> None:
    """Write of each layer, of so many units, the distinct top labels, distinct best ones and detectors by category."""
    rows = [
        {"layer": layer, "depth": 2 * depth, "category": category, "top": top, "best": best, "units": units, "of": of}
        for depth, (layer, categories) in enumerate(layers.items())
        for category, (top, best, units) in categories.items()
    ]
    put(run, f"metrics/{checkpoint}/detectors.parquet", rows)


def put_rotations(run: Run, counts: dict[float, list[tuple[int, int]]]) -> None:
    """Write the best concepts in two categories of each power and rotation; the power 0 belongs to none."""
    rows = [
        {"layer": "z", "rotation": number if alpha else -1, "alpha": alpha, "deviation": 1e-6, "category": category,
         "top": 1, "best": best, "units": best}
        for alpha, rotations in counts.items()
        for number, pair in enumerate(rotations)
        for category, best in zip(("color", "object"), pair, strict=True)
    ]  # fmt: skip
    put(run, "experiments/rotations.parquet", rows)


def put_dimensions(
    run: Run, checkpoint: str, places: list[tuple[float, int]], output: bool = True, width: int = 64
) -> None:
    """Write the intrinsic and the PCA dimension of each place, the first of which is the input, the last the output."""
    last = len(places) - output
    few = f"{run.seed} points are too few; give more"
    rows = [
        {"layer": f"l{depth}" if depth else "input", "depth": depth, "relative_depth": depth / last, "width": width,
         "points": 100, "dropped": 2, "dimension": dimension, "sd": 0.1, "pca_dimension": components,
         "plateau": math.nan if dimension > 10 else dimension, "fit": 0.99,
         "warning": few if math.isnan(dimension) else "above 10; also" if dimension > 10 else ""}
        for depth, (dimension, components) in enumerate(places)
    ]  # fmt: skip
    put(run, f"metrics/{checkpoint}/dimension.parquet", rows)


def put_test_accuracy(run: Run, accuracy: float) -> None:
    """Write the test accuracy (0 to 1) of the well-trained checkpoint beside others."""
    rows = [
        {"checkpoint": checkpoint, "split": split, "loss": 1.0, "accuracy": accuracy if own else 0.125}
        for checkpoint in ("third1", "well_trained")
        for split in ("train", "test")
        for own in [(checkpoint, split) == ("well_trained", "test")]
    ]
    put(run, "training/results.csv", rows)


def put_shuffled_accuracy(run: Run, accuracy: float) -> None:
    """Write the accuracy (0 to 1) on the shuffled labels of the training images."""
    rows = [
        {"checkpoint": "shuffled", "split": split, "loss": 1.0, "accuracy": accuracy if split == "train" else 0.125}
        for split in ("train", "test")
    ]
    put(run, "training/shuffled_results.csv", rows)


def put_prototypes(run: Run, backbone: float, prototypes: float, distinct: list[tuple[int, int]]) -> None:
    """Write the test accuracies (0 to 1), and of each class the prototypes and how many of them are distinct."""
    rows = [
        {"checkpoint": checkpoint, "split": split, "loss": 1.0, "accuracy": accuracy if split == "test" else 1.0}
        for checkpoint, accuracy in (("backbone", backbone), ("prototypes", prototypes))
        for split in ("train", "validation", "test")
    ]
    put(run, "training/prototypes_results.csv", rows)
    rows = [
        {"class": number, "name": f"name{number}", "prototypes": count, "distinct": own, "images": own,
         "smallest_distance": 0.1}
        for number, (count, own) in enumerate(distinct)
    ]  # fmt: skip
    put(run, "training/prototypes_distinct.csv", rows)


def put_scores(run: Run, question: str, scores: dict[tuple[str, str, str], list[float]], why: str = "refused") -> None:
    """Write a file of scores: by method, metric and case the value of each image; NaN for the reason `why`."""
    rows = [
        {"sample": sample, "method": method, "metric": metric, "case": case, "value": float(value),
         "reason": why if value != value else ""}
        for (method, metric, case), values in scores.items()
        for sample, value in enumerate(values)
    ]  # fmt: skip
    columns = ["sample", "method", "metric", "case", "value", "reason"]
    write_frame(run.folder / f"explainers/{question}.parquet", pd.DataFrame(rows, columns=columns), {})


def put_pictures(run: Run, made: dict[str, list[tuple[float, float, float]]], refused: dict[str, str]) -> None:
    """Write what networks say of images of classes: by method probability, agreement and distance of each class.

    An image took 2 s, on a system that does not tell memory; real images took nothing.
    """
    rows = [
        {"method": method, "image": number, "class": number, "score": 1.0, "probability": probability,
         "agreement": agreement, "distance": distance, "nearest": 0, "nearest_class": 0, "reason": "",
         "seconds": math.nan if method == "validation" else 2.0, "megabytes": math.nan}
        for method, images in made.items()
        for number, (probability, agreement, distance) in enumerate(images)
    ]  # fmt: skip
    put(run, "explainers/images.parquet", [*rows, *({"method": one, "reason": why} for one, why in refused.items())])


def put_retrained(run: Run, accuracies: dict[str, dict[float, float]]) -> None:
    """Write the accuracy of networks trained without pixels, by method and share removed; NaN where it refuses."""
    rows = [
        {"method": method, "metric": "roar", "case": f"{share:g}", "value": value,
         "reason": "refused" if value != value else ""}
        for method, values in accuracies.items()
        for share, value in values.items()
    ]  # fmt: skip
    put(run, "explainers/retraining.parquet", rows)


def fill(table: str, runs: list[Run], published: Path) -> pd.DataFrame:
    return TABLES[table].function(runs, read_published(published, table))


def pick(frame: pd.DataFrame, **keys) -> dict:
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0].to_dict()
