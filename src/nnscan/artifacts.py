"""Files between the stages: written atomically, read with a clear error, carrying their provenance.

An artefact is either complete or absent: writers fill a temporary file beside the target and rename it. HDF5 files
hold arrays, Parquet files hold tables; both carry the same provenance entries.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nnscan.errors import ArtifactError

_PACKAGE = Path(__file__).parent
_VERSIONED = ("nnscan", "torch", "torchvision", "numpy", "scikit-learn", "pandas", "snakemake")


def digest(*parts: object) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the parts.

    Arrays count with type, shape and bytes; anything else by its JSON form with sorted keys.
    """
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).tobytes())
        else:
            state.update(json.dumps(part, sort_keys=True, default=str).encode())
        state.update(b"\0")
    return state.hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


@cache
def _module_source(module: str) -> tuple[str, tuple[str, ...]]:
    """Return a module's code without comments and docstrings, and the nnscan modules that it imports."""
    path = _PACKAGE / f"{module}.py"
    if not path.is_file():
        raise ArtifactError(f"nnscan has no module {module!r} (looked for {path})")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "nnscan":
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nnscan."):
            imported.add(node.module.split(".")[1])
    known = {name for name in imported if (_PACKAGE / f"{name}.py").is_file()}
    return ast.dump(_without_docstrings(tree)), tuple(sorted(known))


def source_closure(*modules: str) -> list[str]:
    """Return the named modules of nnscan and every nnscan module that they import, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(_module_source(module)[1])
    return sorted(found)


def source_digest(*modules: str) -> str:
    """Return a digest of the code of the named nnscan modules and of all that they import.

    Snakemake sees changes of a rule's script, not of the modules it imports; passing this digest as a parameter
    makes a changed module rerun the rules that use it, and no other. Comments and docstrings do not count.

    Args:
        modules: Module names without the package, for example `"scanner"`.

    Raises:
        ArtifactError: A module does not exist.
    """
    return digest({module: _module_source(module)[0] for module in source_closure(*modules)})


def provenance(**entries: object) -> dict[str, str]:
    """Return the provenance of an artefact: the given entries, the versions of the software, machine and time.

    Args:
        entries: What the artefact was made from, for example `data=...`, `checkpoint=...`, `seed=...`.
    """
    versions = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        **{name: str(value) for name, value in entries.items()},
        "versions": json.dumps(versions, sort_keys=True),
        "machine": f"{platform.machine()} {platform.system()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    Raises:
        ArtifactError: The disk is full or the folder is not writable; nothing is left behind.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, target)
    except OSError as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"cannot write {target}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_frame(path: str | Path, frame: pd.DataFrame, origin: Mapping[str, str]) -> None:
    """Write a table as Parquet with its provenance in the file's metadata."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    entries = {**(table.schema.metadata or {}), b"nnscan": json.dumps(dict(origin)).encode()}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(entries), temporary)


def read_frame(path: str | Path) -> pd.DataFrame:
    """Read a table written by `write_frame`.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        frame: pd.DataFrame = pq.read_table(path).to_pandas()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; run the stage that makes it") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it and run the stage that makes it") from error
    return frame


@contextmanager
def create_hdf5(path: str | Path, kind: str, origin: Mapping[str, str]) -> Iterator[h5py.File]:
    """Open a new HDF5 file that appears at `path` only when the block ends without an error.

    Args:
        path: The artefact's place.
        kind: What the file is, for example `"scan"`; `open_hdf5` checks it.
        origin: The provenance, stored as attributes of the file.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w", track_order=True) as file:
        file.attrs["kind"] = kind
        for name, value in origin.items():
            file.attrs[name] = value
        yield file


@contextmanager
def open_hdf5(path: str | Path, kind: str) -> Iterator[h5py.File]:
    """Open an HDF5 artefact of the given kind for reading.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"{path} does not exist; run the stage that makes it")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it and run the stage that makes it") from error
    with file:
        found = file.attrs.get("kind")
        if found != kind:
            raise ArtifactError(f"{path} holds {found!r}, not {kind!r}; point to the right file")
        yield file


def read_provenance(path: str | Path) -> dict[str, str]:
    """Return the provenance that a Parquet, HDF5 or safetensors artefact carries.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"{path} does not exist; run the stage that makes it")
    try:
        if Path(path).suffix == ".parquet":
            entries = pq.read_schema(path).metadata or {}
            return dict(json.loads(entries.get(b"nnscan", b"{}")))
        if Path(path).suffix == ".safetensors":
            with open(path, "rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                return dict(json.loads(json.loads(stream.read(length))["__metadata__"]["nnscan"]))
        with h5py.File(path, "r") as file:
            return {name: str(value) for name, value in file.attrs.items()}
    except (pa.ArrowInvalid, OSError, struct.error, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it and run the stage that makes it") from error
