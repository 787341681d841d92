"""nnscan.layout: where files lie, and which of them a study asks for."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnscan import contents
from nnscan.configuration import parse_study
from nnscan.layout import (
    CUTTABLE,
    EXPERIMENTS,
    FIGURES,
    TABLES,
    Layout,
    RunKey,
    either,
)
from nnscan.models import build_model
from nnscan.training import Protocol, kept_epochs

DATASETS = [{"name": "one", "source": "digits"}, {"name": "two", "source": "mnist"}]
MODELS = [
    {"name": "small", "source": "simple_cnn"},
    {"name": "kept", "source": "vgg11", "training": {"overfitting_epochs": 0}},
    {"name": "mine", "source": "lenet5", "weights": "mine.pt"},
]


def layout(**values):
    return Layout(parse_study({"study": "s", "datasets": DATASETS, "models": MODELS, "seeds": [3, 1], **values}))


def test_paths_are_patterns_below_the_study():
    found = layout()
    assert found.root == "results/s"
    assert found.dataset("data.h5") == "results/s/{dataset}/data.h5"
    assert found.run("scan/x.h5") == "results/s/{dataset}/{model}/seed{seed}/scan/x.h5"
    assert found.log("rule", "dataset", "seed") == "results/s/logs/rule/{dataset}_{seed}.log"
    assert found.log("rule") == "results/s/logs/rule/all.log"
    assert found.benchmark("rule", "model") == "results/s/benchmarks/rule/{model}.tsv"
    wildcards = SimpleNamespace(dataset="two", model="mine")
    assert found.over_seeds("x.csv")(wildcards) == [f"results/s/two/mine/seed{seed}/x.csv" for seed in (3, 1)]
    assert found.first_seed("x.csv")(wildcards) == "results/s/two/mine/seed3/x.csv"


def test_a_study_has_a_run_for_every_combination():
    runs = layout().runs()
    assert len(runs) == len(set(runs)) == 2 * 3 * 2
    assert runs[:2] == [RunKey("one", "small", 3), RunKey("one", "small", 1)]


def test_a_model_may_have_seeds_and_data_sets_of_its_own():
    few = [{**MODELS[0], "seeds": [1]}, {**MODELS[1], "datasets": ["two"]}]
    found = layout(models=few)
    assert found.runs() == [
        RunKey("one", "small", 1), RunKey("two", "small", 1), RunKey("two", "kept", 3), RunKey("two", "kept", 1)
    ]  # fmt: skip
    assert found.networks() == [("one", "small"), ("two", "small"), ("two", "kept")]
    assert found.seeds("kept") == [3, 1]
    wildcards = SimpleNamespace(dataset="two", model="small")
    assert found.over_seeds("x.csv")(wildcards) == ["results/s/two/small/seed1/x.csv"]
    assert not any("one/kept" in path for path in found.figures())


def test_models_that_are_trained_adopted_and_overfitted():
    found = layout()
    assert found.trained() == ["small", "kept"]
    assert found.adopted() == ["mine"]
    assert found.overfitted() == ["small"]
    assert found.never_overfitted() == ["kept", "mine"]
    assert found.checkpoints("small") == ["well_trained", "overfitted"]
    assert found.checkpoints("kept") == found.checkpoints("mine") == ["well_trained"]


COMMON = {
    "training/history.csv", "training/results.csv", "averages/averages.h5",
    *(f"metrics/well_trained/{name}.parquet" for name in ("quantity", "diversity", "properties", "similarity")),
    *(f"metrics/well_trained/{name}.parquet"
      for name in ("quantity_layers", "knowledge", "agreement", "distances", "winners")),
    *(f"metrics/well_trained/{name}.parquet" for name in ("anomaly", "outliers")),
    *(f"metrics/well_trained/{name}.parquet" for name in ("classes", "measures", "localisation")),
    *(f"experiments/{name}.parquet"
      for name in ("ablation_masking", "diversity_masking", "aipc", "anomaly_masking", "anomaly_single", "gradients",
                   "pruning")),
}  # fmt: skip
OVERFITTED = {
    "training/overfitted_history.csv", "training/overfitted_results.csv",
    "metrics/overfitted/anomaly.parquet", "metrics/overfitted/outliers.parquet", "metrics/anomaly_history.parquet",
}  # fmt: skip
TRAINED = {"experiments/filter_types.parquet"}


@pytest.mark.parametrize(
    ("model", "beside"),
    [
        ("small", OVERFITTED | TRAINED | {"experiments/layers.parquet", "experiments/layers_histories.parquet"}),
        ("kept", TRAINED | {"experiments/layers.parquet", "experiments/layers_histories.parquet"}),
        ("mine", set()),
    ],
)
def test_the_files_of_a_run(model, beside):
    files = layout().run_files(RunKey("two", model, 1))
    folder = f"results/s/two/{model}/seed1/"
    assert len(files) == len(set(files))
    assert {path.removeprefix(folder) for path in files} == COMMON | beside


def test_a_fully_connected_network_is_shown_beside_the_others():
    models = [*MODELS, {"name": "flat", "source": "fcn", "datasets": ["two"], "seeds": [1]}]
    found = layout(models=models)
    assert found.companion("two", "small") == found.companion("two", "mine") == "flat"
    assert found.companion("one", "small") is None  # it does not run there
    assert found.companion("two", "flat") is None
    paths = found.of_companion("x.h5")
    assert paths(SimpleNamespace(dataset="two", model="small")) == ["results/s/two/flat/seed1/x.h5"]
    assert paths(SimpleNamespace(dataset="one", model="small")) == []
    assert paths(SimpleNamespace(dataset="two", model="flat")) == []


def test_experiments_are_all_asked_for():
    assert {f"experiments/{name}.parquet" for name in EXPERIMENTS} <= COMMON


@pytest.mark.parametrize("count", [0, 1, 4])
def test_checkpoints_on_the_way_are_those_that_training_keeps(count):
    found = layout(anomaly={"history_checkpoints": count}).on_the_way()
    assert [*found, "overfitted"] == list(kept_epochs(Protocol(), "overfitting", count))


@pytest.mark.parametrize(
    ("shards", "samples", "expected"), [(1, 40, [0]), (3, 40, [0, 1, 2]), (5, 2, [0, 1]), (4, 4, [0, 1, 2, 3])]
)
def test_no_shard_is_empty(shards, samples, expected):
    assert layout(scan={"shards": shards, "samples": samples}).shards() == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"models": [{"name": "small", "source": "lenet5"}]}, False),
        ({"models": [{"name": "small", "source": "simple_cnn", "weights": "w.pt"}]}, False),
        ({"models": [{"name": "small", "source": "simple_cnn", "options": {"convolutions": 2}}]}, False),
        ({"models": [{"name": "small", "source": "torchvision:vgg11"}]}, False),
        ({"experiments": {"layer_removal": False}}, False),
        ({"scan": {"layers": "all"}}, True),
        ({"scan": {"layers": ["features.3"]}}, False),
    ],
)
def test_models_that_can_be_cut(change, expected):
    assert layout(**change).cuttable("small") is expected


@pytest.mark.parametrize(("name", "convolutions"), CUTTABLE.items())
def test_models_that_can_be_cut_have_as_many_convolutions(name, convolutions):
    def count(**options):
        torch.manual_seed(0)
        model = build_model(name, {"in_channels": 1, **options})
        return sum(isinstance(module, nn.Conv2d) for module in model.modules())

    assert count() == convolutions
    assert count(convolutions=1) == 1
    assert count(convolutions=convolutions) == convolutions


def test_parameters_of_a_model_change_with_the_users_files(tmp_path):
    code, weights = tmp_path / "net.py", tmp_path / "net.pt"
    code.write_text("1")
    entry = {"name": "mine", "source": f"{code}:build", "options": {"depth": 3}, "weights": str(weights)}
    found = layout(models=[entry])
    first = found.model_parameters("mine")
    assert (first["name"], first["source"], first["options"]) == ("mine", f"{code}:build", {"depth": 3})
    weights.write_bytes(b"1")
    second = found.model_parameters("mine")
    code.write_text("2")
    third = found.model_parameters("mine")
    weights.write_bytes(b"2")
    digests = [entry["digest"] for entry in (first, second, third, found.model_parameters("mine"))]
    assert len(set(digests)) == 4
    assert layout().model_parameters("small")["digest"] == ""


def test_figures_and_tables_of_a_study():
    found = layout()
    assert len(found.figures()) == len(set(found.figures())) == 2 * 3 * len(FIGURES)
    assert "results/s/figures/two/mine/quantity.png" in found.figures()
    assert sum(len(found.figures_of(rule)) for rule in {figure.rule for figure in FIGURES.values()}) == len(FIGURES)
    shown = found.captioned_figures(found.networks())
    assert [path for _, _, path in shown] == found.figures()
    assert all(title.endswith(f": {model} on {dataset}") for (title, _, _), (dataset, model) in zip(
        shown, [(d["name"], m["name"]) for d in DATASETS for m in MODELS for _ in FIGURES], strict=True))  # fmt: skip
    assert "results/s/tables/thesis_5-1.tex" in found.tables()
    assert len(found.tables()) == 4 * len(TABLES)


def test_every_table_can_be_rendered(repository):
    assert set(TABLES) == set(contents.TABLES)
    assert {path.stem for path in (repository / "workflow" / "published").glob("*_*.csv")} == set(TABLES)


def test_every_figure_has_a_caption_for_the_report(repository):
    assert set(FIGURES) <= {path.stem for path in (repository / "workflow" / "report").glob("*.rst")}


def test_a_wildcard_of_names():
    pattern = re.compile(either(["a.b", "c+"]))
    assert [bool(pattern.fullmatch(name)) for name in ("a.b", "c+", "axb", "cc", "")] == [True, True] + [False] * 3
    assert not any(re.compile(either([])).match(name) for name in ("", "a", "none"))


def test_parsing_a_workflow_does_not_pay_for_torch():
    code = "import sys, nnscan.layout, nnscan.configuration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_network_has_an_interactive_page():
    found = layout()
    pages = found.pages()
    assert len(pages) == len(found.networks())
    assert set(pages) <= set(found.figures())
    assert pages["results/s/figures/two/mine/similarity.png"] == "results/s/figures/two/mine/similarity.html"
