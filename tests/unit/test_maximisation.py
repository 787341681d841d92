"""nnscan.maximisation: the generator's training and files, seeds, what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from networks import plain
from nnscan import fitting, maximisation
from nnscan.data import Split, build_dataset
from nnscan.errors import ModelError, ScanError
from nnscan.explanations import Setting
from nnscan.fitting import Fitting
from nnscan.maximisation import (
    METHODS,
    Generator,
    activation_maximisation,
    generator_maximisation,
    load_generator,
    synthesis_scores,
    train_generator,
)

ORIGIN = {"model": "tiny", "code": "1", "created": "now"}
BOX = ((0.0, 0.0), (1.0, 1.0))


@pytest.fixture(autouse=True)
def _quick(monkeypatch, one_thread):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(fitting, "RECORD", 50)
    monkeypatch.setattr(maximisation, "STEPS", 20)
    monkeypatch.setattr(maximisation, "CODE_STEPS", 20)


@pytest.fixture(scope="module")
def dataset():
    """A bright column at the left, in the middle or at the right, of different brightness."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, size in (("train", 120), ("validation", 30), ("test", 6)):
        labels = np.arange(size) % 3
        images = rng.integers(0, 30, (size, 1, 16, 16), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, :, 1 + 5 * label : 4 + 5 * label] += rng.integers(100, 220, dtype=np.uint8)
        splits[split] = Split(images, labels)
    return build_dataset("columns", ("left", "middle", "right"), splits)


@pytest.fixture(scope="module")
def model(dataset):
    """A network that knows the classes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    x, y = torch.from_numpy(dataset.inputs("train")), torch.from_numpy(dataset.splits["train"].labels)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return network.train()


@pytest.fixture(scope="module")
def trained(dataset, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = train_generator(model, dataset, Fitting(250, 16, 3e-3), folder, 0, ORIGIN, False)
    torch.set_num_threads(threads)
    return folder, results


def test_the_generator_inverts_codes(trained, dataset, model):
    folder, results = trained
    table = results.set_index("images")
    assert table.loc["generator", "error"] < 0.3 * table.loc["mean", "error"]
    assert table.loc["generator", "agreement"] > 0.9
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    network = load_generator(folder / "generator.safetensors")
    assert network.size.tolist() == [16, 16]
    codes = model[:6](torch.from_numpy(dataset.inputs("train"))).detach()
    torch.testing.assert_close(network.ceiling, 3 * codes.std(0))
    assert float(network.floor.abs().max()) == 0  # behind a ReLU
    assert len(pd.read_csv(folder / "generator_history.csv")) == 3
    assert not (folder / "state_generator.pt").exists()


def test_images_of_the_generator_are_of_their_class(trained, dataset, model, monkeypatch):
    monkeypatch.setattr(maximisation, "CODE_STEPS", 60)
    network = load_generator(trained[0] / "generator.safetensors")
    setting = Setting(generator=network)
    state = torch.get_rng_state()
    found = generator_maximisation(model, (1, 16, 16), [0, 1, 2], setting)
    assert torch.equal(torch.get_rng_state(), state)
    table = synthesis_scores(found, [0, 1, 2], model, [model], dataset)
    assert table["agreement"].tolist() == [1, 1, 1]
    assert table["nearest_class"].tolist() == [0, 1, 2]
    assert table["distance"].max() < 0.25
    torch.testing.assert_close(generator_maximisation(model, (1, 16, 16), [2], setting)[0], found[2])
    assert not torch.equal(generator_maximisation(model, (1, 16, 16), [2], Setting(1, generator=network))[0], found[2])


def test_a_training_that_was_interrupted_ends_with_the_same_bits(dataset, model, tmp_path, monkeypatch):
    monkeypatch.setattr(maximisation, "WIDTH", 4)
    protocol = Fitting(100, 8, 1e-3)
    whole = train_generator(model, dataset, protocol, tmp_path / "whole", 0, ORIGIN, False)
    kept = fitting.save_state

    def stop(path, key, state):
        kept(path, key, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        train_generator(model, dataset, protocol, tmp_path / "parts", 0, ORIGIN, False)
    monkeypatch.setattr(fitting, "save_state", kept)
    assert train_generator(model, dataset, protocol, tmp_path / "parts", 0, ORIGIN, False).equals(whole)
    paths = [tmp_path / name / "generator.safetensors" for name in ("whole", "parts")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (28, 33)])
def test_images_of_any_size(size):
    torch.manual_seed(0)
    made = Generator(5, 2, size, 4).eval()(torch.rand(3, 5)).detach()
    assert made.shape == (3, 2, *size)
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1


def test_images_depend_on_the_seed_and_not_on_the_other_classes():
    network = plain().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.inference_mode():
        found = activation_maximisation(network, (2, 8, 8), [0, 1, 2] * 6, Setting(box=BOX))
    assert found.shape == (18, 2, 8, 8)
    assert found.dtype == torch.float64
    torch.testing.assert_close(activation_maximisation(network, (2, 8, 8), [2], Setting(box=BOX))[0], found[17])
    assert not torch.equal(activation_maximisation(network, (2, 8, 8), [2], Setting(1, box=BOX))[0], found[17])
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_the_box_of_a_data_set(dataset):
    assert dataset.box == ((0.0,), (1.0,))
    standard = build_dataset("columns", dataset.classes, dataset.splits, "standard")
    black, white = standard.box
    ends = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(16, 2).repeat(16, 3)
    only = {**standard.splits, "test": Split(ends, np.zeros(2, np.int64))}
    shown = (build_dataset("columns", dataset.classes, only, "standard")).inputs("test")
    assert shown[:, 0, 0, 0].tolist() == pytest.approx([black[0], white[0]])


def test_what_lacks_is_named(dataset, trained, tmp_path):
    network, shape = plain(), (2, 8, 8)
    for setting in (Setting(), Setting(box=((0.0,), (1.0,)))):
        with pytest.raises(ScanError, match=r"largest value of 2 channels \(Dataset.box\)"):
            activation_maximisation(network, shape, [0], setting)
    with pytest.raises(ModelError, match="class scores 3 to 3"):
        activation_maximisation(network, shape, [3], Setting(box=BOX))
    with pytest.raises(ModelError, match="the setting has none"):
        generator_maximisation(network, shape, [0], Setting())
    with pytest.raises(ModelError, match="does not say in which box"):
        generator_maximisation(network, shape, [0], Setting(generator=nn.Linear(2, 2)))
    generator = load_generator(trained[0] / "generator.safetensors")
    with pytest.raises(ModelError, match=r"makes images of \(1, 16, 16\), not of \(2, 8, 8\)"):
        generator_maximisation(network, shape, [0], Setting(generator=generator))
    with pytest.raises(ModelError, match="scores come from something else than a"):
        train_generator(nn.Sequential(nn.Conv2d(1, 3, 16), nn.Flatten()), dataset, Fitting(), tmp_path, 0, ORIGIN)
    with pytest.raises(ScanError, match="cannot be compared"):
        synthesis_scores(torch.rand(1, 2, 8, 8, dtype=torch.float64), [0], network, [], dataset)
    torch.save({"floor": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="is not one of a generator"):
        load_generator(tmp_path / "other.pt")
    large = {**generator.state_dict(), "size": torch.tensor([10**9, 10**9])}
    torch.save(large, tmp_path / "large.pt")
    with pytest.raises(ModelError, match="would have the size"):
        load_generator(tmp_path / "large.pt")
    assert [method.synthesise is not None and method.explain is None for method in METHODS] == [True, True]
