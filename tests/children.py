"""Work in child processes that a test may kill or starve: each is a fork of a server that has imported nnscan once."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

import nnscan.training
from nnscan.artifacts import write_frame
from nnscan.data import Dataset, Split, build_dataset, write_dataset
from nnscan.figures import save_figure
from nnscan.jobs import job
from nnscan.models import save_weights
from nnscan.moments import Moments, write_moments
from nnscan.report import Study, write_report
from nnscan.scanner import scan_samples
from nnscan.training import Protocol, train, write_csv

_context = multiprocessing.get_context("forkserver")
# the last one is what torch imports when a scan or a training begins
_context.set_forkserver_preload(
    ["nnscan.report", "nnscan.figures", "nnscan.scanner", "nnscan.training", "torch._dynamo"]
)

PATIENCE = 600  # seconds, for a machine that is busy


@dataclass(frozen=True)
class Child:
    """A child process and what it prints."""

    process: multiprocessing.process.BaseProcess
    output: Path

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"still running: {self.printed()}"
        return self.process.exitcode

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8")


def start(output: Path, work: Callable[..., None], *arguments: object) -> Child:
    """Start work in a child; what it prints goes to `output`."""
    process = _context.Process(target=_enter, args=(output, work, arguments))
    process.start()
    return Child(process, output)


def _enter(output: Path, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    with open(output, "w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    torch.set_num_threads(1)
    work(*arguments)


def wait_for(happened: Callable[[], object], child: Child | None = None, pause: float = 0.002) -> None:
    """Wait until something has happened, while the child lives."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert child is None or child.process.exitcode is None, child.printed()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)


# What children do ---------------------------------------------------------------------------------------------------


def columns(side: int = 8) -> Dataset:
    """Images with a bright column at the left, in the middle or at the right."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, size in (("train", 240), ("validation", 60), ("test", 60)):
        labels = np.arange(size) % 3
        images = rng.integers(0, 120, (size, 1, side, side), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, :, (1 + 2 * label) * side // 8] += 60
        splits[split] = Split(images, labels)
    return build_dataset("columns", ("left", "middle", "right"), splits)


def network(width: int = 4, side: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(width * (side - 2) ** 2, 3),
    )  # fmt: skip


def as_job(folder: Path, rule: str) -> SimpleNamespace:
    """Return what `nnscan.jobs.job` needs of Snakemake for a job without declared files."""
    return SimpleNamespace(
        log=[str(folder / "logs" / rule / "one.log")], rule=rule, wildcards={}, threads=1,
        resources={}, config={"device": "cpu"}, params={}, input=[], output=[],
    )  # fmt: skip


def training(folder: Path, epochs: int) -> None:
    origin = {"model": "columns", "code": "1", "created": "now"}
    protocol = Protocol(epochs=epochs, batch_size=16, augmentation="shift_flip")
    with job(as_job(folder, "train_model")):
        train(network, columns(), protocol, folder / "training", 0, origin, progress=False)


def scan(folder: Path, samples: int) -> None:
    torch.manual_seed(0)
    model, x = network().eval(), torch.rand(samples, 1, 8, 8)
    with job(as_job(folder, "scan_neurons")):
        write_moments(folder / "scan.h5", scan_samples(model, x), samples, {"created": "now"})


def large_scan(folder: Path, bytes_left: int) -> None:
    """A scan of a network that needs more memory than there is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()).eval()
    x = torch.rand(2, 3, 96, 96)
    with job(as_job(folder, "scan_neurons")):
        starve(bytes_left)
        write_moments(folder / "scan.h5", scan_samples(model, x), 2, {"created": "now"})


def large_training(folder: Path, bytes_left: int) -> None:
    """A training of a network that needs more memory than there is."""
    dataset = columns(64)
    with job(as_job(folder, "train_model")):
        starve(bytes_left)
        protocol = Protocol(epochs=1, batch_size=240)
        train(lambda: network(64, 64), dataset, protocol, folder / "training", 0, {}, progress=False)


def long_scan(folder: Path, marks: tuple[int, ...]) -> None:
    """Scan as many images as the last mark says; print the resident memory in bytes at each mark."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU()).eval()

    def watched(parts: Iterator[Moments]) -> Iterator[Moments]:
        seen, waiting = 0, list(marks)
        for part in parts:
            yield part
            seen += len(part.samples)
            if waiting and seen >= waiting[0]:
                waiting.pop(0)
                pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
                print(pages * resource.getpagesize(), flush=True)

    parts = scan_samples(model, torch.rand(marks[-1], 1, 8, 8))
    write_moments(folder / "scan.h5", watched(parts), marks[-1], {})


def starve(bytes_left: int) -> None:
    """Leave this process so much memory more than it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + bytes_left
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def write_forever(path: Path) -> None:
    """Write one artefact again and again."""
    while True:
        WRITERS[path.name](path)


def write_as_job(path: Path, study: Path, largest: int | None = None) -> None:
    """Write one artefact as a job does; no file may become larger than `largest` bytes, where that is not 0 or None."""
    if largest:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    with job(as_job(study, "write")):
        WRITERS[path.name](path)


def write_without_override(path: Path, study: Path) -> None:
    """Write one artefact as a job of a user whom permissions bind."""
    without_override()
    write_as_job(path, study)


def without_override() -> None:
    """Make permissions hold for root too, in this process and in what it executes."""
    libc, override = ctypes.CDLL(None, use_errno=True), 1  # CAP_DAC_OVERRIDE
    libc.prctl(24, override, 0, 0, 0)  # PR_CAPBSET_DROP
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3; effective comes first
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << override)
    assert libc.capset(header, sets) == 0


def _scan(path: Path) -> None:
    write_moments(path, scan_samples(network().eval(), torch.rand(40, 1, 8, 8)), 40, {})


def _weights(path: Path) -> None:
    save_weights(path, nn.Linear(500, 500), {})


def _state(path: Path) -> None:
    trainer = nnscan.training._Trainer(nn.Linear(500, 500), Protocol(), "regular", 0, 0)
    nnscan.training.save_state(path, "key", trainer.state())


def _numbers() -> pd.DataFrame:
    return pd.DataFrame({"value": np.random.default_rng(0).random(100_000)})


def _figure(path: Path) -> None:
    figure = Figure(figsize=(4, 4))
    figure.subplots().imshow(np.random.default_rng(0).random((900, 900)), interpolation="none")
    save_figure(path, figure)


def _report(path: Path) -> None:
    claims = pd.DataFrame(columns=["id", "table", "dataset", "model", "verdict"])
    study = Study("small", "Nothing. " * 100_000, ["digits"], ["lenet5"], [0], "none", {})
    write_report(path, study, [], claims, [], [])


WRITERS: dict[str, Callable[[Path], None]] = {
    "data.h5": lambda path: write_dataset(path, columns(64), {}),
    "scan.h5": _scan,
    "table.parquet": lambda path: write_frame(path, _numbers(), {}),
    "weights.safetensors": _weights,
    "state.pt": _state,
    "history.csv": lambda path: write_csv(path, _numbers()),
    "figure.png": _figure,
    "report.html": _report,
}
"""What writes an artefact of more than half a megabyte, by its name."""
