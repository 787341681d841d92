"""nnscan.suffixes: the part of a network behind a layer answers as the whole network does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnscan import suffixes
from nnscan.models import build_model, evaluation, prepare
from nnscan.suffixes import Change, find_suffix, zeroed


def shifted(model):
    """Give normalisations shifts and scales that are not those of a new one."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            for value, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.3, 1.0)):
                value.uniform_(low, high, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    return model.double().eval()


def chained():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout2d(),
        nn.Conv2d(4, 6, 2, padding=1, stride=2, padding_mode="circular"), nn.LeakyReLU(0.1), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3),
    )  # fmt: skip


def grouped():
    """Readers that see only some of the channels, which are none."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.PReLU(4),
        nn.Conv2d(4, 6, 1, bias=False), nn.ReLU(), nn.Flatten(2), nn.Linear(16, 5), nn.Flatten(), nn.Linear(30, 3),
    )  # fmt: skip


class Functional(nn.Module):
    """Functions instead of modules, in-place operations, several outputs, a parameter of its own, a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 2, dilation=2)
        self.scale, self.head = nn.Parameter(torch.rand(5, 1, 1)), nn.Linear(5, 3)

    def forward(self, images, temperature=2.0):
        images.sub_(0.5)
        early = F.max_pool2d(F.relu(self.first(images), inplace=True), 2)
        late = self.second(early).relu_() * self.scale.exp()
        scores = self.head(torch.flatten(F.adaptive_avg_pool2d(late, 1), 1))
        return {"scores": scores / temperature, "maps": late}


class Shortcuts(nn.Module):
    """Shortcuts past a layer, a concatenation behind it, sums in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(10, 3)

    def forward(self, images):
        early = torch.relu(self.first(images))
        late = self.norm(self.second(early))
        late += early
        late.relu_()
        return self.head(torch.cat([late, early, images], 1).mean((2, 3)))


def dense():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(2 * 64, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5), nn.Linear(5, 3)
    )


def across():
    """A linear map of the columns, as many as there are channels."""
    return nn.Sequential(nn.Conv2d(2, 4, 5), nn.ReLU(), nn.Linear(4, 5), nn.Flatten(), nn.Linear(80, 3))


def residual():
    return build_model("resnet18", {"in_channels": 2, "size": 8})


NETWORKS = [
    *((chained, layer) for layer in ("0", "1", "5", "9", "11")),
    *((grouped, layer) for layer in ("0", "2", "3", "5", "8", "10")),
    *((Functional, layer) for layer in ("first", "second", "head")),
    *((Shortcuts, layer) for layer in ("first", "second", "norm", "head")),
    *((dense, layer) for layer in ("1", "2", "4", "5")),
    (across, "0"),
    *((residual, layer) for layer in ("features.3.conv1", "features.5.bn2", "features.5.shortcut.1")),
]


def built(network):
    torch.manual_seed(0)
    return shifted(network())


def scores_of(model, x):
    found = model(x.clone())
    return found["scores"] if isinstance(found, dict) else found


@pytest.fixture
def x():
    return torch.rand(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("network", "layer"), NETWORKS)
def test_changed_maps_give_the_scores_of_the_network_with_these_maps(network, layer, x):
    model = built(network)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        suffix = find_suffix(model, layer, x)
        kept = suffix.keep(*suffix.before(x))
        torch.testing.assert_close(kept.scores, scores_of(model, x), rtol=1e-12, atol=1e-14)
        values = suffix.layer(suffix.before(x)[0])
        changes, expected = [], []
        for samples, channels in (
            ([4, 0, 4], [1]),
            ([2], [2, 0]),
            ([], [1]),
            ([1, 2], range(values.shape[1])),
        ):
            new = torch.randn(len(samples), *values.shape[1:], dtype=torch.float64, generator=generator)
            chosen = torch.tensor(list(channels), dtype=torch.int64)

            def replace(module, args, output, new=new, chosen=chosen):
                output = output.clone()
                output[:, chosen] = new[:, chosen]
                return output

            handle = model.get_submodule(layer).register_forward_hook(replace)
            if samples:
                expected.append(scores_of(model, x[samples]))
            handle.remove()
            maps = suffix.chain(new)[:, chosen] if samples else kept.maps[:0][:, chosen]
            changes.append(Change(torch.tensor(samples, dtype=torch.int64), chosen, maps))
        found = suffix.scores(kept, changes)
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-10, atol=1e-12)
        again = suffix.scores(kept, changes)
        assert torch.equal(found, again)  # what is kept is not used up
        assert not torch.allclose(found[:3], kept.scores[[4, 0, 4]])


def test_what_runs_behind_a_layer(x):
    """The chain is passed once, the reader reads the changed channel alone, and nothing before the layer runs."""
    model = built(chained)
    read = []
    with torch.no_grad():
        suffix = find_suffix(model, "0", x)
        kept = suffix.keep(*suffix.before(x))
        assert kept.maps.shape == (6, 4, 3, 3)
        assert kept.entry.shape == (6, 6, 2, 2)
        assert kept.others == ()
        handles = [
            module.register_forward_hook(lambda module, args, output: read.append((module, tuple(args[0].shape))))
            for module in model
        ]
        suffix.scores(kept, [Change(torch.tensor([1, 3]), torch.tensor([2]), torch.zeros(1, 1, 3, 3))])
        for handle in handles:
            handle.remove()
    assert read[0] == (model[5], (2, 1, 3, 3))
    assert [module for module, _ in read] == list(model[5:])


@pytest.mark.parametrize(("network", "layer", "followed"), [
    (chained, "5", 9), (dense, "1", 4), (dense, "5", None),
    (grouped, "0", None), (grouped, "2", 5), (grouped, "5", None),
])  # fmt: skip
def test_the_reader(network, layer, followed, x):
    model = built(network)
    assert find_suffix(model, layer, x)._reader is (model[followed] if followed else None)


def test_a_weight_that_is_computed_is_not_sliced(x):
    model = built(chained)
    nn.utils.parametrizations.weight_norm(model[5])
    assert find_suffix(model, "0", x)._reader is None


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, images):
        return self.head(self.layer(self.layer(images).relu()).mean((2, 3)))


class Branching(Twice):
    def forward(self, images):
        return self.head(self.layer(images if images.mean() > -9 else -images).mean((2, 3)))


class Sized(Twice):
    def forward(self, images):
        count = images.shape[0]
        return self.head(self.layer(images).view(count, 2, -1).mean(2))


class FixedSize(Twice):
    def forward(self, images):
        count = len(images) if isinstance(images, torch.Tensor) else 6
        return self.head(self.layer(images).view(count, 2, -1).mean(2))


class Centred(Twice):
    def forward(self, images):
        maps = self.layer(images)
        return self.head((maps - maps.mean(0)).relu().mean((2, 3)))


class Mixed(Twice):
    """A pooling that takes channels for positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.pool = nn.Linear(128, 4), nn.MaxPool1d(2)
        self.head = nn.Linear(2, 3)

    def forward(self, images):
        return self.head(self.pool(self.layer(images.flatten(1))))


class Late(Twice):
    """What the layer read is changed in place after it was read."""

    def forward(self, images):
        early = images * 1.5
        maps = self.layer(early)
        early.mul_(0)
        return self.head((maps * 2).mean((2, 3)) + early.mean((2, 3)))


def untracked():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


@pytest.mark.parametrize(("network", "layer", "reason"), [
    (Branching, "layer", "cannot be traced"),
    (Twice, "layer", "it is called 2 times"),
    (Sized, "layer", "shape"),
    (FixedSize, "layer", "shape"),
    (Centred, "layer", "does not treat each sample on its own"),
    (untracked, "0", "does not treat each sample on its own"),
    (Mixed, "layer", "index 2 is out of bounds"),
    (Late, "layer", "does not treat each sample on its own"),
])  # fmt: skip
def test_networks_whose_parts_cannot_be_run_alone(network, layer, reason, x, caplog):
    caplog.set_level("INFO")
    assert find_suffix(built(network), layer, x) is None
    (line,) = caplog.messages
    assert f"the part behind {layer} cannot be run alone" in line
    assert reason in line


@pytest.mark.parametrize("memory", [1, 100, 2**20])
def test_passes_hold_all_pairs_in_order(memory, x, monkeypatch):
    monkeypatch.setattr(suffixes, "PASS_BYTES", memory)
    model = built(dense)
    mask = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(3)) > 0.5
    with torch.no_grad():
        suffix = find_suffix(model, "1", x)
        kept = suffix.keep(*suffix.before(x))
        parts = list(suffix.passes(kept, mask))
        assert torch.equal(torch.cat(parts), mask.nonzero())
        assert max(map(len, parts)) == min(int(mask.sum()), max(1, memory // 40))  # five values of eight bytes enter
        assert list(suffix.passes(kept, torch.zeros(2, 6, dtype=torch.bool))) == []


def test_one_sample_is_enough_to_find_the_suffix(x):
    assert find_suffix(built(chained), "0", x[:1]) is not None
    assert find_suffix(built(Centred), "layer", x[:1]) is None


def test_nothing_of_the_model_or_its_input_changes(x):
    model = built(Functional).train()
    before, images = {name: value.clone() for name, value in model.state_dict().items()}, x.clone()
    with evaluation(model), torch.no_grad():
        suffix = find_suffix(model, "first", x)
        suffix.keep(*suffix.before(x))
    assert torch.equal(x, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.first.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_suffix_sees_parameters_as_they_are(x):
    model = prepare(built(chained))
    with torch.no_grad():
        suffix = find_suffix(model, "0", x)
        before = suffix.keep(*suffix.before(x)).scores
        model[5].weight *= 2
        after = suffix.keep(*suffix.before(x)).scores
        torch.testing.assert_close(after, model(x))
        assert not torch.allclose(before, after)


def test_zeroed_is_undone(x):
    model = built(chained)
    intact = model(x)
    with zeroed(model[0], [1, 2]):
        assert not model[:1](x)[:, [1, 2]].any()
        assert model[:1](x)[:, [0, 3]].all()
    assert torch.equal(model(x), intact)
    with pytest.raises(ZeroDivisionError), zeroed(model[0], [1, 2]):
        raise ZeroDivisionError
    assert torch.equal(model(x), intact)
