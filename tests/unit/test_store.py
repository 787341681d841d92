"""nnscan.store: what one study has made, another takes over, and nothing damaged."""

import json
import os

import pytest

from nnscan.store import shared

IDENTITY = {"code": "c0de", "seed": 1}
MADE, TAKEN = [(present, ["made a.csv", "made b.bin"]) for present in (False, True)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("NNSCAN_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def work(folder, identity, text="made"):
    """Make two files as a job would; return whether they were there already."""
    paths = [folder / "a.csv", folder / "b.bin"]
    folder.mkdir(exist_ok=True)
    with shared("train", map(str, paths), identity) as present:
        if not present:
            for path in paths:
                path.write_text(f"{text} {path.name}")
    return present, [path.read_text() for path in paths]


def test_without_a_store_every_study_works_for_itself(tmp_path, monkeypatch):
    monkeypatch.delenv("NNSCAN_STORE", raising=False)
    assert not work(tmp_path / "one", IDENTITY)[0]
    assert not work(tmp_path / "two", IDENTITY)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_second_study_takes_the_files_over(tmp_path, store):
    assert work(tmp_path / "one", IDENTITY) == (False, ["made a.csv", "made b.bin"])
    assert work(tmp_path / "two", IDENTITY, "other") == (True, ["made a.csv", "made b.bin"])
    (tmp_path / "two" / "a.csv").write_text("edited")
    assert work(tmp_path / "three", IDENTITY)[1] == ["made a.csv", "made b.bin"]


@pytest.mark.parametrize("change", [{"code": "other"}, {"seed": 2}, {"device": "cuda"}])
def test_whatever_differs_gives_another_entry(tmp_path, store, change):
    work(tmp_path / "one", IDENTITY)
    assert work(tmp_path / "two", {**IDENTITY, **change}, "other") == (False, ["other a.csv", "other b.bin"])


@pytest.mark.parametrize("damage", ["flipped", "truncated", "absent", "manifest", "deep manifest", "foreign manifest"])
def test_a_damaged_entry_is_made_anew(tmp_path, store, damage, caplog):
    work(tmp_path / "one", IDENTITY)
    (entry,) = (store / "train").iterdir()
    if damage == "flipped":
        (entry / "b.bin").write_text("MADE b.bin")
    elif damage == "truncated":
        (entry / "b.bin").write_text("")
    elif damage == "absent":
        (entry / "b.bin").unlink()
    elif damage == "manifest":
        (entry / "manifest.json").write_text("{")
    elif damage == "deep manifest":
        (entry / "manifest.json").write_text("[" * 100_000)
    else:
        (entry / "manifest.json").write_text(json.dumps({"files": {"../a.csv": ""}}))
    assert work(tmp_path / "two", IDENTITY, "anew") == (False, ["anew a.csv", "anew b.bin"])
    assert "is damaged" in caplog.text
    assert work(tmp_path / "three", IDENTITY) == (True, ["anew a.csv", "anew b.bin"])
    assert [path.name for path in (store / "train").iterdir()] == [entry.name]


def test_a_block_that_fails_leaves_no_entry(tmp_path, store):
    with pytest.raises(ZeroDivisionError), shared("train", [str(tmp_path / "a")], IDENTITY):
        raise ZeroDivisionError
    assert not (store / "train").exists()


def test_a_store_that_cannot_be_written_is_named_and_loses_no_work(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NNSCAN_STORE", str(tmp_path / "file"))
    assert work(tmp_path / "one", IDENTITY) == MADE
    assert "let NNSCAN_STORE name another folder" in caplog.text


def test_two_studies_may_put_the_same_entry_at_the_same_time(tmp_path, store, monkeypatch, caplog):
    caplog.set_level("INFO")
    rename = os.rename

    def late(old, new):
        monkeypatch.setattr(os, "rename", rename)
        work(tmp_path / "other", IDENTITY)  # the entry is not empty now
        rename(old, new)

    monkeypatch.setattr(os, "rename", late)
    assert work(tmp_path / "one", IDENTITY) == MADE
    assert "another study has put" in caplog.text
    assert work(tmp_path / "third", IDENTITY) == TAKEN


def test_an_entry_that_cannot_be_read_is_made_anew(tmp_path, store, monkeypatch, caplog):
    work(tmp_path / "one", IDENTITY)

    def gone(*_):
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr("nnscan.store.shutil.copyfile", gone)
        assert work(tmp_path / "two", IDENTITY) == MADE
    assert "cannot be taken" in caplog.text
