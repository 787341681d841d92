"""Ten thousand images go through a scan in the memory that two thousand need."""

from __future__ import annotations

from pathlib import Path

import children
from children import start

MEBIBYTE = 2**20


def test_the_memory_of_a_scan_does_not_grow_with_its_images(tmp_path: Path) -> None:
    child = start(tmp_path / "out.txt", children.long_scan, tmp_path, (2000, 6000, 10_000))
    assert child.wait() == 0, child.printed()
    early, middle, late = (int(line) for line in child.printed().splitlines() if line.isdigit())
    assert middle - early < 3 * MEBIBYTE
    assert late - early < 3 * MEBIBYTE
    assert (tmp_path / "scan.h5").stat().st_size > 20 * MEBIBYTE  # what passed through
