"""nnscan.training: equal seeds and interrupted trainings give the same bits; what each checkpoint is."""

import dataclasses
import json
import logging
import math
import os
import struct
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nnscan import training
from nnscan.configuration import TrainingConfig
from nnscan.data import Split, build_dataset
from nnscan.errors import ModelError, TrainingError
from nnscan.models import build_model
from nnscan.training import (
    HISTORY,
    SPLITS,
    THIRDS,
    Protocol,
    adopt,
    augment,
    deterministic,
    evaluate,
    initialise,
    kept_epochs,
    model_builder,
    restore,
    split_tensors,
    train,
    write_csv,
)

CLASSES = ("left", "middle", "right")
ORIGIN = {"model": "tiny", "code": "1", "created": "now"}
PROTOCOL = Protocol(
    learning_rate=1e-2, weight_decay=1e-2, epochs=6, batch_size=8, augmentation="shift_flip", overfitting_epochs=4
)


def tiny_dataset(sizes=(27, 12, 15), seed=0):
    """A bright column on noise, at the left, in the middle or at the right."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, size in zip(SPLITS, sizes, strict=True):
        labels = np.arange(size) % 3
        images = rng.integers(0, 120, (size, 1, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, :, 1 + 2 * label] += 60
        splits[split] = Split(images, labels)
    return build_dataset("columns", CLASSES, splits)


@pytest.fixture(autouse=True)
def _quick(monkeypatch, one_thread):
    """Do not wait for the disk, nor for other threads."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def dataset():
    return tiny_dataset()


def build():
    """A network with all that may break reproducibility: normalisation statistics and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)
    )


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def content(path):
    """Everything in a file; of safetensors the header by meaning, for the order of its metadata is arbitrary."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def contents(folder):
    return {path.name: content(path) for path in sorted(folder.iterdir())}


def run(dataset, folder, phase="regular", build=build, protocol=PROTOCOL, seed=0, origin=ORIGIN, history=0):
    return train(build, dataset, protocol, folder, seed, origin, phase, progress=False, history=history)


def epoch_recorder(monkeypatch, epochs, losses=None):
    """Keep the weights of every epoch; `losses` are the validation losses that training then sees."""
    weights = []

    def fake(model, x, y, batch_size=512):
        loss, accuracy = evaluate(model, x, y, batch_size)
        if len(weights) < epochs:  # what follows is the evaluation of the finished checkpoints
            weights.append({name: value.cpu().clone() for name, value in model.state_dict().items()})
            loss = loss if losses is None else losses[len(weights) - 1]
        return loss, accuracy

    monkeypatch.setattr(training, "evaluate", fake)
    return weights


def same_weights(path, expected):
    found = load_file(path)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


# Reproducibility ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["regular", "overfitting", "shuffled"])
def test_equal_seeds_give_equal_bits(dataset, tmp_path, phase):
    run(dataset, tmp_path / "first", phase)
    torch.manual_seed(99)  # what the process did before must not matter
    torch.rand(7)
    run(dataset, tmp_path / "second", phase)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    run(dataset, tmp_path / "third", phase, seed=1)
    for name, values in contents(tmp_path / "first").items():
        assert values != contents(tmp_path / "third")[name]


@pytest.mark.parametrize("phase", ["regular", "overfitting"])
def test_the_folder_holds_what_is_promised_and_no_state(dataset, tmp_path, phase):
    table = run(dataset, tmp_path, phase)
    if phase == "regular":
        checkpoints, prefix, epochs = [*THIRDS, "well_trained"], "", 6
    else:
        checkpoints, prefix, epochs = ["overfitted"], "overfitted_", 4
    expected = {f"{name}.safetensors" for name in checkpoints} | {f"{prefix}history.csv", f"{prefix}results.csv"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    history = pd.read_csv(tmp_path / f"{prefix}history.csv")
    assert list(history.columns) == HISTORY
    assert history["epoch"].tolist() == list(range(1, epochs + 1))
    assert set(history["phase"]) == {phase}
    written = pd.read_csv(tmp_path / f"{prefix}results.csv")
    pd.testing.assert_frame_equal(table, written, rtol=1e-8, check_dtype=False)
    assert list(zip(table["checkpoint"], table["split"], strict=True)) == [(c, s) for c in checkpoints for s in SPLITS]
    for row in table.itertuples():
        model = restore_tiny(tmp_path / f"{row.checkpoint}.safetensors")
        assert (row.loss, row.accuracy) == pytest.approx(naive(model, *split_tensors(dataset, row.split)), rel=1e-5)


def restore_tiny(path):
    model = build()
    model.load_state_dict(load_file(path))
    return model.eval()


def naive(model, x, y):
    losses, hits = [], 0
    for image, label in zip(x, y.tolist(), strict=True):
        scores = model(image[None])[0].double().tolist()
        losses.append(math.log(sum(math.exp(score - scores[label]) for score in scores)))
        hits += scores.index(max(scores)) == label
    return sum(losses) / len(losses), hits / len(losses)


def test_training_leaves_the_process_as_it_was(dataset, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(dataset, tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("warn_only", [False, True])
def test_deterministic_algorithms_only_inside_the_block(warn_only):
    def fail():
        with deterministic():
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise KeyboardInterrupt

    torch.use_deterministic_algorithms(warn_only, warn_only=warn_only)
    try:
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert torch.are_deterministic_algorithms_enabled() is warn_only
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only
    finally:
        torch.use_deterministic_algorithms(False)


# Interruptions ------------------------------------------------------------------------------------------------------


def interrupt(monkeypatch, epoch):
    """Stop the training inside an epoch: its weights are already changed, its record is not written."""
    calls = []

    def stop(model, x, y, batch_size=512):
        calls.append(model)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return evaluate(model, x, y, batch_size)

    monkeypatch.setattr(training, "evaluate", stop)


@pytest.mark.parametrize(
    ("phase", "epoch"), [("regular", 1), ("regular", 3), ("regular", 6), ("overfitting", 2), ("overfitting", 4)]
)
@pytest.mark.parametrize("outputs", ["kept", "deleted"])  # Snakemake deletes what a stopped job had written
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    dataset, tmp_path, monkeypatch, caplog, phase, epoch, outputs
):
    run(dataset, tmp_path / "undisturbed", phase, history=2)  # checkpoints after epochs 1 and 3 of 4
    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        interrupt(patch, epoch)
        with pytest.raises(KeyboardInterrupt):
            run(dataset, folder, phase, history=2)
    assert (folder / f"state_{phase}.pt").is_file() == (epoch > 1)
    if outputs == "deleted":
        for path in folder.glob("*.safetensors"):
            path.unlink()
    with caplog.at_level(logging.INFO):
        run(dataset, folder, phase, history=2)
    assert contents(folder) == contents(tmp_path / "undisturbed")
    assert (f"goes on after epoch {epoch - 1}" in caplog.text) == (epoch > 1)
    trained = [record for record in caplog.records if record.getMessage().startswith("{'phase'")]
    assert len(trained) == (6 if phase == "regular" else 4) - (epoch - 1)


@pytest.mark.parametrize("other", ["protocol", "seed", "data", "code", "model", "history"])
def test_the_state_of_another_training_is_left_aside(dataset, tmp_path, monkeypatch, caplog, other):
    changed = {
        "protocol": {"protocol": dataclasses.replace(PROTOCOL, learning_rate=2e-2)},
        "seed": {"seed": 3},
        "data": {"dataset": tiny_dataset(seed=1)},
        "code": {"origin": {**ORIGIN, "code": "2"}},
        "model": {"origin": {**ORIGIN, "model": "another"}},
        "history": {"history": 1},
    }[other]
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            run(**{"dataset": dataset, "folder": tmp_path / "interrupted", **changed})
    run(dataset, tmp_path / "interrupted")
    assert "belongs to another training" in caplog.text
    assert "state_regular.pt" in caplog.text
    run(dataset, tmp_path / "undisturbed")
    assert contents(tmp_path / "interrupted") == contents(tmp_path / "undisturbed")


def test_another_time_of_writing_is_still_the_same_training(dataset, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            run(dataset, tmp_path)
    with caplog.at_level(logging.INFO):
        run(dataset, tmp_path, origin={**ORIGIN, "created": "later"})
    assert "goes on after epoch 3" in caplog.text
    for name in (*THIRDS, "well_trained"):
        header, _ = content(tmp_path / f"{name}.safetensors")
        assert "later" in json.dumps(header["__metadata__"])


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "foreign"])
def test_a_damaged_state_starts_again_with_a_warning(dataset, tmp_path, monkeypatch, caplog, damage):
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            run(dataset, tmp_path / "interrupted")
    path = tmp_path / "interrupted" / "state_regular.pt"
    if damage == "foreign":
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes({"empty": b"", "text": b"no state", "truncated": path.read_bytes()[:2000]}[damage])
    run(dataset, tmp_path / "interrupted")
    assert "training starts again" in caplog.text
    assert str(path) in caplog.text
    run(dataset, tmp_path / "undisturbed")
    assert contents(tmp_path / "interrupted") == contents(tmp_path / "undisturbed")


# Divergence ---------------------------------------------------------------------------------------------------------


def test_a_huge_learning_rate_is_named(dataset, tmp_path):
    protocol = Protocol(optimizer="sgd", learning_rate=1e30, epochs=6, batch_size=8)
    with pytest.raises(
        TrainingError, match=r"loss (nan|inf) in epoch 1 of the regular training at learning rate 1e\+30"
    ):
        run(dataset, tmp_path, protocol=protocol)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob("*.csv"))


def test_a_nan_in_the_input_is_an_error(dataset, tmp_path):
    broken = dataclasses.replace(dataset, normalization="standard", mean=np.full(1, np.nan, np.float32))
    with pytest.raises(TrainingError, match=r"loss nan in epoch 1 .* learning rate 0\.01"):
        run(broken, tmp_path)


def test_a_divergence_in_the_last_step_is_an_error_too(dataset, tmp_path):
    """One batch per epoch: its loss is that of the first weights, which are finite."""
    protocol = Protocol(optimizer="sgd", learning_rate=1e30, batch_size=100, overfitting_epochs=1)
    with pytest.raises(TrainingError, match=r"validation loss (nan|inf) in epoch 1 of the overfitting training"):
        run(dataset, tmp_path, "overfitting", lambda: nn.Sequential(linear(), nn.Linear(3, 3)), protocol)
    assert not list(tmp_path.iterdir())


def test_the_epoch_of_a_later_divergence_is_named(dataset, tmp_path, monkeypatch):
    def poison(model, x, y, batch_size=512):
        with torch.no_grad():
            model[1].bias += float("nan") if poison.calls == 2 else 0
        poison.calls += 1
        return evaluate(model, x, y, batch_size) if poison.calls < 3 else (1.0, 0.5)

    poison.calls = 0
    monkeypatch.setattr(training, "evaluate", poison)
    with pytest.raises(TrainingError, match="loss nan in epoch 4 of the regular"):
        run(dataset, tmp_path, build=linear)


# Checkpoints --------------------------------------------------------------------------------------------------------


def test_well_trained_is_the_first_epoch_of_lowest_validation_loss(dataset, tmp_path, monkeypatch):
    weights = epoch_recorder(monkeypatch, 6, losses=[3.0, 1.0, 2.0, 1.0, 5.0, 4.0])
    run(dataset, tmp_path)
    assert [same_weights(tmp_path / "well_trained.safetensors", epoch) for epoch in weights] == [
        False, True, False, False, False, False,
    ]  # fmt: skip
    assert pd.read_csv(tmp_path / "history.csv")["validation_loss"].tolist() == [3, 1, 2, 1, 5, 4]


def test_overfitted_is_the_last_epoch_whatever_the_validation_says(dataset, tmp_path, monkeypatch):
    weights = epoch_recorder(monkeypatch, 4, losses=[1.0, 2.0, 3.0, 4.0])
    run(dataset, tmp_path, "overfitting")
    assert len(weights) == 4
    assert [same_weights(tmp_path / "overfitted.safetensors", epoch) for epoch in weights] == [False] * 3 + [True]


@pytest.mark.parametrize(
    ("epochs", "history", "expected"),
    [(80, 4, [16, 32, 48, 64, 80]), (12, 4, [2, 5, 7, 10, 12]), (4, 0, [4]), (3, 4, [1, 1, 2, 2, 3]), (1, 2, [1] * 3)],
)
def test_epochs_kept_on_the_way_to_the_overfitted_network(epochs, history, expected):
    found = kept_epochs(dataclasses.replace(PROTOCOL, overfitting_epochs=epochs), "overfitting", history)
    assert list(found) == [*(f"overfitting{part + 1}" for part in range(history)), "overfitted"]
    assert list(found.values()) == expected


def test_checkpoints_on_the_way_are_those_of_their_epochs(dataset, tmp_path, monkeypatch):
    weights = epoch_recorder(monkeypatch, 4)
    table = run(dataset, tmp_path, "overfitting", history=1)
    assert same_weights(tmp_path / "overfitting1.safetensors", weights[1])
    assert same_weights(tmp_path / "overfitted.safetensors", weights[3])
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert set(table["checkpoint"]) == set(pd.read_csv(tmp_path / "overfitted_results.csv")["checkpoint"])
    assert set(table["checkpoint"]) == {"overfitted"}


def test_the_shuffled_network_learns_the_same_images_with_their_labels_in_another_order(dataset, tmp_path, monkeypatch):
    seen = []
    step = training._Trainer.epoch
    monkeypatch.setattr(training._Trainer, "epoch", lambda self, *data: (seen.append(data), step(self, *data))[1])
    weights = epoch_recorder(monkeypatch, 4, losses=[1.0, 2.0, 3.0, 4.0])
    table = run(dataset, tmp_path, "shuffled")
    images, labels = split_tensors(dataset, "train")
    (found, drawn), validation = seen[0]
    assert torch.equal(found, images)
    assert torch.equal(drawn.sort().values, labels.sort().values)
    assert 0.2 < float((drawn == labels).float().mean()) < 0.6  # as chance has it
    assert torch.equal(validation[1], split_tensors(dataset, "validation")[1])
    assert same_weights(tmp_path / "shuffled.safetensors", weights[-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "shuffled.safetensors", "shuffled_history.csv", "shuffled_results.csv",
    ]  # fmt: skip
    assert set(table["checkpoint"]) == {"shuffled"}


def test_training_starts_from_the_untrained_weights(dataset, tmp_path, monkeypatch):
    started = []
    step = training._Trainer.epoch

    def epoch(self, *data):
        started.append({name: value.cpu().clone() for name, value in self.model.state_dict().items()})
        step(self, *data)

    monkeypatch.setattr(training._Trainer, "epoch", epoch)
    run(dataset, tmp_path)
    initialise(build, tmp_path / "untrained.safetensors", 0, ORIGIN)
    assert same_weights(tmp_path / "untrained.safetensors", started[0])


def test_checkpoints_on_the_way_change_nothing_else(dataset, tmp_path):
    run(dataset, tmp_path / "plain", "overfitting")
    run(dataset, tmp_path / "history", "overfitting", history=3)
    plain, history = contents(tmp_path / "plain"), contents(tmp_path / "history")
    assert {name: history[name] for name in plain} == plain
    assert sorted(set(history) - set(plain)) == [f"overfitting{part}.safetensors" for part in (1, 2, 3)]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, (1, 1, 1)), (2, (1, 1, 2)), (3, (1, 2, 3)), (4, (1, 3, 4)), (6, (2, 4, 6)), (7, (2, 5, 7)), (10, (3, 7, 10))],
)
def test_thirds_of_the_training(dataset, tmp_path, monkeypatch, epochs, expected):
    weights = epoch_recorder(monkeypatch, epochs)
    run(dataset, tmp_path, protocol=dataclasses.replace(PROTOCOL, epochs=epochs))
    assert len(weights) == epochs
    for name, epoch in zip(THIRDS, expected, strict=True):
        assert same_weights(tmp_path / f"{name}.safetensors", weights[epoch - 1])
    assert all(not same_weights(tmp_path / "third3.safetensors", earlier) for earlier in weights[:-1])


def test_the_overfitting_training_has_no_decay_and_no_augmentation(dataset, tmp_path):
    plain = dataclasses.replace(PROTOCOL, weight_decay=0.0, augmentation="none")
    for name, protocol in (("regularised", PROTOCOL), ("plain", plain)):
        run(dataset, tmp_path / name, "overfitting", protocol=protocol)
        run(dataset, tmp_path / name, protocol=protocol)
    regularised, plain = contents(tmp_path / "regularised"), contents(tmp_path / "plain")
    assert regularised["overfitted.safetensors"] == plain["overfitted.safetensors"]
    assert regularised["overfitted_history.csv"] == plain["overfitted_history.csv"]
    assert regularised["third1.safetensors"] != plain["third1.safetensors"]


def test_both_trainings_start_from_the_same_weights_and_see_the_images_in_the_same_order(tmp_path):
    """Images of one grey level each, so that a flip does not hide which one it is."""
    levels = np.arange(1, 25, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    split = Split(levels, np.arange(24) % 3)
    dataset = build_dataset("levels", CLASSES, dict.fromkeys(SPLITS, split))
    starts, orders = [], []

    def watched():
        model = linear()
        starts.append([value.clone() for value in model.state_dict().values()])
        order = []
        orders.append(order)
        model.register_forward_pre_hook(
            lambda module, args: (
                order.extend((args[0][:, 0, 0, 0] * 255).round().int().tolist()) if module.training else None
            )
        )
        return model

    protocol = Protocol(epochs=3, overfitting_epochs=3, batch_size=5, augmentation="flip")
    for phase in ("regular", "overfitting"):
        run(dataset, tmp_path, phase, watched, protocol)
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))
    assert orders[0] == orders[1]
    epochs = [orders[0][start : start + 24] for start in (0, 24, 48)]
    assert all(sorted(epoch) == list(range(1, 25)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_sgd_with_momentum_and_decay_equals_its_formula(dataset, tmp_path):
    protocol = Protocol(optimizer="sgd", learning_rate=0.3, momentum=0.8, weight_decay=0.1, epochs=3, batch_size=99)
    run(dataset, tmp_path, build=linear, protocol=protocol)
    x, y = split_tensors(dataset, "train")
    x = x.flatten(1).double().numpy()
    torch.manual_seed(0)
    start = linear()
    values = [value.detach().double().numpy() for value in start.parameters()]
    velocity = [np.zeros_like(value) for value in values]
    for _ in range(3):
        scores = x @ values[0].T + values[1]
        error = np.exp(scores) / np.exp(scores).sum(1, keepdims=True) - np.eye(3)[y.numpy()]
        gradients = [error.T @ x / len(x), error.mean(0)]
        for index, gradient in enumerate(gradients):
            velocity[index] = 0.8 * velocity[index] + gradient + 0.1 * values[index]
            values[index] = values[index] - 0.3 * velocity[index]
    found = load_file(tmp_path / "third3.safetensors")
    np.testing.assert_allclose(found["1.weight"].numpy(), values[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["1.bias"].numpy(), values[1], rtol=1e-4, atol=1e-6)


def test_products_in_bfloat16_keep_the_weights_in_float32(dataset, tmp_path):
    protocol = Protocol(optimizer="sgd", learning_rate=0.3, epochs=3, batch_size=99, weight_decay=0.0)
    rounded = dataclasses.replace(protocol, precision="bfloat16")
    for name, each in (("float32", protocol), ("bfloat16", rounded), ("again", rounded)):
        run(dataset, tmp_path / name, build=linear, protocol=each)
    assert contents(tmp_path / "bfloat16") == contents(tmp_path / "again")
    exact, found = (load_file(tmp_path / name / "third3.safetensors")["1.weight"] for name in ("float32", "bfloat16"))
    assert found.dtype == torch.float32
    error = float((found - exact).abs().max() / exact.abs().max())
    assert 1e-6 < error < 0.02


@pytest.mark.parametrize(
    ("capability", "precision", "warns"),
    [
        ("AVX2", "bfloat16", True),
        ("DEFAULT", "bfloat16", True),
        ("AVX512", "bfloat16", False),
        ("AVX2", "float32", False),
    ],
)
def test_bfloat16_where_it_is_emulated_is_warned_of(
    dataset, tmp_path, monkeypatch, caplog, capability, precision, warns
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    run(dataset, tmp_path, build=linear, protocol=Protocol(epochs=3, precision=precision))
    assert (f"{capability} has no instructions for bfloat16" in caplog.text) == warns


def test_history_measures_the_epochs(dataset, tmp_path):
    """At a learning rate too small to move anything, each epoch has the loss of the first weights."""
    protocol = Protocol(optimizer="sgd", learning_rate=1e-30, epochs=3, batch_size=13, weight_decay=0.0)
    table = run(dataset, tmp_path, build=linear, protocol=protocol)  # 27 images: 13, 13 and one that is left out
    history = pd.read_csv(tmp_path / "history.csv")
    torch.manual_seed(0)
    model = linear()
    loss, accuracy = naive(model, *split_tensors(dataset, "validation"))
    np.testing.assert_allclose(history["validation_loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(history["validation_accuracy"], accuracy)
    generator = torch.Generator().manual_seed(0)
    x, y = split_tensors(dataset, "train")
    for epoch in history.itertuples():
        seen = torch.randperm(27, generator=generator)[:26]
        loss, accuracy = naive(model, x[seen], y[seen])
        assert epoch.train_loss == pytest.approx(loss, rel=1e-6)
        assert epoch.train_accuracy == pytest.approx(accuracy)
    assert table["checkpoint"].nunique() == 4


def test_a_factory_may_return_its_model_in_any_mode(dataset, tmp_path):
    run(dataset, tmp_path / "training")
    run(dataset, tmp_path / "evaluation", build=lambda: build().eval())
    assert contents(tmp_path / "training") == contents(tmp_path / "evaluation")


def test_training_learns(dataset, tmp_path):
    protocol = Protocol(learning_rate=1e-2, epochs=15, batch_size=9)
    table = run(dataset, tmp_path, build=linear, protocol=protocol).set_index(["checkpoint", "split"])
    assert table.loc[("third3", "test"), "accuracy"] > 0.9
    for split in SPLITS:
        losses = [table.loc[(name, split), "loss"] for name in THIRDS]
        assert all(later < earlier for earlier, later in pairwise(losses))


# Parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 12, 100])
def test_evaluation_equals_the_naive_loop(dataset, batch_size):
    torch.manual_seed(1)
    model = build()
    model(torch.rand(20, 1, 8, 8))  # statistics of the normalisation that are not the initial ones
    model.train()
    model[1].eval()
    x, y = split_tensors(dataset, "validation")
    result = evaluate(model, x, y, batch_size)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert result == pytest.approx(naive(model.eval(), x, y), rel=1e-6)


def test_evaluation_restores_modes_after_an_error(dataset):
    model = build().train()
    with pytest.raises(RuntimeError, match="channels"):
        evaluate(model, torch.rand(4, 2, 8, 8), torch.zeros(4, dtype=torch.int64))
    assert all(module.training for module in model.modules())


def test_evaluation_keeps_no_graph(dataset):
    model = linear()
    x, y = split_tensors(dataset, "test")
    loss, accuracy = evaluate(model, x.requires_grad_(True), y)
    assert isinstance(loss, float)
    assert isinstance(accuracy, float)
    assert x.grad is None


def test_shift_moves_each_image_by_up_to_an_eighth_of_its_side():
    x = torch.zeros(3000, 2, 16, 16)
    x[:, 0, 8, 8], x[:, 1, 5, 10] = 1, 2
    shifted = augment(x, "shift", torch.Generator().manual_seed(0))
    assert shifted.shape == x.shape
    assert shifted.sum().item() == x.sum().item()  # the dots stay inside
    rows, columns = (shifted[:, 0].flatten(1).argmax(1) // 16 - 8, shifted[:, 0].flatten(1).argmax(1) % 16 - 8)
    counts = pd.Series(zip(rows.tolist(), columns.tolist(), strict=True)).value_counts()
    assert set(counts.index) == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}
    assert counts.min() > 70  # 120 expected of each of 25
    assert counts.max() < 180
    for image, row, column in zip(shifted[:50], rows, columns, strict=False):  # channels move together
        assert image[1, 5 + row, 10 + column] == 2


def test_what_a_shift_moves_in_is_zero():
    image = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8)
    shifted = augment(image.repeat(200, 1, 1, 1), "shift", torch.Generator().manual_seed(1))
    padded = np.pad(image[0, 0].numpy(), 1)
    possible = {padded[row : row + 8, column : column + 8].tobytes() for row in range(3) for column in range(3)}
    assert {one[0].numpy().tobytes() for one in shifted} == possible


def test_flip_mirrors_about_half_of_the_images():
    x = torch.rand(400, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    result = augment(x, "flip", torch.Generator().manual_seed(1))
    mirrored = 0
    for before, after in zip(x, result, strict=True):
        if torch.equal(after, torch.from_numpy(before.numpy()[:, :, ::-1].copy())):
            mirrored += 1
        else:
            assert torch.equal(after, before)
    assert 150 < mirrored < 250


def test_shift_flip_does_both_and_none_does_nothing():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 8, 3] = 1
    result = augment(image.repeat(500, 1, 1, 1), "shift_flip", torch.Generator().manual_seed(0))
    places = {divmod(one.flatten().argmax().item(), 16) for one in result}
    columns = {*range(1, 6), *range(10, 15)}  # 3 +- 2, and mirrored
    assert places == {(row, column) for row in range(6, 11) for column in columns}
    assert augment(image, "none", torch.Generator()) is image


def test_a_model_of_the_zoo_fits_the_data(dataset):
    model = model_builder("fcn", {"widths": [7]}, dataset)()
    assert [tuple(value.shape) for value in model.state_dict().values()] == [(7, 64), (7,), (3, 7), (3,)]
    assert model_builder("fcn", {"widths": [7], "classes": 5}, dataset)()[-1].out_features == 5


def test_a_model_of_the_user_gets_exactly_its_options(dataset, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n\n\ndef build(**options):\n    build.options = options\n    return nn.ReLU()\n"
    )
    model_builder(f"{path}:build", {"depth": 2}, dataset)()
    (module,) = [module for module in sys.modules.values() if getattr(module, "__file__", None) == str(path)]
    assert module.build.options == {"depth": 2}


def test_restore_returns_a_checkpoint_of_the_run(dataset, tmp_path):
    run(dataset, tmp_path, build=model_builder("simple_cnn", {}, dataset), protocol=Protocol(epochs=3, batch_size=27))
    model = restore("simple_cnn", {}, dataset, tmp_path / "third2.safetensors")
    assert not any(module.training for module in model.modules())
    assert same_weights(tmp_path / "third2.safetensors", model.state_dict())
    with pytest.raises(ModelError, match="does not fit the model"):
        restore("lenet5", {}, dataset, tmp_path / "third2.safetensors")


class Scores(nn.Module):
    """Returns its scores as networks with extras do: in a tuple."""

    def __init__(self, classes):
        super().__init__()
        self.inner = nn.Linear(64, classes)

    def forward(self, x):
        return self.inner(x.flatten(1)), x


def test_adopting_writes_the_weights_and_their_results(dataset, tmp_path):
    model = Scores(3).train()
    table = adopt(model, dataset, tmp_path, ORIGIN)
    assert model.training
    assert {path.name for path in tmp_path.iterdir()} == {"well_trained.safetensors", "history.csv", "results.csv"}
    assert same_weights(tmp_path / "well_trained.safetensors", model.state_dict())
    assert table["checkpoint"].tolist() == ["well_trained"] * 3
    history = pd.read_csv(tmp_path / "history.csv")
    assert list(history.columns) == HISTORY
    assert history.empty
    for row in pd.read_csv(tmp_path / "results.csv").itertuples():
        expected = naive(lambda image: model(image)[0], *split_tensors(dataset, row.split))
        assert (row.loss, row.accuracy) == pytest.approx(expected, rel=1e-5)


def test_a_model_of_other_classes_is_not_adopted(dataset, tmp_path):
    with pytest.raises(TrainingError, match=r"returns \(4,\) scores.* has 3 classes \(left, middle, right\)"):
        adopt(Scores(4), dataset, tmp_path, ORIGIN)
    assert not list(tmp_path.iterdir())
    maps = build_model("simple_cnn", {"in_channels": 1}).features  # maps instead of scores
    with pytest.raises(TrainingError, match="scores"):
        adopt(maps, dataset, tmp_path, ORIGIN)


def test_the_protocol_is_what_a_configuration_holds():
    settings = TrainingConfig().model_dump(exclude={"preset"})
    assert dataclasses.asdict(Protocol()) == settings
    assert Protocol(**TrainingConfig(preset="slides").model_dump(exclude={"preset"})).optimizer == "sgd"


def test_csv_with_nine_digits(tmp_path):
    write_csv(tmp_path / "new" / "table.csv", pd.DataFrame({"name": ["a"], "value": [1 / 3]}))
    assert (tmp_path / "new" / "table.csv").read_text() == "name,value\na,0.333333333\n"


@pytest.mark.parametrize(("places", "size"), [((8, 8), (4, 4)), ((7, 9), (4, 2)), ((3, 5), (5, 7)), ((6, 6), (1, 6))])
def test_binned_means_are_those_of_adaptive_pooling(places, size):
    x = torch.randn(2, 3, *places, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.adaptive_avg_pool2d(x, size)
    found = training.binned(x, size)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((values * weights).sum(), x)[0] for values in (found, expected)]
    torch.testing.assert_close(*gradients)
    half = training.binned(x.detach().bfloat16(), size)
    torch.testing.assert_close(half, expected.detach().bfloat16(), rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):  # as in a training in bfloat16, where pooling keeps its precision
        assert training.binned(x.detach().float(), size).dtype == torch.float32


@pytest.mark.parametrize("size", [4, (3, None), (None, 2)])
def test_adaptive_pooling_is_deterministic_off_the_processor(size):
    """On a GPU its own backward pass is not; here tensors without values stand for those of a GPU."""
    pooling, x = nn.AdaptiveAvgPool2d(size), torch.empty(1, 2, 5, 7, device="meta", requires_grad=True)
    with training.deterministic():
        replaced, kept = pooling(x), pooling(torch.rand(1, 2, 5, 7, requires_grad=True))
    assert replaced.shape == kept.shape == pooling(torch.rand(1, 2, 5, 7)).shape
    assert "AdaptiveAvgPool2D" not in replaced.grad_fn.name()
    assert "AdaptiveAvgPool2D" in kept.grad_fn.name()
    assert "AdaptiveAvgPool2D" in pooling(x).grad_fn.name()
