"""Profiles and container agree with the rules and with pyproject.toml; tests/cluster has what needs a cluster."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

RESOURCES = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, ResourceSettings
with SnakemakeApi() as api:
    workflow = api.workflow(
        resource_settings=ResourceSettings(),
        config_settings=ConfigSettings(config={"device": sys.argv[2]}),
        snakefile=Path(sys.argv[1]),
    )._workflow
    gpus = {rule.name: rule.resources["gpu"].value if "gpu" in rule.resources else None for rule in workflow.rules}
print(json.dumps(gpus))
"""


@pytest.fixture(scope="module", params=[("auto", 1), ("cpu", 0)], ids=["auto", "cpu"])
def requests(request, repository, tmp_path_factory):
    """How many GPUs each rule asks for, None where it names none; and how many those that train or scan should."""
    device, expected = request.param
    found = subprocess.run(
        [sys.executable, "-c", RESOURCES, str(repository / "Snakefile"), device],
        capture_output=True, text=True, check=True, cwd=tmp_path_factory.mktemp("requests"),
    )  # fmt: skip
    return json.loads(found.stdout), expected


def profile(repository, name):
    return yaml.safe_load((repository / "profiles" / name / "profile.yaml").read_text(encoding="utf-8"))


def accelerated(repository):
    """Return the rules whose scripts run in the environment with CUDA, those that inherit from them too."""
    found = set()
    for path in (repository / "workflow/rules").glob("*.smk"):
        for block in re.split(r"^(?=rule |use rule )", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            head = re.match(r"(?:use )?rule (\w+)(?: as (\w+) with)?:", block)
            if head and ("envs/cuda.yaml" in block or (head[2] and head[1] in found)):
                found.add(head[2] or head[1])
    return found


def test_rules_that_train_or_scan_ask_for_a_gpu_unless_the_study_wants_none(repository, requests):
    found, expected = requests
    assert {"train_model", "overfit_model", "scan_neurons"} <= accelerated(repository) < found.keys()
    assert found == {rule: expected if rule in accelerated(repository) else None for rule in found}


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_repeats_what_the_default_one_sets(repository, name):
    default, found = profile(repository, "default"), profile(repository, name)
    assert default.keys() <= found.keys()
    assert {key: found[key] for key in default if key != "latency-wait"} == {
        key: value for key, value in default.items() if key != "latency-wait"
    }
    assert found["latency-wait"] >= default["latency-wait"]
    assert found["retries"] > 0


def test_names_of_partitions_and_accounts_are_in_the_profile_alone(repository):
    rules = "".join(path.read_text(encoding="utf-8") for path in (repository / "workflow").rglob("*.smk"))
    assert "slurm" not in rules
    assert {"slurm_account", "slurm_partition"} <= profile(repository, "slurm")["default-resources"].keys()


def test_rules_with_a_gpu_go_to_partitions_with_gpus(repository):
    assert profile(repository, "slurm")["set-resources"].keys() == accelerated(repository)


def test_groups_hold_rules_that_exist_and_want_no_gpu(repository, requests):
    assert {requests[0][rule] for rule in profile(repository, "slurm")["groups"]} == {None}


@pytest.mark.parametrize(
    ("study", "planned"),
    [("smoke", r"scan_neurons +2"), ("systems", r"dissect_network +48"), ("explainers", r"draw_ranking +1")],
)
def test_the_profile_for_slurm_plans_a_study(repository, tmp_path, study, planned):
    """The groups have no cycle, and the plugin knows every key."""
    found = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--dry-run", "--snakefile", str(repository / "Snakefile")),
            *("--directory", str(tmp_path), "--configfile", str(repository / f"config/studies/{study}.yaml")),
            *("--workflow-profile", str(repository / "profiles/slurm")),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert re.search(rf"^{planned}$", found.stdout + found.stderr, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def recipe(repository):
    """The container recipe's instructions: pairs of a name and its arguments."""
    text = (repository / "envs/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_container_has_the_project_s_python_and_installs_the_project(repository, recipe):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    ((_, base),) = [entry for entry in recipe if entry[0] == "FROM"]
    version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", base)
    assert version, "the base is pinned to a release"
    assert version[1] == project["tool"]["mypy"]["python_version"]
    (installed,) = [argument for name, argument in recipe if name == "RUN" and "pip install" in argument]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', installed)
    assert extras.split(",") == ["cluster"]
    optional = project["project"]["optional-dependencies"]
    assert all("==" in entry for entry in optional["cluster"])
    assert {entry for entry in optional["dev"] if "executor-plugin" in entry} < set(optional["cluster"])


def test_the_container_copies_what_the_installation_needs(repository, recipe):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    copied = [source for name, argument in recipe if name == "COPY" for source in argument.split()[:-1]]
    assert all((repository / source).exists() for source in copied)
    where = project["tool"]["setuptools"]["packages"]["find"]["where"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *where}
    assert set(copied) == needed
    context = (repository / "envs/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert context[0] == "*"
    assert {line[1:] for line in context if line.startswith("!")} == needed


def test_the_container_does_not_run_as_root(recipe):
    names = [name for name, _ in recipe]
    (user,) = [argument for name, argument in recipe if name == "USER"]
    assert user != "root"
    assert "RUN" not in names[names.index("USER") :]
