"""One job per GPU on a machine with several: a lock file for each, because Snakemake counts GPUs but hands out none.

A scheduler gives its jobs a GPU of their own; there nothing is done here, unless CUDA_VISIBLE_DEVICES lists several.
The operating system frees a lock when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnscan.errors import SlotError

log = logging.getLogger(__name__)

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SCHEDULED = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
_PAUSE = 0.5  # seconds between two looks at the locks


def gpu_count() -> int:
    """Return the number of NVIDIA GPUs of this machine, 0 without a driver; CUDA is not initialised by asking."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    found = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        log.warning("nvidia-smi finds no GPU: %s", (found.stderr or found.stdout).strip())
        return 0
    return len(re.findall(r"^GPU \d+:", found.stdout, flags=re.MULTILINE))


@contextmanager
def gpu_slot(wanted: int, device: str = "auto") -> Iterator[str | None]:
    """Inside the block one GPU of a machine with several is this process's own; waits while all are taken.

    The block must be entered before torch initialises CUDA: only then does CUDA_VISIBLE_DEVICES count.

    Args:
        wanted: GPUs that the job asked for; 0 takes none, more than one still takes one.
        device: The configured device. With "cuda:1" it is that GPU that is waited for, and all stay visible, so that
            its number keeps its meaning.

    Yields:
        The name of the GPU, its number or what CUDA_VISIBLE_DEVICES calls it, or None where there is nothing to hand
        out: the job asked for none, there are not several, or a scheduler or the user has chosen one already.

    Raises:
        SlotError: The folder of the locks belongs to somebody else.
    """
    chosen = re.fullmatch(r"cuda(?::(\d+))?|auto", device)
    gpus = _visible() if wanted > 0 and chosen is not None else []
    if chosen is None or len(gpus) < 2:
        yield None
        return
    if chosen[1] is not None:
        with _any_lock(gpus[int(chosen[1]) :][:1] or [chosen[1]]) as gpu:
            yield gpu
        return
    before = os.environ.get(_VISIBLE)
    with _any_lock(gpus) as gpu:
        os.environ[_VISIBLE] = gpu
        try:
            yield gpu
        finally:
            if before is None:
                del os.environ[_VISIBLE]
            else:
                os.environ[_VISIBLE] = before


def _visible() -> list[str]:
    """Return the names of the GPUs that jobs may take: those that the user or a scheduler lists, else all."""
    listed = os.environ.get(_VISIBLE)
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    return [] if any(name in os.environ for name in _SCHEDULED) else [str(number) for number in range(gpu_count())]


@contextmanager
def _any_lock(gpus: list[str]) -> Iterator[str]:
    """Inside the block one of the GPUs is locked; its name is yielded."""
    folder = _lock_folder()
    waited = False
    while True:
        for gpu in gpus:
            with open(folder / f"gpu{gpu.replace('/', '-')}", "w", encoding="ascii") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                log.info("GPU %s is this job's own", gpu)
                yield gpu
                return
        if not waited:
            message = f"waiting for a GPU: {_numbers(gpus)} taken by other jobs"
            log.info(message)
            print(f"nnscan: {message}", file=sys.stderr, flush=True)
            waited = True
        time.sleep(_PAUSE)


def _numbers(gpus: list[str]) -> str:
    return f"{', '.join(gpus)} {'is' if len(gpus) == 1 else 'are'}"


def _lock_folder() -> Path:
    """Return the user's own folder of lock files; the files in it are never deleted, else a lock could exist twice."""
    folder = Path(tempfile.gettempdir()) / f"nnscan-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.lstat()
    if owner.st_uid != os.getuid() or folder.is_symlink():
        raise SlotError(f"{folder} is not a folder of your own; have it removed, or set TMPDIR to another folder")
    return folder
