"""The frame around every rule's script: its log, its threads, and what a user sees when it fails."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnscan.errors import NnscanError, printable
from nnscan.records import check_inputs, write_record
from nnscan.slots import gpu_slot

log = logging.getLogger("nnscan")

_GIVEN = ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES")
_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "could not create a primitive")


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run a rule's script: messages and a traceback go to the rule's log, and the reason of a failure to the terminal.

    A block that ends well leaves a record of what it read and wrote (`nnscan.records`).

    Args:
        snakemake: The object that Snakemake gives to a script; uses log, rule, wildcards, threads, resources,
            config, params, input and output. The log lies in <study>/logs/<rule>.

    Raises:
        SystemExit: The block raised; the exit status is 1.
    """
    path = Path(snakemake.log[0])
    name = " ".join([snakemake.rule, *(f"{key}={value}" for key, value in snakemake.wildcards.items())])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link in its place would be written through
        handler = _Log(path, mode="w", encoding="utf-8")
    except OSError as error:
        print(f"\nnnscan: {name}: cannot write {path}: {error.strerror}; choose another folder", file=sys.stderr)
        raise SystemExit(1) from None
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    began, started = time.time(), time.perf_counter()
    log.info("%s, %d thread(s)", name, snakemake.threads)
    _limit_threads(snakemake.threads)
    tqdm.monitor_interval = 0  # no thread of its own: where memory is short, starting one can wait for ever
    device = snakemake.config.get("device", "auto")
    try:
        with gpu_slot(snakemake.resources.get("gpu", 0), device), _on_device(device):
            log.info("on %s", _place())
            read = check_inputs(snakemake)
            yield
            write_record(snakemake, read, _device(), began, time.perf_counter() - started)
    except NnscanError as error:
        log.error("%s\n%s", error, traceback.format_exc())
        _stop(f"{name}: {error}", path)
    except Exception as error:
        if _lacks_memory(error):
            log.error("out of memory\n%s", traceback.format_exc())
            _stop(f"{name}: out of memory; use fewer samples, larger blocks, or more memory", path)
        # the boundary of a job: whatever it was must reach the log before the process ends
        log.exception("unexpected error")
        _stop(f"{name}: {type(error).__name__}: {error}", path)
    log.info("done in %.1f s", time.perf_counter() - started)
    logging.shutdown()


class _Printable(logging.Formatter):
    """Writes out what a terminal would act upon: names of a stranger's files stand in messages and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Log(logging.FileHandler):
    """A job's log; that it cannot be written is said once on the terminal, and the job goes on."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            self.failed = True
            print(f"nnscan: cannot write the log {self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr)


def _lacks_memory(error: Exception) -> bool:
    """Return whether an error says that there is no memory left, as torch, C++ and oneDNN put it."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
    )


def _limit_threads(threads: int) -> None:
    """Give torch, where the script uses it, the rule's threads: other counts sum in another order."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _on_device(device: str) -> AbstractContextManager[None]:
    """Put models, where the script uses them, on the configured device."""
    models = sys.modules.get("nnscan.models")
    return nullcontext() if models is None else models.device_setting(device)


def _device() -> str:
    """Return where the script's tensors were: "cpu", or a GPU by its name; empty where it has none."""
    models, torch = sys.modules.get("nnscan.models"), sys.modules.get("torch")
    if models is None or torch is None:
        return ""
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else str(models.chosen_device())


def _place() -> str:
    """Return where the job runs, for its log: the machine, and what a scheduler or a slot has given it."""
    given = [f"{name}={os.environ[name]}" for name in _GIVEN if name in os.environ]
    return ", ".join([platform.node(), *given])


def _stop(message: str, path: Path) -> None:
    logging.shutdown()
    print(printable(f"\nnnscan: {message}\nnnscan: the traceback is in {path}"), file=sys.stderr)
    raise SystemExit(1)
