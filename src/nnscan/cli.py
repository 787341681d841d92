"""The command `nnscan`: what can be asked about a study beside running it.

Each subcommand imports what it needs when it is called, so that none waits for another's libraries.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from nnscan.configuration import Study, read_study
from nnscan.errors import ArtifactError, NnscanError, did_you_mean, printable


def _cores(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(text)
    return name, value


# for argparse's sentence
_cores.__name__, _rate.__name__ = "number of cores", "number of multiply-adds per second"
_condition.__name__ = "COLUMN=VALUE"


def _estimate(arguments: argparse.Namespace) -> None:
    study = read_study(arguments.configfile) if arguments.configfile else Study()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that are imported, about themselves
        from nnscan.estimate import GPU_MACS, describe, estimate

        # this process has imported what a job of the workflow imports
        start = time.process_time()
        print(describe(estimate(study, arguments.cores, arguments.gpu_macs or GPU_MACS, start)))


def _check(arguments: argparse.Namespace) -> None:
    study = read_study(arguments.configfile)
    named = study.named_methods()
    if named:
        from nnscan.explainers import check_names

        check_names(named)
    code = [
        model.source for model in study.models if ":" in model.source and not model.source.startswith("torchvision:")
    ]
    print(
        f"study {study.study}: data sets {', '.join(dataset.name for dataset in study.datasets)}; models "
        f"{', '.join(model.name for model in study.models)}; code that it runs: {printable(', '.join(code)) or 'none'}"
    )


def _provenance(arguments: argparse.Namespace) -> None:
    from nnscan.limits import reading
    from nnscan.records import described, study_folder, trace

    for path in arguments.paths:
        study_folder(path)  # which says what is wrong with a path that has no records
        with reading(path):  # the records may be a stranger's
            if arguments.where:
                rows, runs, names = _cells(path, arguments.where)
                print(printable(rows))
                print(printable(described(trace(path, runs, names))))
            else:
                print(printable(described(trace(path))))


def _cells(path: str, where: Sequence[tuple[str, str]]) -> tuple[str, list[str], Sequence[str] | None]:
    """Return the rows of a table that were asked for, as text, the folders of their runs, and the files it reads."""
    import pandas as pd

    from nnscan.contents import TABLES

    table = Path(path)
    if table.suffix != ".csv" or not table.is_file():
        raise ArtifactError(f"--where picks rows of a table; {path} is no CSV file that exists")
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    if not {"dataset", "model"} <= set(frame.columns):
        raise ArtifactError(f"--where needs the columns dataset and model; {path} has {', '.join(frame.columns)}")
    for name, value in where:
        if name not in frame.columns:
            raise ArtifactError(f"{path} has no column {name!r}{did_you_mean(name, frame.columns)}")
        left = frame[frame[name] == value]
        if left.empty:
            raise ArtifactError(f"no row of {path} has {name} {value!r}{did_you_mean(value, frame[name].unique())}")
        frame = left
    runs = sorted({f"{row.dataset}/{row.model}" for row in frame.itertuples()})
    names = TABLES[table.stem].inputs if table.stem in TABLES else None
    return frame.to_csv(index=False).rstrip(), runs, names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nnscan", description="Ask about a study, beside running it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, text: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    estimate = command(
        "estimate", "Print what a study costs before it runs: jobs, hours, wall time, disk and memory.", _estimate
    )
    estimate.add_argument("--configfile", metavar="STUDY.yaml", help="the study; the embedded default when left out")
    estimate.add_argument(
        "--cores", type=_cores, default=os.cpu_count() or 1, metavar="N", help="cores for the wall time (%(default)s)"
    )
    estimate.add_argument(
        "--gpu-macs", type=_rate, metavar="X",
        help="multiply-adds per second that a GPU is taken to do; a fifth of an A100's peak when left out",
    )  # fmt: skip
    check = command(
        "check", "Check a study's file without running anything, and name the code that it would run.", _check
    )
    check.add_argument("configfile", metavar="STUDY.yaml", help="the study")
    provenance = command(
        "provenance", "Print what a file of a study was made from: configuration, code, data, checkpoint.", _provenance
    )
    provenance.add_argument("paths", nargs="+", metavar="FILE", help="a file below results/<study>")
    provenance.add_argument(
        "--where", type=_condition, action="append", metavar="COLUMN=VALUE",
        help="of a table (.csv): only the rows with this value, and what they were made from; may be repeated",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name; the process's own when None.

    Returns:
        The exit status: 0, or 2 where the configuration, the data or a model is at fault.
    """
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except NnscanError as error:
        print(f"nnscan: {error}", file=sys.stderr)
        return 2
    return 0
