"""A study whose jobs and processes are killed again and again ends with the tables of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studies import (
    CLAIMS,
    ROOT,
    RUN,
    STUDY,
    WEIGHTS,
    assert_alike,
    command,
    complete,
    job_of,
    leftovers,
    run,
    running,
    until,
    write_study,
)

STATE = f"{RUN}/training/state_regular.pt"


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_study_that_is_killed_again_and_again_ends_with_the_same_tables(
    repository: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One core and two shards here, two cores and one shard there: results depend on neither."""
    config = write_study(tmp_path, scan={**STUDY["scan"], "shards": 2})
    with running(repository, config, CLAIMS) as study:  # a job is killed in training
        job = until(lambda: job_of(tmp_path, "train_model"), study)
        until((tmp_path / STATE).exists, study)
        os.kill(job, signal.SIGKILL)
    assert study.returncode == 1
    assert (tmp_path / STATE).exists()
    assert not (tmp_path / WEIGHTS).exists()
    printed = (tmp_path / "printed.txt").read_text(encoding="utf-8")
    assert "- simple_cnn on digits, seed 0\n  - train_model: ended without a message" in printed

    with running(repository, config, CLAIMS) as study:  # a job is killed in a scan, which writes while it works
        job = until(lambda: job_of(tmp_path, "scan_neurons"), study)
        until(lambda: list((tmp_path / RUN).glob("scan/well_trained/.shard?.h5.*")), study)
        os.kill(job, signal.SIGKILL)
    assert study.returncode == 1
    assert leftovers(tmp_path)
    assert "training goes on after epoch" in (tmp_path / ROOT / "logs/train_model/digits+simple_cnn+0.log").read_text()

    with running(repository, config, CLAIMS) as study:  # a second Snakemake, then the end of the first is asked for
        until(lambda: job_of(tmp_path, "scan_neurons"), study)
        status, output = run(repository, config, CLAIMS)
        assert status == 1
        assert "Directory cannot be locked" in output
        study.send_signal(signal.SIGTERM)
    assert study.returncode == 1

    with running(repository, config, CLAIMS) as study:  # Ctrl-C reaches Snakemake and its jobs
        until(lambda: job_of(tmp_path, "neuron_knowledge") or job_of(tmp_path, "feature_quantity"), study)
        os.killpg(study.pid, signal.SIGINT)
    assert study.returncode == 1

    with running(repository, config, CLAIMS) as study:  # Snakemake and its jobs, as when a machine goes down
        until(lambda: job_of(tmp_path, "neuron_knowledge") or job_of(tmp_path, "feature_quantity"), study)
        os.killpg(study.pid, signal.SIGKILL)
    complete(run(repository, config, "--unlock"))

    with running(repository, config, CLAIMS) as study:  # Snakemake alone; its job goes on and writes, beside the rerun
        until(lambda: job_of(tmp_path, "neuron_knowledge") or job_of(tmp_path, "feature_quantity"), study)
        study.kill()
    assert "It can be removed with the --unlock argument" in run(repository, config, CLAIMS)[1]
    complete(run(repository, config, "--unlock"))

    complete(run(repository, config, CLAIMS))
    finished = request.getfixturevalue("finished")  # not before: another worker may be making it
    assert_alike(tmp_path, finished)  # in shards of other sizes some processors round the last digit otherwise
    assert same_weights(tmp_path / WEIGHTS, finished / WEIGHTS)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / STATE).exists()
    assert "Nothing to be done" in complete(run(repository, config, CLAIMS))


def test_two_studies_run_in_one_folder_at_once(repository: Path, tmp_path: Path) -> None:
    configs = []
    for name in ("one", "two"):
        config = write_study(tmp_path, study=name)
        configs.append((config.rename(tmp_path / f"{name}.yaml"), f"results/{name}/digits/data.h5"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command(repository, *one), **pipes) for one in configs]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    one, two = ((tmp_path / target).stat().st_size for _, target in configs)
    assert one == two
