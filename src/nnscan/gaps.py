"""What a study lacks after a failure, and why: the runs and figures that are not there, with the jobs that failed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nnscan.artifacts import atomic_path
from nnscan.errors import printable
from nnscan.layout import Layout, RunKey

_DONE = re.compile(r" INFO done in [\d.]+ s$")
_SILENT = "ended without a message: killed, or its machine went down"
_UNEXPECTED = "unexpected error"  # in a log, the traceback follows and ends with the error


class Failure(NamedTuple):
    """A job that did not end well.

    Attributes:
        rule: Its rule.
        wildcards: Its wildcards, for example dataset.
        message: What it said last, in one line.
        log: The file with all that it said.
    """

    rule: str
    wildcards: Mapping[str, str]
    message: str
    log: str


class Gap(NamedTuple):
    """Something that a study lacks.

    Attributes:
        what: A run, or the figures of a data set and model, as people name it.
        failures: The failed jobs that it would need; none where Snakemake did not come to it.
    """

    what: str
    failures: Sequence[Failure]


def failures(layout: Layout) -> list[Failure]:
    """Return the jobs of a study whose logs do not end well, sorted by rule and wildcards."""
    found = []
    for path in sorted(Path(layout.root, "logs").glob("*/*.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines or not _DONE.search(lines[-1]):
            head = lines[0] if lines else ""
            wildcards = dict(re.findall(r" (\w+)=(\S+?)(?=,? )", head))
            found.append(Failure(path.parent.name, wildcards, printable(_last_words(lines)), str(path)))
    return found


def _last_words(lines: Sequence[str]) -> str:
    errors = [line.split(" ERROR ", 1)[1] for line in lines if " ERROR " in line]
    if not errors:
        return _SILENT
    return lines[-1] if errors[-1] == _UNEXPECTED else errors[-1]


def incomplete_runs(layout: Layout, failed: Sequence[Failure]) -> dict[RunKey, list[Failure]]:
    """Return the runs that lack a file or of which a job has failed, with their failed jobs."""
    found = {}
    for run in layout.runs():
        own = {"dataset": run.dataset, "model": run.model, "seed": str(run.seed)}
        behind = [one for one in failed if _belongs(one, own) and set(one.wildcards) != {"dataset", "model"}]
        if behind or not all(Path(path).is_file() for path in layout.run_files(run)):
            found[run] = behind
    return found


def undrawn(layout: Layout, failed: Sequence[Failure]) -> dict[tuple[str, str], list[Failure]]:
    """Return the data sets and models whose figures could not be drawn, with the failed jobs."""
    found = {}
    for dataset, model in layout.networks():
        own = {"dataset": dataset, "model": model}
        behind = [one for one in failed if _belongs(one, own) and set(one.wildcards) == set(own)]
        if behind:
            found[dataset, model] = behind
    return found


def _belongs(failure: Failure, own: Mapping[str, str]) -> bool:
    """Return whether a failed job was one of a run or network, or of its data set."""
    shared = own.keys() & failure.wildcards.keys()
    return bool(shared) and all(own[name] == failure.wildcards[name] for name in shared)


def gaps(layout: Layout) -> list[Gap]:
    """Return what a study lacks: runs, figures, and what is made of all runs together."""
    failed = failures(layout)
    runs, figures = incomplete_runs(layout, failed), undrawn(layout, failed)
    return [
        *(Gap(f"{run.model} on {run.dataset}, seed {run.seed}", behind) for run, behind in runs.items()),
        *(Gap(f"figures of {model} on {dataset}", behind) for (dataset, model), behind in figures.items()),
        *(Gap("what is made of all runs", [one]) for one in failed if not one.wildcards),
    ]


def complete_runs(layout: Layout) -> list[RunKey]:
    """Return the runs of which nothing is missing, in the order of the study."""
    lacking = incomplete_runs(layout, failures(layout))
    return [run for run in layout.runs() if run not in lacking]


def complete_networks(layout: Layout) -> list[tuple[str, str]]:
    """Return the data sets and models of which neither a run nor a figure is missing, in the order of the study."""
    failed = failures(layout)
    lacking = {(run.dataset, run.model) for run in incomplete_runs(layout, failed)} | set(undrawn(layout, failed))
    return [network for network in layout.networks() if network not in lacking]


def sentences(found: Sequence[Gap]) -> list[list[str]]:
    """Return, for each gap, what is missing and a line for each job that failed."""
    return [
        [gap.what, *(f"{one.rule}: {one.message} ({one.log})" for one in gap.failures)]
        if gap.failures
        else [gap.what, "not begun"]
        for gap in found
    ]


def clear(layout: Layout) -> None:
    """Remove an earlier list of what a study lacks, and the logs of failed jobs, which are not asked for any more."""
    with suppress(OSError):  # a folder that has become read-only: the study is complete all the same
        for failure in failures(layout):
            Path(failure.log).unlink(missing_ok=True)
        Path(layout.root, "missing.md").unlink(missing_ok=True)


def announce(layout: Layout) -> str:
    """Write what a study lacks to missing.md in its folder, and return it as text; without gaps the file goes.

    The text says so where the file cannot be written.
    """
    path, found = Path(layout.root, "missing.md"), gaps(layout)
    lines = []
    for what, *reasons in sentences(found):
        lines += [f"- {what}", *(f"  - {reason}" for reason in reasons)]
    if found and Path(layout.root, "claims.csv").exists():
        lines += ["", "The tables that are there are of an earlier run."]
    text = "\n".join(lines)
    try:
        if not found:
            path.unlink(missing_ok=True)
        else:
            with atomic_path(path) as temporary:
                temporary.write_text(f"# What study {layout.study.study} lacks\n\n{text}\n", encoding="utf-8")
    except OSError as error:  # ArtifactError is one
        text += f"\n({error})"
    return text
