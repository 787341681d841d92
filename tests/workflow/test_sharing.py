"""What reruns when data, configuration or seeds change, what studies share, and where an artefact comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import studies

CHECKPOINT = "results/{study}/tiny/lenet5/seed{seed}/training/well_trained.safetensors"


def snakemake(repository: Path, study: Path, target: str, *arguments: str, **environment: str) -> str:
    """Run Snakemake for one file of a study, in the folder where that lies; return what it printed."""
    ended = studies.run(repository, study, target, *arguments, env={**os.environ, **environment})
    return studies.complete(ended)


def write_study(folder: Path, name: str, data: Path, **changes: object) -> Path:
    study = {
        "study": name,
        "datasets": [{"name": "tiny", "source": "image_folder", "root": str(data), "channels": 1}],
        "models": [{"name": "lenet5", "source": "lenet5"}],
        "seeds": [0],
        "training": {"epochs": 3, "overfitting_epochs": 5},
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder in which a model has been trained on a tiny image folder, with a store beside, and the image folder."""
    folder = tmp_path_factory.mktemp("shared")
    data = folder / "images"
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in ("cat", "dog"):
            (data / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(data / part / label / f"{number}.png")
    study = write_study(folder, "first", data)
    target = CHECKPOINT.format(study="first", seed=0)
    snakemake(repository, study, target, NNSCAN_STORE=str(folder / "store"))
    return folder, data


def test_a_second_study_takes_data_and_checkpoint_from_the_store(repository: Path, trained: tuple[Path, Path]) -> None:
    folder, data = trained
    elsewhere = folder / "moved"
    subprocess.run(["cp", "-a", str(data), str(elsewhere)], check=True)
    study = write_study(folder, "second", elsewhere, scan={"samples": 3})
    target = CHECKPOINT.format(study="second", seed=0)
    snakemake(repository, study, target, NNSCAN_STORE=str(folder / "store"))
    for rule, name in (("prepare_data", "tiny"), ("train_model", "tiny+lenet5+0")):
        assert "taken from the store" in (folder / f"results/second/logs/{rule}/{name}.log").read_text(encoding="utf-8")
    first = folder / CHECKPOINT.format(study="first", seed=0)
    for path in first.parent.iterdir():
        assert (folder / target).with_name(path.name).read_bytes() == path.read_bytes()
    assert not studies.planned(snakemake(repository, study, target, "--dry-run"))


def test_another_protocol_is_not_taken_from_the_store(repository: Path, trained: tuple[Path, Path]) -> None:
    folder, data = trained
    study = write_study(folder, "third", data, training={"epochs": 4, "overfitting_epochs": 5})
    target = CHECKPOINT.format(study="third", seed=0)
    snakemake(repository, study, target, NNSCAN_STORE=str(folder / "store"))
    log = (folder / "results/third/logs/train_model/tiny+lenet5+0.log").read_text(encoding="utf-8")
    assert "taken from the store" not in log


@pytest.mark.parametrize(
    ("change", "seed", "rules"),
    [
        # of all this the regular training of this seed knows nothing
        (
            {"quantity": {"form": "ssim"}, "training": {"epochs": 3, "overfitting_epochs": 7}, "seeds": [0, 1]},
            0,
            set(),
        ),
        ({"training": {"epochs": 4, "overfitting_epochs": 5}}, 0, {"train_model"}),
        ({"seeds": [0, 1]}, 1, {"train_model"}),
    ],
)
def test_a_change_of_the_configuration_reruns_what_depends_on_it(
    repository: Path, trained: tuple[Path, Path], change: dict, seed: int, rules: set[str]
) -> None:
    folder, data = trained
    study = write_study(folder, "first", data, **change)
    target = CHECKPOINT.format(study="first", seed=seed)
    assert studies.planned(snakemake(repository, study, target, "--dry-run")) == rules


def test_a_change_of_the_data_reruns_what_depends_on_them(repository: Path, trained: tuple[Path, Path]) -> None:
    folder, data = trained
    study = write_study(folder, "first", data)
    added = data / "train/cat/added.png"
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(added)
    try:
        output = snakemake(repository, study, CHECKPOINT.format(study="first", seed=0), "--dry-run")
    finally:
        added.unlink()
    assert studies.planned(output) == {"prepare_data", "train_model"}


def test_a_new_version_of_a_package_reruns_what_uses_it(
    repository: Path, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, data = trained
    study = write_study(folder, "first", data)
    metadata = tmp_path / "torch-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n", encoding="utf-8")
    target = CHECKPOINT.format(study="first", seed=0)
    output = snakemake(repository, study, target, "--dry-run", PYTHONPATH=str(tmp_path))
    assert studies.planned(output) == {"train_model"}


def test_the_checkpoint_is_traced_to_its_data(trained: tuple[Path, Path]) -> None:
    folder, _ = trained
    path = folder / CHECKPOINT.format(study="first", seed=0)
    command = [str(Path(sys.executable).with_name("nnscan")), "provenance", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in (
        "rule        train_model",
        "tiny/data.h5",
        "seed        0",
        "torch",
        "device      cpu",
        "by prepare_data",
    ):
        assert part in text, part
