"""The undisturbed study that others are compared with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from studies import CLAIMS, alone, complete, run, write_study


@pytest.fixture(scope="session")
def finished(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has run undisturbed, on two cores, with its scan in one piece; for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    with alone(folder):
        if not (folder / CLAIMS).exists():
            complete(run(repository, write_study(folder), CLAIMS, cores=2))
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder; the times of its files are kept."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))
