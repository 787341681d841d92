"""Truncated files and flipped bytes: noticed before anything is computed from them, with the file's name."""

from __future__ import annotations

import gzip
import io
import logging
import random
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from children import WRITERS, as_job
from nnscan.data import load_dataset, read_idx
from nnscan.errors import ArtifactError, DataError
from nnscan.records import check_inputs, write_record
from nnscan.report import Study, write_report
from nnscan.training import load_state

ARTEFACTS = [name for name in WRITERS if name not in ("state.pt", "report.html")]


def cut(content: bytes) -> Iterator[bytes]:
    """Yield the beginnings of a file: nothing, some bytes, some parts, all but a line, all but a byte."""
    for length in (0, 1, 20, len(content) // 4, len(content) // 2, content.rfind(b"\n", 0, -1) + 1, len(content) - 1):
        yield content[:length]


def flipped(content: bytes, count: int) -> Iterator[bytes]:
    """Yield copies with one bit of one byte changed, at places all over the file."""
    chance = random.Random(len(content))
    for start in range(0, len(content), -(-len(content) // count)):
        damaged = bytearray(content)
        damaged[chance.randrange(start, min(len(content), start + -(-len(content) // count)))] ^= 1 << chance.randrange(
            8
        )
        yield bytes(damaged)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_job_does_not_begin_with_a_damaged_artefact(tmp_path: Path, name: str) -> None:
    path = tmp_path / "digits" / name
    WRITERS[name](path)
    maker, reader = as_job(tmp_path, "maker"), as_job(tmp_path, "reader")
    maker.output, reader.input = [str(path)], [str(path)]
    write_record(maker, check_inputs(maker), "cpu", 0.0, 0.0)
    check_inputs(reader)
    content = path.read_bytes()
    for damaged in (*cut(content), *flipped(content, 20)):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=rf"{name} is damaged.*delete it and run the same command again"):
            check_inputs(reader)
    path.write_bytes(content)
    check_inputs(reader)


def test_a_damaged_state_of_a_training_is_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.pt"
    WRITERS[path.name](path)
    assert load_state(path, "key") is not None
    content = path.read_bytes()
    for damaged in (*cut(content), *flipped(content, 30)):
        caplog.clear()
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert load_state(path, "key") is None
        assert f"{path} is damaged" in caplog.text


def test_a_damaged_figure_is_not_put_into_the_report(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    WRITERS[path.name](path)
    claims = pd.DataFrame(columns=["id", "table", "dataset", "model", "verdict"])
    parts = (Study("small", "", ["digits"], ["lenet5"], [0], "", {}), [], claims, [("Curve", "", path)], [])
    write_report(tmp_path / "report.html", *parts)
    (tmp_path / "report.html").unlink()
    content = path.read_bytes()
    for damaged in (*cut(content), *flipped(content, 20)):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"figure .*figure\.png is (damaged|not a PNG image)"):
            write_report(tmp_path / "report.html", *parts)
        assert not (tmp_path / "report.html").exists()


# Files of the user ----------------------------------------------------------------------------------------------------


def picture(form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)).save(stream, form)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("train/a/0", "train/a/1", "train/b/0", "train/b/1", "test/a/0", "test/b/0"):
        path = tmp_path / "images" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture("PNG"))
    return tmp_path / "images"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_cut_image_is_named(folder: Path, tmp_path: Path, form: str, packed: bool) -> None:
    path, content = folder / "train/a/1.png", picture(form)
    for length in (0, 1, 20, len(content) // 4, len(content) // 2, len(content) * 3 // 4):
        path.write_bytes(content[:length])
        root = folder
        if packed:
            root = tmp_path / "images.tar.gz"
            with tarfile.open(root, "w:gz", compresslevel=1) as archive:
                archive.add(folder, arcname=".")
        with pytest.raises(DataError, match=r"train/a/1\.png is no image or damaged.*repair or remove it"):
            load_dataset("image_folder", root=root, size=None)


def test_a_flipped_byte_of_a_png_is_named_or_changes_nothing(folder: Path) -> None:
    """JPEG has no checksum: there, a flipped byte can only be another picture."""
    path, content = folder / "train/a/1.png", picture("PNG")
    digest, named = load_dataset("image_folder", root=folder, size=None).digest, 0
    for damaged in flipped(content, 60):
        path.write_bytes(damaged)
        try:
            found = load_dataset("image_folder", root=folder, size=None).digest
        except DataError as error:
            found, named = digest, named + (str(path) in str(error))
        assert found == digest
    assert named > 50


def test_a_cut_archive_is_named(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "images.tar.gz"
    with tarfile.open(root, "w:gz") as archive:
        archive.add(folder, arcname=".")
    content = root.read_bytes()
    for length in (0, 1, 20, len(content) // 4, len(content) // 2, len(content) - 1):
        root.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"images\.tar\.gz is no complete .*fetch or pack it again"):
            load_dataset("image_folder", root=root, size=None)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_cut_idx_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    plain = b"\0\0\x08\x03" + struct.pack(">III", 20, 8, 8) + bytes(range(256)) * 5
    content = gzip.compress(plain) if suffix else plain
    path.write_bytes(content)
    assert read_idx(path).shape == (20, 8, 8)
    for length in (0, 1, 3, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"{path.name}.*fetch .*again"):
            read_idx(path)
