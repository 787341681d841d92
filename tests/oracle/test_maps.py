"""nnscan's maps against sums of learning images."""

import numpy as np
import pytest
import torch

from networks import Residual, images, plain
from nnscan import maps
from nnscan.errors import ScanError
from nnscan.explanations import read_scanned
from nnscan.maps import filter_map, neuron_map
from nnscan.moments import write_moments
from nnscan.quantity import feature_quantity
from nnscan.scanner import filter_images, scan
from nnscan.sweeps import WholeMapSweep, WindowSweep
from twins import summed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize(("build", "layer", "shape"), [(plain, "3", (5, 2, 2)), (Residual, "norm", (4, 8, 8)),
                                                       (plain, "6", (6, 1, 1))])  # fmt: skip
def test_neuron_map_is_the_weighted_sum_of_learning_images(build, layer, shape, block):
    model, x = build(), images()
    weights = np.random.default_rng(0).random((3, *shape))
    found = neuron_map(model, x, layer, weights, block)
    torch.testing.assert_close(found, summed(model, x, layer, weights, block))


def test_neuron_map_on_whole_maps(monkeypatch, caplog):
    """Where windows cannot be used, or turn out wrong, whole maps are swept."""
    model, x = plain(), images()
    weights = np.random.default_rng(0).random((3, 5, 2, 2))
    expected = summed(model, x, "3", weights, 1)
    monkeypatch.setattr(maps, "_sweep", lambda model, x, layer, block: WholeMapSweep(model, x, [layer], block, 7))
    torch.testing.assert_close(neuron_map(model, x, "3", weights), expected)

    class Wrong(WindowSweep):
        def push(self, batches, read, leave):
            super().push(batches, lambda layer, number, windows: read(layer, number, spoiled(windows)), leave)

    def spoiled(windows):
        windows.data.mul_(1.01)
        return windows

    monkeypatch.setattr(
        maps,
        "_sweep",
        lambda model, x, layer, block: Wrong(maps.Linearisation(model, x, [layer]), x, block),
    )
    torch.testing.assert_close(neuron_map(model, x, "3", weights), expected)
    assert "disagrees" in caplog.text


def test_neuron_map_of_weights_one_is_that_of_the_scan():
    model, x = plain(), images()
    absolute = scan(model, x).absolute_images["3"].sum(1)
    np.testing.assert_allclose(neuron_map(model, x, "3", np.ones((3, 5, 2, 2))).numpy(), absolute, rtol=1e-6)


def test_neuron_map_refuses_what_does_not_fit():
    with pytest.raises(ScanError, match="do not fit the map"):
        neuron_map(plain(), images(), "3", np.ones((3, 5, 2, 1)))
    with pytest.raises(ScanError, match="block 3 does not divide"):
        neuron_map(plain(), images(), "3", np.ones((3, 5, 2, 2)), 3)
    with pytest.raises(ScanError, match="floating-point"):
        neuron_map(plain(), images()[0], "3", np.ones((3, 5, 2, 2)))


def test_filter_map_is_the_size_of_the_sum_of_filter_images():
    model, x = Residual(), images(20)
    expected = filter_images(model, x, "norm").sum((1, 2)).abs()
    torch.testing.assert_close(filter_map(model, x, "norm"), expected)


def test_what_maps_need_of_a_scan(tmp_path):
    model, x = plain(), images().float()
    model = model.float()
    foreground = np.ones((3, 8, 8), bool)
    moments = scan(model, x, foreground, ["0", "3", "6", "8"])
    parts = [scan(model, x[rows], foreground[rows], ["0", "3", "6", "8"]) for rows in (slice(0, 2), slice(2, 3))]
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path, part in zip(paths, parts, strict=True):
        write_moments(path, [part], len(part.samples), {})
    found = read_scanned(paths, noise="exponential")
    assert found.layer == "3"  # those behind it have no places
    frame = feature_quantity(moments.select("3"), noise="exponential")
    np.testing.assert_allclose(found.quantities.ravel(), frame["fq"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.absolute, moments.absolute_images["3"], rtol=1e-4, atol=1e-6)
    assert found.block == 1
    linear = tmp_path / "linear.h5"
    write_moments(linear, [scan(model, x, foreground, ["6", "8"])], 3, {})
    assert read_scanned([linear]).layer == "8"
