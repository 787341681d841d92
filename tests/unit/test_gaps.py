"""nnscan.gaps: what a study lacks after a failure, and why."""

from pathlib import Path

import pytest

from nnscan.configuration import parse_study
from nnscan.gaps import announce, clear, complete_networks, complete_runs, failures, gaps, sentences
from nnscan.layout import Layout, RunKey

HEAD = "2026-11-22 10:00:00,000 INFO"
DONE = "2026-11-22 10:00:09,000 INFO done in 9.0 s"


@pytest.fixture
def layout(tmp_path, monkeypatch) -> Layout:
    """Two data sets, two models, two seeds, all complete, in the present folder."""
    monkeypatch.chdir(tmp_path)
    study = {
        "study": "gaps",
        "datasets": [{"name": "digits", "source": "digits"}, {"name": "digits_2", "source": "digits"}],
        "models": [{"name": "lenet5", "source": "lenet5"}, {"name": "lenet5_1", "source": "lenet5"}],
        "seeds": [0, 1],
    }
    found = Layout(parse_study(study))
    for run in found.runs():
        for path in map(Path, found.run_files(run)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return found


def log(layout: Layout, rule: str, name: str, *lines: str) -> str:
    path = Path(layout.root, "logs", rule, f"{name}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_a_complete_study_has_no_gaps(layout):
    log(
        layout,
        "train_model",
        "digits_lenet5_0",
        f"{HEAD} train_model dataset=digits model=lenet5 seed=0, 1 thread(s)",
        DONE,
    )
    assert gaps(layout) == []
    assert complete_runs(layout) == layout.runs()
    assert complete_networks(layout) == layout.networks()


def test_a_run_without_a_file_was_not_begun(layout):
    Path(layout.run_files(layout.runs()[2])[3]).unlink()
    assert sentences(gaps(layout)) == [["lenet5_1 on digits, seed 0", "not begun"]]
    assert layout.runs()[2] not in complete_runs(layout)
    assert len(complete_runs(layout)) == 7
    assert complete_networks(layout) == [("digits", "lenet5"), ("digits_2", "lenet5"), ("digits_2", "lenet5_1")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([f"{HEAD[:-4]}ERROR it diverged; lower it", "Traceback (most", "X: it diverged"], "it diverged; lower it"),
        ([f"{HEAD[:-4]}ERROR out of memory", "Traceback (most recent call last)", "MemoryError"], "out of memory"),
        ([f"{HEAD[:-4]}ERROR unexpected error", "Traceback (most", "KeyError: 'layer'"], "KeyError: 'layer'"),
        ([f"{HEAD} {{'epoch': 3}}"], "ended without a message: killed, or its machine went down"),
    ],
)  # fmt: skip
def test_a_failed_job_counts_for_its_run_alone_even_where_all_files_are_there(layout, lines, message):
    """An earlier configuration may have left them."""
    head = f"{HEAD} scan_neurons dataset=digits model=lenet5 seed=1 checkpoint=well_trained shard=0, 1 thread(s)"
    path = log(layout, "scan_neurons", "digits_lenet5_1_well_trained_0", head, *lines)
    assert sentences(gaps(layout)) == [["lenet5 on digits, seed 1", f"scan_neurons: {message} ({path})"]]
    assert set(layout.runs()) - set(complete_runs(layout)) == {RunKey("digits", "lenet5", 1)}
    [failure] = failures(layout)
    assert failure.wildcards == {
        "dataset": "digits", "model": "lenet5", "seed": "1", "checkpoint": "well_trained", "shard": "0",
    }  # fmt: skip


def test_a_question_that_failed_is_missed_by_its_run_and_a_helper_network_by_all_that_would_use_it(layout):
    head = f"{HEAD} evaluate_explainers dataset=digits model=lenet5 seed=1 question=cost, 1 thread(s)"
    asked = log(layout, "evaluate_explainers", "digits_lenet5_1_cost", head, f"{HEAD[:-4]}ERROR no memory")
    head = f"{HEAD} train_infiller dataset=digits_2, 1 thread(s)"
    trained = log(layout, "train_infiller", "digits_2", head, f"{HEAD[:-4]}ERROR it diverged; lower it")
    helper = f"train_infiller: it diverged; lower it ({trained})"
    assert sentences(gaps(layout)) == [
        ["lenet5 on digits, seed 1", f"evaluate_explainers: no memory ({asked})"],
        *([f"{model} on digits_2, seed {seed}", helper] for model in ("lenet5", "lenet5_1") for seed in (0, 1)),
    ]


def test_a_data_set_that_failed_is_missed_by_all_its_runs(layout):
    log(layout, "prepare_data", "digits", f"{HEAD} prepare_data dataset=digits, 1 thread(s)", f"{HEAD[:-4]}ERROR gone")
    assert {run.dataset for run in complete_runs(layout)} == {"digits_2"}
    assert len(gaps(layout)) == 4


def test_figures_that_failed_are_no_gap_of_the_runs(layout):
    head = f"{HEAD} draw_figures dataset=digits model=lenet5, 1 thread(s)"
    log(layout, "draw_figures", "digits_lenet5", head, f"{HEAD[:-4]}ERROR no fonts")
    assert complete_runs(layout) == layout.runs()
    assert ("digits", "lenet5") not in complete_networks(layout)
    assert [gap.what for gap in gaps(layout)] == ["figures of lenet5 on digits"]


def test_what_is_made_of_all_runs_is_named_too(layout):
    log(layout, "render_tables", "all", f"{HEAD} render_tables, 1 thread(s)", f"{HEAD[:-4]}ERROR cannot write x")
    assert [gap.what for gap in gaps(layout)] == ["what is made of all runs"]


def test_the_list_is_written_and_goes_when_there_are_no_gaps(layout):
    missing, file = Path(layout.root, "missing.md"), Path(layout.run_files(layout.runs()[0])[0])
    file.unlink()
    assert announce(layout) == "- lenet5 on digits, seed 0\n  - not begun"
    assert missing.read_text(encoding="utf-8") == f"# What study gaps lacks\n\n{announce(layout)}\n"
    file.touch()
    assert announce(layout) == ""
    assert not missing.exists()
    announce(layout)  # and once more, where there is no list


def test_of_a_complete_study_nothing_is_missing_whatever_failed_before(layout):
    """The failed job may be one that the study does not ask for any more."""
    head = f"{HEAD} render_partial_tables, 1 thread(s)"
    path = log(layout, "render_partial_tables", "all", head, f"{HEAD[:-4]}ERROR none of the runs is complete")
    announce(layout)
    clear(layout)
    assert (failures(layout), gaps(layout), Path(path).exists()) == ([], [], False)
    assert not Path(layout.root, "missing.md").exists()
    clear(layout)


def test_a_list_that_cannot_be_written_is_still_said(layout, monkeypatch):
    file = Path(layout.run_files(layout.runs()[0])[0])
    file.unlink()
    missing = Path(layout.root, "missing.md")
    missing.mkdir()
    assert announce(layout).startswith("- lenet5 on digits, seed 0\n  - not begun\n(cannot write ")
