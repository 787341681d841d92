"""All benchmarks, each in a process of its own: one table of ratios, peak memory, and how costs grow.

Run `make bench`, or `python benchmarks/run.py [--repeats 3] [--threads 2] [--only scan masking]`, on a machine that
does nothing else. `overhead.py`, which runs a whole study, is not among them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from harness import Ratio, table

FOLDER = Path(__file__).parent
BENCHMARKS = ("scan", "backprop", "anomaly", "masking", "sensitivity", "precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", default="3")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--only", nargs="+", choices=(*BENCHMARKS, "scaling"), default=(*BENCHMARKS, "scaling"))
    options = parser.parse_args()
    common = ["--repeats", options.repeats, "--threads", options.threads]
    rows: list[Ratio] = []
    for name in (name for name in options.only if name != "scaling"):
        started = time.perf_counter()
        command = [sys.executable, str(FOLDER / f"{name}.py"), *common, "--json"]
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        rows += [Ratio(**row) for row in found["rows"]]
        print(
            f"{name}: {time.perf_counter() - started:.0f} s, peak memory {found['peak_gib']:.2f} GiB",
            file=sys.stderr,
            flush=True,
        )
    if rows:
        print(table(rows), flush=True)
    if "scaling" in options.only:
        subprocess.run([sys.executable, str(FOLDER / "scaling.py"), *common], check=True)


if __name__ == "__main__":
    main()
