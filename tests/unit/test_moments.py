"""Moments in memory and on disk."""

import errno

import h5py
import numpy as np
import pandas as pd
import pytest

from nnscan.artifacts import create_hdf5, provenance, read_provenance
from nnscan.errors import ArtifactError
from nnscan.moments import (
    IMAGES,
    QUANTITIES,
    REGIONAL,
    WHOLE,
    Moments,
    concatenate,
    open_moments,
    read_layers,
    write_moments,
)

# Sorting by name would put features.10 in front of features.3
SHAPES = {"features.3": (3, 2, 4), "features.10": (2, 2, 2), "head.1": (5, 1, 1)}


def moments(samples: list[int], seed: int = 0, block: int = 2, masked: bool = True, layers=SHAPES) -> Moments:
    rng = np.random.default_rng(seed)
    count = len(samples)
    return Moments(
        {
            layer: {quantity: rng.random((count, *shape), dtype=np.float32) for quantity in QUANTITIES}
            for layer, shape in layers.items()
        },
        np.array(samples, dtype=np.int64),
        12,
        rng.integers(1, 12, count),
        masked,
        block,
        *(
            {layer: rng.random((count, shape[0], 3, 4), dtype=np.float32) for layer, shape in layers.items()}
            for _ in IMAGES
        ),
    )


def assert_equal(one: Moments, two: Moments) -> None:
    assert list(one.layers) == list(two.layers)
    assert [list(getattr(one, kind)) for kind in IMAGES] == [list(getattr(two, kind)) for kind in IMAGES]
    assert (one.pixels, one.block, one.masked) == (two.pixels, two.block, two.masked)
    np.testing.assert_array_equal(one.samples, two.samples)
    np.testing.assert_array_equal(one.foreground_pixels, two.foreground_pixels)
    for layer in one.layers:
        assert list(one.layers[layer]) == list(QUANTITIES)
        for quantity in QUANTITIES:
            np.testing.assert_array_equal(one.layers[layer][quantity], two.layers[layer][quantity])
            assert one.layers[layer][quantity].dtype == two.layers[layer][quantity].dtype
        for kind in IMAGES if layer in one.filter_images else ():
            np.testing.assert_array_equal(getattr(one, kind)[layer], getattr(two, kind)[layer])


def test_the_quantities():
    assert len(QUANTITIES) == len(set(QUANTITIES)) == len(WHOLE) + 2 * len(REGIONAL)
    assert QUANTITIES[:4] == ("activation", "signed_total", "maximum", "minimum")
    assert "cross_background" in QUANTITIES


# In memory ----------------------------------------------------------------------------------------------------------


def test_the_table_has_one_row_per_neuron_and_sample():
    scan = moments([7, 70])
    table = scan.to_dataframe()
    assert table.columns.tolist() == ["layer", "filter", "row", "column", "sample", *QUANTITIES]
    assert len(table) == 2 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert not table.duplicated(["layer", "filter", "row", "column", "sample"]).any()
    assert table["layer"].unique().tolist() == list(SHAPES)
    assert sorted(table["sample"].unique()) == [7, 70]
    for layer, (filters, height, width) in SHAPES.items():
        part = table[table["layer"] == layer]
        assert part[["filter", "row", "column"]].max().tolist() == [filters - 1, height - 1, width - 1]
        for _, entry in part.iterrows():
            at = ([7, 70].index(entry["sample"]), entry["filter"], entry["row"], entry["column"])
            assert entry["cross_foreground"] == scan.layers[layer]["cross_foreground"][at]


def test_select_keeps_one_layer_and_everything_else():
    scan = moments([1, 2])
    part = scan.select("features.10")
    assert list(part.layers) == list(part.filter_images) == ["features.10"]
    assert part.layers["features.10"] is scan.layers["features.10"]
    assert (part.pixels, part.block, part.masked) == (12, 2, True)
    assert part.samples.tolist() == [1, 2]
    assert part.foreground_pixels.tolist() == scan.foreground_pixels.tolist()


def test_concatenate_joins_samples_in_order():
    first, second = moments([3, 1], seed=1), moments([2], seed=2)
    joined = concatenate([first, second])
    assert joined.samples.tolist() == [3, 1, 2]
    assert joined.foreground_pixels.tolist() == [*first.foreground_pixels, *second.foreground_pixels]
    for layer in SHAPES:
        for quantity in QUANTITIES:
            np.testing.assert_array_equal(joined.layers[layer][quantity][:2], first.layers[layer][quantity])
            np.testing.assert_array_equal(joined.layers[layer][quantity][2:], second.layers[layer][quantity])
        for kind in IMAGES:
            np.testing.assert_array_equal(getattr(joined, kind)[layer][2:], getattr(second, kind)[layer])
    assert_equal(concatenate([first]), first)
    by_parts = pd.concat([first.to_dataframe(), second.to_dataframe()])
    keys = ["layer", "filter", "row", "column", "sample"]
    pd.testing.assert_frame_equal(
        joined.to_dataframe().sort_values(keys, ignore_index=True), by_parts.sort_values(keys, ignore_index=True)
    )


@pytest.mark.parametrize(
    "other",
    [
        moments([2], block=1),
        moments([2], masked=False),
        moments([2], layers={"features.3": SHAPES["features.3"]}),
        moments([2], layers=dict(reversed(SHAPES.items()))),
    ],
    ids=["block", "masks", "layers", "order"],
)
def test_shards_of_different_scans_are_refused(other):
    with pytest.raises(ArtifactError, match="do not belong to one scan"):
        concatenate([moments([1]), other])


# On disk ------------------------------------------------------------------------------------------------------------


def write(path, parts, count):
    write_moments(path, iter(parts), count, provenance(checkpoint="c", seed=0))


def test_a_scan_comes_back_from_disk(tmp_path):
    path = tmp_path / "scan" / "shard0.h5"
    parts = [moments([5], seed=1), moments([6, 9], seed=2), moments([7], seed=3)]
    write(path, parts, 4)
    whole = concatenate(parts)
    with open_moments(path) as file:
        assert file.layers == ["features.3", "features.10", "head.1"]  # by depth, not by name
        for layer in file.layers:
            assert_equal(file.read(layer), whole.select(layer))
            assert file.read(layer, images=False).filter_images == {}
    assert read_provenance(path).items() >= {"kind": "scan", "checkpoint": "c", "seed": "0"}.items()
    assert list(path.parent.iterdir()) == [path]


def test_the_order_of_layers_is_that_of_the_scan(tmp_path):
    names = [f"features.{index}" for index in (0, 3, 6, 8, 10, 13)] + ["b", "a", "Z"]
    scan = moments([1], layers=dict.fromkeys(names, (1, 1, 1)))
    write(tmp_path / "s.h5", [scan], 1)
    assert [layer for layer, _ in read_layers([tmp_path / "s.h5"])] == names


def test_layers_of_several_shards(tmp_path):
    shards = [[moments([0], seed=1), moments([1], seed=2)], [moments([2], seed=3)]]
    paths = [tmp_path / f"shard{index}.h5" for index in range(2)]
    for path, parts in zip(paths, shards, strict=True):
        write(path, parts, len(parts))
    whole = concatenate([part for parts in shards for part in parts])
    found = list(read_layers(paths))
    assert [layer for layer, _ in found] == list(SHAPES)
    for layer, part in found:
        assert_equal(part, whole.select(layer))
    assert [part.filter_images for _, part in read_layers(paths, images=False)] == [{}, {}, {}]


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_too_many_or_too_few_samples_leave_nothing(tmp_path, count):
    parts = [moments([0]), moments([1, 2])]
    message = f"3 samples came, {count} were announced" if count > 3 else f"more than the {count} samples announced"
    with pytest.raises(ArtifactError, match=message):
        write(tmp_path / "s.h5", parts, count)
    assert list(tmp_path.iterdir()) == []


def test_a_scan_that_fails_half_way_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "s.h5"
    write(path, [moments([0])], 1)
    before = path.read_bytes()

    def failing():
        yield moments([0])
        raise MemoryError

    with pytest.raises(MemoryError):
        write_moments(path, failing(), 2, {})

    def full():
        yield moments([0])
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left on device"):
        write_moments(path, full(), 2, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_describes_itself(tmp_path):
    write(tmp_path / "s.h5", [moments([0]), moments([1])], 2)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file.attrs["pixels"] == 12
        assert file.attrs["block"] == 2
        assert bool(file.attrs["masked"]) is True
        assert file.attrs["support"] == 1e-3
        cross = file["layers/features.10/cross_background"]
        assert cross.attrs["dimensions"] == "sample filter row column"
        assert cross.attrs["meaning"] == "sum of x |I| over M in the region"
        assert cross.shape == (2, 2, 2, 2)
        assert cross.chunks == (1, 2, 2, 2)  # one sample is written, and can be read, alone
        assert file["layers/features.10/maximum"].attrs["meaning"] == "max of |I|"
        assert file["filter_images/head.1"].shape == (2, 5, 3, 4)


def test_double_precision_is_kept(tmp_path):
    scan = moments([0])
    double = Moments(
        {
            layer: {name: a.astype(np.float64) + 1e-12 for name, a in arrays.items()}
            for layer, arrays in scan.layers.items()
        },
        *(scan.samples, scan.pixels, scan.foreground_pixels, scan.masked, scan.block),
        *({layer: images.astype(np.float64) for layer, images in getattr(scan, kind).items()} for kind in IMAGES),
    )
    write(tmp_path / "s.h5", [double], 1)
    for layer, part in read_layers([tmp_path / "s.h5"]):
        assert_equal(part, double.select(layer))


def test_a_missing_damaged_or_foreign_file_is_named(tmp_path):
    path = tmp_path / "s.h5"
    with pytest.raises(ArtifactError, match=r"s\.h5 does not exist"):
        list(read_layers([path]))
    path.write_bytes(b"not HDF5")
    with pytest.raises(ArtifactError, match="is damaged"):
        list(read_layers([path]))
    with create_hdf5(path, "averages", {}):
        pass
    with pytest.raises(ArtifactError, match="holds 'averages', not 'scan'"):
        list(read_layers([path]))
