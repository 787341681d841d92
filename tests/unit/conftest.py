"""Fixtures of the unit tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published(repository) -> Path:
    """The folder of the published tables and claims."""
    return repository / "workflow" / "published"
