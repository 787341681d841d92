"""Models: the zoo, loading, checkpoints, and what a network is made of."""

import copy
import os
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnscan.artifacts import read_provenance
from nnscan.cam import cam
from nnscan.errors import LayerError, ModelError
from nnscan.gating import GATES
from nnscan.models import (
    ZOO,
    NeuronLayer,
    build_model,
    capture,
    evaluation,
    find_layer,
    load_model,
    load_weights,
    logits,
    network_layers,
    neuron_layers,
    parameter_count,
    prepare,
    read_state,
    resolve_layer,
    save_weights,
    select_layers,
    smooth_operations,
    weight_module,
)

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# The zoo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_model_of_the_zoo_takes_its_options(name):
    model = load_model(name, factory_options={"in_channels": 1, "classes": 7})
    assert not model.training
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["fcn", "simple_cnn", "lenet5", "vgg11"])
def test_models_for_other_sizes(name):
    model = load_model(name, factory_options={"in_channels": 3, "size": 48, "classes": 4})
    assert model(torch.rand(1, 3, 48, 48)).shape == (1, 4)


def test_parameter_counts_of_the_thesis():
    # Wang Xinyuan, bachelor's thesis: ch. 4.1, ch. 5.1
    assert parameter_count(build_model("vgg11")) == 9_488_266
    assert parameter_count(build_model("vgg11", {"convolutions": 4})) == 1_097_610
    assert parameter_count(build_model("vgg11", {"convolutions": 5})) == 2_408_842
    assert parameter_count(build_model("vgg11", {"convolutions": 8})) == 9_488_266


def test_parameter_count_of_lenet5_is_the_sum_of_its_layers():
    layers = [6 * 25 + 6, 16 * 6 * 25 + 16, 400 * 120 + 120, 120 * 84 + 84, 84 * 10 + 10]
    assert parameter_count(build_model("lenet5", {"in_channels": 1})) == sum(layers)


def test_alexnet_is_the_same_network_without_its_options():
    torch.manual_seed(0)
    plain = build_model("alexnet")
    torch.manual_seed(0)
    without = build_model("alexnet", {"batch_norm": False, "dropout": 0.0})
    assert [type(module) for module in plain.modules()] == [type(module) for module in without.modules()]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), without.parameters(), strict=True))
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Dropout) for module in plain.modules())


def test_alexnet_with_batch_normalisation():
    model = build_model("alexnet", {"batch_norm": True})
    plain = build_model("alexnet")
    features = list(model.features)
    convolutions = [place for place, module in enumerate(features) if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 5
    for place in convolutions:
        normalisation, activation = features[place + 1 : place + 3]
        assert isinstance(normalisation, nn.BatchNorm2d)
        assert isinstance(activation, nn.ReLU)
        assert normalisation.num_features == features[place].out_channels
    assert [type(m) for m in features if not isinstance(m, nn.BatchNorm2d)] == [type(m) for m in plain.features]
    assert parameter_count(model) - parameter_count(plain) == 2 * (64 + 192 + 384 + 256 + 256)
    assert len(neuron_layers(model, IMAGE, "convolutional")) == 5


def test_alexnet_with_dropout():
    model = build_model("alexnet", {"dropout": 0.5})
    assert parameter_count(model) == parameter_count(build_model("alexnet"))
    head = list(model.head)
    place = next(place for place, module in enumerate(head) if isinstance(module, nn.Dropout))
    assert [type(module) for module in head[place - 2 : place + 2]] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert head[place].p == 0.5
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 1
    torch.manual_seed(0)
    assert not torch.equal(model(IMAGE), model(IMAGE))  # in training
    model.eval()
    assert torch.equal(model(IMAGE), model(IMAGE))


@pytest.mark.parametrize("dropout", [-0.5, 1.5])
def test_a_dropout_that_is_no_share_is_refused(dropout):
    with pytest.raises(ModelError, match=r"model 'alexnet' does not accept the options .*between 0 and 1"):
        build_model("alexnet", {"dropout": dropout})


@pytest.mark.parametrize("options", [{"batch_norm": True}, {"dropout": 0.5}])
def test_options_of_alexnet_are_not_those_of_others(options):
    with pytest.raises(ModelError, match="model 'vgg11' does not accept the options"):
        build_model("vgg11", options)


@pytest.mark.parametrize("name", ["simple_cnn", "alexnet"])
@pytest.mark.parametrize("attention", [None, "se", "cbam"])
def test_attention_leaves_all_other_weights_of_a_seed_as_they_are(name, attention):
    torch.manual_seed(0)
    plain = build_model(name)
    torch.manual_seed(0)
    found = build_model(name, {"attention": attention})
    if attention is None:
        assert str(found) == str(plain)
        assert list(found.state_dict()) == list(plain.state_dict())
    gates = [module for module in found.modules() if type(module) in (*GATES.values(),)]
    assert len(gates) == (0 if attention is None else {"simple_cnn": 3, "alexnet": 5}[name])
    added = {id(parameter) for gate in gates for parameter in gate.parameters()}
    ours = [parameter for parameter in found.parameters() if id(parameter) not in added]
    assert all(torch.equal(a, b) for a, b in zip(ours, plain.parameters(), strict=True))
    assert found(IMAGE).shape == (1, 10)


@pytest.mark.parametrize(("name", "options"), [("simple_cnn", {"convolutions": 2}), ("alexnet", {"batch_norm": True})])
@pytest.mark.parametrize("attention", ["se", "cbam", "class"])
def test_attention_goes_with_other_options(name, options, attention):
    model = build_model(name, {**options, "attention": attention, "in_channels": 3, "classes": 4}).eval()
    assert model(IMAGE).shape == (1, 4)
    if attention != "class":
        after = [a for a, b in zip(model.features, model.features[1:], strict=False) if type(b) in (*GATES.values(),)]
        assert after
        assert all(isinstance(module, nn.ReLU) for module in after)


def test_class_attention_works_on_the_maps_before_the_last_pooling():
    model = build_model("simple_cnn", {"attention": "class"})
    assert model.features(IMAGE).shape == (1, 64, 8, 8)
    assert [name for name, _ in model.named_children()] == ["features", "head"]


def test_global_pooling_has_the_head_that_cam_needs():
    model = build_model("simple_cnn", {"global_pooling": True, "classes": 4})
    assert model.features(IMAGE).shape == (1, 64, 8, 8)
    assert [type(module) for module in model.head] == [nn.Flatten, nn.Linear]
    maps = cam(model, IMAGE, [2])
    scores = model(IMAGE) - model.head[1].bias
    means = (model.features(IMAGE)[0] * model.head[1].weight[2][:, None, None]).sum(0).mean()
    torch.testing.assert_close(means, scores[0, 2])
    assert maps.shape == (1, 32, 32)
    with pytest.raises(ModelError, match="keeps its head; leave global_pooling out"):
        build_model("simple_cnn", {"global_pooling": True, "attention": "se"})


def test_an_attention_that_is_not_possible_is_refused():
    with pytest.raises(ModelError, match="attention 'cban' is not possible; did you mean 'cbam'"):
        build_model("simple_cnn", {"attention": "cban"})
    with pytest.raises(ModelError, match="attention 'class' takes the place of the hidden layer"):
        build_model("alexnet", {"attention": "class", "dropout": 0.5})
    with pytest.raises(ModelError, match="model 'vgg11' does not accept the options"):
        build_model("vgg11", {"attention": "se"})


@pytest.mark.parametrize(("name", "total"), [("vgg11", 8), ("vgg16", 13), ("simple_cnn", 3)])
def test_truncated_models(name, total):
    for kept in (1, 2, total - 1, total):
        model = build_model(name, {"convolutions": kept}).eval()
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert len(convolutions) == kept
        assert model(IMAGE).shape == (1, 10)
    for impossible in (0, total + 1, -1):
        with pytest.raises(ModelError, match=f"convolutions={impossible} is not possible: this model has 1 to {total}"):
            build_model(name, {"convolutions": impossible})


def test_a_truncated_model_does_not_pool_twice():
    # the global pooling of the head takes the place of the max-pooling behind the last convolution
    assert isinstance(build_model("vgg11", {"convolutions": 4}).features[-1], nn.ReLU)
    assert isinstance(build_model("simple_cnn", {"convolutions": 2}).features[-1], nn.ReLU)
    assert isinstance(build_model("simple_cnn").features[-1], nn.MaxPool2d)


def test_a_truncated_model_is_the_beginning_of_the_whole_one():
    whole, short = build_model("vgg11").state_dict(), build_model("vgg11", {"convolutions": 4}).state_dict()
    shared = [key for key in short if key.startswith("features")]
    assert len(shared) == 8
    assert all(short[key].shape == whole[key].shape for key in shared)
    assert short["head.1.weight"].shape == (512, 256)  # the head belongs to the last convolution


def test_the_seed_decides_the_initial_weights():
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([value.reshape(-1) for value in build_model("vgg11", {"convolutions": 1}).parameters()])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_vgg_keeps_its_signal_through_the_depth():
    torch.manual_seed(0)
    model = build_model("vgg16").eval()
    with capture(model, ["features.0", "features.28"]) as outputs, torch.no_grad():
        model(torch.randn(4, 3, 32, 32))
    assert outputs["features.28"].std() > 0.1 * outputs["features.0"].std()


# Loading ------------------------------------------------------------------------------------------------------------

FACTORY = """
from torch import nn
OPTIONS = 3
def small(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())
def broken():
    return "a model"
"""


@pytest.fixture
def factory_file(tmp_path):
    path = tmp_path / "my_models.py"
    path.write_text(FACTORY)
    return path


def test_a_model_from_a_file(factory_file):
    model = load_model(f"{factory_file}:small", factory_options={"width": 7})
    assert model(IMAGE).shape == (1, 7, 30, 30)
    factory_file.write_text(FACTORY.replace("width=4", "width=5"))
    assert load_model(f"{factory_file}:small")(IMAGE).shape == (1, 5, 30, 30)  # as the file is now


def test_a_model_from_a_package(factory_file, monkeypatch):
    monkeypatch.syspath_prepend(factory_file.parent)
    try:
        assert load_model("my_models:small")(IMAGE).shape == (1, 4, 30, 30)
    finally:
        sys.modules.pop("my_models", None)


def test_a_model_from_torchvision():
    model = load_model("torchvision:squeezenet1_1", factory_options={"num_classes": 5})
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("lenet", r"model 'lenet' does not exist; did you mean 'lenet5'\? Known: .*vgg11"),
        ("zzz", r"model 'zzz' does not exist\. Known: .*package\.module:factory"),
        (":small", r"model ':small' does not exist"),
        ("torchvision:vgg_11", r"no classification model 'vgg_11'; did you mean 'vgg11'\?"),
        ("torchvision:fcn_resnet50", r"no classification model 'fcn_resnet50'"),
        ("no_such_package.models:f", r"cannot import 'no_such_package\.models'"),
        ("collections:OrderedDicts", r"collections has no factory 'OrderedDicts'; did you mean 'OrderedDict'\?"),
        ("collections:OrderedDict", r"an installed package and does not say that it returns a network"),
        ("/nowhere/models.py:f", r"the model file /nowhere/models\.py does not exist \(looked in /nowhere\)"),
    ],
)
def test_a_wrong_source_is_named(source, message):
    with pytest.raises(ModelError, match=message):
        load_model(source)


def test_a_wrong_factory_of_a_file_is_named(factory_file):
    with pytest.raises(ModelError, match=r"my_models\.py has no factory 'smal'; did you mean 'small'\?"):
        load_model(f"{factory_file}:smal")
    with pytest.raises(ModelError, match="has no factory 'OPTIONS'"):
        load_model(f"{factory_file}:OPTIONS")
    with pytest.raises(ModelError, match="returned str"):
        load_model(f"{factory_file}:broken")


def test_options_that_the_factory_does_not_take_are_named():
    with pytest.raises(ModelError, match=r"'lenet5' does not accept the options .*'colour': 3"):
        load_model("lenet5", factory_options={"colour": 3})


# Checkpoints --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A model whose weights differ from those of a fresh one."""
    torch.manual_seed(123)
    model = build_model("lenet5")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    return model.eval()


def _same(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


def test_a_checkpoint_of_torch_save(tmp_path, trained):
    for name, zipped in (("new.pt", True), ("old.pth", False)):
        torch.save(trained.state_dict(), tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert _same(load_model("lenet5", tmp_path / name), trained)


def test_a_state_dict_inside_a_checkpoint(tmp_path, trained):
    path = tmp_path / "run.pt"
    torch.save({"epoch": 3, "model": trained.state_dict(), "optimizer": {}, "history": [1.0]}, path)
    assert _same(load_model("lenet5", path, state_dict_key="model"), trained)
    with pytest.raises(
        ModelError, match=r"is not a state dict of tensors; name one of its keys as state_dict_key: model"
    ):
        load_model("lenet5", path)
    with pytest.raises(ModelError, match=r"has no key 'modell'; did you mean 'model'\?"):
        load_model("lenet5", path, state_dict_key="modell")
    with pytest.raises(ModelError, match="is not a state dict of tensors"):
        load_model("lenet5", path, state_dict_key="epoch")


def test_a_prefix_is_taken_off(tmp_path, trained):
    path = tmp_path / "parallel.pt"
    torch.save({f"module.{key}": value for key, value in trained.state_dict().items()}, path)
    assert _same(load_model("lenet5", path, strip_prefix="module."), trained)
    with pytest.raises(ModelError, match=r"10 keys missing \(features\.0\.weight.*10 unknown keys \(module\.features"):
        load_model("lenet5", path)


def test_a_prefix_is_taken_off_only_at_the_beginning(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"a.b.a.c": torch.zeros(1), "d": torch.ones(1)}, path)
    assert list(read_state(path, strip_prefix="a.")) == ["b.a.c", "d"]


def test_safetensors_round_trip(tmp_path, trained):
    path = tmp_path / "training" / "well_trained.safetensors"
    save_weights(path, trained, {"seed": "3"})
    assert _same(load_model("lenet5", path), trained)
    assert list(path.parent.iterdir()) == [path]
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        assert file.metadata() == {"nnscan": '{"seed": "3"}'}
    assert read_provenance(path) == {"seed": "3"}


def test_safetensors_of_a_model_with_buffers_and_other_layouts(tmp_path):
    model = build_model("resnet18", {"in_channels": 1}).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.features[1].running_mean += 2
        model.features[1].num_batches_tracked += 5
    save_weights(tmp_path / "m.safetensors", model, {})
    back = load_model("resnet18", tmp_path / "m.safetensors", {"in_channels": 1})
    assert _same(back, model)


def test_mismatching_keys_and_shapes_are_named(trained):
    state = dict(trained.state_dict())
    del state["head.1.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["head.5.weight"] = torch.zeros(11, 84)
    with pytest.raises(ModelError) as caught:
        load_weights(build_model("lenet5"), state, "run.pt")
    message = str(caught.value)
    assert "the checkpoint run.pt does not fit the model" in message
    assert "1 keys missing (head.1.bias)" in message
    assert "1 unknown keys (extra.weight)" in message
    assert "head.5.weight: model (10, 84), checkpoint (11, 84)" in message


def test_a_model_that_a_checkpoint_does_not_fit_is_left_alone(trained):
    model = build_model("lenet5")
    before = copy.deepcopy(model)
    with pytest.raises(ModelError, match=r"10 keys missing \(features\.0\.weight, features\.0\.bias, .*, \.\.\.\)"):
        load_weights(model, {}, "empty.pt")
    with pytest.raises(ModelError, match="not finite"):
        load_weights(model, {**trained.state_dict(), "head.5.bias": torch.full((10,), torch.nan)}, "nan.pt")
    assert _same(model, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, trained, value):
    state = {key: tensor.clone() for key, tensor in trained.state_dict().items()}
    state["head.3.weight"][5, 5] = value
    torch.save(state, tmp_path / "diverged.pt")
    with pytest.raises(ModelError, match=r"diverged\.pt holds values that are not finite in head\.3\.weight"):
        load_model("lenet5", tmp_path / "diverged.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"none\.pt does not exist \(looked in /.*\)"):
        load_model("lenet5", tmp_path / "none.pt")
    with pytest.raises(ModelError, match="does not exist"):
        load_model("lenet5", tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80", b"\0" * 300, b"PK\x03\x04 not a zip"])
def test_a_corrupt_checkpoint_is_named(tmp_path, suffix, content):
    path = tmp_path / f"corrupt{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"corrupt.*damaged"):
        read_state(path)


def test_a_cut_checkpoint_is_named(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "new.pt")
    torch.save(trained.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_weights(tmp_path / "weights.safetensors", trained, {})
    for name in ("new.pt", "old.pt", "weights.safetensors"):
        path = tmp_path / name
        whole = path.read_bytes()
        for share in (0.01, 0.5, 0.999):
            path.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(ModelError, match=f"{name} .*damaged"):
                read_state(path)


class Malicious:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_does_not_run(tmp_path):
    trap = tmp_path / "executed"
    state = {"weight": torch.zeros(1), "trap": Malicious(str(trap))}
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(state["trap"]))
    for name in ("zip.pt", "legacy.pt", "plain.pt"):
        with pytest.raises(
            ModelError, match=r"something else than tensors.*could run code; save the model's state_dict"
        ):
            load_model("lenet5", tmp_path / name)
    assert not trap.exists()
    with open(tmp_path / "plain.pt", "rb") as stream:
        pickle.load(stream)
    assert trap.exists()  # the trap would have worked


def test_a_whole_pickled_model_is_refused(tmp_path, trained):
    torch.save(trained, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="something else than tensors"):
        load_model("lenet5", tmp_path / "model.pt")


# Copies and modes ---------------------------------------------------------------------------------------------------


def _inplace_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.ReLU6(True)
    )


def test_prepare_leaves_the_model_alone():
    model = _inplace_model().train()
    model[0].weight.requires_grad_(False)
    prepared = prepare(model)
    assert [module.inplace for module in prepared if hasattr(module, "inplace")] == [False] * 3
    assert not any(module.training for module in prepared.modules())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    assert [module.inplace for module in model if hasattr(module, "inplace")] == [True] * 3
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]
    assert prepared[0].weight.data_ptr() == model[0].weight.data_ptr()  # one copy in memory
    weight = model[0].weight.clone()
    prepared.double()
    assert torch.equal(model[0].weight, weight)
    prepared[1].running_mean.fill_(1)
    assert (model[1].running_mean == 0).all()


def test_evaluation_restores_each_modules_own_mode():
    model = _inplace_model().train()
    model[1].eval()

    def raising() -> None:
        with evaluation(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        raising()
    assert [module.training for module in model] == [True, False, True, True, True]
    assert model.training


def test_logits():
    scores, other = torch.rand(2, 3), torch.rand(1)
    assert logits(scores) is scores
    assert logits((scores, other)) is scores
    assert logits([None, scores]) is scores
    assert logits({"out": scores, "aux": other}) is scores
    for nothing in ((), {"a": 1}, "text"):
        with pytest.raises(ModelError, match="without a tensor of class scores"):
            logits(nothing)


# Layers by name -----------------------------------------------------------------------------------------------------


def test_resolve_layer():
    model = build_model("lenet5")
    assert resolve_layer(model, "features.3") == "features.3"
    assert resolve_layer(model, model.features[3]) == "features.3"
    assert resolve_layer(model, "features") == "features"
    with pytest.raises(LayerError, match=r"no layer 'feature\.3'; did you mean 'features\.3'\? Known: features\.0, "):
        resolve_layer(model, "feature.3")
    with pytest.raises(LayerError, match="no layer ''"):
        resolve_layer(model, "")
    with pytest.raises(LayerError, match="the module ReLU does not belong to the model"):
        resolve_layer(model, nn.ReLU())


def test_a_layer_error_reads_as_a_sentence():
    with pytest.raises(KeyError) as caught:
        resolve_layer(build_model("lenet5"), "conv1")
    assert str(caught.value).startswith("the model has no layer 'conv1'")


def test_capture_clones_under_in_place_operations():
    torch.manual_seed(0)
    model = _inplace_model().eval()
    expected = model[1](model[0](IMAGE))
    with capture(model, ["1"]) as outputs:
        model(IMAGE)
    assert torch.equal(outputs["1"], expected)
    assert (outputs["1"] < 0).any()


def test_capture_keeps_the_graph_and_removes_its_hooks():
    model = build_model("lenet5").eval()
    source = IMAGE.clone().requires_grad_(True)
    with capture(model, ["features.0", "head.5"]) as outputs:
        scores = model(source)
        assert torch.equal(outputs["head.5"], scores)
        (gradient,) = torch.autograd.grad(outputs["features.0"].sum(), source)
        assert gradient.abs().sum() > 0
        first = outputs["features.0"]
        model(2 * source)
        assert not torch.equal(outputs["features.0"], first)  # of the last forward pass
    assert not any(module._forward_hooks for module in model.modules())


def test_capture_removes_its_hooks_after_an_error():
    model = build_model("lenet5").eval()
    with pytest.raises(RuntimeError), capture(model, ["features.0"]):
        model(torch.rand(1, 3, 2, 2))
    with pytest.raises(LayerError, match="nowhere"), capture(model, ["features.0", "nowhere"]):
        pytest.fail("the block ran")
    assert not any(module._forward_hooks for module in model.modules())


def test_capture_refuses_a_layer_without_a_tensor():
    model = nn.Sequential(nn.Flatten(2), nn.LSTM(1024, 4))
    message = r"the layer '1' returns tuple, not a tensor; choose a layer inside it"
    with capture(model, ["1"]), pytest.raises(ModelError, match=message):
        model(IMAGE)


# Structure ----------------------------------------------------------------------------------------------------------


def test_layers_of_a_plain_network():
    found = network_layers(build_model("lenet5"), IMAGE)
    assert found == [
        NeuronLayer("features.0", "features.0", "features.1", True),
        NeuronLayer("features.3", "features.3", "features.4", True),
        NeuronLayer("head.1", "head.1", "head.2", False),
        NeuronLayer("head.3", "head.3", "head.4", False),
        NeuronLayer("head.5", "head.5", None, False),
    ]


def test_the_batch_normalisation_is_the_layer_where_one_follows():
    found = network_layers(build_model("resnet18"), IMAGE)
    assert found[0] == NeuronLayer("features.1", "features.0", "features.2", True)
    assert found[1] == NeuronLayer("features.3.bn1", "features.3.conv1", "features.3.relu1", True)
    assert found[2] == NeuronLayer("features.3.bn2", "features.3.conv2", None, True)  # the sum comes first
    shortcut = NeuronLayer("features.5.shortcut.1", "features.5.shortcut.0", None, True)
    assert shortcut in found
    assert len(found) == 1 + 16 + 3 + 1
    assert found[-1] == NeuronLayer("head.1", "head.1", None, False)


def test_the_order_is_that_of_the_forward_pass():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.bn = nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 4, 3)
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.last(self.second(self.bn(self.first(x))).mean((2, 3)))

    assert neuron_layers(Backwards(), IMAGE) == ["bn", "second"]
    assert neuron_layers(Backwards(), IMAGE, "all") == ["bn", "second", "last"]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_normalisation_behind_the_relu_does_not_belong_to_the_layer(inplace):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    assert network_layers(model, IMAGE) == [
        NeuronLayer("0", "0", "1", True),
        NeuronLayer("3", "3", None, True),
    ]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_functional_relu_in_front_of_the_normalisation(inplace):
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(F.relu(self.conv(x), inplace=inplace))

    assert [layer.name for layer in network_layers(Functional(), IMAGE)] == ["conv"]


def test_a_layer_used_twice_is_one_layer():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(self.conv(self.relu(self.conv(x))))

    assert network_layers(Twice(), IMAGE) == [NeuronLayer("conv", "conv", "relu", True)]


def test_linear_layers_stand_in_where_there_is_no_convolution():
    model = build_model("fcn", {"widths": [8, 4]})
    assert neuron_layers(model, IMAGE) == ["1", "3", "5"]
    assert neuron_layers(build_model("lenet5"), IMAGE) == ["features.0", "features.3"]
    with pytest.raises(ModelError, match="neither a convolution nor a linear layer"):
        neuron_layers(nn.Sequential(nn.ReLU()), IMAGE)


def test_select_layers():
    model = build_model("lenet5")
    assert select_layers(model, IMAGE, "convolutional") == ["features.0", "features.3"]
    assert select_layers(model, IMAGE, "all") == ["features.0", "features.3", "head.1", "head.3", "head.5"]
    assert select_layers(model, IMAGE, ["head.5", "features.0"]) == ["head.5", "features.0"]
    with pytest.raises(LayerError, match=r"did you mean 'head\.5'"):
        select_layers(model, IMAGE, ["heads.5"])


def test_weight_module_and_find_layer():
    model = build_model("resnet18")
    assert weight_module(model, IMAGE, "features.1") == "features.0"
    assert weight_module(model, IMAGE, "features.0") == "features.0"
    assert weight_module(model, IMAGE, model.features[3].bn2) == "features.3.conv2"
    assert find_layer(model, IMAGE, "features.0").name == "features.1"
    with pytest.raises(LayerError, match=r"'features\.2' is not a layer of neurons.*Known: features\.1, "):
        find_layer(model, IMAGE, "features.2")
    with pytest.raises(LayerError, match=r"no layer 'features\.99'"):
        find_layer(model, IMAGE, "features.99")


def test_looking_at_the_structure_leaves_the_model_alone():
    model = build_model("resnet18").train()
    model.features[1].eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    image = IMAGE.clone()

    def unchanged() -> bool:
        now = model.state_dict()
        return (
            all(torch.equal(state[key], now[key]) for key in state)
            and modes == [module.training for module in model.modules()]
            and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
            and all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
            and torch.equal(image, IMAGE)
        )

    network_layers(model, image)
    smooth_operations(model, image)
    assert unchanged()
    for look in (network_layers, smooth_operations):
        with pytest.raises(RuntimeError):
            look(model, torch.rand(1, 5, 32, 32))
    assert unchanged()


class Centring(nn.Module):
    """A model that changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x -= 0.5
        return F.relu(self.conv(x))


def test_an_input_that_the_model_changes_in_place_is_left_alone():
    image = IMAGE.clone()
    assert [layer.name for layer in network_layers(Centring(), image)] == ["conv"]
    smooth_operations(Centring(), image)
    assert torch.equal(image, IMAGE)


# Smooth operations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_zoo_is_piecewise_linear(name):
    assert smooth_operations(build_model(name), IMAGE) == []


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (nn.GELU(), "gelu"),
        (nn.SiLU(), "silu"),
        (nn.SiLU(inplace=True), "silu"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
        (nn.ELU(), "elu"),
        (nn.Softplus(), "softplus"),
        (nn.Hardswish(), "hardswish"),
        (nn.Softmax(1), "softmax"),
        (nn.LayerNorm(30), "layer_norm"),
        (nn.GroupNorm(2, 4), "group_norm"),
        (nn.LocalResponseNorm(2), "local_response_norm"),
    ],
)
def test_smooth_modules_are_named(activation, function):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(activation), nn.ReLU())
    assert smooth_operations(model, IMAGE) == [f"{function} in 1.0"]


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(), nn.Hardtanh(), nn.MaxPool2d(2), nn.BatchNorm2d(4)]
)
def test_piecewise_linear_modules_are_not(activation):
    assert smooth_operations(nn.Sequential(nn.Conv2d(3, 4, 3), activation), IMAGE) == []


@pytest.mark.parametrize("function", [F.gelu, F.silu, torch.sigmoid, F.sigmoid, torch.Tensor.sigmoid, torch.tanh])
def test_smooth_functions_are_named_with_their_module(function):
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return function(self.conv(x))

    assert smooth_operations(nn.Sequential(Inner(), nn.ReLU()), IMAGE) == [f"{function.__name__} in 0"]


def test_a_smooth_function_of_the_model_itself():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).sigmoid()

    assert smooth_operations(Outer(), IMAGE) == ["sigmoid in the model"]
