"""FQ of neurons and the diversity of filters, on moments made by hand."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

import nnscan
from nnscan.errors import NnscanError
from nnscan.moments import QUANTITIES, Moments, concatenate, write_moments
from nnscan.quantity import (
    PARTS,
    contrast,
    diversity,
    diversity_ablation,
    elements,
    feature_quantity,
    knee,
    layer_quantity,
    luminance,
    neuron_quantity,
    noise_factor,
    quantity_parts,
    scan_quantity,
    structural_similarity,
    structure,
)

COLUMNS = ["layer", "filter", "row", "column", "sample", "activation", *PARTS]


def moments_of(images, inputs, masks=None, activations=None, layer="conv", samples=None) -> Moments:
    """Return the moments of images (N, K, h, w, P) for inputs in [0, 1] and masks, each (N, P)."""
    images, inputs = np.asarray(images, dtype=np.float64), np.asarray(inputs, dtype=np.float64)
    inside = np.ones(inputs.shape, dtype=bool) if masks is None else np.asarray(masks, dtype=bool)
    size, x = np.abs(images), inputs[:, None, None, None]
    maximum = size.max(-1)
    support = size > 1e-3 * maximum[..., None]
    arrays = {
        "activation": images.sum(-1) if activations is None else np.asarray(activations, dtype=np.float64),
        "signed_total": images.sum(-1),
        "maximum": maximum,
        "minimum": size.min(-1),
    }
    for region, there in (("foreground", inside), ("background", ~inside)):
        there = there[:, None, None, None]
        arrays |= {
            f"count_{region}": (support & there).sum(-1).astype(np.float64),
            f"total_{region}": (size * there).sum(-1),
            f"square_{region}": (size**2 * there).sum(-1),
            f"input_total_{region}": (x * (support & there)).sum(-1),
            f"input_square_{region}": (x**2 * (support & there)).sum(-1),
            f"cross_{region}": (x * size * (support & there)).sum(-1),
        }
    return Moments(
        {layer: {name: arrays[name] for name in QUANTITIES}},
        np.arange(len(images)) if samples is None else np.asarray(samples),
        inputs.shape[1],
        inside.sum(1),
        masks is not None,
    )


@pytest.fixture(scope="module")
def scanned():
    """Four samples, three filters of 2 x 2 neurons; some neurons have no image, some a negative covariance."""
    rng = np.random.default_rng(0)
    inputs = rng.random((4, 30))
    inputs = (inputs - inputs.min(1, keepdims=True)) / np.ptp(inputs, 1)[:, None]
    images = rng.normal(size=(4, 3, 2, 2, 30)) * inputs[:, None, None, None] ** rng.integers(0, 3, (4, 3, 2, 2, 1))
    images[:, 0, 0, 0] = 0
    images[1, :, 1, 1] = 0
    images[:, 2, 0] = (1.1 - inputs[:, None]) ** 4  # large where the input is small
    masks = rng.random((4, 30)) < 0.8
    return moments_of(images, inputs, masks, samples=[10, 11, 12, 13])


# The factors --------------------------------------------------------------------------------------------------------


def test_factors_at_known_points():
    one, half = np.array([1.0]), np.array([0.5])
    assert luminance(one, one) == pytest.approx(2 / 2.0001)
    assert luminance(one, half) == pytest.approx(1 / 1.2501)
    assert contrast(one, half) == pytest.approx(1 / 1.2509)
    assert structure(half, one, half) == pytest.approx(0.5 / 0.50045)
    assert structure(-half, one, half) == pytest.approx(-0.5 / 0.50045)
    for factor in (luminance, contrast):
        assert factor(0 * one, 0 * one) == 0
        assert factor(0 * one, one) == 0
        assert factor(half, one) == factor(one, half)
    assert structure(0 * one, 0 * one, 0 * one) == 0


def test_structural_similarity_has_the_constants_above_too():
    zero = np.zeros(1)
    assert structural_similarity(zero, zero, zero, zero, zero) == 1  # blank images are alike
    a, b = np.random.default_rng(0).random((2, 50))
    expected = (2 * a.mean() * b.mean() + 1e-4) * (2 * np.cov(a, b, bias=True)[0, 1] + 9e-4)
    expected /= (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)
    covariance = np.cov(a, b, bias=True)[0, 1]
    assert structural_similarity(a.mean(), b.mean(), a.std(), b.std(), covariance) == pytest.approx(expected)
    assert structural_similarity(a.mean(), a.mean(), a.std(), a.std(), a.var()) == pytest.approx(1)


def test_factors_are_at_most_one():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1000))
    assert ((luminance(a, b) >= 0) & (luminance(a, b) <= 1)).all()
    assert ((contrast(a, b) >= 0) & (contrast(a, b) <= 1)).all()
    assert (np.abs(structure(a * b, a, b)) < 1).all()


def test_noise_factor():
    share = np.array([0, 0.25, 1])
    assert noise_factor(share).tolist() == [1, 0.75, 0]
    assert noise_factor(share, "exponential") == pytest.approx([1, math.exp(-0.25), math.exp(-1)])
    with pytest.raises(NnscanError, match="unknown noise factor 'quadratic'; possible: linear, exponential"):
        noise_factor(share, "quadratic")


# Parts and tables ---------------------------------------------------------------------------------------------------


def test_parts_of_neurons_without_an_image(scanned):
    parts = quantity_parts(scanned, "conv")
    dead = scanned.layers["conv"]["maximum"] == 0
    assert dead.sum() == 4 + 3
    for name in ("l", "c", "s", "vf", "fq", "ssim"):
        assert (parts[name][dead] == 0).all()
    assert (parts["nf"][dead] == 1).all()


def test_parts_lie_in_their_ranges(scanned):
    parts = quantity_parts(scanned, "conv")
    assert list(parts) == [*PARTS, "fq", "ssim"]
    for name, values in parts.items():
        assert values.shape == (4, 3, 2, 2)
        assert np.isfinite(values).all()
        assert (values <= 1).all()
        assert (values >= (-1 if name in ("s", "ssim") else 0)).all()
    product = np.prod([parts[name] for name in PARTS], axis=0)
    np.testing.assert_allclose(parts["fq"], np.maximum(product, 0))
    assert (product < 0).any()  # so that the clipping is tested
    assert (product > 0).any()


def test_feature_quantity_has_a_row_per_neuron_and_sample(scanned):
    table = feature_quantity(scanned)
    assert nnscan.feature_quantity is feature_quantity
    assert table.columns.tolist() == [*COLUMNS, "fq", "ssim"]
    assert len(table) == 4 * 12
    parts = quantity_parts(scanned, "conv")
    for _, row in table.iterrows():
        at = (row["sample"] - 10, row["filter"], row["row"], row["column"])
        assert row["activation"] == scanned.layers["conv"]["activation"][at]
        for name, values in parts.items():
            assert row[name] == values[at]


@pytest.mark.parametrize("noise", ["linear", "exponential"])
def test_neuron_quantity_is_the_best_sample_of_feature_quantity(scanned, noise):
    every = feature_quantity(scanned, noise)
    table = neuron_quantity([("conv", scanned)], noise)
    assert table.columns.tolist() == [
        *("layer", "depth", "filter", "row", "column", *PARTS, "fq", "ssim", "sample", "activation"),
        *("fq_mean", "active", "negative", "correlation"),
    ]
    assert len(table) == 12
    for _, row in table.iterrows():
        own = every.query(f"filter == {row['filter']} and row == {row['row']} and column == {row['column']}")
        best = own.sort_values(["fq", "activation"], ascending=False, kind="stable").iloc[
            0
        ]  # many have no quantity on any sample
        for name in (*PARTS, "fq", "ssim", "sample", "activation"):
            assert row[name] == best[name], name
        assert row["fq_mean"] == pytest.approx(own["fq"].mean())
        assert row["active"] == (own["activation"] > 0).mean()
        assert row["negative"] == (own["s"] < 0).mean()
        expected = own["activation"].clip(lower=0).corr(own["fq"]) if own["fq"].std() > 0 else math.nan
        assert row["correlation"] == pytest.approx(expected, nan_ok=True)


def test_the_noise_factor_reaches_every_table(scanned, tmp_path):
    write_moments(tmp_path / "s.h5", [scanned], 4, {})
    for table in (
        lambda noise: feature_quantity(scanned, noise),
        lambda noise: neuron_quantity([("conv", scanned)], noise),
        lambda noise: scan_quantity([tmp_path / "s.h5"], noise)[0],
    ):
        assert not np.allclose(table("linear")["nf"], table("exponential")["nf"])


def test_fq_does_not_fall_when_samples_are_added(scanned):
    arrays = scanned.layers["conv"]
    shards = [
        Moments(
            {"conv": {name: values[start:stop] for name, values in arrays.items()}},
            *(scanned.samples[start:stop], scanned.pixels, scanned.foreground_pixels[start:stop], True),
        )
        for start, stop in ((0, 1), (1, 3), (3, 4))
    ]
    best = np.zeros(12)
    for count in (1, 2, 3):
        now = neuron_quantity([("conv", concatenate(shards[:count]))])["fq"].to_numpy()
        assert (now >= best).all()
        best = now
    np.testing.assert_array_equal(best, neuron_quantity([("conv", scanned)])["fq"])


def test_without_masks_there_is_no_quantity(scanned):
    rng = np.random.default_rng(1)
    plain = moments_of(rng.normal(size=(3, 2, 2, 1, 20)), rng.random((3, 20)))
    table = feature_quantity(plain)
    assert table[["vf", "nf", "fq"]].isna().all().all()
    assert table[["l", "c", "s", "ssim"]].notna().all().all()
    neurons = neuron_quantity([("conv", plain)])
    assert neurons[["vf", "nf", "fq", "fq_mean", "correlation"]].isna().all().all()
    similarity = table["ssim"].to_numpy().reshape(3, 4)
    assert neurons["ssim"].tolist() == similarity.max(0).tolist()
    assert neurons["sample"].tolist() == similarity.argmax(0).tolist()


def test_a_sample_without_foreground_has_no_quantity_but_a_number():
    rng = np.random.default_rng(1)
    blank = moments_of(rng.random((1, 1, 1, 1, 20)), rng.random((1, 20)), np.zeros((1, 20), dtype=bool))
    parts = quantity_parts(blank, "conv")
    assert parts["vf"].item() == 0
    assert parts["nf"].item() == 0  # each pixel is noise
    assert parts["fq"].item() == 0


def test_correlation_is_not_a_number_where_one_side_is_constant():
    rng = np.random.default_rng(3)
    images = rng.random((3, 1, 3, 1, 20))
    inputs, masks = rng.random((3, 20)), np.ones((3, 20), dtype=bool)
    activations = np.array([[0.1, 0.2, 0.3], [0.1, 0.5, -1], [0.1, 0.1, -2]]).reshape(3, 1, 3, 1)
    table = neuron_quantity([("conv", moments_of(images, inputs, masks, activations))])
    # the mean of three times 0.1 is not 0.1 in floating point
    assert table["correlation"].isna().tolist() == [True, False, False]
    assert table["correlation"].dropna().abs().max() <= 1 + 1e-12
    same = np.repeat(images[:1], 3, axis=0)
    constant = neuron_quantity([("conv", moments_of(same, np.repeat(inputs[:1], 3, axis=0), masks, activations))])
    assert constant["correlation"].isna().all()


def test_a_scan_on_disk_gives_the_same(scanned, tmp_path):
    rng = np.random.default_rng(5)
    other = moments_of(rng.normal(size=(4, 2, 1, 1, 30)), rng.random((4, 30)), np.ones((4, 30), dtype=bool), layer="a")
    both = Moments(
        {**scanned.layers, **other.layers}, scanned.samples, scanned.pixels, scanned.foreground_pixels, masked=True
    )
    for index, rows in enumerate((slice(0, 1), slice(1, 4))):
        shard = Moments(
            {layer: {name: a[rows] for name, a in arrays.items()} for layer, arrays in both.layers.items()},
            *(both.samples[rows], both.pixels, both.foreground_pixels[rows], True),
            filter_images={layer: np.zeros((len(both.samples[rows]), 1, 1, 1)) for layer in both.layers},
        )
        write_moments(tmp_path / f"{index}.h5", [shard], len(shard.samples), {})
    found, by_layer = scan_quantity([tmp_path / "0.h5", tmp_path / "1.h5"])
    layers = [(layer, both.select(layer)) for layer in ("conv", "a")]
    pd.testing.assert_frame_equal(found, neuron_quantity(layers))
    pd.testing.assert_frame_equal(by_layer, layer_quantity(layers))
    assert found.drop_duplicates("layer")[["layer", "depth"]].to_numpy().tolist() == [["conv", 0], ["a", 1]]


def test_the_quality_may_be_the_ssim_index(scanned):
    printed, ssim = quantity_parts(scanned, "conv"), quantity_parts(scanned, "conv", form="ssim")
    for name in (*PARTS, "ssim"):
        np.testing.assert_array_equal(printed[name], ssim[name])
    expected = np.maximum(ssim["vf"] * ssim["nf"] * ssim["ssim"], 0)
    np.testing.assert_allclose(ssim["fq"], expected)
    assert not np.allclose(printed["fq"], ssim["fq"])
    np.testing.assert_array_equal(feature_quantity(scanned, form="ssim")["fq"], ssim["fq"].ravel())
    np.testing.assert_array_equal(neuron_quantity([("conv", scanned)], form="ssim")["fq"], ssim["fq"].max(0).ravel())


def test_the_order_of_the_samples_decides_nothing(scanned):
    """Of neurons without any quantity neither: their sample is that of the highest activation."""
    arrays = {name: {key: values[::-1] for key, values in own.items()} for name, own in scanned.layers.items()}
    turned = dataclasses.replace(
        scanned, layers=arrays, samples=scanned.samples[::-1], foreground_pixels=scanned.foreground_pixels[::-1]
    )
    found, expected = (neuron_quantity([("conv", one)]) for one in (turned, scanned))
    told = expected["activation"] != 0  # without an image all samples are alike
    assert (expected.loc[told, "fq"] == 0).any()
    pd.testing.assert_frame_equal(found[told], expected[told])
    pd.testing.assert_frame_equal(layer_quantity([("conv", turned)]), layer_quantity([("conv", scanned)]))


# Layers, whole and without each element -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["printed", "ssim"])
def test_the_elements_are_the_factors_of_the_quantity(scanned, form):
    parts = quantity_parts(scanned, "conv", form=form)
    factors = elements(scanned, "conv", form=form)
    assert list(factors) == list(PARTS)
    learned = scanned.layers["conv"]["maximum"] > 0
    product = np.prod(list(factors.values()), axis=0)
    np.testing.assert_allclose(parts["fq"][learned], np.maximum(product, 0)[learned], rtol=1e-12)
    if form == "ssim":
        quality = factors["l"] * factors["c"] * factors["s"]
        np.testing.assert_allclose(quality[learned], parts["ssim"][learned], rtol=1e-9)
    assert np.allclose(factors["l"], parts["l"]) == (form == "printed")
    with pytest.raises(NnscanError, match="unknown form 'other'"):
        elements(scanned, "conv", form="other")


@pytest.mark.parametrize("form", ["printed", "ssim"])
def test_layers_without_each_element_by_loops(scanned, form):
    found = layer_quantity([("conv", scanned)], form=form)
    assert found["without"].tolist() == ["", *PARTS]
    assert set(found["layer"]) == {"conv"}
    factors = elements(scanned, "conv", form=form)
    arrays = scanned.layers["conv"]
    for _, row in found.iterrows():
        learned, activations = [], []
        for neuron in np.ndindex(arrays["maximum"].shape[1:]):
            best = (-1.0, 0.0)
            for sample in range(4):
                at = (sample, *neuron)
                value = math.prod(float(factors[name][at]) for name in PARTS if name != row["without"])
                value = max(value, 0.0) if arrays["maximum"][at] > 0 else 0.0
                best = max(best, (value, max(float(arrays["activation"][at]), 0.0)))
            learned.append(best[0])
            activations.append(best[1])
        assert row["mean"] == pytest.approx(np.mean(learned))
        assert row["variance"] == pytest.approx(np.mean(np.square(np.array(learned) - np.mean(learned))))
        assert row["correlation"] == pytest.approx(np.corrcoef(activations, learned)[0, 1])
        pairs = np.array([pair for pair in zip(activations, learned, strict=True) if pair[0] > 0])
        assert len(pairs) < 12  # some neurons are not active
        assert row["correlation_active"] == pytest.approx(np.corrcoef(*pairs.T)[0, 1])


def test_whole_layers_are_those_of_their_neurons(scanned):
    neurons = neuron_quantity([("conv", scanned)])
    whole = layer_quantity([("conv", scanned)]).iloc[0]
    assert whole["mean"] == pytest.approx(neurons["fq"].mean())
    assert whole["variance"] == pytest.approx(neurons["fq"].var(ddof=0))
    assert whole["correlation"] == pytest.approx(neurons["activation"].clip(lower=0).corr(neurons["fq"]))


def test_an_element_that_is_left_out_may_change_the_sample():
    # the first sample has the better shape on half of the foreground, the second is faint but fills it
    inputs, masks = np.tile(np.linspace(0.1, 1, 20), (2, 1)), np.ones((2, 20), dtype=bool)
    shape, faint = inputs[0] * (np.arange(20) >= 10), np.linspace(1, 0.2, 20) ** 4
    moments = moments_of(np.stack([shape, faint])[:, None, None, None], inputs, masks, [[[[1.0]]], [[[7.0]]]])
    factors = {name: values.ravel() for name, values in elements(moments, "conv").items()}
    assert factors["s"][1] < 0 < factors["s"][0]
    assert factors["vf"].tolist() == [0.5, 1.0]
    found = layer_quantity([("conv", moments)]).set_index("without")["mean"]
    assert found["s"] == pytest.approx(factors["l"][1] * factors["c"][1])
    assert found["vf"] == pytest.approx(factors["l"][0] * factors["c"][0] * factors["s"][0])


@pytest.mark.parametrize("form", ["printed", "ssim"])
def test_neurons_without_an_image_have_nothing_left_of_any_product(form):
    inputs, masks = np.linspace(0, 1, 20)[None], np.ones((1, 20), dtype=bool)
    moments = moments_of(np.zeros((1, 1, 2, 1, 20)), inputs, masks)
    found = layer_quantity([("conv", moments)], form=form)
    assert (found[["mean", "variance"]] == 0).all().all()
    assert found[["correlation", "correlation_active"]].isna().all().all()  # nothing varies, nobody is active


def test_layers_without_masks_have_no_quantity(scanned):
    rng = np.random.default_rng(1)
    plain = moments_of(rng.random((3, 2, 2, 1, 20)), rng.random((3, 20)))
    found = layer_quantity([("conv", plain)])
    left = found.set_index("without")[["mean", "variance", "correlation", "correlation_active"]]
    assert left.isna().all().all()


# The knee -----------------------------------------------------------------------------------------------------------


def test_knee_of_a_curve_with_a_corner():
    corner = np.concatenate([np.linspace(0, 0.1, 90), np.linspace(0.1, 5, 10)])
    assert knee(corner) == pytest.approx(0.1)
    assert knee(np.random.default_rng(0).permutation(corner)) == pytest.approx(0.1)
    assert knee(3 * corner + 1) == pytest.approx(1.3)


def test_knee_of_a_smooth_curve():
    # of t^2 the point furthest below the diagonal is t = 1/2
    assert knee(np.linspace(0, 1, 1001) ** 2) == pytest.approx(0.25)


def test_knee_of_short_and_constant_curves():
    assert knee(np.array([2.0])) == 2
    assert knee(np.array([3.0, 1.0])) == 3
    assert knee(np.full(10, 0.4)) == 0.4


# Diversity ----------------------------------------------------------------------------------------------------------


def neurons(groups: dict[int, np.ndarray], layer: str = "conv", depth: int = 0) -> pd.DataFrame:
    """Return a table of neurons: for each filter its parts (n, 5)."""
    return pd.concat(
        [
            pd.DataFrame(points, columns=list(PARTS)).assign(layer=layer, depth=depth, filter=number)
            for number, points in groups.items()
        ],
        ignore_index=True,
    )


def blob(rng: np.random.Generator, centre: float, count: int = 30, spread: float = 0.005) -> np.ndarray:
    return centre + spread * rng.uniform(-1, 1, (count, 5))


def test_known_clusters_are_found():
    rng = np.random.default_rng(0)
    table = neurons(
        {
            0: blob(rng, 0.5, 90),
            1: np.concatenate([blob(rng, 0.2), blob(rng, 0.5), blob(rng, 0.8)]),
            2: np.concatenate([blob(rng, 0.2), blob(rng, 0.8), rng.random((3, 5)) + 2]),
        }
    )
    found = diversity(table)
    assert found.columns.tolist() == ["layer", "depth", "filter", "neurons", "clusters", "noise", "eps"]
    assert found["filter"].tolist() == [0, 1, 2]
    assert found["neurons"].tolist() == [90, 90, 63]
    assert found["clusters"].tolist() == [1, 3, 2]
    assert found["noise"].tolist() == [0, 0, 3]
    assert len(set(found["eps"])) == 1  # one for the layer


def test_diversity_does_not_depend_on_the_order_of_neurons():
    rng = np.random.default_rng(1)
    table = neurons({0: np.concatenate([blob(rng, 0.2), blob(rng, 0.6)]), 1: blob(rng, 0.3, 50)})
    shuffled = table.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(diversity(table), diversity(shuffled))


def test_identical_neurons_are_one_cluster():
    same = np.full((20, 5), 0.25)
    two = np.concatenate([same, same + 0.5])
    found = diversity(neurons({0: same, 1: two}))
    assert found["eps"].tolist() == [0, 0]
    assert found["clusters"].tolist() == [1, 2]
    assert found["noise"].tolist() == [0, 0]


def test_many_dead_neurons_do_not_hide_the_living():
    # most neurons of a layer may be dead for each sample: they coincide at (0, 0, 0, 0, 1)
    rng = np.random.default_rng(2)
    dead = np.tile([0, 0, 0, 0, 1.0], (300, 1))
    living = {0: [], 1: [blob(rng, 0.5, 100)], 2: [blob(rng, 0.3, 100), blob(rng, 0.6, 100)]}
    found = diversity(neurons({number: np.concatenate([dead, *blobs]) for number, blobs in living.items()}))
    assert found["clusters"].tolist() == [1, 2, 3]
    alone = diversity(neurons({number: np.concatenate(blobs) for number, blobs in living.items() if blobs}))
    assert found["eps"].tolist() == [alone["eps"][0]] * 3 > [0, 0, 0]
    assert found["noise"].tolist() == [0, *alone["noise"]]


def test_eps_is_the_knee_of_the_distances_to_the_fifth_neighbour():
    line = np.zeros((100, 5))
    line[:, 0] = np.arange(100)
    # inside, the fifth neighbour is 3 away; towards the ends 3, 4 and 5
    assert diversity(neurons({0: line}))["eps"].tolist() == [3]
    assert diversity(neurons({0: line}), neighbours=2)["eps"].tolist() == [1]


def test_filters_with_few_neurons():
    rng = np.random.default_rng(3)
    found = diversity(neurons({0: blob(rng, 0.5, 40), 1: np.array([[0.5] * 5]), 2: np.array([[3.0] * 5] * 2)}))
    assert found["clusters"].tolist() == [1, 0, 0]
    assert found["noise"].tolist() == [0, 1, 2]
    alone = diversity(neurons({0: np.array([[0.5] * 5]), 1: np.array([[0.1] * 5])}))  # a fully connected layer
    assert alone["clusters"].tolist() == [0, 0]
    assert alone["noise"].tolist() == [1, 1]
    assert alone["eps"].tolist() == [0, 0]


def test_each_layer_has_its_own_eps_and_keeps_its_depth():
    rng = np.random.default_rng(4)
    coarse, fine = blob(rng, 0.5, 50, spread=0.1), blob(rng, 0.5, 50, spread=0.001)
    table = pd.concat([neurons({0: coarse}, "z.10", 0), neurons({0: fine}, "a.3", 1)])
    found = diversity(table)
    assert found[["layer", "depth"]].to_numpy().tolist() == [["z.10", 0], ["a.3", 1]]
    assert found["eps"][0] > 10 * found["eps"][1]


def test_without_foreground_l_c_and_s_describe_a_neuron():
    rng = np.random.default_rng(5)
    table = neurons({0: np.concatenate([blob(rng, 0.2), blob(rng, 0.6), rng.random((2, 5)) + 2])})
    table.loc[:59, ["l", "c", "s"]] = 0.4 + 0.01 * rng.random((60, 3))  # the two groups differ in vf and nf alone
    assert diversity(table)["clusters"].tolist() == [2]
    table[["vf", "nf"]] = np.nan
    assert diversity(table)["clusters"].tolist() == [1]


def test_without_an_element_groups_that_differ_in_it_alone_are_one():
    rng = np.random.default_rng(6)
    groups = {}
    for number in range(len(PARTS)):
        points = blob(rng, 0.5, 60)
        points[30:, number] += 0.3
        groups[number] = points
    table = neurons(groups)
    assert diversity(table)["clusters"].tolist() == [2] * 5
    found = diversity_ablation(table)
    assert found.columns.tolist() == ["without", *diversity(table).columns]
    assert found["without"].drop_duplicates().tolist() == list(PARTS)
    clusters = found.pivot_table("clusters", "without", "filter").loc[list(PARTS)].to_numpy()
    np.testing.assert_array_equal(clusters, 2 - np.eye(5))
    for part, frame in found.groupby("without"):
        alone = diversity(table.assign(**{part: 0.0}))  # a constant column is as good as none
        pd.testing.assert_frame_equal(frame.drop(columns="without").reset_index(drop=True), alone)


def test_what_a_scan_without_masks_lacks_cannot_be_left_out():
    rng = np.random.default_rng(7)
    table = neurons({0: blob(rng, 0.5, 60)}).assign(vf=np.nan, nf=np.nan)
    assert diversity_ablation(table)["without"].tolist() == ["l", "c", "s"]
