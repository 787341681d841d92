"""kill -9 in training, in a scan and while writing: what was done is kept, nothing half-written is seen."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import children
from children import WRITERS, start, wait_for
from nnscan.moments import open_moments

EPOCHS = 15
CHECKPOINTS = ("third1", "third2", "third3", "well_trained")


def contents(folder: Path) -> dict[str, object]:
    """Return the weights of all checkpoints, and the bytes of history and results."""
    weights = {name: load_file(folder / f"{name}.safetensors") for name in CHECKPOINTS}
    return {
        **{f"{name} {key}": value for name, state in weights.items() for key, value in state.items()},
        **{name: (folder / name).read_bytes() for name in ("history.csv", "results.csv")},
    }


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    assert start(tmp_path / "whole.txt", children.training, tmp_path / "whole", EPOCHS).wait() == 0
    folder = tmp_path / "killed"
    state = folder / "training/state_regular.pt"
    for attempt in range(3):
        before = state.stat().st_mtime_ns if attempt else 0
        child = start(tmp_path / "killed.txt", children.training, folder, EPOCHS)
        wait_for(lambda before=before: state.exists() and state.stat().st_mtime_ns > before, child)
        child.kill()
        assert not list(folder.glob("training/*.safetensors"))
    assert start(tmp_path / "killed.txt", children.training, folder, EPOCHS).wait() == 0
    assert "training goes on after epoch" in (folder / "logs/train_model/one.log").read_text(encoding="utf-8")
    whole, killed = contents(tmp_path / "whole/training"), contents(folder / "training")
    assert whole.keys() == killed.keys()
    for name, value in whole.items():
        same = torch.equal(value, killed[name]) if isinstance(value, torch.Tensor) else value == killed[name]
        assert same, name
    assert {path.suffix for path in (folder / "training").iterdir()} == {".safetensors", ".csv"}


def test_a_scan_that_is_killed_leaves_no_artefact_and_no_litter_after_the_rerun(tmp_path: Path) -> None:
    for _ in range(2):
        child = start(tmp_path / "out.txt", children.scan, tmp_path, 1000)
        wait_for(lambda: [one for one in tmp_path.glob(".scan.h5.*") if one.stat().st_size > 100_000], child)
        child.kill()
        assert not (tmp_path / "scan.h5").exists()
        assert len(list(tmp_path.glob(".scan.h5.*"))) == 1  # those of earlier attempts are gone
    assert start(tmp_path / "out.txt", children.scan, tmp_path, 20).wait() == 0
    assert list(tmp_path.glob(".scan.h5.*")) == []
    with open_moments(tmp_path / "scan.h5") as scan:
        assert len(scan.read(scan.layers[0]).samples) == 20


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_that_is_killed_leaves_the_old_artefact_or_the_new_one(tmp_path: Path, name: str) -> None:
    """Whatever it had reached: in five kills at random, the file is always one that a whole write has left."""
    path, delays = tmp_path / name, random.Random(name)
    WRITERS[name](path)
    size = path.stat().st_size
    for _ in range(5):
        child = start(tmp_path / "out.txt", children.write_forever, path)
        wait_for(lambda: list(tmp_path.glob(f".{name}.*")), child, pause=0)
        time.sleep(delays.random() * 0.03)
        child.kill()
        assert path.stat().st_size == size
        assert len(list(tmp_path.glob(f".{name}.*"))) <= 1  # they do not pile up
    WRITERS[name](path)
    assert {one.name for one in tmp_path.iterdir()} == {name, "out.txt"}
