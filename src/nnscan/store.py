"""A store that studies share: what one study has read or trained, another takes over if it would do just the same.

The environment variable NNSCAN_STORE names its folder; without it every study works for itself. An entry lies in
`<rule>/<digest of what the outputs depend on>/`, with the digest of each file in `manifest.json`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnscan.artifacts import atomic_path, digest, file_digest

log = logging.getLogger(__name__)

VARIABLE = "NNSCAN_STORE"

_MANIFEST = "manifest.json"


@contextmanager
def shared(rule: str, outputs: Iterable[str], identity: Mapping[str, Any]) -> Iterator[bool]:
    """Take a job's outputs from the store if they are there; else put them there when the block has made them.

    Files are copied, not linked: their times belong to each study, which compares them.

    Args:
        rule: The rule's name.
        outputs: The files that the block makes; their names differ.
        identity: Everything that the outputs depend on: parameters, digests of data and code, seed, device.

    Yields:
        Whether the outputs are there already, so that the block has nothing to do.

    A store that cannot be read or written costs time, and nothing else: a warning says so, and the job goes on.
    """
    paths = {Path(path).name: Path(path) for path in outputs}
    folder = os.environ.get(VARIABLE)
    if not folder:
        yield False
        return
    entry = Path(folder).expanduser() / rule / digest(dict(identity))
    if _fetch(entry, paths):
        log.info("taken from the store: %s", entry)
        yield True
        return
    yield False
    _put(entry, paths, identity)


def _fetch(entry: Path, paths: Mapping[str, Path]) -> bool:
    """Copy an entry's files to their places; False if there is no such entry, or it cannot be taken."""
    try:
        if not (entry / _MANIFEST).is_file():
            return False
        _copy(entry, paths)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s is damaged or cannot be taken (%s); this job makes it anew", entry, error)
        for path in paths.values():
            path.unlink(missing_ok=True)
        return False
    return True


def _copy(entry: Path, paths: Mapping[str, Path]) -> None:
    """Copy an entry's files to their places, or raise an error that `_fetch` names."""
    digests = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))["files"]
    if set(digests) != set(paths) or not all((entry / name).is_file() for name in paths):
        raise ValueError("its files are not those of the job")
    for name, path in paths.items():
        with atomic_path(path) as temporary:
            shutil.copyfile(entry / name, temporary)
            if file_digest(temporary) != digests[name]:
                raise ValueError(f"{name} has changed")


def _put(entry: Path, paths: Mapping[str, Path], identity: Mapping[str, Any]) -> None:
    """Put files into the store as one entry, which appears at once or not at all, and replaces a damaged one."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=entry.parent, ignore_cleanup_errors=True) as folder:
            new = Path(folder) / "new"
            new.mkdir()
            for name, path in paths.items():
                shutil.copyfile(path, new / name)
            manifest = {"files": {name: file_digest(new / name) for name in paths}, "identity": dict(identity)}
            (new / _MANIFEST).write_text(json.dumps(manifest, indent=1, default=str), encoding="utf-8")
            if entry.exists():
                os.rename(entry, Path(folder) / "old")
            os.rename(new, entry)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT) and (entry / _MANIFEST).is_file():
            log.info("another study has put %s into the store meanwhile", entry)
            return
        log.warning(
            "cannot write %s (%s), so that no other study can take this over: free some space, or let %s name another "
            "folder", entry, error.strerror or error, VARIABLE,
        )  # fmt: skip
