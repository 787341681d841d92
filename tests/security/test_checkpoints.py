"""Checkpoints of a stranger. That pickled code does not run is shown in tests/unit/test_models.py."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from hostile import refused
from nnscan.data import load_dataset
from nnscan.errors import DataError, ModelError
from nnscan.models import build_model, load_model
from nnscan.training import load_state


def load(path: Path) -> object:
    return load_model("lenet5", path, {"in_channels": 1})


def weights() -> dict[str, torch.Tensor]:
    return dict(build_model("lenet5", {"in_channels": 1}).state_dict())


def changed(value: object) -> dict[object, object]:
    return {**weights(), "head.1.bias": value}


STATES = {
    "keys that are numbers": ({1: torch.zeros(1)}, "is not a state dict of tensors"),
    "sparse": (changed(torch.zeros(120).to_sparse()), "is not a state dict of tensors"),
    "complex": (changed(torch.zeros(120, dtype=torch.complex64)), "is not a state dict of tensors"),
    "quantized": (
        changed(torch.quantize_per_tensor(torch.zeros(120), 1.0, 0, torch.qint8)), "is not a state dict of tensors",
    ),
    "without values": (changed(torch.empty(120, device="meta")), "is not a state dict of tensors"),
    "a number of the model's type no more": (changed(torch.full((120,), 1e300, dtype=torch.float64)), "not finite"),
    "eight bits": (changed(torch.full((120,), float("nan")).to(torch.float8_e5m2)), "not finite"),
    "one value a thousand million times": (changed(torch.zeros(1).expand(10**9)), "shapes differ"),
    "a name of a million letters": ({**weights(), "x" * 10**6: torch.zeros(1)}, "1 unknown keys (xxx"),
    "a name that moves the cursor": ({**weights(), "\x1b[2J": torch.zeros(1)}, r"1 unknown keys (\x1b[2J)"),
    "ten thousand state dicts": ({"x" * 999 + str(n): {} for n in range(10_000)}, "name one of its keys"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Validating sparse", "ignore:torch.quantize_per_tensor", "ignore:.*[Qq]uantiz")
@pytest.mark.parametrize("state", STATES)
def test_tensors_that_are_no_weights_are_refused(tmp_path, state):
    content, message = STATES[state]
    torch.save(content, tmp_path / "x.pt")
    assert message in refused(lambda: load(tmp_path / "x.pt"), ModelError, megabytes=200)


def repacked(source: Path, target: Path, method: int, times: int = 0) -> None:
    """Write the parts of a checkpoint anew, the values of its first tensor `times` megabytes long."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method, compresslevel=1) as new:
        for part in old.infolist():
            with new.open(part.filename, "w") as stream:
                for _ in range(times if part.filename.endswith("data/0") else 0):
                    stream.write(bytes(2**20))
                stream.write(old.read(part))


def test_a_packed_checkpoint_is_refused(tmp_path):
    """torch.save packs nothing; torch.load would unpack half a gigabyte from two megabytes."""
    torch.save(weights(), tmp_path / "honest.pt")
    repacked(tmp_path / "honest.pt", tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED, 512)
    assert (tmp_path / "bomb.pt").stat().st_size < 5_000_000
    assert "its parts are packed or overlap" in refused(lambda: load(tmp_path / "bomb.pt"), ModelError, megabytes=100)
    repacked(tmp_path / "honest.pt", tmp_path / "stored.pt", zipfile.ZIP_STORED)
    assert load(tmp_path / "stored.pt") is not None


def test_parts_that_overlap_are_refused(tmp_path):
    """A thousand parts of one megabyte that lie in the same place."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr("archive/data/0", bytes(2**20))
        first = archive.infolist()[0]
        for number in range(1, 1000):
            part = zipfile.ZipInfo(f"archive/data/{number}")
            part.file_size = part.compress_size = 2**20
            part.CRC, part.header_offset = first.CRC, first.header_offset
            archive.filelist.append(part)
            archive.NameToInfo[part.filename] = part
    assert "its parts are packed or overlap" in refused(lambda: load(tmp_path / "bomb.pt"), ModelError)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", [[1, 2], {"key": "k", "trap": None}, {"key": "other"}])
def test_a_training_state_of_a_stranger_runs_no_code(tmp_path, content):
    """What an interrupted training left lies in the results, where a stranger's may lie."""
    trap = tmp_path / "executed"
    if isinstance(content, dict) and "trap" in content:
        content = {**content, "trap": Trap(trap)}
    torch.save(content, tmp_path / "state.pt")
    assert load_state(tmp_path / "state.pt", "k") is None
    assert not trap.exists()


def test_cifar_is_unpickled_only_with_the_published_checksums(tmp_path):
    """torchvision reads CIFAR by pickle, after it has compared the files with their checksums."""
    trap = tmp_path / "executed"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(Trap(trap)))
    shutil.copy(folder / "test_batch", folder / "batches.meta")
    assert "not found or damaged" in refused(lambda: load_dataset("cifar10", root=tmp_path), DataError)
    assert not trap.exists()
    pickle.loads((folder / "test_batch").read_bytes())
    assert trap.exists()  # the trap would have worked
