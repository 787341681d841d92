"""A small study and how tests run it, disturb it and compare its tables."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

STUDY: dict[str, Any] = {
    "study": "faults",
    "datasets": [
        {
            "name": "digits", "source": "digits", "size": 16,
            "train_limit": 200, "validation_limit": 60, "test_limit": 60,
            "foreground": {"kind": "threshold", "threshold": 0.2},
        }
    ],
    "models": [{"name": "simple_cnn", "source": "simple_cnn"}],
    "seeds": [0],
    "training": {"epochs": 12, "overfitting_epochs": 0},
    "averages": {"extremes": 5, "steps": 5},
    "scan": {"samples": 4},
    "knowledge": {"samples": 4, "neurons": 4, "winners": 10},
    "properties": {"samples": 10},
    "anomaly": {"samples": 50},
    "experiments": {"draws": 2, "steps": 2, "layer_removal": False},
}  # fmt: skip
ROOT = "results/faults"
RUN = f"{ROOT}/digits/simple_cnn/seed0"
CLAIMS = f"{ROOT}/claims.csv"
WEIGHTS = f"{RUN}/training/well_trained.safetensors"
PATIENCE = 600  # seconds, for a machine that is busy


def write_study(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}), encoding="utf-8")
    return path


def command(repository: Path, config: Path, *arguments: str, cores: int = 1) -> list[str]:
    """Return the command that runs the study of a configuration in the folder where that lies."""
    return [
        *(sys.executable, "-m", "snakemake", *arguments, "--snakefile", str(repository / "Snakefile")),
        *("--directory", str(config.parent), "--cores", str(cores), "--configfile", str(config)),
    ]


def run(repository: Path, config: Path, *arguments: str, cores: int = 1, **options: Any) -> tuple[int, str]:
    """Run a study; return its exit status and all that it printed."""
    done = subprocess.run(
        command(repository, config, *arguments, cores=cores),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options,
    )  # fmt: skip
    return done.returncode, done.stdout


def complete(ended: tuple[int, str]) -> str:
    status, output = ended
    assert status == 0, output[-6000:]
    return output


def planned(output: str) -> set[str]:
    """Return the rules of the table of jobs that a dry run prints."""
    table = output.split("job  ")[-1] if "Nothing to be done" not in output else ""
    rows = [line.split() for line in table.splitlines()]
    return {row[0] for row in rows if len(row) == 2 and row[1].isdigit()} - {"all", "total"}


@contextmanager
def running(repository: Path, config: Path, *arguments: str, cores: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Run a study while the block disturbs it, in a process group of its own; wait for its end."""
    with open(config.parent / "printed.txt", "a", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command(repository, config, *arguments, cores=cores),
            stdout=stream, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            # who starts the tests in the background has them ignore Ctrl-C, and all that they start
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    try:
        yield process
        process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


def until(happened: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Return what happens as soon as it is true, while the study runs."""
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert process.poll() is None, "the study ended before"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
    return found


def job_of(folder: Path, script: str) -> int | None:
    """Return the process that runs a script of the study in a folder."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(f".{script}.py".encode()) for word in words) and (place / "cwd").resolve() == folder:
                return int(place.name)
        except OSError:  # it has ended meanwhile
            continue
    return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process of the tests at a time into the block, by a lock beside a folder that they share."""
    with open(folder.with_suffix(".lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def smoke(repository: Path, folder: Path) -> Path:
    """Return a folder in which the smoke study has run: the one that NNSCAN_SMOKE names, for all tests, or this one."""
    folder = Path(os.environ.get("NNSCAN_SMOKE", folder)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if not (folder / "results/smoke/report.html").exists():
            config = repository / "config/studies/smoke.yaml"
            where = {
                "--directory": folder,
                "--cores": 2,
                "--configfile": config,
                "--snakefile": repository / "Snakefile",
            }
            words = [str(word) for pair in where.items() for word in pair]
            done = subprocess.run(
                [sys.executable, "-m", "snakemake", *words],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                env={**os.environ, "PYTHONPATH": ""},
            )  # fmt: skip
            complete((done.returncode, done.stdout))
    return folder


def tables(folder: Path, below: str = ROOT) -> dict[str, bytes]:
    """Return the tables and claims of a study."""
    paths = [*sorted((folder / below / "tables").glob("*.csv")), folder / below / "claims.csv"]
    assert len(paths) > 10
    return {path.name: path.read_bytes() for path in paths}


def assert_alike(one: Path, other: Path) -> None:
    """Say that two folders hold the same tables, byte for byte, and claims that are equal to five digits."""
    found, expected = tables(one), tables(other)
    claims = [pd.read_csv(io.BytesIO(files.pop("claims.csv"))) for files in (found, expected)]
    assert found == expected
    pd.testing.assert_frame_equal(*claims, rtol=1e-5, atol=0)


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files that lie in a study's results."""
    return [path for path in (folder / "results").rglob(".*") if path.is_file()]
