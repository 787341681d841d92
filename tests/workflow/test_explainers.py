"""Studies of the methods of explanation, end to end: all of them on one network, and networks that lack something."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import studies
from nnscan.artifacts import read_frame
from nnscan.atlas import read_atlas, read_images
from nnscan.cli import main
from nnscan.configuration import CONTROLS
from nnscan.explainers import METHODS
from nnscan.layout import FIGURES, QUESTIONS, TABLES
from nnscan.models import build_model, save_weights

DIGITS = {
    "name": "digits", "source": "digits", "size": 16, "train_limit": 150, "validation_limit": 40, "test_limit": 40,
    "foreground": {"kind": "threshold", "threshold": 0.2},
}  # fmt: skip
STUDY: dict[str, Any] = {
    "study": "explained",
    "stages": ["explainers", "retraining"],
    "datasets": [DIGITS],
    "models": [{"name": "simple_cnn", "source": "simple_cnn"}],
    "seeds": [0],
    "training": {"epochs": 3, "overfitting_epochs": 2},
    "scan": {"samples": 2},
    "explainers": {
        "samples": 3, "judged": 1, "infiller_steps": 5, "generator_steps": 5,
        "retrained": ["random"], "retrained_epochs": 3,
    },
}  # fmt: skip
ROOT = "results/explained"
RUN = f"{ROOT}/digits/simple_cnn/seed0"
SMALL = {
    "perturbations": {"RISE_MASKS": 40, "MEANINGFUL_STEPS, MEANINGFUL_RATE": "5, 0.1",
                      "EXTREMAL_STEPS, EXTREMAL_RATE, EXTREMAL_MOMENTUM": "4, 0.01, 0.9",
                      "INFILLING_STEPS, INFILLING_RATE, INFILLING_SAMPLES": "3, 0.1, 2"},
    "surrogates": {"SAMPLES": 80},
    "gradients": {"STEPS": 10, "SAMPLES": 5},
    "maximisation": {"STEPS, RATE": "10, 0.05", "CODE_STEPS, CODE_RATE, CODE_DECAY": "10, 0.1, 0.005"},
    "attacks": {"STEPS": 4},
    "stability": {"DRAWS": 2},
    "sanity": {"STAGES": 2},
}  # fmt: skip
"""Constants of slow methods in the copy of nnscan that runs here."""

SCANNED = {"nns", "fq", "tip"}
EXPLAINING = {name for name, method in METHODS.items() if method.explain is not None}
LACKING = {
    need
    for name in ("cam", "channel_attention", "channel_spatial_attention", "class_attention")
    for need in METHODS[name].needs
}
"""What the study's network does not have: methods that need none of it are to work, those of later versions too."""


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def _small(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jobs run with a copy of the package in which slow methods are fast."""
    package = tmp_path_factory.mktemp("package")
    shutil.copytree(repository / "src/nnscan", package / "nnscan", ignore=shutil.ignore_patterns("__pycache__"))
    for module, constants in SMALL.items():
        path = package / f"nnscan/{module}.py"
        text = path.read_text(encoding="utf-8")
        for name, value in constants.items():
            text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
            assert count == 1, f"{module} has no constant {name}"
        path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package))
        yield


@pytest.fixture(scope="module")
def folder(_small: None, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has been run; its first explaining job was killed."""
    folder = tmp_path_factory.mktemp("explained")
    config, atlas = write(folder, STUDY), f"{RUN}/explainers/atlas.h5"
    with studies.running(repository, config, cores=2) as study:
        job = studies.until(lambda: studies.job_of(folder, "explain_inputs"), study)
        log = folder / ROOT / "logs/explain_inputs/digits+simple_cnn+0.log"
        studies.until(lambda: log.is_file() and " INFO on " in log.read_text(), study)
        os.kill(job, signal.SIGKILL)
    assert study.returncode == 1
    assert not (folder / atlas).exists()
    printed = (folder / "printed.txt").read_text(encoding="utf-8")
    assert "- simple_cnn on digits, seed 0\n  - explain_inputs: ended without a message" in printed
    assert "study 'explained' is complete" in studies.complete(studies.run(repository, config, cores=2))
    return folder


def test_all_methods_have_maps_or_a_reason(folder: Path) -> None:
    atlas = read_atlas(folder / RUN / "explainers/atlas.h5")
    assert set(atlas.maps) | set(atlas.refusals) == EXPLAINING
    assert set(atlas.refusals) == {name for name in EXPLAINING if LACKING & set(METHODS[name].needs)}
    assert len(atlas.samples) == 2  # no more are scanned
    assert all(maps.shape == (2, 16, 16) for maps in atlas.maps.values())
    assert set(atlas.totals) == {name for name in atlas.maps if METHODS[name].total is not None}
    images, refusals = read_images(folder / RUN / "explainers/images.h5")
    assert set(images) == {name for name, method in METHODS.items() if method.synthesise is not None}
    assert refusals == {}


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_is_answered_for_all_methods(folder: Path, question: str) -> None:
    scores = read_frame(folder / RUN / f"explainers/{question}.parquet")
    methods = set(scores["method"]) - {""}
    assert methods == EXPLAINING
    answered = set(scores.dropna(subset="value")["method"]) - {""}
    refused = set(read_atlas(folder / RUN / "explainers/atlas.h5").refusals)
    refused |= SCANNED if question in ("sanity", "stability", "attack") else set()
    assert answered.isdisjoint(refused)
    silent = scores[scores["method"].isin(EXPLAINING - refused - answered)]
    assert set(silent["reason"]) <= {"a map is constant", "the map is zero"}  # of a network that has hardly learned
    assert len(answered) > 20
    assert (scores["value"].isna() == (scores["reason"] != "")).all()
    if question == "sanity":
        assert "labels_rank" in set(scores["metric"])


def test_the_study_ends_with_its_tables_and_figures(folder: Path) -> None:
    root = folder / ROOT
    assert {path.stem for path in (root / "tables").glob("*.csv")} == {
        name for name, stage in TABLES.items() if stage in STUDY["stages"]
    }
    figures = {name for name, figure in FIGURES.items() if figure.stage in STUDY["stages"]}
    assert {path.stem for path in (root / "figures/digits/simple_cnn").iterdir()} == figures
    assert (root / "report.html").is_file()
    retrained = read_frame(folder / RUN / "explainers/retraining.parquet")
    assert set(retrained["method"]) == {*CONTROLS}
    made = read_frame(folder / RUN / "explainers/images.parquet")
    assert made["agreement"].isna().all()  # one seed: no other network to ask


def test_other_samples_are_explained_anew_and_no_network_is_trained(repository: Path, folder: Path) -> None:
    config = folder / "study.yaml"
    write(folder, {**STUDY, "explainers": {**STUDY["explainers"], "judged": 2}})
    try:
        found = studies.planned(studies.complete(studies.run(repository, config, "--dry-run")))
    finally:
        write(folder, STUDY)
    assert found == {"evaluate_explainers", "draw_explainers", "render_tables", "draw_ranking", "write_report"}


def test_a_map_is_traced_to_data_network_and_helpers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provenance", str(folder / RUN / "explainers/sanity.parquet")]) == 0
    told = capsys.readouterr().out
    for text in (
        "rule        evaluate_explainers dataset=digits model=simple_cnn seed=0 question=sanity",
        "digits/simple_cnn/seed0/explainers/atlas.h5",
        "(digits/simple_cnn/seed0/training/well_trained.safetensors)",
        "(digits/simple_cnn/seed0/training/shuffled.safetensors)",
        "(digits/infiller/infiller.safetensors)",
        "by train_infiller",
        "by explain_inputs",
        "by scan_neurons",
        "(digits/data.h5)",
    ):
        assert text in told
    assert main(["provenance", str(folder / RUN / "explainers/images.parquet")]) == 0
    assert "by train_generator" in capsys.readouterr().out


def test_networks_without_convolutions_masks_or_training_of_their_own(repository: Path, tmp_path: Path) -> None:
    few = ["grad_cam", "nns", "fq", "random"]
    attention = {"attention": "se"}
    network = build_model("simple_cnn", {**attention, "in_channels": 1, "size": 16})
    save_weights(tmp_path / "own.safetensors", network, {})
    models = [
        {"name": "fcn", "source": "fcn", "methods": few},
        {"name": "own", "source": "simple_cnn", "options": attention, "weights": str(tmp_path / "own.safetensors"),
         "methods": ["channel_attention", "random"]},
    ]  # fmt: skip
    plain = {**DIGITS, "foreground": {"kind": "none"}}
    study = {**STUDY, "datasets": [plain], "models": models, "stages": ["explainers"]}
    config = write(tmp_path, {**study, "training": {"epochs": 3, "overfitting_epochs": 0}})

    def file(model: str, name: str) -> str:
        return f"{ROOT}/digits/{model}/seed0/explainers/{name}"

    asked = [file("fcn", "localisation.parquet"), file("own", "sanity.parquet")]
    studies.complete(studies.run(repository, config, *asked, cores=2))

    connected = read_atlas(tmp_path / file("fcn", "atlas.h5"))
    assert set(connected.maps) == {"nns", *CONTROLS}
    assert "need a convolution" in connected.refusals["grad_cam"]
    assert "foreground masks" in connected.refusals["fq"]
    assert read_frame(tmp_path / asked[0]).empty  # no masks, nothing to locate
    attentive = read_atlas(tmp_path / file("own", "atlas.h5"))
    assert set(attentive.maps) == {"channel_attention", *CONTROLS}
    known = read_frame(tmp_path / asked[1])
    assert set(known.dropna()["method"]) == {"channel_attention", *CONTROLS}
    assert not known["metric"].str.startswith("labels").any()  # nobody trained it on shuffled labels
    assert not list((tmp_path / ROOT).glob("digits/infiller"))  # no method needs it
    assert not list((tmp_path / ROOT).glob("digits/*/*/training/generator*"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"explainers": {"methods": ["rise", "grad-cam"]}}, "explainers.methods"),
        ({"models": [{**STUDY["models"][0], "methods": ["grad-cam"]}]}, "models (simple_cnn).methods"),
        ({"explainers": {"retrained": ["grad-cam"]}}, "explainers.retrained"),
    ],
)
def test_a_wrong_method_is_named_before_any_job(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], key: str
) -> None:
    config = write(tmp_path, {**STUDY, **changes})
    sentence = f"nnscan: {key}: there is no method 'grad-cam'; did you mean 'grad_cam'?"
    assert main(["check", str(config)]) == 2
    assert sentence in capsys.readouterr().err
    if key == "explainers.methods":
        status, printed = studies.run(repository, config)
        assert status == 1
        assert sentence in printed
        assert not (tmp_path / "results").exists()
