"""The pipeline as a user runs it: plans, errors before any job, one small study from end to end, reruns, resuming."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import studies
from nnscan.artifacts import read_frame, read_provenance
from nnscan.configuration import read_study
from nnscan.layout import Layout

LAST = {"draw_figures", "render_tables", "write_report"}

# Snakemake's process would wait this long for its own clocks, which the Snakefile stops
CLOCKS = ("--max-jobs-per-timespan", "1000/1h")


def snakemake(
    repository: Path, folder: Path, *arguments: str | Path, package: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on the project's Snakefile with results in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(package or "")}
    command = [sys.executable, "-m", "snakemake", "--snakefile", repository / "Snakefile", "--directory", folder]
    return subprocess.run(
        [*map(str, (*command, *arguments))], capture_output=True, text=True, env=environment, check=False, timeout=1200
    )


def write_config(folder: Path, values: dict) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def smoke(repository: Path) -> dict:
    return yaml.safe_load((repository / "config/studies/smoke.yaml").read_text(encoding="utf-8"))


def complete(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def finished(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the smoke study has been run."""
    return studies.smoke(repository, tmp_path_factory.mktemp("smoke"))


@pytest.mark.parametrize("study", ["mnist", "cifar10", "theses-cpu"])
def test_every_study_plans_each_of_its_runs(repository: Path, tmp_path: Path, study: str) -> None:
    path = repository / f"config/studies/{study}.yaml"
    assert_planned(complete(snakemake(repository, tmp_path, "--dry-run", "--cores", "2", "--configfile", path)), path)


def assert_planned(output: str, study: Path) -> None:
    layout = Layout(read_study(study))
    lines = [line.split() for line in output.splitlines() if line.startswith(("train_model ", "scan_neurons "))]
    counts = {name: int(count) for name, count in lines}
    assert counts == {"train_model": len(layout.runs()), "scan_neurons": len(layout.runs()) * len(layout.shards())}


def test_no_configfile_means_the_embedded_default(repository: Path, tmp_path: Path) -> None:
    output = complete(snakemake(repository, tmp_path, "--dry-run", "--cores", "2"))
    assert "results/digits/report.html" in output
    assert_planned(output, repository / "config/config.yaml")


def test_unknown_keys_and_values_stop_before_any_job(repository: Path, tmp_path: Path) -> None:
    wrong = {"trainig": {}, "scan": {"sampels": 3}, "training": {"optimizer": "adm"}}
    config = write_config(tmp_path, {**smoke(repository), **wrong})
    result = snakemake(repository, tmp_path, "--cores", "2", "--configfile", config)
    assert result.returncode != 0
    for sentence in (
        "unknown key trainig; did you mean 'training'?",
        "unknown key scan.sampels; did you mean 'samples'?",
        "training.optimizer: 'adm' is not possible; did you mean 'adam'?",
    ):
        assert sentence in result.stdout + result.stderr
    assert not (tmp_path / "results").exists()


def test_the_study_ends_with_tables_figures_claims_and_report(repository: Path, finished: Path) -> None:
    layout = Layout(read_study(repository / "config/studies/smoke.yaml"))
    for path in [*layout.tables(), *layout.figures(), f"{layout.root}/claims.csv", f"{layout.root}/report.html"]:
        assert (finished / path).stat().st_size > 0, path
    claims = pd.read_csv(finished / layout.root / "claims.csv")
    assert set(claims["verdict"]) <= {"reproduced", "contradicted", "inconclusive"}
    assert list((finished / layout.root / "logs").glob("*/*.log"))
    assert list((finished / layout.root / "benchmarks").glob("*/*.tsv"))


def test_artefacts_carry_their_provenance(finished: Path) -> None:
    run = finished / "results/smoke/digits/simple_cnn/seed0"
    origin = read_provenance(run / "metrics/well_trained/properties.parquet")
    assert {"data", "checkpoint", "code", "seed", "versions", "created"} <= set(origin)
    assert origin["data"] == read_provenance(finished / "results/smoke/digits/data.h5")["data"]


def test_a_second_run_has_nothing_to_do(repository: Path, finished: Path) -> None:
    study = repository / "config/studies/smoke.yaml"
    assert "Nothing to be done" in complete(snakemake(repository, finished, "--cores", "2", "--configfile", study))


def test_snakemake_s_own_report_is_written(repository: Path, finished: Path) -> None:
    study = repository / "config/studies/smoke.yaml"
    complete(snakemake(repository, finished, "--configfile", study, "--report", "report.zip"))
    assert (finished / "report.zip").stat().st_size > 100_000


def planned(repository: Path, folder: Path, package: Path) -> set[str]:
    """Return the rules that a dry run would start with another copy of the package."""
    study = repository / "config/studies/smoke.yaml"
    output = complete(
        snakemake(repository, folder, "--dry-run", "--cores", "2", "--configfile", study, package=package)
    )
    return studies.planned(output)


@pytest.mark.parametrize(
    ("module", "edit", "rules"),
    [
        (
            "quantity",
            "\nADDED = 1\n",
            {
                *("feature_quantity", "mask_diverse_filters", "localise_objects"),
                *("draw_neurons", "draw_filters", "draw_explanations", *LAST),
            },
        ),
        ("quantity", "\n# a remark\n", set()),
        (
            "anomaly",
            "\nADDED = 1\n",
            {"anomaly_filters", "anomaly_history", "mask_anomalies", "draw_filters", *LAST},
        ),
        ("report", "\nADDED = 1\n", {"write_report"}),
    ],
)
def test_a_changed_module_reruns_its_stage_and_what_follows(
    repository: Path, finished: Path, tmp_path: Path, module: str, edit: str, rules: set[str]
) -> None:
    package = tmp_path / "package"
    shutil.copytree(repository / "src" / "nnscan", package / "nnscan")
    with open(package / "nnscan" / f"{module}.py", "a", encoding="utf-8") as stream:
        stream.write(edit)
    assert planned(repository, finished, package) == rules


OWN_MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 9, 3)
        self.head = nn.Linear(9, classes)

    def forward(self, x):
        x = torch.relu_(self.norm(self.conv(x)))
        x = torch.relu(self.deep(nn.functional.max_pool2d(x, 2)))
        return self.head(x.mean((2, 3)))


def build(classes):
    return Net(classes)
"""


@pytest.fixture
def own_model(tmp_path: Path) -> dict:
    """A model of one's own in a file outside the project, with a checkpoint as training scripts leave them."""
    (tmp_path / "mine.py").write_text(OWN_MODEL, encoding="utf-8")
    namespace: dict = {}
    exec(OWN_MODEL, namespace)
    torch.manual_seed(3)
    state = {f"module.{key}": value for key, value in namespace["build"](10).state_dict().items()}
    torch.save({"epoch": 7, "model": state}, tmp_path / "mine.pt")
    return {
        "name": "mine",
        "source": f"{tmp_path}/mine.py:build",
        "options": {"classes": 10},
        "weights": str(tmp_path / "mine.pt"),
        "state_dict_key": "model",
        "strip_prefix": "module.",
    }


def test_a_model_of_one_s_own_goes_through_by_configuration_alone(
    repository: Path, tmp_path: Path, own_model: dict
) -> None:
    config = write_config(tmp_path, {**smoke(repository), "study": "mine", "models": [own_model]})
    complete(snakemake(repository, tmp_path, "--cores", "2", *CLOCKS, "--configfile", config))
    run = tmp_path / "results/mine/digits/mine/seed0"
    quantities = read_frame(run / "metrics/well_trained/quantity.parquet")
    assert quantities.groupby("layer", sort=False).size().to_dict() == {"norm": 6 * 14 * 14, "deep": 9 * 5 * 5}
    assert (tmp_path / "results/mine/report.html").exists()
    table = pd.read_csv(tmp_path / "results/mine/tables/slides_6-2.csv")
    assert table["note"].str.contains("overfitted").any()  # marked as missing, not invented


def test_wrong_checkpoints_and_factories_are_named_and_nothing_is_left_behind(
    repository: Path, tmp_path: Path, own_model: dict
) -> None:
    wrong = {
        "prefixed": ({"strip_prefix": None}, "does not fit the model"),
        "elsewhere": ({"state_dict_key": "state"}, "has no key 'state'"),
        "nameless": ({"source": f"{tmp_path}/mine.py:bild"}, "has no factory 'bild'; did you mean 'build'?"),
    }
    models = [{**own_model, **change, "name": name} for name, (change, _) in wrong.items()]
    config = write_config(tmp_path, {**smoke(repository), "models": models})
    targets = [f"results/smoke/digits/{name}/seed0/training/well_trained.safetensors" for name in wrong]
    result = snakemake(repository, tmp_path, *targets, "--cores", "1", "--configfile", config)
    assert result.returncode != 0
    for (name, (_, sentence)), target in zip(wrong.items(), targets, strict=True):
        assert sentence in result.stderr
        assert not (tmp_path / target).exists()
        log = tmp_path / f"results/smoke/logs/adopt_model/digits+{name}+0.log"
        assert sentence in log.read_text(encoding="utf-8")


def test_missing_data_says_where_it_was_looked_for(repository: Path, tmp_path: Path) -> None:
    dataset = {"name": "mnist", "source": "mnist", "root": str(tmp_path / "nowhere")}
    config = write_config(tmp_path, {**smoke(repository), "datasets": [dataset]})
    target = "results/smoke/mnist/data.h5"
    result = snakemake(repository, tmp_path, target, "--cores", "1", *CLOCKS, "--configfile", config)
    assert result.returncode != 0
    assert str(tmp_path / "nowhere") in result.stderr
    assert "download" in result.stderr
