"""FQ against a slow twin written from the formulas, closed forms and known answers (docs/methods.md)."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnscan import quantity
from nnscan.moments import Moments
from nnscan.quantity import feature_quantity, layer_quantity, neuron_quantity, quantity_parts
from nnscan.scanner import scan


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The slow twin: plain loops over neurons and pixels -------------------------------------------------------------------


def slow_blocks(image: torch.Tensor, block: int) -> list[float]:
    """Sum an image (C, H, W) over channels and blocks, row by row."""
    channels, height, width = image.shape
    return [
        sum(
            float(image[c, top + row, left + column])
            for c in range(channels)
            for row in range(block)
            for column in range(block)
        )
        for top in range(0, height, block)
        for left in range(0, width, block)
    ]


def slow_scaled(values: list[float]) -> list[float]:
    size = [abs(value) for value in values]
    low, high = min(size), max(size)
    return [(value - low) / (high - low) if high > low else 0.0 for value in size]


def slow_parts(image: list[float], pixels: list[float], inside: list[bool], noise_factor: str) -> dict[str, float]:
    """Return the parts of F(I, x) for a learning image and an input, both summed over channels and blocks."""
    count = len(image)
    largest = max(abs(value) for value in image)
    support = [abs(value) > 1e-3 * largest for value in image]
    learned, seen = slow_scaled(image), slow_scaled(pixels)
    expected = [v if there and shown else 0.0 for v, there, shown in zip(seen, inside, support, strict=True)]  # I^fe
    valid = [v if there else 0.0 for v, there in zip(learned, inside, strict=True)]  # I^e
    mu_fe, mu_e = sum(expected) / count, sum(valid) / count
    var_fe = sum((v - mu_fe) ** 2 for v in expected) / count
    var_e = sum((v - mu_e) ** 2 for v in valid) / count
    covariance = sum((a - mu_fe) * (b - mu_e) for a, b in zip(expected, valid, strict=True)) / count
    sd_fe, sd_e = math.sqrt(var_fe), math.sqrt(var_e)
    c1, c2 = 0.01**2, 0.03**2
    c3 = c2 / 2
    n_f = sum(inside)
    n_e = sum(there and shown for there, shown in zip(inside, support, strict=True))
    n_n = sum(shown and not there for there, shown in zip(inside, support, strict=True))
    parts = {
        "l": 2 * mu_fe * mu_e / (mu_fe**2 + mu_e**2 + c1),
        "c": 2 * sd_fe * sd_e / (sd_fe**2 + sd_e**2 + c2),
        "s": covariance / (sd_fe * sd_e + c3),
        "vf": n_e / n_f if n_f else 0.0,
        "nf": 1 - n_n / count if noise_factor == "linear" else math.exp(-n_n / count),
    }
    parts["fq"] = max(math.prod(parts.values()), 0.0)
    parts["ssim"] = (2 * mu_fe * mu_e + c1) * (2 * covariance + c2)
    parts["ssim"] /= (mu_fe**2 + mu_e**2 + c1) * (var_fe + var_e + c2)
    if largest == 0:
        parts["ssim"] = 0.0
    return parts


def slow_table(
    model: nn.Module, x: torch.Tensor, masks: torch.Tensor, layers: list[str], block: int, noise_factor: str
) -> pd.DataFrame:
    """Return what feature_quantity(scan(...)) should, from one backward pass per neuron; the last layer has no gate."""
    rows = []
    for layer in layers:
        for sample in range(len(x)):
            pixels = slow_blocks(x[sample], block)
            covered = slow_blocks(masks[sample][None].double(), block)
            inside = [value >= 0.5 * block**2 for value in covered]
            source = x[sample : sample + 1].clone().requires_grad_(True)
            kept = []
            handle = model.get_submodule(layer).register_forward_hook(
                lambda _m, _a, out, kept=kept: kept.append(out.clone())
            )
            model(source)
            handle.remove()
            maps = kept[0][0].reshape(kept[0].shape[1], *(kept[0].shape[2:] or (1, 1)))
            for k in range(maps.shape[0]):
                for i in range(maps.shape[1]):
                    for j in range(maps.shape[2]):
                        value = maps[k, i, j].item()
                        image = torch.zeros_like(x[sample])
                        if value > 0 or layer == layers[-1]:
                            (gradient,) = torch.autograd.grad(maps[k, i, j], source, retain_graph=True)
                            image = x[sample] * gradient[0]
                        parts = slow_parts(slow_blocks(image, block), pixels, inside, noise_factor)
                        rows.append(
                            {
                                **{"layer": layer, "filter": k, "row": i, "column": j, "sample": sample},
                                **{"activation": value, **parts},
                            }
                        )
    return pd.DataFrame(rows)


class LeNetLike(nn.Module):
    """LeNet-5 in small: two convolutions with max-pooling and two linear layers, for 1 x 12 x 12 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 5), nn.Conv2d(2, 3, 3)
        self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def lenet_like() -> tuple[nn.Module, torch.Tensor, list[str]]:
    torch.manual_seed(3)
    x = noise(2, 1, 12, 12).clamp(min=-0.5)
    x[0, :, :4, :4] = 0
    return LeNetLike().double().eval(), x, ["conv1", "conv2", "fc1", "fc2"]


def simple() -> tuple[nn.Module, torch.Tensor, list[str]]:
    torch.manual_seed(4)
    model = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Conv2d(3, 2, 3, stride=2), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)),
    )
    model[1].running_mean += 0.1
    return model.double().eval(), noise(2, 3, 8, 8, seed=1).abs(), ["1", "3", "7"]


def halves(x: torch.Tensor) -> torch.Tensor:
    masks = torch.zeros((len(x), *x.shape[2:]), dtype=torch.bool)
    masks[0, 1:7, 2:7] = True
    masks[1, 3:] = True
    return masks


PARTS = ["activation", "l", "c", "s", "vf", "nf", "fq", "ssim"]


@pytest.mark.parametrize("noise_factor", ["linear", "exponential"])
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("build", [lenet_like, simple])
def test_fq_of_a_scan_is_that_of_the_slow_twin(build, block, noise_factor):
    model, x, layers = build()
    masks = halves(x)
    expected = slow_table(model, x, masks, layers, block, noise_factor)
    found = feature_quantity(scan(model, x, masks, layers, block), noise_factor)
    keys = ["layer", "filter", "row", "column", "sample"]
    both = expected.merge(found, on=keys, suffixes=("_slow", ""), validate="one_to_one")
    assert len(both) == len(found) == len(expected)
    assert (both["fq"] > 0).any()
    assert (both["activation"] <= 0).any()
    for part in PARTS:
        np.testing.assert_allclose(both[part], both[f"{part}_slow"], rtol=1e-7, atol=1e-9, err_msg=part)

    # FQ of a neuron is its maximum over the samples
    best = expected.groupby(keys[:-1], sort=False)["fq"].max()
    moments = scan(model, x, masks, layers, block)
    neurons = neuron_quantity([(layer, moments.select(layer)) for layer in layers], noise_factor)
    np.testing.assert_allclose(neurons.set_index(keys[:-1])["fq"].sort_index(), best.sort_index(), rtol=1e-7, atol=1e-9)

    # and of a layer without an element, the maximum of the product of the others
    by_layer = layer_quantity([(layer, moments.select(layer)) for layer in layers], noise_factor)
    for _, row in by_layer.iterrows():
        others = [part for part in ("l", "c", "s", "vf", "nf") if part != row["without"]]
        own = expected[expected["layer"] == row["layer"]].copy()
        own["product"] = own[others].prod(axis=1).clip(lower=0)
        learned = own.groupby(keys[1:-1], sort=False)["product"].max()
        assert row["mean"] == pytest.approx(learned.mean(), rel=1e-7)
        assert row["variance"] == pytest.approx(learned.var(ddof=0), rel=1e-6, abs=1e-12)
    assert by_layer.groupby("layer")["mean"].nunique().max() > 3  # leaving out what is not 1 matters


# The core: I_x = p I --------------------------------------------------------------------------------------------------


def core(p: float, image: np.ndarray) -> float:
    """Return l c s of an image and p times it."""
    mean, deviation = np.array([image.mean()]), np.array([image.std()])
    similarity = quantity.luminance(mean, p * mean) * quantity.contrast(deviation, p * deviation)
    return float((similarity * quantity.structure(p * deviation**2, deviation, p * deviation))[0])


@pytest.mark.parametrize(("p", "limit"), [(1, 1), (0.5, 0.64), (2, 0.64), (0.1, 0.039), (10, 0.039)])
def test_an_image_p_times_the_input_tends_to_its_limit(p, limit, monkeypatch):
    for name in ("C1", "C2", "C3"):
        monkeypatch.setattr(quantity, name, 1e-15)
    image = np.random.default_rng(0).random((32, 32))
    assert core(p, image) == pytest.approx(limit, abs=5e-4)
    assert core(p, image) == pytest.approx((2 * p / (1 + p**2)) ** 2)


@pytest.mark.parametrize(("p", "value"), [(1, 0.986), (0.5, 0.624), (2, 0.636), (0.1, 0.036)])
def test_an_image_p_times_the_input_with_the_constants_of_ssim(p, value):
    image = np.random.default_rng(0).random((32, 32))
    mu2, var, c1, c2 = image.mean() ** 2, image.var(), 0.01**2, 0.03**2
    expected = 2 * p * mu2 / ((1 + p**2) * mu2 + c1) * (2 * p * var / ((1 + p**2) * var + c2)) * p * var
    expected /= p * var + c2 / 2
    assert core(p, image) == pytest.approx(expected)
    assert core(p, image) == pytest.approx(value, abs=5e-3)


def test_the_definition_is_followed_where_the_slides_contradict_it():
    # for I_x = p I the slides print p^2 s^2 / (s^2 + C3) as the third factor, which would give 0.16 for p = 0.5
    assert core(0.5, np.random.default_rng(0).random((32, 32))) > 0.6


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0, 2.0, 50.0, -1.0])
def test_a_neuron_that_learned_the_whole_input_is_close_to_one(p):
    # one linear neuron that weighs each pixel with p: I_x = p I; the scaling takes p away
    model = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 1)).double()
    model[1].weight.data.fill_(p)
    x = torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row = feature_quantity(scan(model, x, torch.ones((1, 16, 16), dtype=torch.bool))).iloc[0]
    gray = ((x - x.min()) / (x.max() - x.min())).numpy()
    assert row["fq"] == pytest.approx(row["vf"] * core(1, gray))
    assert row["vf"] > 0.99
    assert row["fq"] > 0.97
    assert row["ssim"] == pytest.approx(1, abs=0.01)


# Zero, bounds, signs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [lenet_like, simple])
def test_without_an_image_fq_is_zero(build):
    model, x, layers = build()
    masks = halves(x)
    table = feature_quantity(scan(model, torch.zeros_like(x), masks, layers))
    assert (table[["l", "c", "s", "vf", "fq"]] == 0).all().all()
    assert (table["nf"] == 1).all()
    table = feature_quantity(scan(model, x, masks, layers))
    dead = table[(table["activation"] <= 0) & (table["layer"] != layers[-1])]
    assert len(dead)
    assert (dead["fq"] == 0).all()


def test_an_input_without_foreground_has_no_fq():
    model, x, layers = lenet_like()
    table = feature_quantity(scan(model, x, torch.zeros((2, 12, 12), dtype=torch.bool), layers))
    assert (table["fq"] == 0).all()
    assert (table["vf"] == 0).all()


def test_without_masks_what_needs_a_foreground_is_not_a_number():
    model, x, layers = lenet_like()
    table = feature_quantity(scan(model, x, layers=layers))
    assert table[["vf", "nf", "fq"]].isna().all().all()
    whole = feature_quantity(scan(model, x, torch.ones((2, 12, 12), dtype=torch.bool), layers))
    for part in ("l", "c", "s", "ssim"):  # compare with the whole input
        np.testing.assert_allclose(table[part], whole[part], rtol=1e-12)


def test_fq_is_at_most_the_share_of_the_foreground_that_a_neuron_sees():
    model, x, _ = simple()
    masks = halves(x)
    table = feature_quantity(scan(model, x, masks, ["1", "3"]))
    for layer, side in (("1", 3), ("3", 5)):
        part = table[table["layer"] == layer]
        seen = side**2 / masks.sum((1, 2)).numpy()[part["sample"]]
        assert (part["fq"] <= np.minimum(seen, 1)).all()
        assert (part["vf"] <= seen + 1e-12).all()
        assert part["fq"].max() > 0


def test_a_negative_covariance_counts_as_nothing():
    # the neuron weighs dark pixels strongly and bright ones weakly
    x = torch.linspace(0.1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).double()
    model[1].weight.data = (1 / x**3).reshape(1, 16)
    row = feature_quantity(scan(model, x, torch.ones((1, 4, 4), dtype=torch.bool))).iloc[0]
    assert row["s"] < 0
    assert row["fq"] == 0
    assert row["ssim"] < 0
    neuron = neuron_quantity([("1", scan(model, x, torch.ones((1, 4, 4), dtype=torch.bool)))]).iloc[0]
    assert neuron["negative"] == 1


# Monotone in N_e / N_f and in K alone ---------------------------------------------------------------------------------


def one_neuron(image: np.ndarray, pixels: np.ndarray, inside: np.ndarray) -> Moments:
    """Return the moments of one neuron for one sample with its image, input in [0, 1] and foreground (P,)."""
    size = np.abs(image)
    support = size > 1e-3 * size.max()
    arrays = {"activation": 1.0, "signed_total": image.sum(), "maximum": size.max(), "minimum": size.min()}
    for region, there in (("foreground", inside), ("background", ~inside)):
        arrays[f"count_{region}"] = (support & there).sum()
        arrays[f"total_{region}"] = size[there].sum()
        arrays[f"square_{region}"] = (size[there] ** 2).sum()
        arrays[f"input_total_{region}"] = pixels[support & there].sum()
        arrays[f"input_square_{region}"] = (pixels[support & there] ** 2).sum()
        arrays[f"cross_{region}"] = (pixels * size)[support & there].sum()
    layer = {name: np.array(value, dtype=np.float64).reshape(1, 1, 1, 1) for name, value in arrays.items()}
    return Moments({"conv": layer}, np.array([0]), len(image), np.array([inside.sum()]), masked=True)


def parts_of(*arguments: np.ndarray, noise_factor: str = "linear") -> dict[str, float]:
    parts = quantity_parts(one_neuron(*arguments), "conv", noise_factor)
    return {name: values.item() for name, values in parts.items()}


@pytest.fixture
def example():
    """An image, an input and a foreground of 60 of 100 pixels, with nothing learned of the background."""
    rng = np.random.default_rng(0)
    pixels = rng.random(100)
    inside = np.arange(100) < 60
    image = np.where(inside, pixels + 0.05 * rng.random(100), 0)
    return image, pixels, inside


@pytest.mark.parametrize(
    ("noise_factor", "k"), [("linear", lambda r: 1 - r), ("exponential", lambda r: math.exp(-r))], ids=["linear", "exp"]
)
def test_noise_in_the_background_lowers_fq_through_k_alone(example, noise_factor, k):
    image, pixels, inside = example
    clean = parts_of(image, pixels, inside, noise_factor=noise_factor)
    assert clean["nf"] == 1
    before = clean["fq"]
    for noisy_pixels in (1, 5, 20, 39):
        noisy = image.copy()
        noisy[60 : 60 + noisy_pixels] = 0.3 * image.max()
        parts = parts_of(noisy, pixels, inside, noise_factor=noise_factor)
        for name in ("l", "c", "s", "vf"):
            assert parts[name] == pytest.approx(clean[name], rel=1e-12)
        assert parts["nf"] == pytest.approx(k(noisy_pixels / 100))
        assert parts["fq"] == pytest.approx(clean["fq"] * k(noisy_pixels / 100))
        assert parts["fq"] < before
        before = parts["fq"]


def test_fq_grows_linearly_with_the_valid_share(example):
    moments = one_neuron(*example)
    found = []
    for valid in (0, 15, 30, 60):
        layer = {**moments.layers["conv"], "count_foreground": np.full((1, 1, 1, 1), float(valid))}
        changed = Moments({"conv": layer}, moments.samples, moments.pixels, moments.foreground_pixels, masked=True)
        found.append(quantity_parts(changed, "conv")["fq"].item())
    assert found[-1] > 0
    assert found == pytest.approx([valid / 60 * found[-1] for valid in (0, 15, 30, 60)])


def test_learning_less_of_the_foreground_lowers_fq(example):
    image, pixels, inside = example
    before = math.inf
    for learned in (60, 45, 30, 15, 5):
        partial = np.where(np.arange(100) < learned, image, 0)
        parts = parts_of(partial, pixels, inside)
        assert parts["vf"] == pytest.approx(learned / 60)
        assert 0 < parts["fq"] < before
        before = parts["fq"]


def test_the_threshold_of_the_support():
    pixels, inside = np.linspace(0, 1, 10), np.ones(10, dtype=bool)
    image = np.array([0, 0.0009, 0.00101, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -1.0])
    assert parts_of(image, pixels, inside)["vf"] == 0.8


# Invariances ----------------------------------------------------------------------------------------------------------


def _assert_equal_quantities(one: pd.DataFrame, two: pd.DataFrame) -> None:
    for part in ("l", "c", "s", "vf", "nf", "fq", "ssim"):
        np.testing.assert_allclose(one[part], two[part], rtol=1e-7, atol=1e-9, err_msg=part)


def test_fq_does_not_depend_on_the_scale_of_the_weights():
    model, x, layers = lenet_like()
    masks = halves(x)
    expected = feature_quantity(scan(model, x, masks, layers))
    with torch.no_grad():
        model.conv1.weight *= 7
        model.conv1.bias *= 7
        model.conv2.weight *= 0.01 / 7
        model.conv2.bias *= 0.01
        model.fc1.weight *= 100
    _assert_equal_quantities(feature_quantity(scan(model, x, masks, layers)), expected)


def test_fq_does_not_depend_on_the_scale_of_the_input_without_biases():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 3, bias=False)).double()
    x = noise(2, 1, 8, 8)
    masks = halves(x)
    _assert_equal_quantities(feature_quantity(scan(model, 255 * x, masks)), feature_quantity(scan(model, x, masks)))


def test_fq_does_not_depend_on_the_order_of_samples_or_filters():
    model, x, layers = lenet_like()
    masks = halves(x)
    expected = feature_quantity(scan(model, x, masks, layers))
    swapped = feature_quantity(scan(model, x.flip(0), masks.flip(0), layers))
    swapped["sample"] = 1 - swapped["sample"]
    with torch.no_grad():
        model.conv1.weight.copy_(model.conv1.weight.flip(0))
        model.conv1.bias.copy_(model.conv1.bias.flip(0))
        model.conv2.weight.copy_(model.conv2.weight.flip(1))
    permuted = feature_quantity(scan(model, x, masks, layers))
    first = permuted["layer"] == "conv1"
    permuted.loc[first, "filter"] = 1 - permuted.loc[first, "filter"]
    keys = ["layer", "filter", "row", "column", "sample"]
    for other in (swapped, permuted):
        _assert_equal_quantities(other.sort_values(keys), expected.sort_values(keys))


def test_fq_of_the_mirrored_network_and_input_is_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.ReLU()).double()
    x = noise(2, 1, 8, 8)
    masks = halves(x)
    expected = scan(model, x, masks)
    with torch.no_grad():
        for index in (0, 3):
            model[index].weight.copy_(model[index].weight.flip(-1))
    mirrored = scan(model, x.flip(-1), masks.flip(-1))
    for layer in ("0", "3"):
        one, two = quantity_parts(expected, layer), quantity_parts(mirrored, layer)
        for part, values in one.items():
            np.testing.assert_allclose(two[part][..., ::-1], values, rtol=1e-7, atol=1e-9, err_msg=part)
