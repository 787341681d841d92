"""Configurations of a stranger: references that multiply, numbers without an end, names that lead out of a folder."""

import pytest

from hostile import refused
from nnscan.configuration import parse_study, read_study
from nnscan.errors import ConfigurationError

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
OPTIONS = "models:\n  - name: m\n    source: lenet5\n    options:\n" + "".join(
    f"      {line}\n" for line in LAUGHS.splitlines()
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))

TEXTS = {
    "a billion laughs": (LAUGHS, "Do not repeat parts of it by reference"),
    "a billion laughs in a model's options": (OPTIONS, "Do not repeat parts of it by reference"),
    "a billion merged keys": (MERGES, "Do not repeat parts of it by reference"),
    "a list that holds itself": ("study: &a [*a]", "Do not repeat parts of it by reference"),
    "five thousand brackets": ("study: " + "[" * 5000 + "]" * 5000, "is not valid YAML"),
    "a hundred thousand values": ("seeds: [" + "0, " * 10_000 + "1]", "has more than 10000 values"),
    "five thousand digits": ("seeds: [" + "9" * 5000 + "]", "is not valid YAML"),
    "sixty-four bits": (f"seeds: [{2**63}]", "more than 63 bits"),
    "a month 99": ("study: 2020-99-99", "is not valid YAML"),
    "a day": ("study: 2020-02-02", "neither text nor number nor list"),
    "bytes": ("study: !!binary aGVsbG8=", "neither text nor number nor list"),
    "a key that is a number": ("models: [{name: m, source: lenet5, options: {1: 2}}]", "which is no text"),
    "no number": ("training: {learning_rate: .nan}", "training.learning_rate"),
    "an infinite number": ("training: {learning_rate: .inf}", "training.learning_rate: Input should be a finite"),
    "a thousand million checkpoints": ("anomaly: {history_checkpoints: 1000000000}", "less than or equal to 1000"),
    "a thousand million shards": ("scan: {shards: 1000000000, samples: 1000000000}", "less than or equal to 10000"),
    "a seed before the first": ("datasets: [{name: d, source: digits, split_seed: -1}]", "split_seed"),
    "a key that moves the cursor": ('"\\e[2J": 1', r"unknown key \x1b[2J"),
    "a long key": ("? " + "x" * 10**6 + "\n: 1", "unknown key xxx"),
    "a long value": ("study: " + "/" * 10**6, "study: String should"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_file_that_asks_for_too_much_is_refused(tmp_path, text):
    content, message = TEXTS[text]
    path = tmp_path / "study.yaml"
    path.write_text(content, encoding="utf-8")
    assert message in refused(lambda: read_study(path), ConfigurationError, megabytes=150)


@pytest.mark.parametrize("content", [b"study: caf\xe9", b"\xff\xfe\x00", b"study: \x00", b"\x80" * 100])
def test_a_file_that_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    assert "is not valid YAML" in refused(lambda: read_study(path), ConfigurationError)
    assert "is not valid YAML" in refused(lambda: read_study(tmp_path), ConfigurationError)  # a folder


NAMES = [
    *("../x", "..", ".", "/etc", "a/b", "a\\b", "", " ", "a b", "-rf", ".ssh", "x\n", "x\0", "a" * 65),
    *("{seed}", "$(touch x)", "`touch x`", "x;y", "<b>", "\\input{x}", "\x1b[2J", "名前", "*", "%s"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["study", "dataset", "model"])
def test_names_in_paths_are_plain(place, name):
    values = {
        "study": {"study": name},
        "dataset": {"datasets": [{"name": name, "source": "digits"}]},
        "model": {"models": [{"name": name, "source": "lenet5"}]},
    }[place]
    assert "String should" in refused(lambda: parse_study(values), ConfigurationError)


def test_a_study_that_cannot_be_planned_is_refused():
    values = {
        "datasets": [{"name": f"d{n}", "source": "digits"} for n in range(50)],
        "models": [{"name": f"m{n}", "source": "lenet5"} for n in range(50)],
        "seeds": list(range(50)),
    }
    assert "are 125000 runs" in refused(lambda: parse_study(values), ConfigurationError)


def test_what_is_said_of_many_errors_is_short():
    assert "and 13 more" in refused(lambda: parse_study({f"k{n}": n for n in range(25)}), ConfigurationError)
