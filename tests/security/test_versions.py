"""No dependency is older than the version that closed a hole which nnscan could be attacked through.

`make audit` asks a database of all known holes; this list holds without one.
"""

import tomllib
from importlib.metadata import version

import h5py
import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.version import Version


@pytest.fixture(scope="module")
def minimum(repository) -> dict[str, Version]:
    table = pd.read_csv(repository / "tests/security/minimum_versions.csv", dtype=str)
    assert table.notna().all().all()
    assert table["advisory"].str.match(r"CVE-\d{4}-\d+").all()
    return dict(zip(table["package"], map(Version, table["minimum"]), strict=True))


def test_what_is_installed_is_new_enough(minimum):
    old = {name: version(name) for name, least in minimum.items() if Version(version(name)) < least}
    assert old == {}


def test_what_is_pinned_is_new_enough(repository, minimum):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    pins = {}
    for line in project["project"]["dependencies"]:
        wanted = Requirement(line)
        (pin,) = wanted.specifier
        assert pin.operator == "==", line
        pins[wanted.name] = Version(pin.version)
    checked = pins.keys() & minimum.keys()
    assert {"torch", "pillow", "pyarrow", "h5py", "PyYAML", "Jinja2"} <= checked
    assert {name: pins[name] for name in checked if pins[name] < minimum[name]} == {}


def test_hdf5_itself_is_new_enough():
    """h5py's number does not tell which HDF5 it was built with."""
    assert h5py.version.hdf5_version_tuple >= (1, 14, 5)
