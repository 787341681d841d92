"""Fixtures that every test may use."""

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

# test processes share the cores: libraries that start threads of their own would fight for them
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import pytest  # noqa: E402

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; in CI its absence is a failure, elsewhere a skip."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the data folder {folder}")
        pytest.skip(f"needs the data folder {folder}")
    return folder


@pytest.fixture(scope="session")
def peer() -> Callable[[str], ModuleType]:
    """Import a library that ours is compared with (extra `peers`); without it CI fails, elsewhere the test skips."""

    def find(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError:
            reason = f"needs {name}: pip install --editable '.[dev,peers]'"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)

    return find


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one thread, as in a job: tests that share the cores would wait for each other's."""
    import torch  # not every test file needs it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
