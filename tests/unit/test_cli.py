"""The command line: what is printed, exit statuses, sentences for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from nnscan import cli
from nnscan.cli import main

TINY = """
study: tiny
datasets: [{name: digits, source: digits, size: 16, train_limit: 40, validation_limit: 20, test_limit: 20}]
models: [{name: small, source: fcn, options: {widths: [4]}}]
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(TINY)
    return path


def test_estimate_prints_the_study(study, capsys):
    assert main(["estimate", "--configfile", str(study), "--cores", "3", "--gpu-macs", "5e12"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Study tiny: 1 network (data set and model), 3 runs")
    assert "wall time on 3 cores" in printed.out
    assert "Assumed of a GPU: 5.0e+12" in printed.out
    assert printed.err == ""


def test_without_a_configfile_it_is_the_embedded_study(monkeypatch):
    seen = []
    monkeypatch.setattr("nnscan.estimate.estimate", lambda study, *_: seen.append(study.study))
    monkeypatch.setattr("nnscan.estimate.describe", lambda _: "")
    assert main(["estimate"]) == 0
    assert seen == ["digits"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (TINY + "trainig: {}\n", "unknown key trainig; did you mean 'training'?"),
        (TINY.replace("fcn", "fcm"), "model 'fcm' does not exist; did you mean 'fcn'?"),
        (TINY + "scan: {block: 3}\n", "scan.block 3 does not divide images of 16 x 16 pixels"),
        (TINY.replace("source: digits", "source: image_folder, root: /nowhere").replace("test_limit: 20", ""), "give"),
        ("study: [", "is not valid YAML"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_status_2(tmp_path, capsys, text, sentence):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert main(["estimate", "--configfile", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("nnscan: ")
    assert sentence in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "required: command"),
        (["estimat"], "invalid choice: 'estimat'"),
        (["estimate", "--cores", "0"], "invalid number of cores value: '0'"),
        (["estimate", "--gpu-macs", "inf"], "invalid number of multiply-adds per second value: 'inf'"),
        (["estimate", "--configfile", "/no/study.yaml"], "the configuration /no/study.yaml does not exist"),
    ],
)
def test_a_wrong_command_line_is_status_2(capsys, arguments, sentence):
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert sentence in capsys.readouterr().err


def test_the_console_script_is_this_function():
    (script,) = entry_points(group="console_scripts", name="nnscan")
    assert script.load() is cli.main


def test_help_needs_no_torch():
    code = (
        "import sys\n"
        "from nnscan.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "estimate" in result.stdout
