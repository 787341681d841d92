"""nnscan.layout: where files lie, and which of them a study asks for."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnscan import contents, survey, systems
from nnscan.configuration import Stage, parse_study
from nnscan.layout import (
    CUTTABLE,
    DISSECTED,
    EXPERIMENTS,
    FIGURES,
    MEASURED,
    PROTOTYPED,
    QUESTIONS,
    TABLES,
    Layout,
    RunKey,
    either,
)
from nnscan.models import ZOO, SequentialCNN, build_model
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
    assert found.log("rule", "dataset", "seed") == "results/s/logs/rule/{dataset}+{seed}.log"
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


STAGES: tuple[Stage, ...] = ("theses", "dissection", "dimension", "prototypes", "explainers", "retraining")
SYSTEMS = list(STAGES[1:])


def test_figures_and_tables_of_a_study():
    found = layout(stages=list(STAGES))
    assert len(found.figures()) == len(set(found.figures())) == 2 * 3 * len(FIGURES)
    assert "results/s/figures/two/mine/quantity.png" in found.figures()
    assert sum(len(found.figures_of(rule)) for rule in {figure.rule for figure in FIGURES.values()}) == len(FIGURES)
    shown = found.captioned_figures(found.networks())
    assert [path for _, _, path in shown] == found.figures()
    assert all(title.endswith(f": {model} on {dataset}") for (title, _, _), (dataset, model) in zip(
        shown, [(d["name"], m["name"]) for d in DATASETS for m in MODELS for _ in FIGURES], strict=True))  # fmt: skip
    assert "results/s/tables/thesis_5-1.tex" in found.tables()
    assert len(found.tables()) == 4 * len(TABLES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_asks_for_its_own_tables_and_figures(stage):
    found = layout(stages=[stage])
    assert found.table_names() == [name for name, own in TABLES.items() if own == stage]
    figures = [name for name, figure in FIGURES.items() if figure.stage == stage]
    assert found.shown() == dict.fromkeys([*found.table_names(), *figures], stage)
    assert found.figure_names("small") == figures
    assert len(found.tables()) == 4 * len(found.table_names()) > 0
    assert len(found.figures()) == 2 * 3 * len(figures) > 0
    assert [path for _, _, path in found.captioned_figures(found.networks())] == found.figures()
    assert bool(found.pages()) == (stage in ("theses", "explainers"))


def test_stages_together_ask_for_what_each_asks_for():
    assert {*layout(stages=SYSTEMS).tables(), *layout().tables()} == set(layout(stages=list(STAGES)).tables())
    for key in layout().runs():
        parts = [set(layout(stages=[stage]).run_names(key)) for stage in STAGES]
        names = layout(stages=list(STAGES)).run_names(key)
        assert len(names) == len(set(names))
        assert set(names) == set.union(*parts)


def dissected(*checkpoints):
    names = ("units", "exemplars", "detectors")
    found = {f"metrics/{checkpoint}/{name}.parquet" for checkpoint in checkpoints for name in names}
    return {*found, "experiments/rotations.parquet"}


def measured(*checkpoints):
    return {f"metrics/{where}/{name}.parquet" for where in checkpoints for name in ("dimension", "dimension_blocks")}


RESULTS = {"training/history.csv", "training/results.csv"}
SHUFFLED = {"training/shuffled_history.csv", "training/shuffled_results.csv"}
LIKENESS = {f"training/prototypes{name}.csv" for name in ("", "_distinct", "_history", "_results")}
EXPLAINED = {
    *(f"explainers/{name}" for name in ("atlas.h5", "images.h5", "images.parquet")),
    *(f"explainers/{question}.parquet" for question in QUESTIONS),
}


@pytest.mark.parametrize(
    ("model", "stage", "expected"),
    [
        ("small", "dissection", dissected("untrained", "third1", "third2", "well_trained")),
        ("kept", "dissection", dissected("untrained", "third1", "third2", "well_trained")),
        ("mine", "dissection", dissected("well_trained")),
        ("small", "dimension", measured("untrained", "well_trained", "shuffled") | SHUFFLED),
        ("kept", "dimension", measured("untrained", "well_trained")),  # labels are shuffled as long as it overfits
        ("mine", "dimension", measured("well_trained")),
        *((model, "prototypes", LIKENESS) for model in ("small", "kept", "mine")),
        ("small", "explainers", EXPLAINED | SHUFFLED),
        *((model, "explainers", EXPLAINED) for model in ("kept", "mine")),
        ("small", "retraining", {"explainers/retraining.parquet"}),
    ],
)
def test_the_files_of_a_run_of_the_systems(model, stage, expected):
    names = layout(stages=[stage]).run_names(RunKey("two", model, 1))
    assert len(names) == len(set(names))
    assert set(names) == RESULTS | expected


def test_tables_of_the_systems_read_files_that_a_run_has():
    found = layout(stages=SYSTEMS)
    names = found.run_names(RunKey("two", "small", 1))
    assert {path for table in systems.TABLES.values() for path in table.inputs} <= set(names)
    assert systems.HISTORY in names
    assert systems.TRAINING == DISSECTED
    assert {*DISSECTED, *MEASURED} <= {"untrained", "well_trained", "shuffled", *kept_epochs(Protocol(), "regular")}


def test_explanations_are_given_what_their_methods_need():
    models = [
        {**MODELS[0], "methods": ["grad_cam", "dgn_am"]},
        {**MODELS[2], "methods": ["generative_infilling"]},
        MODELS[1],
    ]
    found = layout(models=models, stages=["explainers"])

    def given(model, question="sanity"):
        own = SimpleNamespace(dataset="two", model=model, seed="1", question=question)
        parts = (found.infillers, found.generators, found.shuffled_of, found.judges)
        return [[path.removeprefix("results/s/two/") for path in part(own)] for part in parts]

    run = "small/seed1/training"
    assert given("small") == [[], [f"{run}/generator.safetensors"], [f"{run}/shuffled.safetensors"],
                              ["small/seed3/training/well_trained.safetensors"]]  # fmt: skip
    assert given("small", "cost")[2] == []
    infiller = ["infiller/infiller.safetensors"]
    others = [f"mine/seed{seed}/training/well_trained.safetensors" for seed in found.seeds("mine") if seed != 1]
    assert given("mine") == [infiller, [], [], others]  # it comes with its weights: nothing is trained on it
    all_of_them = given("kept")
    assert all_of_them[:3] == [infiller, ["kept/seed1/training/generator.safetensors"], []]  # it never overfits
    alone = layout(models=[{**MODELS[0], "seeds": [1]}], stages=["explainers"])
    assert alone.judges(SimpleNamespace(dataset="two", model="small", seed="1")) == []


def test_a_model_may_have_stages_of_its_own():
    models = [{**MODELS[0], "stages": ["dimension"]}, MODELS[1]]
    found = layout(models=models, stages=["dimension", "dissection"])
    assert found.stages("small") == ["dimension"]
    assert found.stages("kept") == ["dimension", "dissection"]
    assert set(found.run_names(RunKey("two", "small", 1))) == RESULTS | SHUFFLED | measured(*MEASURED)
    assert found.runs_on("two", "dissection") == [RunKey("two", "kept", 3), RunKey("two", "kept", 1)]
    assert [key.model for key in found.runs_on("one", "dimension")] == ["small", "small", "kept", "kept"]
    drawn = {name for name, figure in FIGURES.items() if figure.stage == "dissection"}
    assert set(found.shown()) - set(found.table_names()) == {*found.figure_names("small"), *drawn}
    assert not drawn & set(found.figure_names("small"))


def test_tables_of_explanations_read_files_that_a_run_has():
    found = layout(stages=["explainers", "retraining"])
    names = found.run_names(RunKey("two", "small", 1))
    assert {path for table in survey.TABLES.values() for path in table.inputs} <= set(names)
    assert survey.RETRAINING not in layout(stages=["explainers"]).run_names(RunKey("two", "small", 1))


def test_explanations_are_ranked_on_one_page_that_links_to_their_figures():
    models = [{**MODELS[0], "stages": ["retraining"]}, MODELS[1]]
    found = layout(models=models, stages=["explainers", "retraining"])
    assert set(found.pages().values()) == {"results/s/explainers.html"}
    assert set(found.pages()) == {f"results/s/figures/{data}/kept/explainer_ranks.png" for data in ("one", "two")}
    links = {(dataset, model): [link for _, link in own] for dataset, model, own in found.ranking_links()}
    assert links["two", "small"] == ["figures/two/small/retraining_curves.png"]
    assert "figures/two/kept/contact_sheet.png" in links["two", "kept"]
    figures = {f"{found.root}/{link}" for own in links.values() for link in own}
    assert figures == set(found.figures())
    assert layout().ranking_links() == []


def test_networks_without_a_convolutional_part_have_no_prototypes():
    models = [
        *MODELS[:1],
        {"name": "flat", "source": "fcn"},
        {"name": "theirs", "source": "torchvision:resnet18"},
        {"name": "own", "source": "net.py:build"},
    ]
    found = layout(models=models, stages=["prototypes", "dimension"])
    assert [model["name"] for model in models if "prototypes" in found.stages(model["name"])] == ["small"]
    for model in ("flat", "theirs", "own"):
        assert not LIKENESS & set(found.run_names(RunKey("two", model, 1)))
        assert not any(FIGURES[name].stage == "prototypes" for name in found.figure_names(model))
    assert layout(models=models, stages=["prototypes"]).figure_names("flat") == []


@pytest.mark.parametrize("name", sorted(ZOO))
def test_networks_of_the_zoo_that_can_have_prototypes(name):
    assert (name in PROTOTYPED) == isinstance(build_model(name), SequentialCNN)


def test_concepts_of_camvid_are_made_and_a_folder_of_broden_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("NNSCAN_DATA", str(tmp_path / "data"))
    assert layout().concepts == "results/s/concepts"
    assert layout(dissection={"concepts": "broden"}).concepts == str(tmp_path / "data")
    assert layout(dissection={"concepts": "broden", "root": str(tmp_path)}).concepts == str(tmp_path)


@pytest.mark.parametrize(("concepts", "file"), [("camvid", "camvid/classes.txt"), ("broden", "images/a.png")])
def test_a_change_of_the_labelled_images_is_noticed(tmp_path, concepts, file):
    found = layout(dissection={"concepts": concepts, "root": str(tmp_path)})
    states = [found.concepts_state()]
    path = tmp_path / file
    path.parent.mkdir()
    for text in ("x", "longer"):
        path.write_text(text)
        states.append(found.concepts_state())
    assert len(set(states)) == 3


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
