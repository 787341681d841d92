"""nnscan.slots: one job per GPU, held by real processes; the GPUs are a faked nvidia-smi's."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from nnscan.errors import SlotError
from nnscan.slots import gpu_count, gpu_slot

HOLD = (
    "import os, sys\n"
    "from nnscan.slots import gpu_slot\n"
    "with gpu_slot(1, sys.argv[1]) as gpu:\n"
    "    print(gpu, os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that gives this machine that many GPUs; the locks lie in a temporary folder."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)

    def give(gpus, status=0):
        lines = "".join(f"echo 'GPU {gpu}: NVIDIA A100 (UUID: GPU-{gpu})'\n" for gpu in range(gpus))
        command.write_text(f"#!/bin/sh\n{lines}echo '  MIG 1g.5gb Device 0: (UUID: MIG-1)'\nexit {status}\n")
        command.chmod(0o755)

    return give


@pytest.fixture
def holder():
    """Return a function that starts a process that takes a slot and holds it until it ends."""
    started = []

    def start(device="auto"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def line(stream):
    return stream.readline().strip()


def test_gpus_are_counted_without_cuda(machine, monkeypatch, tmp_path):
    machine(3)
    assert gpu_count() == 3  # and not the slice of one that is listed below it
    machine(2, status=9)
    assert gpu_count() == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_count() == 0


def test_each_process_has_a_gpu_of_its_own_and_the_next_waits(machine, holder):
    machine(2)
    first, second = holder(), holder()
    assert sorted([line(first.stdout), line(second.stdout)]) == ["0 0", "1 1"]
    third = holder()
    assert line(third.stderr) == "nnscan: waiting for a GPU: 0, 1 are taken by other jobs"
    time.sleep(1)
    assert third.poll() is None
    second.stdin.close()
    second.wait()
    freed = line(third.stdout)
    assert freed in ("0 0", "1 1")
    with pytest.raises(subprocess.TimeoutExpired):  # the first one still holds the other
        holder().wait(timeout=2)


@pytest.mark.parametrize("listed", ["2,3", "GPU-8a,GPU-9b", "MIG-GPU-8a/1/0,MIG-GPU-8a/2/0"])
@pytest.mark.parametrize("scheduler", [None, "SLURM_JOB_ID"])
def test_gpus_that_the_user_or_an_allocation_lists_are_handed_out(machine, holder, monkeypatch, listed, scheduler):
    machine(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    if scheduler:
        monkeypatch.setenv(scheduler, "7")
    names = listed.split(",")
    first, second = holder(), holder()
    assert sorted([line(first.stdout), line(second.stdout)]) == [f"{name} {name}" for name in names]
    third = holder("cuda:1")
    assert line(third.stderr) == f"nnscan: waiting for a GPU: {names[1]} is taken by other jobs"
    for process in (first, second):
        process.stdin.close()
        process.wait()
    assert line(third.stdout) == f"{names[1]} {listed}"  # all stay visible, so cuda:1 is still the second
    with gpu_slot(1) as gpu:
        assert gpu == names[0]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == listed


def test_a_killed_process_frees_its_gpu(machine, holder):
    machine(2)
    first, second = holder(), holder()
    taken = line(first.stdout)
    line(second.stdout)
    waiting = holder()
    line(waiting.stderr)
    first.send_signal(signal.SIGKILL)
    assert line(waiting.stdout) == taken


def test_a_gpu_named_in_the_configuration_is_the_one_that_is_waited_for(machine, holder):
    machine(3)
    first = holder("cuda:1")
    assert line(first.stdout) == "1 None"  # all stay visible, so cuda:1 is still the second
    second = holder("cuda:1")
    assert line(second.stderr) == "nnscan: waiting for a GPU: 1 is taken by other jobs"
    with gpu_slot(1, "cuda") as gpu:
        assert gpu == "0"
    first.stdin.close()
    assert line(second.stdout) == "1 None"


def test_the_environment_is_put_back(machine):
    machine(2)
    with gpu_slot(1) as gpu:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with gpu_slot(1) as again:
        assert again == gpu


@pytest.mark.parametrize(
    ("gpus", "wanted", "device", "variable"),
    [
        (0, 1, "auto", None),
        (1, 1, "auto", None),
        (2, 0, "auto", None),
        (2, 1, "cpu", None),
        (2, 1, "mps", None),
        (2, 1, "auto", "SLURM_JOB_ID"),
        (2, 1, "auto", "CUDA_VISIBLE_DEVICES"),
        (2, 1, "auto", "KUBERNETES_SERVICE_HOST"),
    ],
)
def test_nothing_is_done_where_there_is_nothing_to_hand_out(
    machine, monkeypatch, tmp_path, gpus, wanted, device, variable
):
    machine(gpus)
    if variable:
        monkeypatch.setenv(variable, "7")
    before = dict(os.environ)
    with gpu_slot(wanted, device) as gpu:
        assert gpu is None
        assert dict(os.environ) == before
    assert not list((tmp_path / "tmp").iterdir())


def test_a_folder_of_somebody_else_is_refused(machine, monkeypatch, tmp_path):
    machine(2)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tmp" / f"nnscan-gpus-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SlotError, match="is not a folder of your own"), gpu_slot(1):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_imports_of_the_scripts_leave_cuda_alone(repository):
    """Else the slot, which is taken after them, would come too late."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in (repository / "workflow/scripts").glob("*.py"))
    modules = sorted(set(re.findall(r"^from (nnscan\.\w+) import", scripts, flags=re.MULTILINE)))
    assert "nnscan.training" in modules
    check = (
        "import importlib, torch\n"
        "def asked(*arguments): raise SystemExit('CUDA was asked for devices')\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = asked\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
