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

from nnscan.configuration import Study, read_study
from nnscan.errors import NnscanError


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


_cores.__name__, _rate.__name__ = "number of cores", "number of multiply-adds per second"  # for argparse's sentence


def _estimate(arguments: argparse.Namespace) -> None:
    study = read_study(arguments.configfile) if arguments.configfile else Study()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that are imported, about themselves
        from nnscan.estimate import GPU_MACS, describe, estimate

        # this process has imported what a job of the workflow imports
        start = time.process_time()
        print(describe(estimate(study, arguments.cores, arguments.gpu_macs or GPU_MACS, start)))


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
