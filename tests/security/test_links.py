"""Links inside a folder of results that a stranger has made: nothing is written where they lead."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hostile import refused
from nnscan.artifacts import atomic_path, write_frame
from nnscan.errors import ArtifactError
from nnscan.jobs import job
from nnscan.limits import refuse_links


@pytest.fixture
def victim(tmp_path):
    """A folder of the user's own with a file in it, and results beside it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/mine.txt").write_text("mine")
    (tmp_path / "results/study/logs/rule").mkdir(parents=True)
    (tmp_path / "results/study/benchmarks/rule").mkdir(parents=True)
    yield tmp_path / "home/mine.txt"
    assert (tmp_path / "home/mine.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["mine.txt"]


def study(victim):
    return victim.parents[1] / "results/study"


@pytest.mark.parametrize("place", ["digits", "digits/lenet5", "figures", "logs/other", "tables"])
def test_a_folder_that_is_a_link_is_refused(victim, place):
    link = study(victim) / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim.parent)
    assert f"{link} is a link" in refused(lambda: refuse_links(study(victim)), ArtifactError)


@pytest.mark.parametrize("place", ["logs/rule/all.log", "benchmarks/rule/all.tsv"])
@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_log_that_is_a_link_is_refused(victim, place, make):
    make(victim, study(victim) / place)
    assert f"{place} is a link" in refused(lambda: refuse_links(study(victim)), ArtifactError)


def test_a_study_that_is_a_link_is_refused_but_not_the_folder_above(victim, tmp_path):
    (tmp_path / "results/other").symlink_to(victim.parent)
    assert "link the folder above it" in refused(lambda: refuse_links(tmp_path / "results/other"), ArtifactError)
    (tmp_path / "disk").symlink_to(tmp_path / "results")
    refuse_links(tmp_path / "disk/study")
    refuse_links(tmp_path / "nowhere")


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_an_artefact_takes_the_place_of_a_link(victim, make):
    """Files that are written at once replace what is there, a link itself and not where it leads."""
    place = study(victim) / "table.parquet"
    make(victim, place)
    import pandas as pd

    write_frame(place, pd.DataFrame({"a": [1]}), {})
    assert not place.is_symlink()
    assert place.stat().st_size > 100


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_job_s_log_takes_the_place_of_a_link(victim, make):
    log = study(victim) / "logs/rule/all.log"
    make(victim, log)
    script = SimpleNamespace(
        log=[str(log)], rule="rule", wildcards={}, threads=1, resources={}, config={}, params={}, input=[], output=[]
    )
    with job(script):
        pass
    assert "rule" in log.read_text()


def test_a_temporary_file_has_a_name_that_cannot_be_foreseen(victim):
    place = study(victim) / "table.csv"
    names = set()
    for _ in range(3):
        with atomic_path(place) as temporary:
            names.add(temporary.name)
            assert temporary.stat().st_mode & 0o077 == 0  # of the user alone until it is complete
    assert len(names) == 3


def test_the_workflow_stops_before_any_job(repository, victim, tmp_path):
    (tmp_path / "results/smoke").mkdir()
    (tmp_path / "results/smoke/digits").symlink_to(victim.parent)
    result = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", repository / "Snakefile", "--directory", tmp_path,
         "--dry-run", "--configfile", repository / "config/studies/smoke.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "nnscan: results/smoke/digits is a link" in result.stdout + result.stderr
