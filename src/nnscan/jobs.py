"""The frame around every rule's script: its log, its threads, and what a user sees when it fails."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from nnscan.errors import NnscanError

log = logging.getLogger("nnscan")


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run a rule's script: messages and a traceback go to the rule's log, and the reason of a failure to the terminal.

    Args:
        snakemake: The object that Snakemake gives to a script; uses log, rule, wildcards, threads and config.

    Raises:
        SystemExit: The block raised; the exit status is 1.
    """
    path = Path(snakemake.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    name = " ".join([snakemake.rule, *(f"{key}={value}" for key, value in snakemake.wildcards.items())])
    started = time.perf_counter()
    log.info("%s, %d thread(s)", name, snakemake.threads)
    _limit_threads(snakemake.threads)
    try:
        with _on_device(snakemake.config):
            yield
    except NnscanError as error:
        log.error("%s\n%s", error, traceback.format_exc())
        _stop(f"{name}: {error}", path)
    except MemoryError:
        log.error("out of memory\n%s", traceback.format_exc())
        _stop(f"{name}: out of memory; use fewer samples, larger blocks, or more memory", path)
    except Exception as error:
        # the boundary of a job: whatever it was must reach the log before the process ends
        log.exception("unexpected error")
        _stop(f"{name}: {type(error).__name__}: {error}", path)
    log.info("done in %.1f s", time.perf_counter() - started)
    logging.shutdown()


def _limit_threads(threads: int) -> None:
    """Give torch, where the script uses it, the rule's threads: other counts sum in another order."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _on_device(config: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Put models, where the script uses them, on the configured device."""
    models = sys.modules.get("nnscan.models")
    return nullcontext() if models is None else models.device_setting(config.get("device", "auto"))


def _stop(message: str, path: Path) -> None:
    logging.shutdown()
    print(f"\nnnscan: {message}\nnnscan: the traceback is in {path}", file=sys.stderr)
    raise SystemExit(1)
