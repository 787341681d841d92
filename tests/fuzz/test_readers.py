"""Whatever bytes a file has, it is read or an error of nnscan says why not: no other error, no hang, no memory."""

from __future__ import annotations

import gzip
import io
import os
import resource
import signal
import tarfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hostile import bounded, picture
from mutations import changed
from nnscan import artifacts, rendering
from nnscan.annotations import parse_objects
from nnscan.averages import read_averages, read_confidences, write_averages
from nnscan.components import read_components
from nnscan.data import Foreground, Split, build_dataset, load_dataset, read_dataset, read_idx, write_dataset
from nnscan.errors import NnscanError
from nnscan.models import build_model, load_weights, read_state, save_weights
from nnscan.training import load_state

GENERATOR = np.random.default_rng(0)


def check(read: Callable[[], object]) -> None:
    with bounded(1000, 20), suppress(NnscanError):
        read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# IDX and archives -----------------------------------------------------------------------------------------------------

IDX = b"\0\0\x08\x03" + b"\0\0\0\x02\0\0\0\x03\0\0\0\x03" + bytes(range(18))


@given(content=changed(IDX, IDX[:4]))
def test_idx(folder, content):
    for name, written in (("images", content), ("images.gz", gzip.compress(content, 1))):
        (folder / name).write_bytes(written)
        check(lambda name=name: read_idx(folder / name))


@given(content=changed(gzip.compress(IDX)))
def test_packed_idx(folder, content):
    (folder / "packed.gz").write_bytes(content)
    check(lambda: read_idx(folder / "packed.gz"))


def archive(form: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as packed:
        for name in ("train/a/0.png", "train/a/1.png", f"train/a/{'long' * 40}.png", "test/a/ü.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            packed.addfile(member, io.BytesIO(picture()))
    return content.getvalue()[:8192]


@given(content=changed(archive(tarfile.GNU_FORMAT), archive(tarfile.PAX_FORMAT)))
def test_archive(folder, content):
    (folder / "data.tar.gz").write_bytes(gzip.compress(content, 1))
    check(lambda: load_dataset("image_folder", root=folder / "data.tar.gz", size=8))


# Images and annotations -----------------------------------------------------------------------------------------------


def images() -> list[bytes]:
    forms = [
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("PPM", "RGB"),
    ]
    return [picture(8, *form) for form in [*forms, ("TIFF", "RGB"), ("TIFF", "L"), ("WEBP", "RGB"), ("PNG", "LA")]]


@pytest.fixture(scope="module")
def image_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for place in ("train/a/0.png", "train/a/1.png", "test/a/0.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(picture())
        mask = root / "masks" / place
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(picture(mode="L"))
    return root


@given(content=changed(*images()), mask=st.booleans(), size=st.sampled_from([8, None]))
def test_image(image_root, content, mask, size):
    place = image_root / ("masks/train/a/0.png" if mask else "train/a/0.png")
    place.write_bytes(content)
    check(lambda: load_dataset("image_folder", root=image_root, size=size, foreground=Foreground("masks")))
    place.write_bytes(picture(mode="L" if mask else "RGB"))


BOXES = b"path,x0,y0,x1,y1\ntrain/a/0.png,0,0,4,4\ntrain/a/1.png,1,1,3,8\ntest/a/0.png,0.5,2,8,8\n"


@given(content=changed(BOXES, words=b'"\t;=#'))
def test_boxes(image_root, content):
    (image_root / "boxes.csv").write_bytes(content)
    check(lambda: load_dataset("image_folder", root=image_root, size=8, foreground=Foreground("boxes")))


OBJECTS = b"""<?xml version="1.0"?><annotation><size><width>8</width></size><object><name>n1</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>6</xmax><ymax>7</ymax></bndbox></object></annotation>"""
ENTITIES = b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c SYSTEM "file:///etc/passwd">]><annotation>&b;&c;</annotation>'


@given(content=changed(OBJECTS, ENTITIES, OBJECTS.decode().encode("utf-16"), words=b"&<>;![]"))
def test_objects(content):
    check(lambda: parse_objects("x.xml", content))


def camvid(root: Path) -> None:
    (root / "classes.txt").write_text("void\ncar\n", encoding="utf-8")
    labels = np.zeros((12, 12), np.uint8)
    labels[2:9, 3:8] = 1
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (root / part / kind).mkdir(parents=True)
        for name in ("x", "y"):
            Image.fromarray(labels).save(root / part / "labels" / f"{name}.png")
            (root / part / "images" / f"{name}.png").write_bytes(picture(12))


def det(root: Path) -> None:
    files = {
        "devkit/data/map_det.txt": "n1 1 cat\nn2 2 dog\n",
        "ImageSets/DET/train_1.txt": "x 1\ny 1\n",
        "ImageSets/DET/train_2.txt": "x -1\n",
        "ImageSets/DET/val.txt": "z 1\n",
        **{f"Annotations/DET/{name}.xml": OBJECTS.decode() for name in ("train/x", "train/y", "val/z")},
    }
    write(root, files)
    for name in ("train/x", "train/y", "val/z"):
        (root / "Data/DET" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"Data/DET/{name}.JPEG").write_bytes(picture())


def cub(root: Path) -> None:
    write(
        root,
        {
            "images.txt": "1 a/x.jpg\n2 a/y.jpg\n3 a/z.jpg\n",
            "classes.txt": "1 bird\n",
            "image_class_labels.txt": "1 1\n2 1\n3 1\n",
            "train_test_split.txt": "1 1\n2 1\n3 0\n",
            "bounding_boxes.txt": "1 1 1 4 4\n2 0 0 8 8\n3 2 2 3 3\n",
        },
    )
    (root / "images/a").mkdir(parents=True)
    for name in "xyz":
        (root / f"images/a/{name}.jpg").write_bytes(picture())


def voc(root: Path) -> None:
    write(root, {"ImageSets/Segmentation/train.txt": "x\ny\n", "ImageSets/Segmentation/val.txt": "z\n"})
    labels = np.zeros((8, 8), np.uint8)
    labels[2:6, 3:7] = 5
    for kind in ("SegmentationClass", "JPEGImages"):
        (root / kind).mkdir()
    for name in "xyz":
        Image.fromarray(labels).save(root / f"SegmentationClass/{name}.png")
        (root / f"JPEGImages/{name}.jpg").write_bytes(picture())


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


ANNOTATED = {
    "camvid": ("masks", ["car"], camvid),
    "det": ("boxes", None, det),
    "cub": ("boxes", None, cub),
    "voc": ("masks", None, voc),
}


@pytest.fixture(scope="module", params=ANNOTATED)
def annotated(request, tmp_path_factory):
    """A data set, how to load it, and its files."""
    root = tmp_path_factory.mktemp(request.param)
    kind, classes, build = ANNOTATED[request.param]
    build(root)
    files = {path: path.read_bytes() for path in sorted(root.rglob("*.*"))}

    def load() -> object:
        return load_dataset(request.param, root=root, size=8, foreground=Foreground(kind), classes=classes)

    assert len(load().classes) == 1  # honest, it is read
    return load, files


@given(data=st.data())
def test_annotated(annotated, data):
    load, files = annotated
    texts = [path for path in files if path.suffix in (".txt", ".xml")]
    path = data.draw(st.sampled_from([*texts, *texts, *files]), label="file")
    path.write_bytes(data.draw(changed(files[path], words=b" \t\n/\\.<>&")))
    check(load)
    path.write_bytes(files[path])


# HDF5 -----------------------------------------------------------------------------------------------------------------


def apart(read: Callable[[], object]) -> None:
    """Check in a child process: HDF5 can crash, or go in circles where no handler of ours is heard."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            read()
            status = 0
        except NnscanError:
            status = 0
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"status {status}" if os.WIFEXITED(status) else signal.Signals(os.WTERMSIG(status)).name


def read_averages_and_confidences(path: Path) -> object:
    return read_averages(path), read_confidences(path)


@pytest.fixture(scope="module")
def arrays(folder) -> dict[str, tuple[bytes, Callable[[Path], object]]]:
    """Honest HDF5 files and their readers."""
    split = Split(GENERATOR.integers(0, 256, (6, 1, 8, 8), np.uint8), np.array([0, 1] * 3, np.int64))
    dataset = build_dataset("d", ["a", "b"], dict.fromkeys(("train", "validation", "test"), split))
    write_dataset(folder / "dataset.h5", dataset, {"seed": "1"})
    images, matrix = torch.zeros(2, 1, 4, 4), torch.eye(2)
    write_averages(folder / "averages.h5", {"simple": images}, ["a", "b"], {"seed": "1"}, {"simple": matrix})
    with artifacts.create_hdf5(folder / "components.h5", "components", {}) as file:
        file["samples"] = np.arange(3)
        for name in ("points", "ratio", "dead", "activation"):
            file[f"layers/conv1/{name}"] = np.zeros((3, 2))
    readers = {"dataset": read_dataset, "averages": read_averages_and_confidences, "components": read_components}
    return {name: ((folder / f"{name}.h5").read_bytes(), read) for name, read in readers.items()}


@given(data=st.data())
def test_hdf5(folder, arrays, data):
    honest, read = arrays[data.draw(st.sampled_from(sorted(arrays)), label="kind")]
    path = folder / "changed.h5"
    path.write_bytes(data.draw(changed(honest)))
    apart(lambda: (read(path), artifacts.read_provenance(path)))


# Tables ---------------------------------------------------------------------------------------------------------------

HISTORY = b"phase,epoch,train_loss,validation_loss\nregular,1,0.5,0.6\nregular,2,0.4,nan\n"
TABLE = b"dataset,model,layer,quantity,unit,ours,spread,note\ndigits,lenet5,conv1,FQ,1,0.5,,x\n"


@given(content=changed(HISTORY, TABLE, words=b'",\t\r\n;'))
def test_csv(folder, content):
    (folder / "history.csv").write_bytes(content)
    for read in (artifacts.read_csv, rendering.read_csv):
        check(lambda read=read: read(folder / "history.csv"))


def parquet() -> bytes:
    frame = pd.DataFrame(
        {"layer": ["a", "b"] * 20, "fq": np.linspace(0, 1, 40), "dead": [True, None] * 20, "n": range(40)}
    )
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"nnscan_fuzz_{os.getpid()}.parquet"
    artifacts.write_frame(path, frame, {"seed": "1"})
    content = path.read_bytes()
    path.unlink()
    return content


@given(content=changed(parquet()))
def test_parquet(folder, content):
    path = folder / "table.parquet"
    path.write_bytes(content)
    check(lambda: artifacts.read_frame(path))
    check(lambda: artifacts.read_provenance(path))


# Checkpoints ----------------------------------------------------------------------------------------------------------


def checkpoints() -> list[bytes]:
    state = {"weight": torch.zeros(2, 3), "bias": torch.ones(2), "count": torch.tensor(3)}
    contents = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        stream = io.BytesIO()
        torch.save({"model": state, "key": "key"}, stream, **options)
        contents.append(stream.getvalue())
    return contents


@given(content=changed(*checkpoints()))
def test_checkpoint(folder, content):
    path = folder / "x.pt"
    path.write_bytes(content)
    check(lambda: read_state(path, "model"))
    with open(path, "ab") as stream:
        stream.write(artifacts.file_digest(path).encode())  # as training leaves it
    check(lambda: load_state(path, "key"))


@pytest.fixture(scope="module")
def weights(folder) -> tuple[object, bytes]:
    model = build_model("fcn", {"in_channels": 1, "size": 2, "classes": 2, "widths": [3]})
    save_weights(folder / "honest.safetensors", model, {"seed": "1"})
    return model, (folder / "honest.safetensors").read_bytes()


@given(data=st.data())
def test_safetensors(folder, weights, data):
    model, honest = weights
    path = folder / "x.safetensors"
    path.write_bytes(data.draw(changed(honest, words=b'{}[]":,')))
    check(lambda: load_weights(model, read_state(path), path))
    check(lambda: artifacts.read_provenance(path))
