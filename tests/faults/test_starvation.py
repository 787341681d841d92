"""A full disk, a folder that is read-only, no memory: a plain message, no half-written file, and it goes on later."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import children
from children import WRITERS, start

NOT_NAMED = ("Traceback", "Logging error", "Exception ignored")


@dataclass
class Disk:
    """A folder on a disk that can be filled; where nothing can be mounted, one whose files may not become large."""

    folder: Path
    limit: int | None

    def fill(self, left: int) -> None:
        if self.limit is None:
            free = os.statvfs(self.folder)
            (self.folder / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - left))
        else:
            self.limit = left

    def free(self) -> None:
        if self.limit is None:
            (self.folder / "filler").unlink()
        else:
            self.limit = 0

    @property
    def says(self) -> str:
        return "No space left on device" if self.limit is None else "File too large"


@pytest.fixture(params=["disk", "quota"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A disk of its own where one can be mounted, and a limit on the size of files, which acts everywhere."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=16m", "nnscan-test", str(folder)]
    if request.param == "disk" and subprocess.run(mounting, capture_output=True, check=False).returncode == 0:
        yield Disk(folder, None)
        subprocess.run(["umount", str(folder)], check=True)
    else:
        yield Disk(folder, 0)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_and_the_same_work_goes_on_when_there_is_space(
    disk: Disk, tmp_path: Path, name: str
) -> None:
    path = disk.folder / "below" / name
    path.parent.mkdir()
    path.write_text("old")
    disk.fill(200_000)
    child = start(tmp_path / "out.txt", children.write_as_job, path, tmp_path / "study", disk.limit)
    assert child.wait() == 1
    assert f"nnscan: write: cannot write {path}: {disk.says}. Free some space" in child.printed()
    assert not [sign for sign in NOT_NAMED if sign in child.printed()]
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    disk.free()
    child = start(tmp_path / "out.txt", children.write_as_job, path, tmp_path / "study", disk.limit)
    assert child.wait() == 0, child.printed()
    assert path.stat().st_size > 200_000
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_without_space_for_the_log_is_named_too(disk: Disk, tmp_path: Path) -> None:
    disk.fill(1000)
    path = disk.folder / "scan.h5"
    child = start(tmp_path / "out.txt", children.write_as_job, path, disk.folder / "study", disk.limit)
    assert child.wait() == 1
    assert "nnscan: cannot write the log" in child.printed()
    assert not [sign for sign in NOT_NAMED if sign in child.printed()], child.printed()
    assert not path.exists()


@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_folder_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "results"
    folder.mkdir(mode=0o555)
    child = start(tmp_path / "out.txt", children.write_without_override, folder / name, tmp_path / "study")
    assert child.wait() == 1
    assert f"nnscan: write: cannot write {folder / name}: Permission denied" in child.printed()
    assert not [sign for sign in NOT_NAMED if sign in child.printed()]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("megabytes", [24, 64, 200])
@pytest.mark.parametrize("work", [children.large_scan, children.large_training])
def test_a_lack_of_memory_is_named(tmp_path: Path, work, megabytes: int) -> None:
    """Where the memory ends differs: in torch, in oneDNN, in numpy."""
    child = start(tmp_path / "out.txt", work, tmp_path, megabytes << 20)
    assert child.wait() == 1
    assert "out of memory; use fewer samples, larger blocks, or more memory" in child.printed()
    assert not [sign for sign in NOT_NAMED if sign in child.printed()]
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".txt", ".log")] == []
