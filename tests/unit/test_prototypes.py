"""nnscan.prototypes: training, its resuming and its files; what is refused; the report on distinct prototypes."""

import dataclasses
import json
import struct

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from safetensors.torch import load_file
from torch import nn

from nnscan import prototypes
from nnscan.data import Split, build_dataset, load_dataset
from nnscan.drawings import Likenesses, likeness_page, prototype_sheet
from nnscan.errors import DataError, ModelError, TrainingError
from nnscan.models import ZOO, SequentialCNN, build_model
from nnscan.prototypes import (
    HISTORY,
    PrototypeProtocol,
    distinct_prototypes,
    explain,
    high_activation_box,
    load_prototypes,
    protopnet,
    prototype_table,
    pruned,
    push,
    schedule,
    train_prototypes,
)
from nnscan.training import model_builder

ORIGIN = {"model": "tiny", "code": "1", "created": "now"}
PROTOCOL = PrototypeProtocol(
    per_class=2, channels=8, warm_epochs=1, epochs=4, push_every=2, last_passes=2, batch_size=16,
    augmentation="shift_flip", backbone_rate=3e-3, prune=True,
)  # fmt: skip
FILES = {"", "_distinct", "_history", "_results"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch, one_thread):
    """One thread, no waiting for the disk, no open figures."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def dataset():
    """A bright column on noise, at the left, in the middle or at the right."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, size in (("train", 49), ("validation", 12), ("test", 15)):
        labels = np.arange(size) % 3
        images = rng.integers(0, 120, (size, 1, 16, 16), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, :, 1 + 5 * label : 4 + 5 * label] += 100
        splits[split] = Split(images, labels)
    return build_dataset("columns", ("left", "middle", "right"), splits)


def small(dataset):
    torch.manual_seed(0)
    return model_builder("simple_cnn", {"convolutions": 2}, dataset)()


def run(dataset, folder, protocol=PROTOCOL, seed=0, model=None):
    return train_prototypes(model or small(dataset), dataset, protocol, folder, seed, ORIGIN, progress=False)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prototypes")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = run(dataset, folder)
    torch.set_num_threads(threads)
    return folder, results


def content(path):
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def contents(folder):
    return {path.name: content(path) for path in sorted(folder.iterdir())}


# Structure ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in ZOO if name != "fcn"), ("simple_cnn", {"attention": "class"})],
)
def test_every_network_of_the_zoo_with_convolutions(name, options):
    torch.manual_seed(0)
    model, x = build_model(name, {"in_channels": 1, **options}), torch.rand(2, 1, 32, 32)
    network = protopnet(model, x, 10, per_class=3, channels=7).eval()
    assert network(x).shape == (2, 10)
    patches = network.latent(x)
    features = model.eval().features(x)
    assert patches.shape == (2, 7, *features.shape[2:])
    assert torch.equal(network.backbone(x), features)
    assert network.owners.tolist() == [number for number in range(10) for _ in range(3)]
    assert (network.prototypes.min() >= 0, network.prototypes.max() <= 1) == (True, True)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in network.parameters()}


@pytest.mark.parametrize("model", [build_model("fcn"), nn.Sequential(nn.Conv2d(3, 4, 3))])
def test_other_networks_are_refused(model):
    with pytest.raises(ModelError, match="choose one of lenet5, simple_cnn, alexnet, vgg11, vgg16, resnet18"):
        protopnet(model, torch.rand(1, 3, 32, 32), 10)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ModelError, match=r"\(3, 4, 4\) do not pass .*use larger ones"):
        protopnet(build_model("lenet5"), torch.rand(1, 3, 4, 4), 10)


def test_the_schedule():
    protocol = PrototypeProtocol(warm_epochs=2, epochs=5, push_every=4, prune=True)
    assert schedule(protocol) == [
        *(("warm", 1), ("warm", 2), ("joint", 3), ("joint", 4), ("push", 4), ("last", 4)),
        *(("joint", 5), ("push", 5), ("last", 5), ("prune", 5)),
    ]
    assert schedule(dataclasses.replace(protocol, prune=False)) == schedule(protocol)[:-1]


def test_the_box_of_high_activation():
    activation = np.zeros((10, 10))
    activation[2:4, 5:8] = 1  # six of a hundred pixels
    assert high_activation_box(activation) == (2, 5, 4, 8)
    assert high_activation_box(np.ones((4, 6))) == (0, 0, 4, 6)


# Training -------------------------------------------------------------------------------------------------------------


def test_digits_are_learned_in_seconds(tmp_path):
    dataset = load_dataset("digits", size=16, train_limit=500, validation_limit=60, test_limit=200)
    protocol = PrototypeProtocol(
        per_class=3, channels=32, warm_epochs=1, epochs=8, push_every=4, batch_size=20, rate_epochs=20,
        backbone_rate=3e-3, last_rate=1e-3,
    )  # fmt: skip
    results = run(dataset, tmp_path, protocol, model=small(dataset)).set_index(["checkpoint", "split"])
    assert results.loc[("backbone", "test"), "accuracy"] < 0.3  # it has not been trained
    assert results.loc[("prototypes", "test"), "accuracy"] > 0.7
    table = pd.read_csv(tmp_path / "prototypes.csv")
    assert (dataset.splits["train"].labels[table["image"]] == table["class"]).all()


def test_what_training_leaves(trained, dataset):
    folder, results = trained
    names = {f"prototypes{part}.csv" for part in FILES} | {"prototypes.safetensors"}
    assert {path.name for path in folder.iterdir()} == names  # no state file
    assert results["checkpoint"].tolist() == ["backbone"] * 3 + ["prototypes"] * 3
    history = pd.read_csv(folder / "prototypes_history.csv")
    assert list(history.columns) == HISTORY
    assert list(zip(history["stage"], history["epoch"], strict=True)) == schedule(PROTOCOL)
    assert history["cluster"].notna().tolist() == history["stage"].isin(["warm", "joint"]).tolist()
    network = load_prototypes(folder / "prototypes.safetensors", small(dataset), torch.rand(1, 1, 16, 16))
    assert not network.training
    pd.testing.assert_frame_equal(
        prototype_table(network, dataset.classes), pd.read_csv(folder / "prototypes.csv"), check_dtype=False
    )
    x, y = torch.from_numpy(dataset.inputs("test")), dataset.splits["test"].labels
    with torch.no_grad():
        accuracy = (network(x).argmax(1).numpy() == y).mean()
    assert accuracy == results.iloc[-1]["accuracy"]


def test_each_prototype_is_a_patch_of_the_image_that_is_recorded(trained, dataset):
    folder, _ = trained
    network = load_prototypes(folder / "prototypes.safetensors", small(dataset), torch.rand(1, 1, 16, 16))
    x = torch.from_numpy(dataset.inputs("train"))
    with torch.no_grad():
        patches = network.latent(x)
        for number, (image, row, column) in enumerate(network.sources.tolist()):
            assert torch.allclose(network.prototypes[number], patches[image, :, row, column], atol=1e-6)
            assert dataset.splits["train"].labels[image] == network.owners[number]
    boxes = network.boxes
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert (boxes.min() >= 0, boxes.max() <= 16) == (True, True)


def test_equal_seeds_give_equal_bits_and_others_do_not(trained, dataset, tmp_path):
    folder, _ = trained
    run(dataset, tmp_path / "same")
    assert contents(tmp_path / "same") == contents(folder)
    run(dataset, tmp_path / "other", seed=1)
    assert contents(tmp_path / "other")["prototypes.safetensors"] != contents(folder)["prototypes.safetensors"]


@pytest.mark.parametrize("done", range(1, len(schedule(PROTOCOL)) + 1))
def test_a_training_interrupted_after_any_step_ends_with_the_same_bits(done, trained, dataset, tmp_path, monkeypatch):
    save = prototypes.save_state
    steps = []

    def interrupted(path, key, state):
        save(path, key, state)
        steps.append(len(state["history"]))
        if steps[-1] == done:
            raise KeyboardInterrupt

    monkeypatch.setattr(prototypes, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path)
    monkeypatch.setattr(prototypes, "save_state", save)
    assert {path.name for path in tmp_path.iterdir()} == {"state_prototypes.pt"}
    run(dataset, tmp_path)
    assert contents(tmp_path) == contents(trained[0])


@pytest.mark.parametrize("change", ["seed", "protocol", "weights"])
def test_the_state_of_another_training_is_not_continued(change, dataset, tmp_path, monkeypatch, caplog):
    save = prototypes.save_state

    def interrupted(path, key, state):
        save(path, key, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(prototypes, "save_state", interrupted)
    for seed, protocol, weight in (
        (0, PROTOCOL, None),
        (int(change == "seed"), dataclasses.replace(PROTOCOL, epochs=4 + (change == "protocol")), change == "weights"),
    ):
        model = small(dataset)
        if weight:
            nn.init.ones_(model.features[0].bias)
        with pytest.raises(KeyboardInterrupt):
            run(dataset, tmp_path, protocol, seed, model)
    assert "belongs to another training" in caplog.text


def test_the_warm_epochs_leave_the_convolutional_part_as_it_is(dataset, tmp_path):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    model = SequentialCNN(features, 4, 2, (), 3)  # with statistics of normalisation, too
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(dataset, tmp_path, PrototypeProtocol(per_class=1, channels=4, warm_epochs=1, epochs=1), model=model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found = load_file(tmp_path / "prototypes.safetensors")
    parts = {name: value for name, value in found.items() if name.startswith("backbone")}
    assert parts
    assert all(torch.equal(value, before[name.replace("backbone", "features")]) for name, value in parts.items())


def test_stage_one_leaves_the_last_layer_and_stage_three_all_else(dataset):
    torch.manual_seed(0)
    x, y = torch.from_numpy(dataset.inputs("train")), torch.from_numpy(dataset.splits["train"].labels)
    network = protopnet(small(dataset), x, 3, 2, 8)
    trainer = prototypes._Trainer(network, PROTOCOL, 0)
    expected = {
        "warm": {"added", "prototypes"},
        "joint": {"backbone", "added", "prototypes"},
        "push": {"prototypes", "sources", "boxes"},
        "last": {"last"},
    }
    for stage, parts in expected.items():
        before = {name: value.clone() for name, value in network.state_dict().items()}
        trainer.step(stage, 2, (x, y), (x, y))
        changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
        assert {name.split(".")[0] for name in changed} == parts
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_factors_of_the_losses_pull_the_right_way(dataset):
    x, y = torch.from_numpy(dataset.inputs("train")), torch.from_numpy(dataset.splits["train"].labels)

    def costs(**factors):
        torch.manual_seed(0)
        protocol = dataclasses.replace(PROTOCOL, **{"cluster": 0.0, "separation": 0.0, **factors})
        network = protopnet(small(dataset), x, 3, 2, 8)
        trainer = prototypes._Trainer(network, protocol, 0)
        for epoch in range(1, 6):
            trainer.step("warm", epoch, (x, y), (x, y))
        with torch.no_grad():
            return [float(cost) for cost in prototypes.patch_losses(network.nearest(x), y, network.owners)]

    cluster, separation = costs()
    assert costs(cluster=20.0)[0] < 0.8 * cluster
    assert costs(separation=20.0)[1] > 1.2 * separation


def test_the_rates_fall_after_the_warm_epochs(dataset):
    x, y = torch.from_numpy(dataset.inputs("train")), torch.from_numpy(dataset.splits["train"].labels)
    protocol = dataclasses.replace(PROTOCOL, warm_epochs=1, rate_epochs=2)
    trainer = prototypes._Trainer(protopnet(small(dataset), x, 3, 2, 8), protocol, 0)
    rates = []
    for epoch in (2, 3, 4, 6):
        trainer.step("joint", epoch, (x, y), (x, y))
        rates.append([group["lr"] for group in trainer.optimizers["joint"].param_groups])
    np.testing.assert_allclose(rates, np.outer([1, 1, 0.1, 0.01], [3e-3, 3e-3, 3e-3]))
    assert [group["lr"] for group in trainer.optimizers["warm"].param_groups] == [3e-3, 3e-3]
    assert [group["weight_decay"] for group in trainer.optimizers["joint"].param_groups] == [1e-3, 0, 1e-3]


def test_a_training_that_diverges_says_so(dataset, tmp_path):
    with pytest.raises(TrainingError, match="epoch 1 diverged: loss nan at learning rate"):
        run(dataset, tmp_path, dataclasses.replace(PROTOCOL, cluster=float("nan")))
    with pytest.raises(TrainingError, match="the last layer diverged"):
        run(dataset, tmp_path, dataclasses.replace(PROTOCOL, sparsity=float("nan")))


# Push, pruning, refusals ----------------------------------------------------------------------------------------------


@pytest.fixture
def network(dataset):
    torch.manual_seed(0)
    return protopnet(small(dataset), torch.rand(1, 1, 16, 16), 3, 2, 8)


def test_a_class_without_images_is_named(network, dataset):
    x = torch.from_numpy(dataset.inputs("train"))
    with pytest.raises(DataError, match=r"classes \[1, 2\] cannot be pushed"):
        push(network, x, torch.zeros(len(x), dtype=torch.int64))


def test_a_network_that_was_never_pushed_explains_nothing(network):
    with pytest.raises(ModelError, match="push them first"):
        explain(network, torch.rand(1, 16, 16))


@pytest.mark.parametrize("passes", [0, 1])
def test_a_network_that_fails_is_left_as_it_was(passes, network, dataset):
    x, y = torch.from_numpy(dataset.inputs("train")), torch.from_numpy(dataset.splits["train"].labels)
    if passes == 0:
        push(network, x, y)
    network.train()
    network.backbone[1].eval()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}

    left = [passes]

    def fail(*_):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the model failed")

    handle = network.added[0].register_forward_hook(fail)
    calls = [
        lambda: push(network, x, y),
        lambda: explain(network, x[0]),
        lambda: prototypes.typical(network, x, y),
        lambda: prototypes.fit_last_layer(network, x, y, PROTOCOL, 1, torch.Generator()),
    ]
    for call in calls if passes == 0 else calls[:1]:  # a push fails where it draws the boxes, too
        with pytest.raises(RuntimeError, match="the model failed"):
            call()
        assert [module.training for module in network.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert all(parameter.requires_grad for parameter in network.parameters())
    handle.remove()


def test_a_pruned_network_is_the_same_without_some_prototypes(network, dataset):
    x, y = torch.from_numpy(dataset.inputs("train")), torch.from_numpy(dataset.splits["train"].labels)
    push(network, x, y)
    kept = np.array([0, 3, 4])
    smaller = pruned(network, kept)
    with torch.no_grad():
        values = prototypes.similarity(network.eval().nearest(x))[:, kept].float()
        expected = values @ network.last.weight[:, kept].T
        torch.testing.assert_close(smaller.eval()(x), expected)
    assert smaller.owners.tolist() == [0, 1, 2]
    assert torch.equal(smaller.sources, network.sources[kept])
    assert len(network.prototypes) == 6


@pytest.mark.parametrize(
    ("state", "reason"),
    [({"a": torch.zeros(1)}, "not one of a ProtoPNet: it has no prototypes, owners, last.weight"), (None, "not fit")],
)
def test_checkpoints_that_do_not_belong_are_refused(state, reason, trained, dataset, tmp_path):
    path, model = trained[0] / "prototypes.safetensors", build_model("lenet5", {"in_channels": 1})
    if state is not None:
        path = tmp_path / "other.pt"
        torch.save(state, path)
    with pytest.raises(ModelError, match=reason):
        load_prototypes(path, model, torch.rand(1, 1, 32, 32))


# Report ---------------------------------------------------------------------------------------------------------------


def test_prototypes_that_are_the_same_count_once(network, dataset):
    x, y = torch.from_numpy(dataset.inputs("train")), torch.from_numpy(dataset.splits["train"].labels)
    fresh = distinct_prototypes(network, dataset.classes)
    assert (fresh["distinct"].tolist(), fresh["images"].tolist()) == ([2, 2, 2], [0, 0, 0])
    push(network, x, y)
    with torch.no_grad():
        network.prototypes[1] = network.prototypes[0] + 1e-4  # near, of another image
        network.sources[1] = torch.tensor([3, 0, 0])
        network.sources[3] = network.sources[2]  # of the same patch
        network.prototypes[2] += 0.5
        network.prototypes[4] = network.prototypes[0]  # of another class
        network.prototypes[5] += 0.5
    found = distinct_prototypes(network, dataset.classes)
    assert found["name"].tolist() == list(dataset.classes)
    assert found["distinct"].tolist() == [1, 1, 2]
    assert found["prototypes"].tolist() == [2, 2, 2]
    assert found["smallest_distance"][0] == pytest.approx(np.sqrt(8) * 1e-4, rel=1e-2)
    assert distinct_prototypes(network, dataset.classes, tolerance=0.0)["distinct"].tolist()[0] == 2
    alone = distinct_prototypes(pruned(network, np.array([0, 2, 4])), dataset.classes)
    assert alone["smallest_distance"].isna().all()


def test_the_pages_show_what_the_explanation_says(network, dataset):
    x, y = torch.from_numpy(dataset.inputs("train")), torch.from_numpy(dataset.splits["train"].labels)
    push(network, x, y)
    found = explain(network, x[5], count=2)
    images = dataset.display(x.numpy())
    sources = [images[one.source] for one in found.likenesses]
    page = likeness_page(Likenesses("an image", images[5], found, sources), dataset.classes)
    bars = [axes for axes in page.axes if axes.patches and not axes.images]
    heights = [[bar.get_height() for bar in axes.patches] for axes in bars]
    for values, one in zip(heights[:2], found.likenesses, strict=True):
        np.testing.assert_allclose(values, one.contribution)
    np.testing.assert_allclose(heights[2][:3], found.scores)
    np.testing.assert_allclose(heights[2][3:], sum(one.contribution for one in found.likenesses))
    frames = [axes.patches[0] for axes in page.axes if axes.images and axes.patches]
    for place, one in enumerate(found.likenesses):
        for frame, box in zip(frames[2 * place :], (one.box, one.source_box), strict=False):
            top, left, bottom, right = box
            assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == (
                *(left - 0.5, top - 0.5, right - left, bottom - top),
            )
    sheet = prototype_sheet(prototype_table(network, dataset.classes), dict(enumerate(images)))
    assert sum(len(axes.images) for axes in sheet.axes) == 6
