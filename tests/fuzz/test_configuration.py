"""Whatever a configuration holds, it is a study or a ConfigurationError: no other error, no hang, no memory."""

import copy
import string
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hostile import bounded
from mutations import changed
from nnscan.configuration import Study, parse_study, read_study
from nnscan.errors import ConfigurationError
from nnscan.layout import Layout

CONFIG = Path(__file__).parents[2] / "config"
FILES = ["config.yaml", *(f"studies/{name}.yaml" for name in ("smoke", "mnist", "cifar10", "theses-full"))]
TEXTS = {name: (CONFIG / name).read_text(encoding="utf-8") for name in FILES}
STUDIES = [yaml.safe_load(text) for text in TEXTS.values()]
DEFAULT = Study().model_dump()


def keys_of(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


NAMES = st.sampled_from(sorted(keys_of(DEFAULT))) | st.text(max_size=20)
EXTREME = st.sampled_from(
    [0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"), True, ""]
)
SCALARS = (
    EXTREME | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
    | st.sampled_from(["digits", "lenet5", "adam", "auto", "all", "masks", "thesis", "../x", "a"])
    | st.dates() | st.binary(max_size=5)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.integers() | st.none(), inner, max_size=4),
    max_leaves=12,
)


def check(values: object) -> None:
    """Parse a configuration; what is accepted can be planned."""
    with bounded(300, 20):
        try:
            study = parse_study(values)
        except ConfigurationError:
            return
        layout = Layout(study)
        assert layout.runs()
        assert layout.shards()
        for model in study.models:
            study.training_of(model.name)
            study.scan_of(model.name)
            layout.checkpoints(model.name)
        assert len(layout.figures()) > 0


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_values(values):
    check(values)


def places_in(value: object, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places_in(part, (*path, key)))]


@given(st.data())
def test_real_configurations_with_some_values_changed(data):
    values = copy.deepcopy(data.draw(st.sampled_from([*STUDIES, DEFAULT]), label="study"))
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from([place for place in places_in(values) if place]))
        owner = values
        for key in path[:-1]:
            owner = owner[key]
        kind = data.draw(st.sampled_from(["value", "value", "value", "remove", "twice", "key"]))
        if kind == "value":
            owner[path[-1]] = data.draw(VALUES)
        elif kind == "twice" and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[path[-1]]))
        elif kind == "key" and isinstance(owner, dict):
            owner[data.draw(NAMES)] = owner.pop(path[-1])
        else:
            del owner[path[-1]]
    check(values)


def check_file(path, content: bytes) -> None:
    path.write_bytes(content)
    with bounded(300, 20), suppress(ConfigurationError):
        read_study(path)


@pytest.fixture(scope="module")
def study_file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "study.yaml"


@given(content=changed(*(text.encode() for text in TEXTS.values()), words=string.punctuation.encode()))
def test_real_files_with_some_bytes_changed(study_file, content):
    check_file(study_file, content)


WORDS = [
    *("a", "study", "models", ": ", "- ", "\n", "\n  ", "[", "]", "{", "}", ",", "&a ", "*a", "<<: ", "!!", "!!set"),
    *("!!binary", "!!python/object/apply:os.system", "? ", "|", ">", "'", '"', "\\x", "#", "---\n", "...\n", "\t", "~"),
    *("%YAML 1.1\n", "null", "0x", "1:1:1", "1e999", ".inf", "2020-01-01T99:00:00", "0o8", "1_000", "=", "@", "`"),
    *("\u2028", "\ufeff", "yes", "\r"),
]


@given(words=st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=40))
def test_files_of_the_words_of_yaml(study_file, words):
    check_file(study_file, "".join(words).encode("utf-8", "surrogatepass"))
