"""How much of a study's time is spent on starting up: interpreters, imports and Snakemake itself.

Run `python benchmarks/overhead.py [--cores 2] [--configfile config/config.yaml]`. The study is run from scratch in a
temporary folder. Start-up is the processor time of each script's import lines, measured alone, times its jobs;
Snakemake's own part is the processor time of its main process. Target: under 35 % of all processor time.
"""

from __future__ import annotations

import argparse
import ast
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]


def children_cpu() -> float:
    """Return the processor time in seconds of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def own_cpu(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process and return its own processor time in seconds, without that of its children."""
    ticks = 0
    while process.poll() is None:
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12]) or ticks
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    return ticks / os.sysconf("SC_CLK_TCK")


def import_cpu(script: Path) -> float:
    """Return the processor time in seconds of starting Python and importing what a script imports."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    lines = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    before = children_cpu()
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return children_cpu() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="2")
    parser.add_argument("--configfile", type=Path, default=ROOT / "config" / "config.yaml")
    options = parser.parse_args()
    scripts = {path.stem: import_cpu(path) for path in sorted((ROOT / "workflow" / "scripts").glob("*.py"))}
    scripts["overfit_model"] = scripts["train_model"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder),
            *("--cores", options.cores, "--configfile", options.configfile.resolve(), "--quiet", "all"),
        ]
        started, before = time.perf_counter(), children_cpu()
        own = own_cpu(subprocess.Popen(list(map(str, command))))
        wall, total = time.perf_counter() - started, children_cpu() - before
        rows = []
        for path in Path(folder).glob("results/*/benchmarks/*/*.tsv"):
            rows.append((path.parent.name, float(pd.read_csv(path, sep="\t")["cpu_time"].iloc[0])))
    jobs = pd.DataFrame(rows, columns=["rule", "cpu"])
    jobs["imports"] = jobs["rule"].str.replace("_of_one_checkpoint", "").map(scripts)
    table = jobs.groupby("rule").agg(jobs=("cpu", "size"), cpu=("cpu", "sum"), imports=("imports", "sum"))
    print(table.sort_values("cpu", ascending=False).round(1).to_string())
    startup = jobs["imports"].sum()
    print(f"\nwall {wall:.0f} s, processor {total:.0f} s on {options.cores} cores")
    share = (startup + own) / total
    print(f"start-up and imports {startup:.0f} s, Snakemake {own:.0f} s: {share:.0%} of the processor time")


if __name__ == "__main__":
    main()
