"""nnscan.configuration: what is not known is named before any job starts, and the generated files are in step."""

import dataclasses
import difflib
import inspect
import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from nnscan import configuration
from nnscan.configuration import (
    PRESETS,
    Study,
    TrainingConfig,
    default_yaml,
    json_schema,
    key_table,
    parse_study,
    read_study,
    with_key_table,
)
from nnscan.dissection import network_dissection, rotation_counts
from nnscan.errors import ConfigurationError
from nnscan.explainers import check_names
from nnscan.prototypes import PrototypeProtocol

CONFIG = Path(__file__).parents[2] / "config"
DATASET = {"name": "d", "source": "digits"}
MODEL = {"name": "m", "source": "lenet5"}


def study(**values):
    return {"datasets": [DATASET], "models": [MODEL], **values}


# Unknown keys and values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key", "suggestion"),
    [
        ({"sed": [1]}, "sed", "seeds"),
        (study(scan={"sampels": 3}), "scan.sampels", "samples"),
        (study(training={"learning_rat": 1}), "training.learning_rat", "learning_rate"),
        (study(averages={"step": 1}), "averages.step", "steps"),
        (study(quantity={"noises": "linear"}), "quantity.noises", "noise"),
        (study(properties={"sample": 5}), "properties.sample", "samples"),
        (study(anomaly={"krule": "ch"}), "anomaly.krule", "k_rule"),
        (study(experiments={"draw": 5}), "experiments.draw", "draws"),
        (study(datasets=[{**DATASET, "sise": 3}]), "datasets.0.sise", "size"),
        (study(datasets=[DATASET, {**DATASET, "name": "e", "rot": "x"}]), "datasets.1.rot", "root"),
        (
            study(datasets=[{**DATASET, "foreground": {"treshold": 0.1}}]),
            "datasets.0.foreground.treshold",
            "threshold",
        ),
        (study(models=[{**MODEL, "weight": "w.pt"}]), "models.0.weight", "weights"),
        (study(stage=["theses"]), "stage", "stages"),
        (study(dissection={"rotation": 5}), "dissection.rotation", "rotations"),
        (study(dimension={"sample": 500}), "dimension.sample", "samples"),
        (study(prototypes={"perclass": 5}), "prototypes.perclass", "per_class"),
        (study(models=[{**MODEL, "training": {"epoch": 3}}]), "models (m).training.epoch", "epochs"),
    ],
)
def test_an_unknown_key_is_named_with_the_closest_one(values, key, suggestion):
    with pytest.raises(ConfigurationError) as caught:
        parse_study(values)
    assert f"unknown key {key}; did you mean {suggestion!r}? Known: " in str(caught.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (study(datasets=[{**DATASET, "source": "cifar"}]), "datasets.0.source: 'cifar' is not possible; did you mean"),
        (study(datasets=[{**DATASET, "source": "cifar"}]), "Known: digits, mnist, fashion_mnist, cifar10, cifar100"),
        (study(datasets=[{**DATASET, "channels": 2}]), "datasets.0.channels: 2 is not possible. Known: 1, 3"),
        (study(experiments={"similarity_method": 3}), "experiments.similarity_method: 3 is not possible. Known: 1, 2"),
        (study(scan={"layers": "convolution"}), "scan.layers: 'convolution' is not possible; did you mean 'convolu"),
        (study(training={"optimizer": "adan"}), "training.optimizer: 'adan' is not possible; did you mean 'adam'?"),
        (study(training={"preset": "slide"}), "training.preset: 'slide' is not possible; did you mean 'slides'?"),
        (study(training={"preset": ["slides"]}), "training.preset: ['slides'] is not possible"),
        (study(training={"epochs": 2}), "training.epochs: Input should be greater than or equal to 3 (found 2)"),
        (study(training={"learning_rate": 0}), "training.learning_rate: Input should be greater than 0 (found 0)"),
        (study(training={"momentum": 1}), "training.momentum: Input should be less than 1 (found 1)"),
        (study(anomaly={"samples": 10}), "anomaly.samples: Input should be greater than or equal to 50 (found 10)"),
        (study(seeds=[-1]), "seeds.0: Input should be greater than or equal to 0 (found -1)"),
        (study(seeds=[1, 2, 1]), "seeds: seeds must differ (found [1, 2, 1])"),
        (study(seeds=[]), "seeds: List should have at least 1 item"),
        (study(seeds=[0], models=[{**MODEL, "seeds": [1]}]), "models (m).seeds names 1, the study has [0]"),
        (study(seeds=[0], models=[{**MODEL, "seeds": [0, 0]}]), "models (m).seeds must differ"),
        (study(models=[{**MODEL, "datasets": ["e"]}]), "models (m).datasets names 'e', the study has ['d']"),
        (study(models=[{**MODEL, "datasets": []}]), "models.0.datasets: List should have at least 1 item"),
        (study(stages=[]), "stages: List should have at least 1 item"),
        (study(stages=["thesis"]), "stages.0: 'thesis' is not possible; did you mean 'theses'?"),
        (study(stages=["dimension", "dimension"]), "stages: stages must differ (found ['dimension', 'dimension'])"),
        (study(stages="dimension"), "stages: Input should be a valid list"),
        (study(models=[{**MODEL, "stages": ["dimension"]}]), "models (m).stages names 'dimension', the study has"),
        (study(dissection={"concepts": "brodon"}), "dissection.concepts: 'brodon' is not possible; did you mean 'bro"),
        (study(dissection={"upsampling": "bilinear"}), "dissection.upsampling: 'bilinear' is not possible. Known: "),
        (study(dissection={"layers": "pools"}), "dissection.layers: 'pools' is not possible. Known: convolutional, al"),
        (study(dissection={"share": 0}), "dissection.share: Input should be greater than 0 (found 0)"),
        (study(dissection={"detector": 1}), "dissection.detector: Input should be less than 1 (found 1)"),
        (study(dissection={"tile": 0}), "dissection.tile: Input should be greater than or equal to 1 (found 0)"),
        (study(dimension={"samples": 99}), "dimension.samples: Input should be greater than or equal to 100 (found"),
        (study(dimension={"layers": "convolutional"}), "dimension.layers: 'convolutional' is not possible. Known: poo"),
        (study(prototypes={"warm_epochs": -1}), "prototypes.warm_epochs: Input should be greater than or equal to 0"),
        (study(prototypes={"per_class": 0}), "prototypes.per_class: Input should be greater than or equal to 1"),
        (study(datasets=[DATASET, DATASET]), "datasets: names must differ, found twice: d"),
        (study(models=[MODEL, {**MODEL, "source": "vgg11"}]), "models: names must differ, found twice: m"),
        (study(models=[{"name": "m"}]), "models.0.source is missing"),
        (study(datasets=[{"source": "digits"}]), "datasets.0.name is missing"),
        (study(study="a/b"), "study: String should match pattern"),
        (study(models=[{**MODEL, "name": "../m"}]), "models.0.name: String should match pattern"),
        (study(scan={"block": "x"}), "scan.block: Input should be a valid integer"),
        (study(scan=None), "scan: Input should be a valid dictionary"),
        (study(models=[{**MODEL, "training": {"epochs": 1}}]), "models (m).training.epochs: Input should be greater"),
        (study(models=[{**MODEL, "training": {"preset": "x"}}]), "models (m).training.preset: 'x' is not possible"),
    ],
)
def test_a_wrong_value_is_named(values, sentence):
    with pytest.raises(ConfigurationError) as caught:
        parse_study(values)
    assert sentence in str(caught.value)
    assert "the configuration is not valid" in str(caught.value)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigurationError) as caught:
        parse_study(study(sed=1, scan={"block": 0}, models=[{**MODEL, "weight": 1}]))
    assert len(str(caught.value).splitlines()) == 4


def test_a_model_may_be_scanned_in_blocks_of_its_own():
    parsed = parse_study(study(scan={"block": 2, "samples": 7}, models=[MODEL, {**MODEL, "name": "n", "block": 8}]))
    assert [parsed.scan_of(name).block for name in ("m", "n")] == [2, 8]
    assert parsed.scan_of("n").samples == 7


def test_a_study_measures_what_the_theses_do_unless_it_says_otherwise():
    assert parse_study(study()).stages == ["theses"]
    assert parse_study(study(stages=["prototypes", "dimension"])).stages == ["prototypes", "dimension"]
    parsed = parse_study(study(stages=["prototypes", "dimension"], models=[{**MODEL, "stages": ["dimension"]}]))
    assert parsed.model("m").stages == ["dimension"]


def test_the_systems_are_measured_as_their_sources_say():
    dissection, dimension, prototypes = Study().dissection, Study().dimension, Study().prototypes
    assert (dissection.share, dissection.detector, dissection.least_images) == (0.005, 0.04, 10)
    assert (dissection.upsampling, dimension.layers) == ("anchored", "pools")
    assert (prototypes.per_class, prototypes.channels, prototypes.warm_epochs) == (10, 128, 5)
    assert (prototypes.push_every, prototypes.last_passes, prototypes.rate_epochs) == (10, 20, 5)


def test_settings_of_the_systems_are_those_of_the_library():
    """Each is handed over by name; a default that differs would mean that a key does nothing where it is left out."""
    protocol = {field.name: field.default for field in dataclasses.fields(PrototypeProtocol)}
    for name, value in Study().prototypes.model_dump().items():
        assert protocol[name] == value, name
    arguments = inspect.signature(rotation_counts).parameters | inspect.signature(network_dissection).parameters
    for name, value in Study().dissection.model_dump(exclude={"concepts", "root", "side", "tile", "size"}).items():
        assert name in arguments
        assert name == "layers" or arguments[name].default == value, name
    for layers in ("pools", "all", ["features.3"]):
        assert parse_study(study(dimension={"layers": layers})).dimension.layers == layers


def test_a_parsed_study_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Study().study = "other"


# Training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_is_a_protocol(preset):
    found = TrainingConfig(preset=preset).model_dump()
    assert {key: found[key] for key in PRESETS[preset]} == PRESETS[preset]


def test_presets_say_what_their_sources_say():
    thesis, slides = TrainingConfig(preset="thesis"), TrainingConfig(preset="slides")
    assert (thesis.optimizer, thesis.learning_rate, thesis.weight_decay) == ("adam", 1e-3, 1e-5)
    assert (thesis.epochs, thesis.batch_size) == (30, 128)
    assert (slides.optimizer, slides.learning_rate, slides.momentum) == ("sgd", 0.01, 0.9)
    assert (slides.epochs, slides.batch_size) == (200, 128)


def test_keys_beside_a_preset_win():
    found = TrainingConfig.model_validate({"preset": "slides", "epochs": 20})
    assert (found.optimizer, found.epochs, found.learning_rate) == ("sgd", 20, 0.01)


def test_a_model_may_be_trained_in_its_own_way():
    models = [
        MODEL,
        {"name": "own", "source": "vgg11", "training": {"learning_rate": 0.5}},
        {"name": "preset", "source": "vgg16", "training": {"preset": "slides", "epochs": 7}},
    ]
    parsed = parse_study(study(models=models, training={"epochs": 12, "batch_size": 9, "learning_rate": 0.1}))
    shared, own, preset = (parsed.training_of(name) for name in ("m", "own", "preset"))
    assert shared.model_dump(exclude={"preset"}) == parsed.training.model_dump(exclude={"preset"})
    assert (own.learning_rate, own.epochs, own.batch_size) == (0.5, 12, 9)
    assert (preset.optimizer, preset.learning_rate, preset.epochs, preset.batch_size) == ("sgd", 0.01, 7, 128)


def test_a_model_keeps_the_preset_of_the_study_under_its_own_settings():
    for preset in ({}, {"preset": None}):
        models = [{**MODEL, "training": {"batch_size": 64, **preset}}]
        found = parse_study(study(models=models, training={"preset": "slides"})).training_of("m")
        assert (found.optimizer, found.epochs, found.batch_size) == ("sgd", 200, 64)


def test_entries_by_name():
    parsed = parse_study(study(datasets=[DATASET, {"name": "e", "source": "mnist"}]))
    assert parsed.dataset("e").source == "mnist"
    assert parsed.model("m").source == "lenet5"


# Files --------------------------------------------------------------------------------------------------------------


def in_step(path, expected):
    found = path.read_text(encoding="utf-8")
    if found != expected:
        difference = difflib.unified_diff(
            found.splitlines(), expected.splitlines(), str(path), "src/nnscan/configuration.py", lineterm=""
        )
        pytest.fail("\n".join([f"{path} is not in step with the classes; run `make config`", *difference]))


def test_the_default_configuration_is_in_step():
    in_step(CONFIG / "config.yaml", default_yaml())


def test_the_schema_is_in_step():
    in_step(CONFIG / "schema.json", json_schema())


def test_the_manual_is_in_step():
    path = CONFIG / "README.md"
    in_step(path, with_key_table(path.read_text(encoding="utf-8")))


def test_make_config_rewrites_all_three(tmp_path):
    manual = (CONFIG / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(manual.replace("| `seeds` |", "| `sed` |"), encoding="utf-8")
    configuration._rewrite(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == with_key_table(manual)
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == default_yaml()
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == json_schema()


def test_the_default_file_is_the_default_study(tmp_path):
    assert parse_study(yaml.safe_load(default_yaml())) == Study()
    path = tmp_path / "config.yaml"
    path.write_text(default_yaml(), encoding="utf-8")
    assert read_study(path) == Study() == parse_study({})


def leaves(model, prefix=""):
    for name, field in model.model_fields.items():
        inner = configuration._inner_class(field.annotation)
        yield f"{prefix}{name}", field
        if inner is not None:
            yield from leaves(inner, f"{prefix}{name}.")


def test_every_key_is_explained_and_listed():
    keys = list(leaves(Study))
    assert len(keys) > 50
    table, text = key_table(), default_yaml()
    for key, field in keys:
        name = key.replace("datasets.", "datasets[].").replace("models.", "models[].")
        assert field.description, key
        assert f"`{name}" in table
        assert f"{key.rpartition('.')[2]}:" in text


def test_the_default_file_has_a_comment_above_every_key():
    lines = default_yaml().splitlines()
    first_model = lines.index("  - name: simple_cnn")
    for above, line in pairwise(lines):
        if not line.lstrip().startswith("#") and not (first_model <= lines.index(line) <= first_model + 1):
            assert above.lstrip().startswith("#"), line
    assert max(map(len, lines)) <= 120


def test_the_table_renders_as_one():
    rows = key_table().splitlines()
    assert all(row.replace("\\|", "").count("|") == 4 for row in rows)


def test_the_schema_describes_the_default_study():
    schema = json.loads(json_schema())
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Study.model_fields)
    for definition in schema["$defs"].values():
        assert definition["additionalProperties"] is False


@pytest.mark.parametrize("path", sorted((CONFIG / "studies").glob("*.yaml")), ids=lambda path: path.name)
def test_every_study_is_valid(path):
    parsed = read_study(path)
    assert parsed.study == path.stem
    for model in parsed.models:
        assert isinstance(parsed.training_of(model.name), BaseModel)
    check_names(parsed.named_methods())


def test_methods_that_a_study_names_are_those_of_its_stages():
    models = [{"name": "a", "source": "lenet5", "methods": ["rise"]}, {"name": "b", "source": "lenet5"}]
    values = {"models": models, "explainers": {"methods": ["lime"], "retrained": ["edges"]}}
    assert parse_study(values).named_methods() == {}  # no stage asks for them
    explained = {"explainers.methods": ["lime"], "models (a).methods": ["rise"]}
    assert parse_study({**values, "stages": ["explainers"]}).named_methods() == explained
    assert parse_study({**values, "stages": ["retraining"]}).named_methods() == {"explainers.retrained": ["edges"]}
    assert parse_study({"stages": ["explainers", "retraining"]}).named_methods() == {}  # defaults need no check
    study = parse_study({**values, "stages": ["explainers"]})
    controls = ["random", "edges", "input"]
    assert (study.methods_of("a"), study.methods_of("b")) == (["rise", *controls], ["lime", *controls])
    assert study.retrained == ["edges", "random", "input"]
    assert parse_study({}).methods_of("lenet5") is None  # all
    assert {*controls} < {*parse_study({}).retrained}


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml does not exist"):
        read_study(tmp_path / "nowhere.yaml")
    path = tmp_path / "study.yaml"
    path.write_text("a: [1", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"study\.yaml is not valid YAML"):
        read_study(path)
    path.write_text("- a\n- b\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="must hold keys and values"):
        read_study(path)


def test_an_empty_file_is_no_study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="must hold keys and values"):
        read_study(path)
