"""Files that claim to hold more than they have, or that point out of themselves: IDX, HDF5, Parquet, safetensors."""

import gzip
import json
import struct
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hostile import bounded, refused
from nnscan.artifacts import create_hdf5, open_hdf5, read_frame, read_provenance, write_frame
from nnscan.averages import read_averages
from nnscan.components import read_components
from nnscan.data import Split, build_dataset, read_dataset, read_idx, write_dataset
from nnscan.errors import ArtifactError, DataError
from nnscan.moments import read_layer


def idx(*shape: int) -> bytes:
    return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(2**32 - 1, 2**32 - 1, 2**32 - 1), "which it is too small for"),
        (idx(60_000, 28_000, 28_000), "which it is too small for"),
        (idx(*[1] * 65) + b"\0", "which it is too small for"),
        (idx(0, 2**32 - 1, 2**32 - 1), "should hold 0 values"),
    ],
)
def test_an_idx_file_cannot_ask_for_memory(tmp_path, content, message):
    for path, packed in ((tmp_path / "images", content), (tmp_path / "images.gz", gzip.compress(content))):
        path.write_bytes(packed)
        assert message in refused(lambda path=path: read_idx(path), DataError, megabytes=100)


def test_an_idx_bomb_is_counted_not_kept(tmp_path):
    """Half a gigabyte of zeros in half a megabyte."""
    path = tmp_path / "images.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(idx(10, 8, 8))
        for _ in range(512):
            stream.write(bytes(2**20))
    assert "but holds 536870912" in refused(lambda: read_idx(path), DataError, megabytes=100, seconds=60)


# HDF5 -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set on disk, to be made hostile."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), np.uint8)
    split = Split(pixels, np.array([0, 1] * 3, np.int64))
    write_dataset(
        tmp_path / "data.h5", build_dataset("d", ["a", "b"], dict.fromkeys(("train", "validation", "test"), split)), {}
    )
    return tmp_path / "data.h5"


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file that is none of the data set's business."""
    path = tmp_path / "private.bin"
    path.write_bytes(b"SECRET" * 64)
    return path


def external_link(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["images"] = np.zeros((6, 1, 8, 8), np.uint8)
    file["train/images"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/images")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["train/images"] = h5py.SoftLink("/test/images")


def external_storage(file: h5py.File, secret: Path) -> None:
    file["train"].create_dataset("images", (6, 1, 8, 8), "u1", external=[(str(secret), 0, 384)])


def virtual_array(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((6, 1, 8, 8), "u1")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "images", (6, 1, 8, 8))
    file["train"].create_virtual_dataset("images", layout)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (external_link, "train/images is a link to another place"),
        (soft_link, "train/images is a link to another place"),
        (external_storage, "train/images lies in another file"),
        (virtual_array, "train/images lies in another file"),
    ],
)
def test_an_hdf5_file_shows_no_other_file(data, secret, point, message):
    with h5py.File(data, "r+") as file:
        del file["train/images"]
        point(file, secret)
    assert message in refused(lambda: read_dataset(data), ArtifactError)


def unwritten(file: h5py.File) -> None:
    del file["train/images"]
    file["train"].create_dataset("images", (10**9, 1, 8, 8), "u1", chunks=(1000, 1, 8, 8))


def repeated(file: h5py.File) -> None:
    """One array of a megabyte, a thousand times."""
    file["train"].create_dataset("0", data=np.zeros(2**20, np.uint8), compression="gzip")
    for number in range(1, 1000):
        file[f"train/{number}"] = file["train/0"]


def lists(file: h5py.File) -> None:
    del file["train/labels"]
    file["train"].create_dataset("labels", (6,), h5py.vlen_dtype(np.int64))


def texts_on_the_heap(file: h5py.File) -> None:
    """nnscan keeps texts in place: on HDF5's heap a damaged file makes HDF5 go in circles for ever."""
    del file["description/classes"]
    file["description/classes"] = ["a", "b"]


def references(file: h5py.File) -> None:
    del file["train/labels"]
    file["train"].create_dataset("labels", (6,), h5py.ref_dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unwritten, "bytes of arrays but has"),
        (repeated, "bytes of arrays but has"),
        (lists, "neither numbers nor text"),
        (references, "neither numbers nor text"),
        (texts_on_the_heap, "neither numbers nor text"),
    ],
)
def test_an_hdf5_file_holds_what_it_claims(data, change, message):
    with h5py.File(data, "r+") as file:
        change(file)
    assert message in refused(lambda: read_dataset(data), ArtifactError, megabytes=100)


def test_attributes_are_single_values(data):
    """A thousand references to one long text would be written out a thousand times."""
    with h5py.File(data, "r+") as file:
        file.attrs.create("kind", np.zeros(1000), (1000,))
        file.attrs["other"] = "on the heap"
    assert "holds None, not 'dataset'" in refused(lambda: read_dataset(data), ArtifactError)
    assert read_provenance(data) == {}


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("averages", read_averages),
        ("components", read_components),
        ("scan", lambda path: read_layer([path], "conv1")),
        ("dataset", read_dataset),
    ],
)
@pytest.mark.parametrize("inside", [{}, {"layers": 1.0, "averages": 1.0, "train": 1.0, "samples": 1.0}])
def test_an_hdf5_file_of_the_right_kind_with_something_else_inside_is_damaged(tmp_path, kind, read, inside):
    path = tmp_path / "file.h5"
    with create_hdf5(path, kind, {}) as file:
        for name, value in inside.items():
            file[name] = value
    assert "is damaged" in refused(lambda: read(path), ArtifactError)


# Parquet --------------------------------------------------------------------------------------------------------------


def test_a_short_table_cannot_repeat_a_long_text(tmp_path):
    """Twelve gigabytes from fifty kilobytes; the codec that pandas takes makes at most twenty times as much."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(12_000, np.int32)), pa.array(["x" * 1_000_000]))
    path = tmp_path / "layers.parquet"
    pq.write_table(pa.table({"layer": text}), path, store_schema=False)
    assert path.stat().st_size < 60_000
    assert "bytes of values but has" in refused(lambda: read_frame(path), ArtifactError)


def test_a_table_cannot_repeat_a_number_for_ever(tmp_path):
    path = tmp_path / "numbers.parquet"
    with pq.ParquetWriter(path, pa.schema([("a", pa.float64())])) as writer:
        for _ in range(20):
            writer.write_table(pa.table({"a": np.zeros(10**6)}))
    assert path.stat().st_size < 200_000
    assert "bytes of values but has" in refused(lambda: read_frame(path), ArtifactError, megabytes=100)


@pytest.mark.parametrize(
    "table", [{"a": [[1, 2], []]}, {"a": [{"b": 1}]}, {"a": [b"x"]}], ids=["lists", "records", "bytes"]
)
def test_a_table_holds_numbers_and_text_alone(tmp_path, table):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(table), path)
    if isinstance(table["a"][0], bytes):
        assert read_frame(path)["a"].tolist() == [b"x"]
    else:
        assert "that nnscan never writes" in refused(lambda: read_frame(path), ArtifactError)


@pytest.mark.parametrize("codec", ["zstd", "gzip", "brotli"])
def test_a_table_is_packed_as_nnscan_does(tmp_path, codec):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"a": [1]}), path, compression=codec)
    assert "that nnscan never writes" in refused(lambda: read_frame(path), ArtifactError)


def test_what_a_table_says_about_pandas_is_not_acted_upon(tmp_path):
    """pandas would make an index, types and names of it."""
    path = tmp_path / "table.parquet"
    frame = pd.DataFrame({"layer": ["a", "b"], "fq": [1.0, np.nan]})
    write_frame(path, frame, {"seed": "1"})
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"pandas"])
    metadata["index_columns"] = [{"kind": "range", "name": None, "start": 0, "stop": 10**12, "step": 1}]
    metadata["columns"][0]["numpy_type"] = "datetime64[ns]"
    metadata["column_indexes"] = [{"name": "(" * 100_000, "pandas_type": "bytes", "numpy_type": "object"}]
    entries = {**table.schema.metadata, b"pandas": json.dumps(metadata).encode()}
    pq.write_table(table.replace_schema_metadata(entries), path)
    with bounded(200):
        pd.testing.assert_frame_equal(read_frame(path), frame)


# safetensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**5) + b"[" * 10**5,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 19) + b'{"__metadata__":[]}',
        struct.pack("<Q", 30) + b'{"__metadata__":{"nnscan":"1"}}',
        b"",
    ],
)
def test_the_provenance_of_a_checkpoint_cannot_ask_for_memory(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert "is damaged" in refused(lambda: read_provenance(path), ArtifactError, megabytes=100)


def test_a_file_that_is_what_it_claims_is_read(tmp_path):
    """Arrays and tables as nnscan writes them, constant ones too, are believed."""
    with create_hdf5(tmp_path / "a.h5", "averages", {}) as file:
        file.create_dataset("averages/simple", data=np.zeros((10, 3, 64, 64), np.float32))
    with open_hdf5(tmp_path / "a.h5", "averages") as file:
        assert file["averages/simple"].shape == (10, 3, 64, 64)
    write_frame(tmp_path / "t.parquet", pd.DataFrame({"layer": ["conv1"] * 10**5, "fq": 0.0}), {})
    assert len(read_frame(tmp_path / "t.parquet")) == 10**5
