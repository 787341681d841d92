"""The pinned environments hold what pyproject.toml asks for: the same packages, the same versions, the same Python."""

import tomllib

import pytest
import yaml

ENVIRONMENTS = ("cpu", "cuda")


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def environment(repository, name):
    return yaml.safe_load((repository / "envs" / f"{name}.yaml").read_text(encoding="utf-8"))


def pip_lines(repository, name):
    (inner,) = [entry["pip"] for entry in environment(repository, name)["dependencies"] if isinstance(entry, dict)]
    return inner


def conda_versions(repository, name):
    entries = [entry for entry in environment(repository, name)["dependencies"] if isinstance(entry, str)]
    return dict(entry.split("=") for entry in entries)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_packages_and_versions(repository, project, name):
    found = [line for line in pip_lines(repository, name) if not line.startswith("--")]
    assert sorted(found) == sorted(project["project"]["dependencies"]), (
        f"bring envs/{name}.yaml and pyproject.toml in step"
    )


def test_every_version_is_pinned(project):
    assert all("==" in entry for entry in project["project"]["dependencies"])


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_python(repository, project, name):
    version = conda_versions(repository, name)["python"]
    assert version == project["tool"]["mypy"]["python_version"]
    assert project["project"]["requires-python"] == f">={version}"


def test_the_environments_differ_in_where_torch_comes_from_alone(repository):
    assert conda_versions(repository, "cpu") == conda_versions(repository, "cuda")
    options = {name: [line for line in pip_lines(repository, name) if line.startswith("--")] for name in ENVIRONMENTS}
    assert options == {"cpu": ["--extra-index-url https://download.pytorch.org/whl/cpu"], "cuda": []}
    for name in ENVIRONMENTS:
        assert environment(repository, name)["channels"] == ["conda-forge", "nodefaults"]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_project_itself_is_installed_afterwards(repository, name):
    script = repository / "envs" / f"{name}.post-deploy.sh"
    assert "pip install --no-deps" in script.read_text(encoding="utf-8")
    assert environment(repository, name)["name"] == f"nnscan-{name}"
