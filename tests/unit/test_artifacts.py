"""Artefacts: complete or absent, and a digest of the code that made them."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from nnscan import artifacts
from nnscan.artifacts import (
    atomic_path,
    check_folder,
    create_hdf5,
    digest,
    file_digest,
    open_hdf5,
    provenance,
    read_frame,
    read_provenance,
    source_closure,
    source_digest,
    write_frame,
)
from nnscan.errors import ArtifactError

# Digests ------------------------------------------------------------------------------------------------------------


def test_digest_is_16_hexadecimal_digits_and_repeatable():
    first = digest({"a": 1, "b": [2, 3]}, np.arange(3))
    assert first == digest({"b": [2, 3], "a": 1}, np.arange(3))
    assert len(first) == 16
    assert set(first) <= set("0123456789abcdef")


def test_digest_tells_values_types_shapes_and_boundaries_apart():
    array = np.arange(6, dtype=np.float32)
    variants = [
        digest(array),
        digest(array.astype(np.float64)),
        digest(array.reshape(2, 3)),
        digest(array + 1),
        digest("ab", "c"),
        digest("a", "bc"),
        digest("abc"),
        digest(1),
        digest("1"),
        digest(1, 2),
        digest(12),
        digest(None),
        digest(),
    ]
    assert len(set(variants)) == len(variants)


def test_digest_of_an_array_does_not_depend_on_its_memory_layout():
    array = np.arange(12).reshape(3, 4)
    assert digest(array.T) == digest(np.ascontiguousarray(array.T))


def test_file_digest_is_that_of_the_bytes(tmp_path):
    one, two, other = (tmp_path / name for name in "abc")
    one.write_bytes(b"x" * 100_000)
    two.write_bytes(b"x" * 100_000)
    other.write_bytes(b"x" * 99_999 + b"y")
    assert file_digest(one) == file_digest(two) != file_digest(other)


# Digests of code ----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that the digests look at."""
    copy = tmp_path / "nnscan"
    shutil.copytree(Path(artifacts.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(artifacts, "_PACKAGE", copy)
    artifacts._module_source.cache_clear()
    yield copy
    artifacts._module_source.cache_clear()


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{path} does not hold {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    artifacts._module_source.cache_clear()


def test_source_closure_follows_imports():
    assert source_closure("errors") == ["errors"]
    assert source_closure("moments") == ["artifacts", "errors", "limits", "moments"]
    assert set(source_closure("scanner")) >= {"scanner", "models", "moments", "artifacts", "errors"}
    assert source_closure("scanner", "errors") == source_closure("scanner")


def test_source_digest_changes_with_the_code_of_an_imported_module(package):
    before = {module: source_digest(module) for module in ("errors", "moments", "quantity", "scanner")}
    _edit(package / "moments.py", "SUPPORT = 1e-3", "SUPPORT = 2e-3")
    after = {module: source_digest(module) for module in before}
    assert [module for module in before if before[module] != after[module]] == ["moments", "quantity", "scanner"]


def test_source_digest_ignores_comments_docstrings_and_layout(package):
    before = source_digest("scanner")
    _edit(package / "scanner.py", "import os\n", "# a comment\n\n\nimport os  # another\n")
    for module in ("scanner", "moments"):
        _edit(package / f"{module}.py", '"""', '"""First of all: ')  # of the module
        _edit(package / f"{module}.py", '    """Return', '    """Give back')  # of a function or method
    assert source_digest("scanner") == before


def test_source_digest_sees_a_string_that_is_no_docstring(package):
    before = source_digest("errors")
    _edit(package / "errors.py", "did you mean", "perhaps you meant")
    assert source_digest("errors") == before  # that one is in a docstring ...
    text = (package / "errors.py").read_text(encoding="utf-8").replace("did you mean", "perhaps you meant")
    (package / "errors.py").write_text(text, encoding="utf-8")
    artifacts._module_source.cache_clear()
    assert source_digest("errors") != before  # ... and these are messages


def test_source_digest_sees_a_new_import(package):
    (package / "fresh.py").write_text("VALUE = 1\n", encoding="utf-8")
    (package / "user.py").write_text("from nnscan.errors import NnscanError\n", encoding="utf-8")
    before = source_digest("user")
    assert source_closure("user") == ["errors", "user"]
    _edit(package / "user.py", "from", "from nnscan import fresh\nfrom")
    assert source_closure("user") == ["errors", "fresh", "user"]
    changed = source_digest("user")
    _edit(package / "fresh.py", "1", "2")
    assert len({before, changed, source_digest("user")}) == 3


def test_source_digest_finds_imports_inside_functions(package):
    (package / "lazy.py").write_text("def f():\n    from nnscan.errors import DataError\n", encoding="utf-8")
    assert source_closure("lazy") == ["errors", "lazy"]


def test_a_body_of_a_docstring_alone_is_parsed(package):
    (package / "empty.py").write_text('class A(Exception):\n    """Nothing else."""\n', encoding="utf-8")
    one = source_digest("empty")
    _edit(package / "empty.py", "Nothing else.", "Something else.")
    assert source_digest("empty") == one


def test_source_digest_of_an_unknown_module(package):
    with pytest.raises(ArtifactError, match=r"no module 'scaner'.*scaner\.py"):
        source_digest("scaner")


def test_source_digest_needs_no_torch():
    code = "import sys; from nnscan.artifacts import source_digest as s; s('scanner'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Atomic writes ------------------------------------------------------------------------------------------------------


def test_atomic_path_appears_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == target.suffix
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert list(target.parent.iterdir()) == [target]


def test_atomic_path_leaves_the_old_file_when_the_block_fails(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def interrupted() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_names_a_full_disk(tmp_path):
    target = tmp_path / "file.txt"

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match=r"cannot write .*file\.txt: No space left on device\. Free some space"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_atomic_path_names_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("not a folder")

    def write() -> None:
        with atomic_path(tmp_path / "file" / "below.txt"):
            pytest.fail("the block ran")

    with pytest.raises(ArtifactError, match=r"cannot write .*below\.txt"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_atomic_path_passes_an_artifact_error_on(tmp_path):
    def write() -> None:
        with atomic_path(tmp_path / "x"):
            raise ArtifactError("the scan has too few samples")

    with pytest.raises(ArtifactError, match=r"^the scan has too few samples$"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_litter_of_a_killed_writer_goes_with_the_next_write_of_the_same_target(tmp_path):
    target = tmp_path / "[1].h5"
    litter, other = tmp_path / ".[1].h5.abcd1234.h5", tmp_path / ".1.h5.abcd1234.h5"
    for path in (litter, other):
        path.touch()
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([target.name, other.name])


def test_what_another_process_still_writes_is_left_alone(tmp_path):
    target = tmp_path / "file.txt"
    with atomic_path(target) as slow:
        slow.write_text("slow")
        with atomic_path(target) as fast:
            fast.write_text("fast")
        assert target.read_text() == "fast"
    assert target.read_text() == "slow"
    assert list(tmp_path.iterdir()) == [target]


def test_no_memory_for_a_file_is_no_matter_of_the_disk(tmp_path):
    def write() -> None:
        with atomic_path(tmp_path / "file.txt"):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with pytest.raises(MemoryError, match=r"cannot write .*file\.txt"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_checked_before_a_study_starts(tmp_path):
    root, weights = tmp_path / "results" / "study", tmp_path / "own.pt"
    check_folder(root, [weights])
    assert not root.exists()  # nothing is made by looking
    weights.touch()
    late = root / "digits" / "data.h5"
    late.parent.mkdir(parents=True)
    late.touch()
    check_folder(root, [weights])
    soon, later = time.time() + 30, time.time() + 3600
    os.utime(weights, (soon, soon))
    check_folder(root, [weights])  # clocks of several machines may differ a little
    os.utime(weights, (later, later))
    with pytest.raises(ArtifactError, match=r"own\.pt has the time .* still to come\..*touch '.*own\.pt'"):
        check_folder(root, [weights])
    os.utime(late, (later, later))
    with pytest.raises(ArtifactError, match=r"data\.h5 \(and 1 others\) has the time"):
        check_folder(root, [weights])


# Tables and arrays --------------------------------------------------------------------------------------------------


@pytest.fixture
def frame():
    return pd.DataFrame({"layer": ["a", "b"], "filter": [1, 2], "fq": [0.5, np.nan]})


def test_a_table_comes_back_with_its_provenance(tmp_path, frame):
    path = tmp_path / "metrics" / "quantity.parquet"
    origin = provenance(checkpoint="abc", seed=3)
    write_frame(path, frame, origin)
    back = read_frame(path)
    assert back.columns.tolist() == frame.columns.tolist()
    assert back["fq"].isna().tolist() == [False, True]
    assert back["layer"].tolist() == ["a", "b"]
    assert read_provenance(path) == origin
    assert list(path.parent.iterdir()) == [path]


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, frame):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.pq, "write_table", fails)
    with pytest.raises(ArtifactError, match="No space left"):
        write_frame(tmp_path / "t.parquet", frame, {})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_table_is_named(tmp_path, frame):
    path = tmp_path / "t.parquet"
    for read in (read_frame, read_provenance):
        with pytest.raises(ArtifactError, match=r"t\.parquet does not exist; run the stage"):
            read(path)
    write_frame(path, frame, {})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"hello"):
        path.write_bytes(damaged)
        for read in (read_frame, read_provenance):
            with pytest.raises(ArtifactError, match=r"t\.parquet is damaged"):
                read(path)


def test_arrays_come_back_with_their_provenance(tmp_path):
    path = tmp_path / "scan" / "moments.h5"
    origin = provenance(data="d", seed=1)
    with create_hdf5(path, "scan", origin) as file:
        file["b"] = np.arange(3)
        file["a"] = np.ones((2, 2))
        assert not path.exists()
    with open_hdf5(path, "scan") as file:
        assert list(file) == ["b", "a"]  # order of creation
        assert file["b"][()].tolist() == [0, 1, 2]
        with pytest.raises(OSError, match="no write intent"):
            file["b"][0] = 5
    assert read_provenance(path) == {"kind": "scan", **origin}


def test_an_array_file_that_fails_half_way_leaves_nothing(tmp_path):
    def write() -> None:
        with create_hdf5(tmp_path / "moments.h5", "scan", {}) as file:
            file["a"] = np.arange(3)
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        write()
    assert list(tmp_path.iterdir()) == []


def _open(path: Path, kind: str) -> None:
    with open_hdf5(path, kind):
        pytest.fail("the file was opened")


def test_a_missing_damaged_or_wrong_array_file_is_named(tmp_path):
    path = tmp_path / "moments.h5"
    for attempt in (lambda: _open(path, "scan"), lambda: read_provenance(path)):
        with pytest.raises(ArtifactError, match=r"moments\.h5 does not exist"):
            attempt()
    with create_hdf5(path, "images", {}) as file:
        file["a"] = np.arange(1000)
    with pytest.raises(ArtifactError, match="holds 'images', not 'scan'"):
        _open(path, "scan")
    whole = path.read_bytes()
    for damaged in (whole[:100], b"", b"hello"):
        path.write_bytes(damaged)
        for attempt in (lambda: _open(path, "images"), lambda: read_provenance(path)):
            with pytest.raises(ArtifactError, match=r"moments\.h5 is damaged"):
                attempt()
    with h5py.File(path, "w") as file:
        file["a"] = 1
    with pytest.raises(ArtifactError, match="holds None, not 'scan'"):
        _open(path, "scan")


def test_provenance_names_versions_machine_and_time():
    origin = provenance(seed=3, checkpoint=Path("a/b"))
    assert origin["seed"] == "3"
    assert origin["checkpoint"] == "a/b"
    versions = json.loads(origin["versions"])
    assert versions["numpy"] == np.__version__
    assert set(versions) >= {"python", "torch", "nnscan", "snakemake"}
    assert all(isinstance(value, str) for value in origin.values())
    assert pd.Timestamp(origin["created"]).tzinfo is not None


def test_provenance_says_when_a_package_is_absent(monkeypatch):
    monkeypatch.setattr(artifacts, "_VERSIONED", ("no-such-package",))
    assert json.loads(provenance()["versions"])["no-such-package"] == "absent"
