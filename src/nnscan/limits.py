"""What a file of a stranger may ask for: how much memory, which other files, which formats.

Readers trust what a file says about itself and allocate before they look. Here it is asked first whether the file is
large enough for what it claims to hold, and whether it points out of itself.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import compute

from nnscan.errors import ArtifactError

FILE_BYTES = 2**29
"""Largest image, mask, list or annotation that is read whole."""

# What nnscan writes and what is published shrinks to a tenth at most; deflate could make a thousandth of zeros.
_EXPANSION = 200
_ALWAYS = 2**26

_CODECS = ("SNAPPY", "UNCOMPRESSED")
_TYPES = ("BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE", "BYTE_ARRAY")

DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(RuntimeError, struct.error, zipfile.BadZipFile, zlib.error, pa.ArrowException, SystemError),
)
"""What readers of files raise when they meet bytes that make no sense: too deep a nesting is a RuntimeError, and h5py's
visits of links end with a SystemError."""


def fits(claimed: int, stored: int) -> bool:
    """Return whether a file can be believed.

    Args:
        claimed: Bytes that it says to hold once it is read.
        stored: Bytes that it has.
    """
    return claimed <= _ALWAYS + _EXPANSION * stored


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what readers raise on damaged bytes inside the block into a sentence.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"{path} does not exist; run the stage that makes it")
    try:
        yield
    except (ArtifactError, MemoryError):  # what the file claims has been checked: there really is no memory left
        raise
    except DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"{path} is damaged ({reason}); delete it and run the stage that makes it") from error


def check_hdf5(file: h5py.File, path: str | Path) -> None:
    """Check that an HDF5 file holds plain arrays of its own, and no more than it is large enough for.

    Raises:
        ArtifactError: A link or an array lies in another place or file, or the file claims too much.
    """
    links: list[tuple[str, Any]] = []
    file.visititems_links(lambda name, link: links.append((name, link)))
    claimed, stored = 0, Path(path).stat().st_size
    for name, link in links:
        # what lies elsewhere: links by name, raw data of other files, parts of other HDF5 files
        if not isinstance(link, h5py.HardLink):
            raise ArtifactError(f"{path}: {name} is a link to another place; take the file from where it was made")
        item = file[name]
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise ArtifactError(f"{path}: {name} lies in another file; take the file from where it was made")
            if item.dtype.kind not in "biufS":
                raise ArtifactError(f"{path}: {name} holds {item.dtype}, neither numbers nor text; it is not of nnscan")
            claimed += item.nbytes
        elif not isinstance(item, h5py.Group):
            raise ArtifactError(f"{path}: {name} is neither an array nor a group; it is not of nnscan")
    if not fits(claimed, stored):
        raise ArtifactError(f"{path} claims {claimed} bytes of arrays but has {stored} bytes; it is not of nnscan")


def fixed_text(value: str | Sequence[str]) -> NDArray[Any]:
    """Return text that HDF5 keeps in place: other text lies on a heap, where damages make HDF5 go in circles."""
    encoded = value.encode() if isinstance(value, str) else [one.encode() for one in value]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, np.array(encoded).itemsize)))


def attributes(item: h5py.Group) -> dict[str, Any]:
    """Return the attributes of a file or group that are one value each, kept in place."""
    found = {
        name: item.attrs[name]
        for name in item.attrs
        if item.attrs.get_id(name).shape == () and item.attrs.get_id(name).dtype.kind in "biufS"
    }
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def read_parquet(path: str | Path) -> pa.Table:
    """Read a Parquet file of numbers and text; none of its metadata is acted upon.

    Raises:
        ArtifactError: The file claims more than it is large enough for, or has types or codecs that nnscan never uses.
    """
    stored = Path(path).stat().st_size
    metadata = pq.read_metadata(path)
    columns = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    strange = [
        column.path
        for column in columns
        if column.physical_type not in _TYPES or column.max_repetition_level or column.path != column.name
    ]
    parts = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    codecs = {part.column(place).compression for part in parts for place in range(part.num_columns)} - set(_CODECS)
    if strange or codecs:
        raise ArtifactError(f"{path} has columns or a compression that nnscan never writes; it is not of nnscan")
    rows = max(metadata.num_rows, sum(part.num_rows for part in parts))
    _believe(path, 8 * rows * len(columns), stored)
    # a short file can repeat a long text: as a dictionary it stays short until its length is known
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    table = pq.read_table(path, read_dictionary=texts, memory_map=False)
    _believe(path, sum(_length(chunk) for name in texts for chunk in table[name].chunks), stored)
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table.replace_schema_metadata(None)


def _believe(path: str | Path, claimed: int, stored: int) -> None:
    if not fits(claimed, stored):
        raise ArtifactError(f"{path} claims {claimed} bytes of values but has {stored} bytes; it is not of nnscan")


def _length(chunk: pa.DictionaryArray) -> int:
    """Return the bytes of a column's texts once they are written out."""
    lengths = compute.binary_length(chunk.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
    used = chunk.indices.drop_null().to_numpy(zero_copy_only=False)
    return int(np.bincount(used, minlength=len(lengths)) @ lengths) if len(lengths) else 0


def refuse_links(root: str | Path) -> None:
    """Check that nothing below a folder leads out of it, so that what is written below stays there.

    The folder above it may be a link, for example to a large disk.

    Args:
        root: The folder of a study's results; it need not exist.

    Raises:
        ArtifactError: There is a link to a folder, or a link in the place of a log or benchmark, which programs write
            through; links to other files are replaced when those are written.
    """
    if Path(root).is_symlink():
        raise ArtifactError(f"{root} is a link, so that results would be written elsewhere; link the folder above it")
    for folder, below, names in os.walk(root):
        written = Path(folder).relative_to(root).parts[:1] in (("logs",), ("benchmarks",))
        for name in [*below, *(names if written else [])]:
            place = Path(folder, name)
            if place.is_symlink() or (name in names and place.stat().st_nlink > 1):
                raise ArtifactError(f"{place} is a link, so that results would be written elsewhere; remove it")
