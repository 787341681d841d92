"""The smoke study on a real Slurm cluster of one node that goes down meanwhile: the tables are those of a local run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import studies

HERE = Path(__file__).parent
PATIENCE = 3600  # seconds that a run may take where the other tests run too: nine minutes on two quiet cores


def start(repository: Path, folder: Path, *arguments: str | Path) -> subprocess.Popen:
    """Start Snakemake on the smoke study with results in `folder`; what it prints goes to the file `output` there."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", repository / "Snakefile", "--directory", folder]
    study = repository / "config/studies/smoke.yaml"
    with open(folder / "output", "w", encoding="utf-8") as output:
        return subprocess.Popen(
            [*map(str, command), *map(str, arguments), "--configfile", str(study)],
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip


def finish(process: subprocess.Popen, folder: Path) -> None:
    try:
        status = process.wait(PATIENCE)
    finally:
        stop(process)
    assert status == 0, printed(folder)


def printed(folder: Path) -> str:
    return (folder / "output").read_text(encoding="utf-8")[-6000:]


def stop(process: subprocess.Popen) -> None:
    """End a run with its jobs on this machine, if it has not ended by itself."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition: Callable[[], object], process: subprocess.Popen, folder: Path) -> None:
    """Wait for something to happen while a run goes on."""
    deadline = time.monotonic() + PATIENCE / 4
    while not condition():
        assert process.poll() is None, f"the run ended before what the test waits for: {printed(folder)}"
        assert time.monotonic() < deadline, f"waited in vain: {printed(folder)}"
        time.sleep(0.05)


def daemons() -> list[str]:
    """Return the daemons of a Slurm cluster that run on this machine."""
    names = ("slurmctld", "slurmd", "slurmstepd", "munged")
    found = subprocess.run(["ps", "-e", "-o", "pid=,comm="], capture_output=True, text=True, check=True)
    return [line.strip() for line in found.stdout.splitlines() if line.split()[1] in names]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """The folder of a running cluster, whose commands find it by SLURM_CONF."""
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs root for the Slurm test")
        pytest.skip("needs root, for Debian's packages of Slurm and its daemons")
    before = daemons()
    folder = Path(tempfile.mkdtemp(prefix="nnscan-slurm-", dir="/tmp"))
    try:
        subprocess.run([HERE / "slurm_up.sh", folder], check=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield folder
    finally:
        if (folder / "slurm.conf").exists():
            subprocess.run([HERE / "slurm_down.sh", folder], check=True)
    assert daemons() == before
    assert not folder.exists()
    assert not Path("/etc/slurm/slurm.conf").is_symlink()


@pytest.fixture(scope="module")
def profile(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of profiles/slurm as a user edits it: this cluster's names, early looks at short jobs, larger groups."""
    values = yaml.safe_load((repository / "profiles/slurm/profile.yaml").read_text(encoding="utf-8"))
    values["default-resources"] |= {"slurm_account": "students", "slurm_partition": "processors"}
    for resources in values["set-resources"].values():
        resources["slurm_partition"] = "accelerators"
    values |= {
        "slurm-status-command": "squeue",  # this cluster keeps no accounts
        "slurm-init-seconds-before-status-checks": 2,
        "latency-wait": 10,
        "group-components": {"measures": 6, "figures": 4},
    }
    folder = tmp_path_factory.mktemp("profile")
    (folder / "profile.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def on_the_node(cluster: Path, folder: Path) -> dict[int, str]:
    """Return the processes of the cluster's jobs in a folder, with their commands; those that watch over jobs first."""
    watchers, workers = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            variables = (process / "environ").read_bytes().split(b"\0")
            inside = Path(os.readlink(process / "cwd")) == folder
        except OSError:  # it has ended, or is the kernel's
            continue
        if command.startswith("slurmstepd:") and f"SLURM_CONF={cluster}/slurm.conf".encode() in variables:
            watchers[int(process.name)] = command
        elif inside and any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables):
            workers[int(process.name)] = command
    return {**watchers, **workers}


def scripts(cluster: Path, folder: Path, rule: str) -> set[str]:
    """Return the scripts of a rule that the cluster's jobs are running; Snakemake gives each job its own copy."""
    commands = " ".join(on_the_node(cluster, folder).values())
    return set(re.findall(rf"/scripts/(\S+\.{rule}\.py)", commands))


def lose_node(cluster: Path, folder: Path) -> None:
    """Kill slurmd and everything that runs under it at once, as if the node had lost its power."""
    os.kill(int((cluster / "slurmd.pid").read_text()), signal.SIGKILL)
    while running := on_the_node(cluster, folder):
        for process in running:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def node_state() -> str:
    found = subprocess.run(["sinfo", "--noheader", "--format", "%T"], capture_output=True, text=True, check=True)
    return found.stdout.split()[0]


@pytest.fixture(scope="module")
def finished(
    repository: Path, cluster: Path, profile: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The folders of a run on this machine and of one on the cluster, whose node went down in the middle of it."""
    submitted = tmp_path_factory.mktemp("submitted").resolve()
    process = start(repository, submitted, "--workflow-profile", profile)
    try:
        wait_until(lambda: scripts(cluster, submitted, "scan_neurons"), process, submitted)
        lose_node(cluster, submitted)
        wait_until(lambda: node_state().startswith("down"), process, submitted)
        subprocess.run(["slurmd", "-f", cluster / "slurm.conf"], check=True)
        finish(process, submitted)
    finally:
        stop(process)
    return studies.smoke(repository, tmp_path_factory.mktemp("local")), submitted


def tables(folder: Path) -> dict[str, bytes]:
    """Return every table and the claims, by name."""
    results = folder / "results/smoke"
    return {path.name: path.read_bytes() for path in [*(results / "tables").iterdir(), results / "claims.csv"]}


def slurm_jobs() -> dict[str, dict[str, str]]:
    """Return what Slurm knows of each job, by its number."""
    found = subprocess.run(["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, check=True)
    jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in found.stdout.splitlines()]
    return {job["JobId"]: job for job in jobs if "JobId" in job}


def places(folder: Path) -> dict[Path, tuple[str, str | None]]:
    """Return the Slurm job, and the GPU that it was given, of every job of the study, by its log."""
    found = {}
    for log in sorted((folder / "results/smoke/logs").glob("*/*.log")):
        match = re.search(r" on \S+?(?:, SLURM_JOB_ID=(\d+))?(?:, CUDA_VISIBLE_DEVICES=(\d+))?$", log.read_text(), re.M)
        assert match, log
        found[log.relative_to(folder)] = match.groups()
    return found


def test_the_tables_are_those_of_a_local_run(finished: tuple[Path, Path]) -> None:
    local, submitted = finished
    one, other = tables(submitted), tables(local)
    assert len(other) > 60
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_what_ran_when_the_node_went_down_ran_again(finished: tuple[Path, Path]) -> None:
    again = [job for job in slurm_jobs().values() if job["Restarts"] != "0"]
    assert "rule_scan_neurons" in {job["Comment"].split("_wildcards")[0] for job in again}
    assert {job["JobState"] for job in again} == {"COMPLETED"}


def test_every_job_ran_in_slurm_and_each_that_trains_or_scans_had_a_gpu(
    finished: tuple[Path, Path], profile: Path
) -> None:
    local, submitted = finished
    accelerated = yaml.safe_load((profile / "profile.yaml").read_text(encoding="utf-8"))["set-resources"]
    jobs, found = slurm_jobs(), places(submitted)
    assert found.keys() == places(local).keys()
    with_gpu = set()
    for log, (number, gpu) in found.items():
        assert number in jobs, f"{log} is of a job outside Slurm"
        job = jobs[number]
        assert (job["JobState"], job["Account"]) == ("COMPLETED", "students"), log
        if log.parent.name in accelerated:
            with_gpu.add(log.parent.name)
            assert re.fullmatch(r"gres[:/]gpu:1", job["TresPerJob"]), log
            assert (job["Partition"], gpu) in [("accelerators", "0"), ("accelerators", "1")], log
        else:
            assert "TresPerJob" not in job, log
            assert (job["Partition"], gpu) == ("processors", None), log
    assert with_gpu == {
        *("train_model", "overfit_model", "scan_neurons", "project_filters"),
        *("filter_types", "anomaly_history", "remove_layers"),
    }
    assert len({number for number, _ in found.values()}) == 12  # of 26 jobs of the study: groups
    assert {number for number, _ in places(local).values()} == {None}
