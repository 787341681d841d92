"""How long Snakemake takes to plan a study, and how much memory, by its number of runs.

Run `python benchmarks/planning.py [--runs 100 1000]`. A dry run on a study of four models with so many seeds that it
has the given number of runs; nothing is trained. The processor time counts: the wall time depends on what else runs.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
MODELS = ("lenet5", "simple_cnn", "alexnet", "vgg11")


def plan(runs: int) -> str:
    """Return jobs, seconds and peak memory of planning a study with a number of runs."""
    study = {
        "study": "planned",
        "datasets": [{"name": "digits", "source": "digits"}],
        "models": [{"name": name, "source": name} for name in MODELS],
        "seeds": list(range(runs // len(MODELS))),
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "study.yaml"
        config.write_text(yaml.safe_dump(study), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", folder]
        with open(Path(folder) / "out", "w+", encoding="utf-8") as out:
            started = time.perf_counter()
            process = subprocess.Popen([*command, "--dry-run", "--configfile", str(config)], stdout=out, stderr=out)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
            out.seek(0)
            text = out.read()
    if status:
        sys.exit(text[-3000:])
    jobs = int(re.findall(r"^total +(\d+)$", text, re.MULTILINE)[-1])
    processor = usage.ru_utime + usage.ru_stime
    memory = usage.ru_maxrss / 2**20
    return f"{runs} runs, {jobs} jobs: {processor:.1f} s of processor time, {wall:.1f} s, {memory:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[4, 100, 1000])
    for runs in parser.parse_args().runs:
        print(plan(runs), flush=True)


if __name__ == "__main__":
    main()
