"""Small result files whose numbers are known by hand, and how tests read what is made of them."""

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
    rows = [{"layer": "a", "depth": 0, "filter": k, "is_anomaly": k < count} for k in range(10)]
    put(run, f"metrics/{checkpoint}/anomaly.parquet", rows)


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


def fill(table: str, runs: list[Run], published: Path) -> pd.DataFrame:
    return TABLES[table].function(runs, read_published(published, table))


def pick(frame: pd.DataFrame, **keys) -> dict:
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0].to_dict()
