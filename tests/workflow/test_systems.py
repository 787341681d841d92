"""A study of the three systems beside the theses, end to end, with its concepts from a folder in Broden's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import labelled_sets
import studies
from nnscan.layout import FIGURES, TABLES

STUDY = {
    "study": "systems",
    "stages": ["dissection", "dimension", "prototypes"],
    "datasets": [{"name": "digits", "source": "digits", "train_limit": 200, "validation_limit": 60, "test_limit": 60}],
    "models": [
        {"name": "lenet5", "source": "lenet5"},
        {"name": "fcn", "source": "fcn", "stages": ["dimension"], "training": {"overfitting_epochs": 0}},
    ],
    "seeds": [0],
    "training": {"epochs": 3, "overfitting_epochs": 2},
    "dissection": {"concepts": "broden", "share": 0.1, "least_images": 1, "rotations": 1},
    "dimension": {"samples": 100},
    "prototypes": {"epochs": 2, "warm_epochs": 1, "last_passes": 2, "per_class": 2, "channels": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("systems")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for _ in range(6):
        mask = np.zeros((32, 32), int)
        mask[:, 16:] = 1
        mask[:8] = 2
        image = np.where(mask == 2, 230, np.where(mask == 1, 120, 20))[..., None] + rng.integers(0, 20, (32, 32, 3))
        images.append(image.astype(np.uint8))
        annotations.append({"object": [mask]})
    labels = {1: ("right", {"object": 0.4}), 2: ("top", {"object": 0.25})}
    labelled_sets.make(folder / "broden", images, labels, annotations, ["object"])
    study = {**STUDY, "dissection": {**STUDY["dissection"], "root": str(folder / "broden")}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return folder


def test_a_study_of_the_systems_ends_with_its_tables_figures_and_claims(repository: Path, folder: Path) -> None:
    config, root = folder / "study.yaml", folder / "results/systems"
    printed = studies.complete(studies.run(repository, config, cores=2))
    assert "study 'systems' is complete" in printed
    asked = {name for name, stage in TABLES.items() if stage in ("dissection", "dimension", "prototypes")}
    assert {path.stem for path in (root / "tables").glob("*.csv")} == asked
    figures = {name for name, figure in FIGURES.items() if figure.stage in ("dissection", "dimension", "prototypes")}
    assert {path.stem for path in (root / "figures/digits/lenet5").iterdir()} == figures
    assert {path.stem for path in (root / "figures/digits/fcn").iterdir()} == {
        name for name in figures if FIGURES[name].stage == "dimension"
    }
    claims = pd.read_csv(root / "claims.csv")
    assert {claim.split("-")[0] for claim in claims["id"]} == {"dissection", "dimension", "prototypes"}
    results = pd.read_csv(root / "digits/lenet5/seed0/training/shuffled_results.csv")
    assert set(results["checkpoint"]) == {"shuffled"}
    assert not (root / "digits/fcn/seed0/training/prototypes.csv").exists()
    assert not (root / "digits/lenet5/seed0/scan").exists()  # nothing of the theses
    assert not studies.planned(studies.complete(studies.run(repository, config, "--dry-run")))


def test_other_labels_are_dissected_anew_and_nothing_else(repository: Path, folder: Path) -> None:
    config, labels = folder / "study.yaml", folder / "broden/label.csv"
    labels.write_text(labels.read_text().replace("right", "east").replace("top", "north"))
    for path in (folder / "broden/c_object.csv",):
        path.write_text(path.read_text().replace("right", "east").replace("top", "north"))
    found = studies.planned(studies.complete(studies.run(repository, config, "--dry-run")))
    assert found == {"dissect_network", "rotate_units", "draw_units", "render_tables", "write_report"}
