"""Records of a stranger's results, which `nnscan provenance` reads."""

import json

import pytest

from hostile import bounded
from nnscan.cli import main

RECORD = {
    "rule": "r", "wildcards": {"seed": "0"}, "params": {}, "config": "", "code": "", "inputs": {"a.csv": "d"},
    "outputs": {}, "versions": {}, "device": "", "machine": "", "started": "", "seconds": 1,
}  # fmt: skip

JOBS = {
    "a record that leads to itself": json.dumps(RECORD),
    "a hundred thousand brackets": "[" * 100_000,
    "no record": "[]",
    "other fields": json.dumps({**RECORD, "more": 1}),
    "inputs that are none": json.dumps({**RECORD, "inputs": 3}),
    "a seed that is none": json.dumps({**RECORD, "inputs": {}, "wildcards": {"seed": "x"}}),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_hostile_record_is_one_sentence(tmp_path, capsys, job):
    (tmp_path / "a.csv").write_text("x\n")
    for name, text in (("files/a.csv", json.dumps({"digest": "d", "job": "r/all"})), ("jobs/r/all", JOBS[job])):
        path = tmp_path / "provenance" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    with bounded(300, 20):
        assert main(["provenance", str(tmp_path / "a.csv")]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_record_does_not_move_the_cursor(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("x\n")
    record = json.dumps({**RECORD, "inputs": {}, "device": "\x1b[2J"})
    for name, text in (("files/a.csv", json.dumps({"digest": "d", "job": "r/all"})), ("jobs/r/all", record)):
        path = tmp_path / "provenance" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    assert main(["provenance", str(tmp_path / "a.csv")]) == 0
    assert r"\x1b[2J" in capsys.readouterr().out
