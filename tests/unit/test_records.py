"""nnscan.records: every file of a study can be traced to what it was made from."""

import json
from types import SimpleNamespace

import pytest

from nnscan.artifacts import file_digest
from nnscan.cli import main
from nnscan.errors import ArtifactError
from nnscan.records import check_inputs, described, trace, write_record


@pytest.fixture
def root(tmp_path):
    return tmp_path / "results" / "study"


def run(root, rule, inputs, outputs, name="all", **params):
    """Write the outputs, which differ by the parameters, and the record of the job that did."""
    for output in outputs:
        path = root / output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{rule} {params} {[(root / file).read_text(encoding='utf-8') for file in inputs]}")
    wildcards = {"seed": name} if name != "all" else {}
    job = SimpleNamespace(
        rule=rule,
        wildcards=wildcards,
        params={**params, "code": f"code of {rule}"},
        config={"study": "study"},
        input=[str(root / file) for file in inputs],
        output=[str(root / file) for file in outputs],
        log=[str(root / "logs" / rule / f"{name}.log")],
    )
    write_record(job, check_inputs(job), "cpu", 1_000_000.0, 1.25)


@pytest.fixture
def study(root):
    run(root, "prepare_data", [], ["digits/data.h5"])
    for seed in "01":
        folder = f"digits/net/seed{seed}"
        run(root, "train_model", ["digits/data.h5"], [f"{folder}/training/well_trained.safetensors"], seed)
        run(root, "measure", [f"{folder}/training/well_trained.safetensors"], [f"{folder}/metrics/m.parquet"], seed)
    run(root, "render", [f"digits/net/seed{seed}/metrics/m.parquet" for seed in "01"], ["tables/slides_4-2.csv"])
    return root


def test_a_file_is_traced_to_what_the_study_did_not_make(study):
    origin = trace(study / "tables/slides_4-2.csv")
    assert origin.record.rule == "render"
    assert (origin.record.device, origin.record.seconds, origin.record.started) == (
        "cpu",
        1.2,
        "1970-01-12T13:46:40+00:00",
    )
    chain = [origin.sources[1]]
    while chain[-1].sources:
        chain.append(chain[-1].sources[0])
    assert [one.path for one in chain] == [
        "digits/net/seed1/metrics/m.parquet",
        "digits/net/seed1/training/well_trained.safetensors",
        "digits/data.h5",
    ]
    assert [one.recorded for one in chain] == [file_digest(study / one.path) for one in chain]
    assert {one.state for one in chain} == {"unchanged"}


def test_the_text_names_config_code_data_checkpoint_seed_versions_device_and_time(study):
    text = described(trace(study / "digits/net/seed1/metrics/m.parquet"))
    for part in (
        "rule        measure seed=1",
        "config      ",
        "code        code of measure",
        f"data        {file_digest(study / 'digits/data.h5')} (digits/data.h5)",
        f"checkpoint  {file_digest(study / 'digits/net/seed1/training/well_trained.safetensors')}",
        "seed        1",
        "versions    python 3.",
        "device      cpu",
        "time        1970-01-12T13:46:40+00:00, 1.2 s",
    ):
        assert part in text, part


def test_runs_and_names_limit_the_sources(study):
    path = study / "tables/slides_4-2.csv"
    assert [one.path for one in trace(path, runs=["digits/net/seed1"]).sources] == [
        "digits/net/seed1/metrics/m.parquet"
    ]
    assert trace(path, names=["other.parquet"]).sources == ()


def test_a_changed_and_a_missing_file_are_said_to_be(study):
    (study / "digits/net/seed0/metrics/m.parquet").write_text("edited by hand")
    (study / "digits/net/seed1/metrics/m.parquet").unlink()
    first, second = trace(study / "tables/slides_4-2.csv").sources
    assert (first.state, second.state) == ("changed", "missing")
    assert first.record.rule == "measure"


def test_a_source_that_was_made_anew_since_then_has_no_record_of_its_old_form(study):
    before = file_digest(study / "digits/net/seed0/metrics/m.parquet")
    folder = "digits/net/seed0"
    run(study, "measure", [f"{folder}/training/well_trained.safetensors"], [f"{folder}/metrics/m.parquet"], "0", new=1)
    source = trace(study / "tables/slides_4-2.csv").sources[0]
    assert (source.recorded, source.state, source.record) == (before, "changed", None)


def test_a_file_without_a_record_is_refused_with_the_reason(study, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist; run the stage"):
        trace(study / "tables/none.csv")
    (study / "tables/slides_4-1.csv").write_text("stray")
    with pytest.raises(ArtifactError, match=r"slides_4-1.csv has no record; did you mean 'tables/slides_4-2.csv'"):
        trace(study / "tables/slides_4-1.csv")
    (tmp_path / "elsewhere.csv").write_text("x")
    with pytest.raises(ArtifactError, match="no folder above it holds provenance/files"):
        trace(tmp_path / "elsewhere.csv")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rule": 1'])
def test_a_damaged_record_is_named(study, content):
    path = study / "provenance/jobs/render/all.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"all\.json is damaged"):
        trace(study / "tables/slides_4-2.csv")


def test_the_command_traces_the_cells_that_are_asked_for(study, capsys):
    table = study / "tables/claims.csv"
    run(study, "render", [f"digits/net/seed{seed}/metrics/m.parquet" for seed in "01"], ["tables/claims.csv"])
    table.write_text("dataset,model,quantity,ours\ndigits,net,FQ,1\ndigits,net,SSIM,2\n")
    assert main(["provenance", str(table), "--where", "quantity=FQ"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("dataset,model,quantity,ours\ndigits,net,FQ,1\ntables/claims.csv")
    assert "CHANGED" not in out.splitlines()[3]
    assert "seed1/metrics/m.parquet" in out
    for condition, sentence in [
        ("quantitty=FQ", "has no column 'quantitty'; did you mean 'quantity'?"),
        ("quantity=SIM", "has quantity 'SIM'; did you mean 'SSIM'?"),
    ]:
        assert main(["provenance", str(table), "--where", condition]) == 2
        assert sentence in capsys.readouterr().err


def test_records_are_plain_json(study):
    content = json.loads((study / "provenance/jobs/train_model/1.json").read_text())
    assert content["wildcards"] == {"seed": "1"}
    assert list(content["inputs"]) == ["digits/data.h5"]


def test_a_job_reads_only_what_is_as_it_was_written(study):
    path = study / "digits/data.h5"
    reader = SimpleNamespace(input=[str(path), "workflow/elsewhere"], log=[str(study / "logs/reader/all.log")])
    check_inputs(reader)
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(
        ArtifactError, match=r"data\.h5 is damaged: it has changed since it was made; delete it and run"
    ):
        check_inputs(reader)
