"""What an explanation costs: time and memory for one image."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nnscan.explanations import Method, Setting
from nnscan.metrics import Inputs, Metric, Score, judged, maps_of
from nnscan.models import device_of

INTERVAL = 0.001
"""Seconds between two looks at the process's memory."""

_STATM = Path("/proc/self/statm")
_NO_MEMORY = "the memory of a process is read from /proc, which this system does not have"

METRICS = (
    Metric(
        name="seconds",
        title="time per image (s)",
        question="cost",
        direction="lower",
        low=0,
        high=np.inf,
        paper="",
        year=0,
        meaning="Wall time in seconds in which one image is explained, alone, after a call that does not count.",
    ),
    Metric(
        name="megabytes",
        title="peak memory per image (MB)",
        question="cost",
        direction="lower",
        low=0,
        high=np.inf,
        paper="",
        year=0,
        meaning="Peak memory in 10^6 bytes, beyond what was held before, while one image is explained, alone.",
    ),
)
"""The metrics of `cost_scores`."""


@dataclass
class Cost:
    """What a block of code took.

    Attributes:
        seconds: Wall time.
        megabytes: Peak memory beyond what was held before, in 10^6 bytes; NaN where it cannot be told.
    """

    seconds: float = np.nan
    megabytes: float = np.nan


class _Watch(threading.Thread):
    """Looks at the process's resident memory until it is told to stop.

    Attributes:
        peak: Largest number of resident pages seen.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = _resident_pages()
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(INTERVAL):
            self.peak = max(self.peak, _resident_pages())

    def stop(self) -> None:
        self._done.set()
        self.join()
        self.peak = max(self.peak, _resident_pages())


def _resident_pages() -> int:
    return int(_STATM.read_text().split()[1])


def _give_back() -> None:
    """Let the C library give free pages back to the system, so that using them again shows; glibc alone can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure the block: its wall time and the peak memory of the device that it ran on.

    On a CUDA device the memory is that of torch's allocator, exact to its blocks of 512 bytes. On the CPU it is the
    process's resident memory, looked at every millisecond and in whole pages: peaks shorter than that, and memory that
    libraries hold ready from before, do not show, so values below about a megabyte say only that it is little. The
    looks take some per cent of the time of a block that runs mostly in Python.

    Args:
        device: Where the block computes.

    Yields:
        The cost, filled in when the block ends.
    """
    cost = Cost()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        start = time.perf_counter()
        yield cost
        torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - start
        cost.megabytes = (torch.cuda.max_memory_allocated(device) - held) / 1e6
    elif device.type == "cpu" and _STATM.is_file():
        _give_back()
        watch, held = _Watch(), _resident_pages()
        watch.start()
        start = time.perf_counter()
        try:
            yield cost
        finally:
            cost.seconds = time.perf_counter() - start
            watch.stop()
        cost.megabytes = (watch.peak - held) * os.sysconf("SC_PAGE_SIZE") / 1e6
    else:
        start = time.perf_counter()
        yield cost
        cost.seconds = time.perf_counter() - start


def _of_one(setting: Setting, number: int) -> Setting:
    """Return what methods are given of one input alone."""
    return setting if setting.scanned is None else replace(setting, scanned=setting.scanned.part(np.array([number])))


def synthesis_costs(
    model: nn.Module, images: Mapping[str, Tensor], methods: Iterable[Method], setting: Setting
) -> pd.DataFrame:
    """Return time and peak memory of methods that make images of classes, for one image: of the first class, alone.

    Args:
        model: The model.
        images: What methods have made of all classes (classes, C, H, W), by name: no call here is a method's first.
        methods: The methods; those that have made no images are left out.
        setting: What methods are given.

    Returns:
        method, seconds, megabytes (see `METRICS`).
    """
    rows = []
    for method in methods:
        if method.synthesise is not None and method.name in images:
            channels, height, width = images[method.name].shape[1:]
            gc.collect()
            with measured(device_of(model)) as cost:
                method.synthesise(model, (channels, height, width), [0], setting)
            rows.append((method.name, cost.seconds, cost.megabytes))
    return pd.DataFrame(rows, columns=["method", "seconds", "megabytes"])


def cost_scores(model: nn.Module, inputs: Inputs, methods: Iterable[Method]) -> pd.DataFrame:
    """Return time and peak memory of methods, for each input, which is explained alone.

    Args:
        model: The model.
        inputs: The inputs; a few are enough. What a scan has said of them before costs nothing here.
        methods: The methods; each is called once before, with the first input.

    Returns:
        See `metrics.COLUMNS`; the metrics are `METRICS`.
    """
    device = device_of(model)

    def judge(method: Method) -> Iterator[Score]:
        def explain(number: int) -> None:
            own = slice(number, number + 1)
            maps_of(method, model, inputs.x[own], inputs.classes[own], _of_one(inputs.setting, number))

        explain(0)
        gc.collect()  # not before every image: it takes longer than a small explanation
        found = []
        for number in range(len(inputs.x)):
            with measured(device) as cost:
                explain(number)
            found.append(cost)
        yield Score("seconds", np.array([cost.seconds for cost in found]))
        yield Score("megabytes", np.array([cost.megabytes for cost in found]), reason=_NO_MEMORY)

    return judged(methods, inputs.samples, METRICS, judge)
