"""A study whose folder, files, clocks or single runs fail: nothing wrong is reused, the rest goes on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file

from children import without_override
from nnscan.layout import FIGURES
from studies import CLAIMS, ROOT, RUN, STUDY, WEIGHTS, complete, run, tables, write_study

DATA = f"{ROOT}/digits/data.h5"
CURVE = f"{RUN}/experiments/aipc.parquet"


def unmade(folder: Path) -> None:
    (folder / CLAIMS).unlink()


# Storage --------------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_named_before_any_job(repository: Path, copy: Path) -> None:
    unmade(copy)
    before = sorted((copy / "results").rglob("*"))
    (copy / ROOT).chmod(0o555)
    try:
        status, output = run(repository, copy / "study.yaml", CLAIMS, preexec_fn=without_override)
    finally:
        (copy / ROOT).chmod(0o755)
    assert status == 1
    assert f"nnscan: cannot write to {ROOT}. Make it writable" in output
    assert "Traceback" not in output
    assert sorted((copy / "results").rglob("*")) == before


def test_data_that_are_away_for_a_while_cost_nothing(repository: Path, tmp_path: Path) -> None:
    """A job's outputs go before it starts, so it must not start; what is there again has not changed."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    entry = {"name": "pictures", "source": "image_folder", "root": str(tmp_path / "images"), "validation_limit": 4}
    config = write_study(tmp_path, datasets=[entry])
    data = f"{ROOT}/pictures/data.h5"
    complete(run(repository, config, data))
    content = (tmp_path / data).read_bytes()
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    status, output = run(repository, config, data)
    assert status == 1
    assert f"nnscan: data set 'pictures' (image_folder): no file below {tmp_path}/images; name the folder" in output
    assert (tmp_path / data).read_bytes() == content
    (tmp_path / "elsewhere").rename(tmp_path / "images")
    assert "Nothing to be done" in complete(run(repository, config, data))


# Damaged --------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_an_artefact_stops_what_reads_it_until_it_is_made_again(
    repository: Path, finished: Path, copy: Path
) -> None:
    config, curve = copy / "study.yaml", copy / CURVE
    content, times = bytearray(curve.read_bytes()), curve.stat()
    content[len(content) // 2] ^= 0x01
    curve.write_bytes(content)
    os.utime(curve, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a fault of the disk leaves it
    unmade(copy)
    status, output = run(repository, config, CLAIMS)
    assert status == 1
    assert f"{CURVE} is damaged: it has changed since it was made; delete it and run the same command again" in output
    assert not (copy / CLAIMS).exists()
    curve.unlink()
    complete(run(repository, config, CLAIMS))
    assert tables(copy) == tables(finished)


# Clocks ---------------------------------------------------------------------------------------------------------------


def test_times_that_are_wrong_lead_to_no_wrong_reuse_and_no_endless_rerun(
    repository: Path, finished: Path, copy: Path
) -> None:
    config, data, curve = copy / "study.yaml", copy / DATA, copy / CURVE
    unmade(copy)
    future = data.stat().st_mtime + 7200
    os.utime(data, (future, future))
    status, output = run(repository, config, CLAIMS)
    assert status == 1
    assert f"nnscan: {DATA} has the time" in output
    assert "which is still to come" in output
    assert f"touch '{DATA}'" in output
    data.touch()  # as it says; the content is the same
    os.utime(curve, (0, 0))  # far in the past: older than what it was made from
    output = complete(run(repository, config, CLAIMS))
    assert "2 of 2 steps (100%) done" in output, output  # the curve and the tables, nothing else
    assert tables(copy) == tables(finished)
    assert "Nothing to be done" in complete(run(repository, config, CLAIMS))


# One failing run of several -------------------------------------------------------------------------------------------

FACTORY = """
from nnscan.models import build_model


def build():
    return build_model("simple_cnn", {"in_channels": 1, "size": 16, "classes": 10})
"""


def test_a_failing_run_does_not_stop_the_others_and_the_report_says_what_is_missing(
    repository: Path, finished: Path, copy: Path
) -> None:
    weights = load_file(finished / WEIGHTS)
    next(iter(weights.values())).view(-1)[3] = float("nan")
    torch.save(weights, copy / "nan.pt")
    (copy / "mine.py").write_text(FACTORY, encoding="utf-8")
    broken = {"name": "broken", "source": f"{copy}/mine.py:build", "weights": str(copy / "nan.pt")}
    config = write_study(copy, models=[*STUDY["models"], broken])
    status, output = run(repository, config, cores=2)
    assert status == 1
    reason = f"adopt_model: the checkpoint {copy}/nan.pt holds values that are not finite in "
    for text in (output, (copy / ROOT / "missing.md").read_text(encoding="utf-8")):
        assert f"- broken on digits, seed 0\n  - {reason}" in text
        assert f"({ROOT}/logs/adopt_model/digits+broken+0.log)" in text
        assert "simple_cnn on digits, seed 0" not in text
        assert "The tables that are there are of an earlier run." in text
    assert not (copy / ROOT / "report.html").exists()
    for figure in (name for name, own in FIGURES.items() if own.stage == "theses"):  # the others went on to the end
        assert (copy / ROOT / f"figures/digits/simple_cnn/{figure}.png").exists()

    complete(run(repository, config, "partial"))
    page = (copy / ROOT / "partial/report.html").read_text(encoding="utf-8")
    assert "This report is partial." in page
    assert "<li>broken on digits, seed 0<br>" in page
    assert "holds values that are not finite" in page
    parts, whole = tables(copy, f"{ROOT}/partial"), tables(finished)
    assert parts.keys() == whole.keys()
    for name in parts:
        part = pd.read_csv(copy / ROOT / "partial" / ("" if name == "claims.csv" else "tables") / name)
        full = pd.read_csv(finished / ROOT / ("" if name == "claims.csv" else "tables") / name)
        assert part["note"].str.startswith("partial: 1 of 2 runs").all(), name
        pd.testing.assert_frame_equal(part.drop(columns="note"), full.drop(columns="note"))
    for ending in ("md", "tex", "html"):
        text = (copy / ROOT / f"partial/tables/slides_4-2.{ending}").read_text(encoding="utf-8")
        assert "partial: 1 of 2 runs" in text
