"""Nothing but a factory of the user's own is ever called: not by name, not by pickle, not by YAML."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch import nn

from hostile import refused
from nnscan.configuration import parse_study, read_study
from nnscan.errors import ConfigurationError, ModelError
from nnscan.models import build_model

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "torch.jit.load", "pd.read_pickle"),
    *("np.load", "numpy.load", "joblib.load", "pd.eval", "pandas.eval", "shelve.open", "tempfile.mktemp"),
}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Return the calls in a file by the dotted name of what is called."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("folder", ["src/nnscan", "workflow/scripts"])
def test_no_function_that_runs_what_it_reads_is_called(repository, folder):
    found = [(path.name, name, node) for path in (repository / folder).rglob("*.py") for name, node in calls(path)]
    assert len(found) > 100
    assert [(path, name) for path, name, _ in found if name in FORBIDDEN] == []
    for path, name, node in found:
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name == "torch.load":
            assert words["weights_only"] == "True", path
        if name.startswith("subprocess."):  # a command is a list of words, which no shell reads
            assert "shell" not in words, path
            assert isinstance(node.args[0], ast.List), path


def test_no_rule_has_a_shell_command(repository):
    """Names of a configuration stand in wildcards; without shell commands nothing can leave its place in one."""
    for path in [repository / "Snakefile", *(repository / "workflow/rules").glob("*.smk")]:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        assert not [line for line in lines if line.startswith(("shell:", "run:", "shell("))], path


@pytest.fixture
def trap(tmp_path) -> Path:
    return tmp_path / "executed"


def attacks(trap: Path) -> dict[str, dict]:
    touch = ["touch", str(trap)]
    return {
        "os:system": {"command": " ".join(touch)},
        "subprocess:Popen": {"args": touch},
        f"{subprocess.__file__}:Popen": {"args": touch},
        "builtins:exec": {"source": f"open({str(trap)!r}, 'w')"},
        "torch.serialization:load": {"f": "x.pt", "weights_only": False},
        "torch.hub:load": {"repo_or_dir": str(trap.parent), "model": "net", "source": "local"},
        "pandas:read_pickle": {"filepath_or_buffer": "x.pkl"},
        "nnscan.records:_write_json": {"path": trap, "content": {}},
        f"{Path(__file__).parents[2]}/benchmarks/harness.py:peak_of": {"code": f"open({str(trap)!r}, 'w')"},
        f"{Path(__file__).parents[1]}/twins.py:noise": {"seed": 0},
    }


@pytest.mark.parametrize("source", sorted(attacks(Path())))
def test_a_configuration_cannot_call_what_is_installed(trap, source):
    (trap.parent / "hubconf.py").write_text(f"open({str(trap)!r}, 'w')\ndef net(): ...\n", encoding="utf-8")
    options = attacks(trap)[source]
    assert "does not say that it returns a network" in refused(lambda: build_model(source, options), ModelError)
    assert not trap.exists()


@pytest.mark.parametrize("source", ["..os:system", "a b:c", "-c:x", "os\0:system", "nnscan..models:lenet5"])
def test_a_name_that_is_none_is_not_imported(source):
    assert "is no name of a package or module" in refused(lambda: build_model(source), ModelError)


@pytest.mark.parametrize(
    ("source", "options"),
    [("torch.nn:Linear", {"in_features": 2, "out_features": 3}), ("torchvision.models:get_model", {"name": "alexnet"})],
)
def test_networks_of_installed_packages_are_built(source, options):
    assert isinstance(build_model(source, options), nn.Module)


TAGS = [
    "study: !!python/object/apply:os.system ['touch {trap}']",
    "study: !!python/object/new:os.system ['touch {trap}']",
    "study: !!python/name:os.system",
    "study: !!python/module:os",
    "!!python/object/apply:os.system ['touch {trap}']",
    "__use_yte__: true\n__definitions__:\n  - open({trap!r}, 'w')\nstudy: x",
    "__use_yte__: true\n?open({trap!r}, 'w'):\n  study: x",
]


@pytest.mark.parametrize("text", TAGS)
def test_a_configuration_file_runs_no_code(tmp_path, trap, text):
    path = tmp_path / "study.yaml"
    path.write_text(text.format(trap=str(trap)), encoding="utf-8")
    refused(lambda: read_study(path), ConfigurationError)
    assert not trap.exists()


def test_make_checks_a_study_before_snakemake_reads_it(repository, tmp_path, trap):
    """Snakemake's own reader runs the code in a file that says __use_yte__; `make results` does not get so far."""
    text = f"__use_yte__: true\n__definitions__:\n  - open({str(trap)!r}, 'w')\nstudy: evil\n"
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    plan = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "results", "STUDY=x.yaml"],
        cwd=repository, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    commands = [line for line in plan if "x.yaml" in line]
    assert commands[0].endswith("nnscan check x.yaml")
    assert "snakemake" in commands[1]
    check = [sys.executable, "-m", "nnscan.cli", "check", tmp_path / "study.yaml"]
    result = subprocess.run(
        [sys.executable, "-c", "import sys; from nnscan.cli import main; sys.exit(main(sys.argv[1:]))", *check[3:]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert "unknown key __use_yte__" in result.stderr
    assert not trap.exists()
    code = "import sys; from snakemake.common.configfile import load_configfile; load_configfile(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path / "study.yaml"], capture_output=True, check=False)
    assert trap.exists()  # the trap would have worked


def test_check_names_the_code_that_a_study_runs(tmp_path, capsys):
    from nnscan.cli import main

    models = [{"name": "a", "source": "mine.py:build"}, {"name": "b", "source": "lenet5"}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"study": "s", "models": models}), encoding="utf-8")
    assert main(["check", str(tmp_path / "study.yaml")]) == 0
    assert capsys.readouterr().out == "study s: data sets digits; models a, b; code that it runs: mine.py:build\n"


def test_values_that_only_snakemake_s_reader_makes_are_refused():
    """Its YAML has functions and dates, where ours has none."""
    for value in (print, b"x", {1: 2}, {("a",): 1}, {"a"}, 2**63):
        models = [{"name": "m", "source": "lenet5", "options": {"x": value}}]
        refused(lambda models=models: parse_study({"models": models}), ConfigurationError)
