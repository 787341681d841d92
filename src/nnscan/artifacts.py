"""Files between the stages: written atomically, read with a clear error, carrying their provenance.

An artefact is either complete or absent: writers fill a temporary file beside the target and rename it. HDF5 files
hold arrays, Parquet files hold tables; both carry the same provenance entries.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import gc
import glob
import hashlib
import io
import json
import os
import platform
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nnscan.errors import ArtifactError
from nnscan.limits import attributes, check_hdf5, fixed_text, read_parquet, reading

_PACKAGE = Path(__file__).parent
_SKEW = 60  # seconds by which clocks of several machines may differ
_VERSIONED = ("nnscan", "torch", "torchvision", "numpy", "scikit-learn", "pandas", "snakemake")
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "yaml": "PyYAML",
    "jinja2": "Jinja2",
    "skimage": "scikit-image",
}


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


def seed_of(*parts: bytes) -> int:
    """Return a seed for torch's generators (63 bits) that is drawn from bytes: the same for the same bytes."""
    return int.from_bytes(hashlib.sha256(b"".join(parts)).digest()[:8], "big") >> 1


def file_digest(path: str | Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let Python's collector of cycles rest: over syntax trees, which have none, it takes most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]


class _Source(NamedTuple):
    """Digest of a module's code without comments and docstrings, its imports from nnscan, and the other packages."""

    code: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]


@cache
def _module_source(module: str) -> _Source:
    path = _PACKAGE / f"{module}.py"
    if not path.is_file():
        raise ArtifactError(f"nnscan has no module {module!r} (looked for {path})")
    imported: set[str] = set()
    packages: set[str] = set()
    with _no_collection():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                _drop_docstring(node)
            elif isinstance(node, ast.ImportFrom) and node.module == "nnscan":
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nnscan."):
                imported.add(node.module.split(".")[1])
            elif isinstance(node, ast.ImportFrom) and node.module:
                packages.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                packages.update(alias.name.split(".")[0] for alias in node.names)
        code = digest(ast.dump(tree))
    known = {name for name in imported if (_PACKAGE / f"{name}.py").is_file()}
    foreign = packages - sys.stdlib_module_names
    return _Source(code, tuple(sorted(known)), tuple(sorted(foreign)))


def source_closure(*modules: str) -> list[str]:
    """Return the named modules of nnscan and every nnscan module that they import, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(_module_source(module).modules)
    return sorted(found)


def source_digest(*modules: str) -> str:
    """Return a digest of the code of the named nnscan modules and of all that they import.

    Snakemake sees changes of a rule's script, not of the modules it imports; passing this digest as a parameter
    makes a changed module rerun the rules that use it, and no other. Comments and docstrings do not count. Of other
    packages that these modules import the version counts: results of one study are of one version.

    Args:
        modules: Module names without the package, for example `"scanner"`.

    Raises:
        ArtifactError: A module does not exist.
    """
    sources = {module: _module_source(module) for module in source_closure(*modules)}
    packages = sorted({package for source in sources.values() for package in source.packages})
    return digest(
        {module: source.code for module, source in sources.items()},
        {package: _version(_DISTRIBUTIONS.get(package, package)) for package in packages},
    )


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on; "absent" for one not installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in _VERSIONED}}


def provenance(**entries: object) -> dict[str, str]:
    """Return the provenance of an artefact: the given entries, the versions of the software, machine and time.

    Args:
        entries: What the artefact was made from, for example `data=...`, `checkpoint=...`, `seed=...`.
    """
    return {
        **{name: str(value) for name, value in entries.items()},
        "versions": json.dumps(versions(), sort_keys=True),
        "machine": f"{platform.machine()} {platform.system()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    Temporary files that killed processes have left there for the same target are removed.

    Raises:
        ArtifactError: The disk is full or the folder is not writable; nothing is left behind.
        MemoryError: The system has no memory for the file.
    """
    target = Path(path)
    with _replacing(target, _new_file, 0o644) as temporary:
        yield temporary


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    Temporary folders that killed processes have left there for the same target are removed.

    Raises:
        ArtifactError: There is something at `path` that is no empty folder, the disk is full, or the folder above is
            not writable; nothing is left behind.
        MemoryError: The system has no memory for a file.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and next(target.iterdir(), None) is None):
        raise ArtifactError(f"{target} exists already; delete it, or choose another place")
    with _replacing(target, _new_folder, 0o755) as temporary:
        yield temporary


def _new_file(prefix: str, suffix: str, folder: Path) -> tuple[int, Path]:
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=folder)
    return handle, Path(name)


def _new_folder(prefix: str, suffix: str, folder: Path) -> tuple[int, Path]:
    temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder))
    return os.open(temporary, os.O_RDONLY), temporary


@contextmanager
def _replacing(target: Path, make: Callable[[str, str, Path], tuple[int, Path]], mode: int) -> Iterator[Path]:
    """Yield a temporary file or folder, locked as long as this process lives, that takes the target's place."""
    handle: int | None = None
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for other in target.parent.glob(f".{glob.escape(target.name)}.????????{glob.escape(target.suffix)}"):
            if _is_abandoned(other):
                _remove(other)
        handle, temporary = make(f".{target.name}.", target.suffix, target.parent)
        with suppress(OSError):  # where files cannot be locked, none counts as abandoned
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        os.fsync(handle)
        temporary.chmod(mode)
        os.replace(temporary, target)
    except ArtifactError:
        raise
    except Exception as error:
        failure = _failed_write(error)
        if failure is None:
            raise
        if failure.errno == errno.ENOMEM:
            raise MemoryError(f"cannot write {target}") from error
        raise ArtifactError(
            f"cannot write {target}: {os.strerror(failure.errno) if failure.errno else failure}. "
            "Free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # of a disk that has become read-only; the error above says so
                _remove(temporary)
        if handle is not None:
            os.close(handle)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def _is_abandoned(temporary: Path) -> bool:
    """Return whether the process that wrote a temporary file or folder is gone, and with it the lock that it held."""
    try:
        # shared disks lock a file for those only who may write to it
        handle = os.open(temporary, os.O_RDONLY if temporary.is_dir() else os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def check_folder(root: str | Path, others: Iterable[str | Path] = ()) -> None:
    """Check before a study starts that its folder can be written and that no file lies in the future.

    Snakemake throws away what a job has made of a file that is younger than the clock.

    Args:
        root: The study's folder; it need not exist.
        others: Files elsewhere that the study reads.

    Raises:
        ArtifactError: The folder cannot be written, or a file has a time that is to come.
    """
    place = next(folder for folder in (Path(root), *Path(root).absolute().parents) if folder.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write to {place}. Make it writable, or run in another folder (--directory)")
    latest = time.time() + _SKEW
    inside = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    ahead = [path for path in (*inside, *map(Path, others)) if path.is_file() and path.stat().st_mtime > latest]
    if ahead:
        more = f" (and {len(ahead) - 1} others)" if len(ahead) > 1 else ""
        when = datetime.fromtimestamp(ahead[0].stat().st_mtime).isoformat(" ", "seconds")
        raise ArtifactError(
            f"{ahead[0]}{more} has the time {when}, which is still to come. Set the clock right, then give the file "
            f"the present time: touch '{ahead[0]}'; all of a folder: find {root} -newermt now -exec touch {{}} +"
        )


def _failed_write(error: BaseException | None) -> OSError | None:
    """Return the operating system's error behind an exception; torch puts one of its own before it."""
    if error is None or isinstance(error, OSError):
        return error
    return _failed_write(error.__context__) if isinstance(error, RuntimeError) else None


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
    with reading(path):
        frame: pd.DataFrame = read_parquet(path).to_pandas()
    return frame


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a CSV file of a run.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    with reading(path):
        frame: pd.DataFrame = pd.read_csv(path)
    return frame


class _Stream(io.FileIO):
    """A file that HDF5 never fails to write to, because it crashes when it cannot flush; `failure` is what happened."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        view, done = memoryview(content), 0
        try:
            while done < len(view) and self.failure is None:
                done += super().write(view[done:])
        except OSError as error:
            self.failure = error
        return len(view)


class OutputFile(h5py.File):  # type: ignore[misc]
    """A new HDF5 file. Writing to a full disk seems to succeed, until `check` or the end of `create_hdf5`."""

    def __init__(self, path: Path) -> None:
        self._stream = _Stream(path, "r+")
        super().__init__(self._stream, "w", track_order=True)

    def check(self) -> None:
        """Raise the error of the first write that failed; called between the parts of a long work."""
        if self._stream.failure is not None:
            raise self._stream.failure

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._stream.close()


@contextmanager
def create_hdf5(path: str | Path, kind: str, origin: Mapping[str, str]) -> Iterator[OutputFile]:
    """Open a new HDF5 file that appears at `path` only when the block ends without an error.

    Args:
        path: The artefact's place.
        kind: What the file is, for example `"scan"`; `open_hdf5` checks it.
        origin: The provenance, stored as attributes of the file.

    Raises:
        ArtifactError: The disk is full or the folder is not writable.
    """
    with atomic_path(path) as temporary:
        file = OutputFile(temporary)
        try:
            with file:
                for name, value in {"kind": kind, **origin}.items():
                    file.attrs[name] = fixed_text(value)
                yield file
        finally:
            file.check()


@contextmanager
def open_hdf5(path: str | Path, kind: str) -> Iterator[h5py.File]:
    """Open an HDF5 artefact of the given kind for reading.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    with reading(path):
        file = h5py.File(path, "r")
    with file:
        with reading(path):
            check_hdf5(file, path)
            found = attributes(file).get("kind")
        if found != kind:
            raise ArtifactError(f"{path} holds {found!r}, not {kind!r}; point to the right file")
        yield file


def read_provenance(path: str | Path) -> dict[str, str]:
    """Return the provenance that a Parquet, HDF5 or safetensors artefact carries.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    with reading(path):
        if Path(path).suffix == ".parquet":
            return _texts(json.loads((pq.read_schema(path).metadata or {}).get(b"nnscan", b"{}")))
        if Path(path).suffix == ".safetensors":
            with open(path, "rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = stream.read(min(length, Path(path).stat().st_size))
            return _texts(json.loads(json.loads(header)["__metadata__"]["nnscan"]))
        with h5py.File(path, "r") as file:
            return _texts(attributes(file))


def _texts(entries: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in entries.items()}
