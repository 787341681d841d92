"""What the benchmarks share: paired timings, their table, and peak memory.

A benchmark is a module with a function `measure(repeats) -> list[Ratio]`. Two things that are compared are timed in
turns in the same process, so that both see the same state of the machine; a ratio is that of their medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Ratio:
    """One comparison.

    Attributes:
        benchmark: What is compared, for example "scan, VGG-11, 32 x 32".
        against: What it is compared with, for example "Captum NeuronGradient (extrapolated)".
        seconds: Ours, median.
        other_seconds: The other's, median.
        target: What the ratio other / ours should be at least; None where there is no target.
        note: What a reader must know, for example how it was extrapolated.
    """

    benchmark: str
    against: str
    seconds: float
    other_seconds: float
    target: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.other_seconds / self.seconds


def seconds(function: Callable[[], Any]) -> float:
    """Return the time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def paired(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median time of each function over some rounds, each round calling all, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(repeats + 1):
        for name, function in functions.items():
            elapsed = seconds(function)
            if round_number:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_gib() -> float:
    """Return the most memory this process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_of(code: str) -> float:
    """Return the most memory in GiB that a fresh interpreter holds while it runs some code, torch included.

    Linux counts to a new process what the one that started it held, so a small one stands between.
    """
    between = (
        "import resource, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)"
    )
    found = subprocess.run([sys.executable, "-c", between, code], check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def table(rows: list[Ratio]) -> str:
    """Return the comparisons as a Markdown table."""
    lines = [
        "| benchmark | against | ours s | other s | times faster | target | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        target = "" if row.target is None else f"{row.target:g}{'' if row.ratio >= row.target else ' MISSED'}"
        lines.append(
            f"| {row.benchmark} | {row.against} | {row.seconds:.3g} | {row.other_seconds:.3g} | {row.ratio:.3g} "
            f"| {target} | {row.note} |"
        )
    return "\n".join(lines)


def run(measure: Callable[[int], list[Ratio]]) -> None:
    """Run one benchmark from the command line."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print rows for benchmarks/run.py instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options.repeats)
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "peak_gib": peak_gib()}))
    else:
        print(table(rows))
        print(f"\npeak memory of the process: {peak_gib():.2f} GiB")
