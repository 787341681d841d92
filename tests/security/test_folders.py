"""Folders of a stranger: links in a circle, files without an end, names that a terminal or a page would act upon."""

import os

import pytest

from hostile import image_folder, refused
from nnscan.data import load_dataset, read_dataset, write_dataset
from nnscan.errors import DataError


def load(root):
    return load_dataset("image_folder", root=root, size=8)


def test_links_in_a_circle_end(tmp_path):
    """Three links to the folder above make 3 ** 40 paths."""
    root = image_folder(tmp_path)
    for name in ("x", "y", "z"):
        (root / "train/a" / name).symlink_to(root / "train")
    assert "was listed before; remove the link" in refused(lambda: load(root), DataError)


@pytest.mark.parametrize("kind", ["device", "queue", "sparse"])
def test_files_without_an_end_are_not_read(tmp_path, kind):
    root = image_folder(tmp_path)
    place = root / "train/a/9.png"
    if kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "queue":
        os.mkfifo(place)
    else:
        with open(place, "wb") as stream:
            stream.truncate(2**40)
    message = "has 1099511627776 bytes" if kind == "sparse" else "is no plain file"
    assert message in refused(lambda: load(root), DataError)


@pytest.mark.parametrize(
    "name",
    ["\x1b[2J\x1b]0;owned\x07", "line\nbreak", "\u202egnp.exe", os.fsdecode(b"caf\xe9"), "\x9b31m", "n" * 101],
    ids=["terminal", "line", "direction", "bytes", "C1", "long"],
)
def test_class_names_that_cannot_be_shown_are_refused(tmp_path, name):
    root = image_folder(tmp_path, (name, "b"))
    sentence = refused(lambda: load(root), DataError)
    assert "rename it" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("name", ["<script><b>", "a&b", "$x_{$", r"\input{x}", "=1+1", "名前", "T-shirt top 50 %"])
def test_other_class_names_are_taken_as_they_are(tmp_path, name):
    dataset = load(image_folder(tmp_path / "data", (name, "other"), 8))
    write_dataset(tmp_path / "data.h5", dataset, {})
    assert read_dataset(tmp_path / "data.h5").classes == dataset.classes == tuple(sorted((name, "other")))


def test_messages_name_files_without_their_control_characters(tmp_path):
    root = image_folder(tmp_path)
    (root / "train/a/\x1b[2J\r.png").write_bytes(b"no image")
    assert "\\x1b[2J\\r.png" in refused(lambda: load(root), DataError)
