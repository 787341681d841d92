"""The record of every job: what it read, what it wrote, with which parameters, code, software and device.

A study's folder holds beside its artefacts `provenance/jobs/<rule>/<wildcards>.json`, one record a job, and
`provenance/files/<path>.json`, the digest of each artefact and the job that made it. So every file of a study, down to
a cell of a table, can be traced to the configuration, the code, the data and the checkpoint that it comes from.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nnscan.artifacts import atomic_path, digest, file_digest, versions
from nnscan.errors import ArtifactError, did_you_mean

FOLDER = "provenance"


@dataclass(frozen=True)
class Record:
    """What a job did.

    Attributes:
        rule: The rule's name.
        wildcards: The wildcards' values, for example seed.
        params: The rule's parameters: the part of the configuration that the job depends on.
        config: Digest of the whole configuration.
        code: Digest of the modules that the job depends on; empty where the rule names none.
        inputs: Digest of each file that was read, by its path from the study's folder, or as given if it lies outside.
        outputs: Digest of each file that was written, likewise.
        versions: Python and packages, each with its version.
        device: Where the tensors were; empty for a job without torch.
        machine: Processor architecture, operating system and host.
        started: When, in UTC.
        seconds: Wall time.
    """

    rule: str
    wildcards: Mapping[str, str]
    params: Mapping[str, Any]
    config: str
    code: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    versions: Mapping[str, str]
    device: str
    machine: str
    started: str
    seconds: float


def write_record(snakemake: Any, read: Mapping[str, str], device: str, started: float, seconds: float) -> None:
    """Write the record of a job that has ended well.

    Args:
        snakemake: The object that Snakemake gives to a script; uses rule, wildcards, params, config, output and log,
            which lies in the study's folder at logs/<rule>/<wildcards>.log.
        read: The digests of the files that the job has read; see `check_inputs`.
        device: Where the tensors were.
        started: When the job started, in seconds since 1970.
        seconds: How long it took.

    Raises:
        ArtifactError: The record cannot be written.
    """
    log = Path(snakemake.log[0])
    root, name = log.parents[2], log.stem
    params = json.loads(json.dumps(dict(snakemake.params.items()), default=str))
    outputs = {
        _within(root, path): {"digest": file_digest(path), "job": f"{snakemake.rule}/{name}"}
        for path in _paths(snakemake.output)
    }
    record = Record(
        rule=snakemake.rule,
        wildcards={key: str(value) for key, value in snakemake.wildcards.items()},
        params=params,
        config=digest(dict(snakemake.config)),
        code=str(params.get("code", "")),
        inputs=read,
        outputs={path: str(entry["digest"]) for path, entry in outputs.items()},
        versions=versions(),
        device=device,
        machine=f"{platform.machine()} {platform.system()} {platform.node()}",
        started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
    )
    _write_json(root / FOLDER / "jobs" / snakemake.rule / f"{name}.json", asdict(record))
    for path, entry in outputs.items():
        _write_json(_entry_path(root, path), entry)


def check_inputs(snakemake: Any) -> dict[str, str]:
    """Return the digest of each file that a job reads, and check those that the study's own jobs have written.

    Args:
        snakemake: As of `write_record`; uses input and log.

    Returns:
        Digests by path from the study's folder, or by path as given if it lies outside.

    Raises:
        ArtifactError: A file has changed since it was written, for example by a fault of the disk.
    """
    root = Path(snakemake.log[0]).parents[2]
    digests = {}
    for path in _paths(snakemake.input):
        name, found = _within(root, path), file_digest(path)
        place = _entry_path(root, name)
        if place.is_file() and _read_json(place).get("digest") != found:
            raise ArtifactError(
                f"{path} is damaged: it has changed since it was made; delete it and run the same command again"
            )
        digests[name] = found
    return digests


def _paths(files: Iterable[str]) -> list[str]:
    return sorted({str(path) for path in files if Path(path).is_file()})


def _within(root: Path, path: str | Path) -> str:
    """Return a path from the study's folder; one outside of it as it is."""
    place = Path(os.path.abspath(path))
    base = Path(os.path.abspath(root))
    return str(place.relative_to(base)) if place.is_relative_to(base) else str(path)


def _entry_path(root: Path, path: str) -> Path:
    return root / FOLDER / "files" / f"{path}.json"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it, and the file that it describes") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is damaged (no JSON object); delete it, and the file that it describes")
    return content


# ---------------------------------------------------------------------------------------------------------------------
# Tracing a file


@dataclass(frozen=True)
class Origin:
    """A file and where it comes from.

    Attributes:
        path: From the study's folder, or as recorded if it lies outside.
        recorded: Its digest when the file asked for was made.
        state: "unchanged", "changed" or "missing", as it lies on the disk now.
        record: The job that made it; None for what the study did not make.
        sources: The files that the job read.
    """

    path: str
    recorded: str
    state: str
    record: Record | None
    sources: Sequence[Origin]


def study_folder(path: str | Path) -> Path:
    """Return the folder of the study that a file belongs to.

    Raises:
        ArtifactError: The file does not exist, or no folder above it has records.
    """
    if not Path(path).exists():
        raise ArtifactError(f"{path} does not exist; run the stage that makes it")
    for folder in Path(os.path.abspath(path)).parents:
        if (folder / FOLDER / "files").is_dir():
            return folder
    raise ArtifactError(
        f"{path} has no record: no folder above it holds {FOLDER}/files. Records are written when a study runs; name a "
        "file below results/<study>"
    )


def trace(path: str | Path, runs: Sequence[str] | None = None, names: Sequence[str] | None = None) -> Origin:
    """Return where a file of a study comes from, down to the files that the study did not make.

    Args:
        path: The file.
        runs: Of the files that its own job read, keep those below these folders; all when None.
        names: Of these, keep the ones that end so; all when None.

    Raises:
        ArtifactError: The file does not exist, has no record, or a record is damaged.
    """
    root = study_folder(path)
    relative = _within(root, path)
    entry_path = _entry_path(root, relative)
    if not entry_path.is_file():
        known = sorted(str(place.relative_to(root / FOLDER / "files"))[:-5] for place in _entries(root))
        raise ArtifactError(f"{path} has no record{did_you_mean(relative, known).split(' Known:')[0]}")
    entry = _read_json(entry_path)
    seen: dict[tuple[str, str], Origin] = {}
    record = _record(root, str(entry["job"]))
    chosen = [
        name
        for name in record.inputs
        if (runs is None or any(name.startswith(f"{run}/") for run in runs))
        and (names is None or any(name.endswith(ending) for ending in names))
    ]
    sources = tuple(_origin(root, name, record.inputs[name], seen) for name in chosen)
    return Origin(relative, str(entry["digest"]), _state(root, relative, str(entry["digest"])), record, sources)


def _entries(root: Path) -> Iterator[Path]:
    return (root / FOLDER / "files").rglob("*.json")


def _record(root: Path, job: str) -> Record:
    path = root / FOLDER / "jobs" / f"{job}.json"
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist, though a file names it; delete the file and run its stage again")
    try:
        return Record(**_read_json(path))
    except TypeError as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it and the files of that job, and run") from error


def _origin(root: Path, path: str, recorded: str, seen: dict[tuple[str, str], Origin]) -> Origin:
    if (path, recorded) in seen:
        return seen[path, recorded]
    entry_path = _entry_path(root, path)
    record = None
    if entry_path.is_file():
        entry = _read_json(entry_path)
        # a file that was made anew since then was read in an older form, of which no record is left
        record = _record(root, str(entry["job"])) if entry["digest"] == recorded else None
    sources = () if record is None else tuple(_origin(root, name, was, seen) for name, was in record.inputs.items())
    seen[path, recorded] = Origin(path, recorded, _state(root, path, recorded), record, sources)
    return seen[path, recorded]


def _state(root: Path, path: str, recorded: str) -> str:
    place = root / path  # an absolute path stays what it is
    if not place.is_file():
        place = Path(path)
    if not place.is_file():
        return "missing"
    return "unchanged" if file_digest(place) == recorded else "changed"


def described(origin: Origin) -> str:
    """Return the trace of a file as text: its own job in full, then each file behind it, indented by distance."""
    lines = [f"{origin.path}  {origin.recorded}  {origin.state}"]
    if origin.record is not None:
        record = origin.record
        lines += [f"  {name:<12}{value}" for name, value in _facts(origin, record).items() if value]
    if origin.sources:
        lines.append("  made from")
        shown: set[tuple[str, str]] = set()
        for source in origin.sources:
            lines += _tree(source, 2, shown)
    return "\n".join(lines)


def _facts(origin: Origin, record: Record) -> dict[str, str]:
    behind = list(_ancestors(origin, set()))
    seeds = {one.record.wildcards["seed"] for one in behind if one.record and "seed" in one.record.wildcards}
    return {
        "rule": " ".join([record.rule, *(f"{key}={value}" for key, value in record.wildcards.items())]),
        "config": f"{record.config}, of it for this job {digest(record.params)}",
        "code": record.code,
        "data": _digests(behind, "data.h5"),
        "checkpoint": _digests(behind, ".safetensors"),
        "seed": ", ".join(sorted(seeds, key=int)),
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "device": record.device,
        "machine": record.machine,
        "time": f"{record.started}, {record.seconds} s",
    }


def _ancestors(origin: Origin, seen: set[tuple[str, str]]) -> Iterator[Origin]:
    if (origin.path, origin.recorded) not in seen:
        seen.add((origin.path, origin.recorded))
        yield origin
        for source in origin.sources:
            yield from _ancestors(source, seen)


def _digests(behind: Iterable[Origin], ending: str) -> str:
    return ", ".join(f"{one.recorded} ({one.path})" for one in behind if one.path.endswith(ending))


def _tree(origin: Origin, depth: int, shown: set[tuple[str, str]]) -> list[str]:
    indent = "  " * depth
    made = f"  by {origin.record.rule} ({origin.record.started}, code {origin.record.code})" if origin.record else ""
    state = "" if origin.state == "unchanged" else f"  {origin.state.upper()}"
    if (origin.path, origin.recorded) in shown:
        return [f"{indent}{origin.path}  (above)"] if origin.sources else [f"{indent}{origin.path}  {origin.recorded}"]
    shown.add((origin.path, origin.recorded))
    lines = [f"{indent}{origin.path}  {origin.recorded}{state}{made}"]
    for source in origin.sources:
        lines += _tree(source, depth + 1, shown)
    return lines
