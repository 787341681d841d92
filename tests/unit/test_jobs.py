"""nnscan.jobs: what a rule's script leaves in its log, on the terminal and as its exit status."""

import logging
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from types import SimpleNamespace

import pytest
import torch

from nnscan.errors import DataError
from nnscan.jobs import job
from nnscan.models import chosen_device


@pytest.fixture(autouse=True)
def _logging_as_before():
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    torch.set_num_threads(threads)


@pytest.fixture
def snakemake(tmp_path):
    return SimpleNamespace(
        log=[str(tmp_path / "logs" / "rule" / "one.log")],
        rule="scan_neurons",
        wildcards={"dataset": "digits", "seed": "1"},
        threads=2,
        resources={},
        config={},
        params={},
        input=[],
        output=[],
    )


def read_log(snakemake):
    with open(snakemake.log[0], encoding="utf-8") as stream:
        return stream.read()


def test_a_job_that_succeeds(snakemake, capsys):
    with job(snakemake):
        logging.getLogger("nnscan.training").info("epoch %d", 3)
        warnings.warn("something odd", UserWarning, stacklevel=1)
    text = read_log(snakemake)
    assert "INFO scan_neurons dataset=digits seed=1, 2 thread(s)" in text
    assert "INFO epoch 3" in text
    assert "something odd" in text
    assert "INFO done in " in text
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def fail(snakemake, error):
    with pytest.raises(SystemExit) as caught, job(snakemake):
        raise error
    assert caught.value.code == 1
    return read_log(snakemake)


def test_an_error_of_nnscan_is_a_sentence_on_the_terminal_and_a_traceback_in_the_log(snakemake, capsys):
    text = fail(snakemake, DataError("there is no data here; get some"))
    captured = capsys.readouterr()
    assert captured.err == (
        "\nnnscan: scan_neurons dataset=digits seed=1: there is no data here; get some\n"
        f"nnscan: the traceback is in {snakemake.log[0]}\n"
    )
    assert captured.out == ""
    assert "ERROR there is no data here; get some\nTraceback (most recent call last)" in text
    assert "raise error" in text
    assert "nnscan.errors.DataError: there is no data here" in text
    assert "done in" not in text


def test_an_unexpected_error_names_its_type(snakemake, capsys):
    text = fail(snakemake, KeyError("layer"))
    error = capsys.readouterr().err
    assert "nnscan: scan_neurons dataset=digits seed=1: KeyError: 'layer'\n" in error
    assert "Traceback" not in error
    assert "ERROR unexpected error\nTraceback (most recent call last)" in text
    assert "KeyError: 'layer'" in text


def test_a_lack_of_memory_says_what_to_do(snakemake, capsys):
    text = fail(snakemake, MemoryError())
    assert "out of memory; use fewer samples, larger blocks, or more memory" in capsys.readouterr().err
    assert "MemoryError" in text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
        RuntimeError("could not create a primitive"),  # oneDNN
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_lack_of_memory_is_recognised_whoever_reports_it(snakemake, capsys, error):
    text = fail(snakemake, error)
    assert "out of memory; use fewer samples, larger blocks, or more memory" in capsys.readouterr().err
    assert str(error) in text


def test_another_error_of_torch_is_not_taken_for_a_lack_of_memory(snakemake, capsys):
    fail(snakemake, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert "RuntimeError: mat1 and mat2 shapes" in capsys.readouterr().err


def test_a_log_that_cannot_be_made_is_named(snakemake, capsys, tmp_path):
    (tmp_path / "logs").write_text("a file in the place of the folder")
    with pytest.raises(SystemExit), job(snakemake):
        pytest.fail("the block ran")
    error = capsys.readouterr().err
    assert f"cannot write {snakemake.log[0]}: " in error
    assert "Traceback" not in error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_passed_on(snakemake, error):
    with pytest.raises(error), job(snakemake):
        raise error


def test_the_log_of_an_earlier_attempt_is_replaced(snakemake):
    fail(snakemake, ValueError("first"))
    text = fail(snakemake, ValueError("second"))
    assert "second" in text
    assert "first" not in text


def test_torch_gets_the_threads_of_the_rule(snakemake):
    for threads in (1, 3):
        snakemake.threads = threads
        with job(snakemake):
            assert torch.get_num_threads() == threads


def test_products_of_a_job_are_in_float32(snakemake, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with job(snakemake):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_models_go_to_the_configured_device(snakemake, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for setting, expected in (({}, "cuda"), ({"device": "cpu"}, "cpu"), ({"device": "cuda:1"}, "cuda:1")):
        snakemake.config = setting
        with job(snakemake):
            assert str(chosen_device()) == expected
    snakemake.config = {"device": "cuda:2"}
    with pytest.raises(SystemExit), job(snakemake):
        chosen_device()
    assert "'cuda:2' was asked for, but torch sees only: cpu, cuda, cuda:0, cuda:1" in capsys.readouterr().err
    monkeypatch.undo()
    assert str(chosen_device()) == "cpu"  # nothing of the jobs' setting is left


@pytest.mark.parametrize(("gpus", "given"), [(1, ", CUDA_VISIBLE_DEVICES=0"), (0, "")])
def test_a_job_that_asks_for_a_gpu_has_one_of_its_own_and_its_log_says_where(
    snakemake, monkeypatch, tmp_path, gpus, given
):
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("nnscan.slots.gpu_count", lambda: 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    snakemake.resources = {"gpu": gpus}
    with job(snakemake):
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == ("0" if gpus else None)
    assert f"INFO on {platform.node()}{given}\n" in read_log(snakemake)


def test_a_rule_without_wildcards(snakemake, capsys):
    snakemake.wildcards = {}
    fail(snakemake, DataError("nothing"))
    assert "nnscan: scan_neurons: nothing" in capsys.readouterr().err


def test_a_script_ends_with_status_one_and_does_not_load_torch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from types import SimpleNamespace\n"
        "from nnscan.errors import DataError\n"
        "from nnscan.jobs import job\n"
        f"log = [{str(tmp_path / 'log')!r}]\n"
        "snakemake = SimpleNamespace(log=log, rule='r', wildcards={}, threads=1, resources={}, config={}, input=[])\n"
        "with job(snakemake):\n"
        "    print('torch' in sys.modules)\n"
        "    raise DataError('no data')\n"
    )
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stdout == "False\n"
    assert "Traceback" not in found.stderr
    assert ": no data\n" in found.stderr
