"""Data sets against hand-made files, scikit-learn's values and the real MNIST and CIFAR-10."""

import gzip
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nnscan import data
from nnscan.data import (
    Dataset,
    Foreground,
    Split,
    build_dataset,
    load_dataset,
    read_dataset,
    read_idx,
    stratified_sample,
    write_dataset,
)
from nnscan.errors import ArtifactError, DataError
from nnscan.limits import attributes

MNIST_TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def numbered_folder(root, classes=("cat", "dog"), train=10, test=4, shape=(6, 8)):
    """A folder of lossless images, each of one RGB colour (class, part, number)."""
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            for number in range(count):
                pixels = np.empty((*shape, 3), np.uint8)
                pixels[:] = (label, part == "test", number)
                save(root / part / name / f"{number:04d}.png", pixels)
    return root


def identities(split):
    """What `numbered_folder` wrote into each image."""
    return [tuple(int(v) for v in image[:, 0, 0]) for image in split.images]


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        for top in sorted(folder.iterdir()):
            tar.add(top, arcname=top.name)
    return archive


def random_dataset(normalization="unit", masks=True):
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 30), ("validation", 7), ("test", 11)):
        images = generator.integers(0, 256, (count, 2, 5, 4), dtype=np.uint8)
        foreground = generator.random((count, 5, 4)) < 0.5 if masks else None
        splits[split] = Split(images, generator.integers(0, 3, count), foreground)
    return build_dataset("random", ["x", "y", "Ä"], splits, normalization)


def bilinear(image, size):
    """Upscale (H, W) with pixel centres at half-integers and the border repeated, pixel by pixel."""
    height, width = image.shape
    result = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
            i, j = int(y), int(x)
            k, m = min(i + 1, height - 1), min(j + 1, width - 1)
            v, u = y - i, x - j
            top = image[i, j] * (1 - u) + image[i, m] * u
            bottom = image[k, j] * (1 - u) + image[k, m] * u
            result[row, column] = top * (1 - v) + bottom * v
    return result


# Samples and splits


@pytest.mark.parametrize("count", [1, 3, 7, 12, 29, 40])
def test_stratified_sample_fills_classes_evenly(count):
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [3, 12, 25]))
    chosen = stratified_sample(labels, count, seed=5)
    assert len(set(chosen.tolist())) == count
    assert (np.diff(chosen) > 0).all()
    taken = np.bincount(labels[chosen], minlength=3)
    # Classes that still have samples differ by at most one; a class that has fewer is used up.
    left = [n for n, size in zip(taken, [3, 12, 25], strict=True) if n < size]
    assert max(left, default=0) - min(left, default=0) <= 1
    assert all(n >= taken.max() - 1 for n in left)


def test_stratified_sample_is_deterministic_and_nested():
    labels = np.random.default_rng(2).integers(0, 5, 200)
    draws = [set(stratified_sample(labels, count, seed=3).tolist()) for count in (5, 50, 120)]
    assert draws[0] < draws[1] < draws[2]
    assert draws[1] == set(stratified_sample(labels, 50, seed=3).tolist())
    assert draws[1] != set(stratified_sample(labels, 50, seed=4).tolist())


def test_stratified_sample_does_not_favour_a_class():
    labels = np.repeat([0, 1, 2], 10)
    extras = np.bincount([labels[stratified_sample(labels, 1, seed)][0] for seed in range(300)], minlength=3)
    assert extras.min() > 60  # 100 expected, standard deviation 8


@pytest.mark.parametrize("count", [-1, 0, 11])
def test_stratified_sample_refuses_impossible_counts(count):
    with pytest.raises(DataError, match=f"asked for {count} samples of 10"):
        stratified_sample(np.zeros(10, np.int64), count, seed=0)


def test_digits_are_cut_by_class():
    dataset = load_dataset("digits")
    whole = np.bincount(load_digits().target)
    for split, fraction in (("test", 0.2), ("validation", 0.2), ("train", 0.6)):
        counts = np.bincount(dataset.splits[split].labels)
        assert np.abs(counts - fraction * whole).max() <= 1
    assert sum(len(part.labels) for part in dataset.splits.values()) == 1797


def test_splits_are_disjoint_and_complete(tmp_path):
    numbered_folder(tmp_path, train=20, test=5)
    dataset = load_dataset("image_folder", root=tmp_path, validation_fraction=0.25)
    train, validation, test = (identities(dataset.splits[name]) for name in ("train", "validation", "test"))
    assert sorted(train + validation) == [(label, 0, number) for label in (0, 1) for number in range(20)]
    assert test == [(label, 1, number) for label in (0, 1) for number in range(5)]
    for part in dataset.splits.values():
        assert part.labels.tolist() == [image[0] for image in identities(part)]
    assert np.bincount(dataset.splits["validation"].labels).tolist() == [5, 5]


def test_splits_depend_on_the_split_seed_alone(tmp_path):
    numbered_folder(tmp_path, train=20)

    def validation(**options):
        return identities(load_dataset("image_folder", root=tmp_path, **options).splits["validation"])

    first = validation()
    assert first == validation(size=3, normalization="unit", foreground=Foreground("threshold"), train_limit=6)
    assert first != validation(split_seed=1)
    assert set(first) < set(validation(validation_fraction=0.5))


def test_digits_keep_their_test_split_whatever_the_validation_split():
    first = load_dataset("digits", size=8)
    second = load_dataset("digits", size=8, validation_fraction=0.3)
    np.testing.assert_array_equal(first.splits["test"].images, second.splits["test"].images)
    assert len(second.splits["validation"].labels) > len(first.splits["validation"].labels)


def test_limits_take_balanced_subsets_of_the_same_split(tmp_path):
    numbered_folder(tmp_path, train=20, test=5)
    full = load_dataset("image_folder", root=tmp_path)
    small = load_dataset("image_folder", root=tmp_path, train_limit=7, validation_limit=2, test_limit=4)
    for split, count in (("train", 7), ("validation", 2), ("test", 4)):
        assert set(identities(small.splits[split])) <= set(identities(full.splits[split]))
        assert len(set(identities(small.splits[split]))) == count
        counts = np.bincount(small.splits[split].labels, minlength=2)
        assert np.ptp(counts) <= 1


def test_impossible_splits_are_refused(tmp_path):
    numbered_folder(tmp_path, train=1)
    with pytest.raises(DataError, match=r"class 'cat' of 'image_folder' has 1 image\(s\)"):
        load_dataset("image_folder", root=tmp_path)
    for name in ("validation", "test"):
        for fraction in (0, 1, -0.5, float("nan")):
            with pytest.raises(DataError, match=f"{name}_fraction must lie between 0 and 1"):
                load_dataset("digits", **{f"{name}_fraction": fraction})
    with pytest.raises(DataError, match="lower the fractions"):
        load_dataset("digits", test_fraction=0.6, validation_fraction=0.6)
    for limit in (0, 100_000):
        with pytest.raises(DataError, match=rf"test_limit is {limit}, but the test split of 'digits' has 3\d\d images"):
            load_dataset("digits", test_limit=limit)


# Built-in data sets


def test_digits_hold_the_values_of_scikit_learn():
    dataset = load_dataset("digits", size=8)
    bunch = load_digits()
    expected = sorted(
        (int(label), *(int(np.floor(v * 255 / 16 + 0.5)) for v in image.ravel()))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    found = sorted(
        (int(label), *image.ravel().tolist())
        for part in dataset.splits.values()
        for image, label in zip(part.images, part.labels, strict=True)
    )
    # The stretched half levels (16 k + 8) * 255 / 16 never end in .5, so both roundings agree.
    assert found == expected
    assert dataset.classes == tuple("0123456789")


def test_digits_are_scaled_bilinearly():
    small, large = load_dataset("digits", size=8), load_dataset("digits")
    assert large.splits["test"].images.shape[1:] == (1, 32, 32)
    for index in range(5):
        expected = bilinear(small.splits["test"].images[index, 0].astype(float), 32)
        assert np.abs(large.splits["test"].images[index, 0] - expected).max() <= 1


def test_channels_turn_grey_into_rgb_and_back():
    rgb = load_dataset("digits", channels=3, size=8, test_limit=20, train_limit=20, validation_limit=20)
    grey = load_dataset("digits", size=8, test_limit=20, train_limit=20, validation_limit=20)
    np.testing.assert_array_equal(rgb.splits["test"].images, grey.splits["test"].images.repeat(3, axis=1))
    np.testing.assert_array_equal(data._resize(rgb.splits["test"].images, 8, 1), grey.splits["test"].images)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[:, :, None, None]
    # ITU-R 601 luma: 0.299 R + 0.587 G + 0.114 B.
    assert data._resize(colours, 1, 1).ravel().tolist() == [76, 150, 29]


def idx_bytes(values):
    return (
        bytes([0, 0, 8, values.ndim])
        + b"".join(struct.pack(">I", n) for n in values.shape)
        + bytes(values.ravel().tolist())
    )


def write_idx_set(folder, packed, count=40):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for stem, seen in (("train", count), ("t10k", 20)):
        arrays[f"{stem}-images-idx3-ubyte"] = generator.integers(0, 256, (seen, 28, 28), dtype=np.uint8)
        arrays[f"{stem}-labels-idx1-ubyte"] = np.arange(seen, dtype=np.uint8) % 10
    for name, values in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
        else:
            (folder / name).write_bytes(idx_bytes(values))
    return arrays


def test_read_idx_reads_a_hand_made_file(tmp_path):
    content = bytes.fromhex("00000803 00000002 00000001 00000003 01020304fe ff".replace(" ", ""))
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(content))
    for name in ("plain", "packed.gz"):
        values = read_idx(tmp_path / name)
        assert values.dtype == np.uint8
        assert values.tolist() == [[[1, 2, 3]], [[4, 254, 255]]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"\x89PNG....", "no IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "no IDX file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "should hold 5 values"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "should hold 2 values"),
    ],
)
def test_read_idx_names_damaged_files(tmp_path, content, message):
    (tmp_path / "plain").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(tmp_path / "plain")
    assert str(tmp_path / "plain") in str(caught.value)


def test_read_idx_names_damaged_archives(tmp_path):
    packed = gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8)))
    for name, content in (("cut.gz", packed[:-20]), ("other.gz", b"no gzip"), ("bad.gz", packed[:10] + b"\xff" * 60)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"cannot read .*{name}"):
            read_idx(tmp_path / name)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "below"), [("mnist", "MNIST/raw"), ("mnist", "raw"), ("fashion_mnist", "FashionMNIST/raw")]
)
def test_idx_sets_are_found_and_read(tmp_path, name, below, packed):
    arrays = write_idx_set(tmp_path / below, packed)
    dataset = load_dataset(name, root=tmp_path, size=28)
    np.testing.assert_array_equal(dataset.splits["test"].images[:, 0], arrays["t10k-images-idx3-ubyte"])
    assert dataset.splits["test"].labels.tolist() == [n % 10 for n in range(20)]
    seen = np.concatenate([dataset.splits[split].images[:, 0] for split in ("train", "validation")])
    assert sorted(seen.tolist()) == sorted(arrays["train-images-idx3-ubyte"].tolist())
    assert np.bincount(dataset.splits["validation"].labels).tolist() == [1] * 10
    assert len(dataset.classes) == 10


def test_missing_idx_files_are_explained(tmp_path):
    with pytest.raises(DataError, match="mnist not found") as caught:
        load_dataset("mnist", root=tmp_path)
    for words in (str(tmp_path / "MNIST" / "raw"), str(tmp_path / "raw"), "download: true", "NNSCAN_DATA"):
        assert words in str(caught.value)
    write_idx_set(tmp_path / "MNIST" / "raw", packed=True)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        load_dataset("mnist", root=tmp_path)


def test_inconsistent_idx_files_are_refused(tmp_path):
    write_idx_set(tmp_path / "raw", packed=False)
    labels = tmp_path / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(19, np.uint8)))
    with pytest.raises(DataError, match=r"\(20, 28, 28\).*\(19,\)"):
        load_dataset("mnist", root=tmp_path)
    labels.write_bytes(idx_bytes(np.full(20, 10, np.uint8)))
    with pytest.raises(DataError, match="labels beyond 9"):
        load_dataset("mnist", root=tmp_path)


def test_root_is_argument_then_environment_then_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNSCAN_DATA", raising=False)
    for name, count in (("argument", 30), ("environment", 40), ("data", 50)):
        write_idx_set(tmp_path / name / "raw", packed=False, count=count)

    def size(**options):
        splits = load_dataset("mnist", size=28, **options).splits
        return len(splits["train"].labels) + len(splits["validation"].labels)

    assert size() == 50
    monkeypatch.setenv("NNSCAN_DATA", str(tmp_path / "environment"))
    assert size() == 40
    assert size(root=tmp_path / "argument") == 30


def test_mnist_is_downloaded_only_when_asked_and_missing(tmp_path, monkeypatch):
    calls = []

    def fake(root, train, download):
        calls.append((root, download))
        write_idx_set(Path(root) / "MNIST" / "raw", packed=False)

    monkeypatch.setattr("torchvision.datasets.MNIST", fake)
    with pytest.raises(DataError):
        load_dataset("mnist", root=tmp_path)
    assert calls == []
    load_dataset("mnist", root=tmp_path, download=True, size=28)
    load_dataset("mnist", root=tmp_path, download=True, size=28)
    assert calls == [(str(tmp_path), True)]


def test_real_mnist(shared_data):
    dataset = load_dataset("mnist", root=shared_data, foreground=Foreground("threshold"))
    train, validation, test = (dataset.splits[name] for name in ("train", "validation", "test"))
    assert len(train.labels) + len(validation.labels) == 60000
    assert test.images.shape == (10000, 1, 32, 32)
    counts = np.bincount(train.labels), np.bincount(validation.labels)
    assert (counts[0] + counts[1]).tolist() == MNIST_TRAIN_COUNTS
    assert np.abs(counts[1] - 0.1 * np.array(MNIST_TRAIN_COUNTS)).max() <= 0.5
    assert np.bincount(test.labels).tolist() == MNIST_TEST_COUNTS
    # The published statistics of the 28x28 images, 0.1307 and 0.3081; bilinear scaling keeps the mean and smooths.
    assert dataset.mean[0] == pytest.approx(0.1307, abs=1e-3)
    assert 0.27 < dataset.std[0] < 0.3081
    assert 0.1 < test.foreground.mean() < 0.3


def test_real_mnist_first_images_agree_with_the_raw_bytes(shared_data):
    folder = shared_data / "MNIST" / "raw"
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert len(raw) == 16 + 10000 * 28 * 28
    images = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    for index in range(5):
        assert images[index].tobytes() == raw[16 + index * 784 : 16 + (index + 1) * 784]
    # A one is a thin upright stroke, a zero has a hole: their mean images tell them apart.
    zero, one = (images[labels == label].mean(axis=0) for label in (0, 1))
    assert one[14, 14] > 150
    assert zero[14, 14] < 20


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_comes_through_torchvision(tmp_path, monkeypatch, name):
    generator = np.random.default_rng(0)
    calls = []

    class Fake:
        classes = ("ant", "bee")

        def __init__(self, root, train, download):
            calls.append((root, train, download))
            self.data = generator.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
            self.targets = [0, 1] * 10
            if not train:
                type(self).test = self.data

    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", Fake)
    dataset = load_dataset(name, root=tmp_path, download=True)
    assert calls == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    assert dataset.classes == ("ant", "bee")
    np.testing.assert_array_equal(dataset.splits["test"].images, Fake.test.transpose(0, 3, 1, 2))
    assert dataset.splits["test"].labels.tolist() == [0, 1] * 10


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_is_explained(tmp_path, name):
    with pytest.raises(DataError, match=f"{name.upper()} not found") as caught:
        load_dataset(name, root=tmp_path)
    for words in (str(tmp_path), "download: true", "NNSCAN_DATA"):
        assert words in str(caught.value)


def test_a_failing_download_is_explained(tmp_path, monkeypatch):
    def fail(root, train, download):
        raise OSError("no route to host")

    for title, name in (("CIFAR10", "cifar10"), ("FashionMNIST", "fashion_mnist")):
        monkeypatch.setattr(f"torchvision.datasets.{title}", fail)
        with pytest.raises(DataError, match=f"cannot download {title} into .*no route to host"):
            load_dataset(name, root=tmp_path, download=True)


# Image folders


def test_folder_and_archive_hold_the_same(tmp_path):
    folder = numbered_folder(tmp_path / "folder")
    (folder / "train" / "cat" / ".hidden").write_text("not an image")
    plain = load_dataset("image_folder", root=folder)
    packed = load_dataset("image_folder", root=pack(folder, tmp_path / "set.tar.gz"))
    assert plain.digest == packed.digest
    assert plain.classes == packed.classes == ("cat", "dog")
    assert plain.splits["train"].images.shape[1:] == (3, 6, 8)


def test_archive_may_be_packed_in_any_order(tmp_path):
    folder = numbered_folder(tmp_path / "folder")
    files = list(folder.rglob("*.png"))
    np.random.default_rng(0).shuffle(files)
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as tar:
        for path in files:
            tar.add(path, arcname=f"./{path.relative_to(folder)}")
    packed = load_dataset("image_folder", root=tmp_path / "set.tgz")
    assert packed.digest == load_dataset("image_folder", root=folder).digest


def test_images_are_resized_and_converted(tmp_path):
    gradient = np.add.outer(np.arange(5) * 20, np.arange(5) * 30).astype(np.uint8)
    for part in ("train", "test"):
        for number in range(2):
            save(tmp_path / part / "only" / f"{number}.bmp", gradient)
    grey = load_dataset("image_folder", root=tmp_path, size=16, channels=1)
    assert grey.splits["test"].images.shape == (2, 1, 16, 16)
    assert np.abs(grey.splits["test"].images[0, 0] - bilinear(gradient.astype(float), 16)).max() <= 1
    rgb = load_dataset("image_folder", root=tmp_path)
    np.testing.assert_array_equal(rgb.splits["test"].images[0], np.stack([gradient] * 3))


def test_only_the_images_of_the_limits_are_decoded(tmp_path):
    numbered_folder(tmp_path, train=20, test=20)
    limits = {"train_limit": 2, "validation_limit": 2, "test_limit": 2}
    needed = load_dataset("image_folder", root=tmp_path, **limits)
    kept = {image for part in needed.splits.values() for image in identities(part)}
    for label, name in enumerate(("cat", "dog")):
        for part in ("train", "test"):
            for number in range(20):
                if (label, int(part == "test"), number) not in kept | {(0, 0, 0)}:
                    (tmp_path / part / name / f"{number:04d}.png").write_bytes(b"damaged")
    assert load_dataset("image_folder", root=tmp_path, **limits).digest == needed.digest


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_images_are_named(tmp_path, packed):
    folder = numbered_folder(tmp_path / "folder")
    victim = folder / "test" / "dog" / "0002.png"
    whole = victim.read_bytes()
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(noise, "jpeg")
    for content in (b"", b"text", whole[:40], whole[:-30], noise.getvalue()[:-40]):
        victim.write_bytes(content)
        root = pack(folder, tmp_path / "set.tar.gz") if packed else folder
        with pytest.raises(DataError, match=r"0002\.png is no image or damaged") as caught:
            load_dataset("image_folder", root=root)
        assert str(root) in str(caught.value)


def test_missing_folders_are_explained(tmp_path):
    with pytest.raises(DataError, match=r"which does not exist.*NNSCAN_DATA"):
        load_dataset("image_folder", root=tmp_path / "nowhere")
    (tmp_path / "file.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"neither a folder nor a \.tar\.gz"):
        load_dataset("image_folder", root=tmp_path / "file.zip")
    with pytest.raises(DataError, match=f"no class folders in {tmp_path / 'train'}"):
        load_dataset("image_folder", root=tmp_path)
    for content in (b"no gzip", pack(numbered_folder(tmp_path / "x"), tmp_path / "x.tar.gz").read_bytes()[:300]):
        (tmp_path / "bad.tar.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.tar\.gz is no complete \.tar\.gz archive"):
            load_dataset("image_folder", root=tmp_path / "bad.tar.gz")


def test_a_flipped_bit_in_an_archive_is_found(tmp_path):
    """Stored without compression, the bit changes pixels of a bitmap and nothing but the checksum can tell."""
    for part in ("train", "test"):
        for number in range(3):
            save(tmp_path / "set" / part / "only" / f"{number}.bmp", np.full((6, 8), 100 + number, np.uint8))
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz", compresslevel=0) as tar:
        tar.add(tmp_path / "set", arcname=".")
    assert load_dataset("image_folder", root=tmp_path / "set.tar.gz").splits["test"].images.max() == 102
    content = bytearray((tmp_path / "set.tar.gz").read_bytes())
    content[content.index(bytes([102] * 8))] ^= 1
    (tmp_path / "set.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"no complete .tar.gz archive .CRC check failed"):
        load_dataset("image_folder", root=tmp_path / "set.tar.gz")


def test_differing_classes_are_named(tmp_path):
    numbered_folder(tmp_path)
    (tmp_path / "train" / "cat").rename(tmp_path / "train" / "bird")
    with pytest.raises(DataError, match="differ: only in train: bird; only in test: cat"):
        load_dataset("image_folder", root=tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_empty_classes_are_named(tmp_path, packed):
    folder = numbered_folder(tmp_path / "folder")
    for path in (folder / "test" / "dog").iterdir():
        path.unlink()
    root = pack(folder, tmp_path / "set.tar.gz") if packed else folder
    with pytest.raises(DataError, match=r"no images in .*test/dog"):
        load_dataset("image_folder", root=root)


def test_files_outside_class_folders_are_named(tmp_path):
    numbered_folder(tmp_path)
    for place in ("train/0000.png", "train/cat/more/0000.png"):
        save(tmp_path / place, np.zeros((6, 8), np.uint8))
        with pytest.raises(DataError, match=f"{place} is not in a class folder"):
            load_dataset("image_folder", root=tmp_path)
        (tmp_path / place).unlink()


def test_differing_sizes_need_a_size(tmp_path):
    numbered_folder(tmp_path)
    save(tmp_path / "test" / "dog" / "0001.png", np.zeros((9, 7), np.uint8))
    with pytest.raises(DataError, match=r"0001\.png is 7x9 pixels but the first image is 8x6; set size"):
        load_dataset("image_folder", root=tmp_path)
    assert load_dataset("image_folder", root=tmp_path, size=4).splits["test"].images.shape == (8, 3, 4, 4)


def test_images_of_16_bits_are_refused(tmp_path):
    numbered_folder(tmp_path)
    save(tmp_path / "test" / "dog" / "0001.png", np.full((6, 8), 40000, np.uint16))
    with pytest.raises(DataError, match=r"0001\.png has more than 8 bits a channel"):
        load_dataset("image_folder", root=tmp_path)


def test_linked_class_folders_are_read(tmp_path):
    folder = numbered_folder(tmp_path / "folder")
    plain = load_dataset("image_folder", root=folder)
    (folder / "train" / "cat").rename(tmp_path / "cats")
    (folder / "train" / "cat").symlink_to(tmp_path / "cats")
    assert load_dataset("image_folder", root=folder).digest == plain.digest


def test_links_in_archives_are_refused(tmp_path):
    folder = numbered_folder(tmp_path / "folder")
    (folder / "train" / "cat" / "link.png").symlink_to(folder / "train" / "cat" / "0000.png")
    assert len(load_dataset("image_folder", root=folder).splits["train"].labels) == 19
    with pytest.raises(DataError, match=r"link\.png is a link"):
        load_dataset("image_folder", root=pack(folder, tmp_path / "set.tar.gz"))


def test_real_cifar_images(shared_data, tmp_path):
    """A few JPEGs out of the shared archive, repacked: decoded as Pillow does, from folder and archive."""
    originals = {}
    with tarfile.open(shared_data / "cifar10.tar.gz", "r|gz") as tar:
        for member in tar:
            number = int(Path(member.name).stem) if member.isfile() else -1
            if 0 <= number < 4 and member.name.split("/")[1] in ("airplane", "automobile"):
                originals[member.name] = tar.extractfile(member).read()
            elif member.name.startswith("train/bird"):
                break
    for name, content in originals.items():
        for part in ("train", "test"):
            path = tmp_path / "set" / name.replace("train", part)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    assert len(originals) == 8
    dataset = load_dataset("image_folder", root=tmp_path / "set")
    expected = [np.asarray(Image.open(io.BytesIO(originals[name]))) for name in sorted(originals)]
    np.testing.assert_array_equal(dataset.splits["test"].images, np.stack(expected).transpose(0, 3, 1, 2))
    assert dataset.splits["test"].labels.tolist() == [0] * 4 + [1] * 4
    packed = load_dataset("image_folder", root=pack(tmp_path / "set", tmp_path / "set.tar.gz"))
    assert packed.digest == dataset.digest


# Foreground


def test_threshold_foreground_is_the_bright_part():
    dataset = load_dataset("digits", size=8, foreground=Foreground("threshold", threshold=0.4))
    for part in dataset.splits.values():
        np.testing.assert_array_equal(part.foreground, part.images[:, 0] > 102)  # 0.4 * 255, exclusive
        assert part.foreground.dtype == np.bool_
    assert load_dataset("digits", size=8).splits["test"].foreground is None


def test_threshold_is_exclusive_and_takes_the_mean_of_the_channels(tmp_path):
    pixels = np.array([[[51, 51, 51], [52, 51, 51], [153, 0, 0], [154, 0, 0], [0, 0, 0]]], np.uint8)
    for part in ("train", "test"):
        for number in range(2):
            save(tmp_path / part / "only" / f"{number}.png", pixels)
    dataset = load_dataset("image_folder", root=tmp_path, foreground=Foreground("threshold"))
    assert dataset.splits["test"].foreground[0].tolist() == [[False, True, False, True, False]]


def masked_folder(root, shape=(6, 8)):
    """Numbered images whose mask is all but pixel `number` in row `label`."""
    numbered_folder(root, train=6, test=3, shape=shape)
    for path in sorted(root.glob("t*/*/*.png")):
        mask = np.full(shape, 7, np.uint8)
        mask[int(path.parent.name == "dog"), int(path.stem)] = 0
        save(root / "masks" / path.relative_to(root), mask)
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_masks_belong_to_their_images(tmp_path, packed):
    root = masked_folder(tmp_path / "folder")
    root = pack(root, tmp_path / "set.tar.gz") if packed else root
    dataset = load_dataset("image_folder", root=root, foreground=Foreground("masks"))
    for part in dataset.splits.values():
        for (label, _, number), mask in zip(identities(part), part.foreground, strict=True):
            assert np.argwhere(~mask).tolist() == [[label, number]]


def test_masks_may_be_palette_bilevel_or_rgb_and_are_resized_to_the_nearest(tmp_path):
    root = masked_folder(tmp_path)
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 4:8] = 1
    kinds = {
        "0000": Image.fromarray(mask).convert("P"),
        "0001": Image.fromarray(mask.astype(bool)),
        "0002": Image.fromarray(np.stack([np.zeros_like(mask), mask, np.zeros_like(mask)], axis=2)),
    }
    for stem, image in kinds.items():
        image.save(root / "masks" / "test" / "dog" / f"{stem}.png")
    test = load_dataset("image_folder", root=root, size=16, foreground=Foreground("masks")).splits["test"]
    expected = np.array(
        [[mask[int((i + 0.5) * 6 / 16), int((j + 0.5) * 8 / 16)] > 0 for j in range(16)] for i in range(16)]
    )
    for index in (3, 4, 5):
        np.testing.assert_array_equal(test.foreground[index], expected)


def test_missing_and_wrong_masks_are_named(tmp_path):
    root = masked_folder(tmp_path)
    victim = root / "masks" / "test" / "cat" / "0001.png"
    wrong = {
        "is 8x5 pixels but its image is 8x6": np.ones((5, 8), np.uint8),
        "has an alpha channel": np.ones((6, 8, 4), np.uint8),
    }
    for message, pixels in wrong.items():
        save(victim, pixels)
        with pytest.raises(DataError, match=rf"masks/test/cat/0001\.png {message}"):
            load_dataset("image_folder", root=root, foreground=Foreground("masks"))
    victim.write_bytes(b"text")
    with pytest.raises(DataError, match=r"masks/test/cat/0001\.png is no image"):
        load_dataset("image_folder", root=root, foreground=Foreground("masks"))
    victim.unlink()
    with pytest.raises(DataError, match=r"test/cat/0001\.png has no mask: looked for .*masks/test/cat/0001\.png"):
        load_dataset("image_folder", root=root, foreground=Foreground("masks"))


def boxed_folder(root, rows=""):
    """Numbered images with the box [number, number + 2) x [label, label + 3)."""
    numbered_folder(root, train=5, test=3)
    lines = ["path,x0,y0,x1,y1"]
    for path in sorted(root.glob("t*/*/*.png")):
        label, number = int(path.parent.name == "dog"), int(path.stem)
        lines.append(f"{path.relative_to(root)},{number},{label},{number + 2},{label + 3}")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n" + rows)
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_boxes_cover_their_pixels(tmp_path, packed):
    root = boxed_folder(tmp_path / "folder", "./train/absent.png,0,0,1,1\n")
    root = pack(root, tmp_path / "set.tar.gz") if packed else root
    dataset = load_dataset("image_folder", root=root, foreground=Foreground("boxes"))
    for part in dataset.splits.values():
        for (label, _, number), mask in zip(identities(part), part.foreground, strict=True):
            expected = np.zeros((6, 8), bool)
            expected[label : label + 3, number : number + 2] = True
            np.testing.assert_array_equal(mask, expected)


def test_boxes_of_one_image_are_united_and_scaled(tmp_path):
    root = boxed_folder(tmp_path / "folder", "test/dog/0002.png,0,0,1.5,1.5\n")
    (root / "boxes.csv").rename(tmp_path / "elsewhere.csv")
    settings = Foreground("boxes", boxes=str(tmp_path / "elsewhere.csv"))
    mask = load_dataset("image_folder", root=root, size=24, foreground=settings).splits["test"].foreground[5]
    expected = np.zeros((24, 24), bool)
    for i in range(24):
        for j in range(24):
            y, x = (i + 0.5) * 6 / 24, (j + 0.5) * 8 / 24
            expected[i, j] = (2 <= x < 4 and 1 <= y < 4) or (0 <= x < 1.5 and 0 <= y < 1.5)
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("test/dog/0002.png,3,0,3,2", "row 17 after the header: test/dog/0002.png, 3, 0, 3, 2 is no box"),
        ("test/dog/0002.png,3,x,4,2", "row 17 after the header"),
        ("test/dog/0002.png,3,,4,2", "row 17 after the header"),
        (",3,0,4,2", "row 17 after the header"),
        ("test/dog/0002.png,8,0,9,2", r"test/dog/0002\.png is 8x6 pixels and has a box outside"),
        ("test/dog/0002.png,-2,0,0,2", "has a box outside"),
    ],
)
def test_wrong_boxes_are_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_dataset("image_folder", root=boxed_folder(tmp_path, row), foreground=Foreground("boxes"))


def test_missing_boxes_are_named(tmp_path):
    root = boxed_folder(tmp_path)
    file = root / "boxes.csv"
    content = file.read_text()
    file.write_text(content.replace("test/cat/0001.png", "test/cat/1.png"))
    with pytest.raises(DataError, match=r"test/cat/0001\.png has no box"):
        load_dataset("image_folder", root=root, foreground=Foreground("boxes"))
    file.write_text(content.replace("x1", "right"))
    with pytest.raises(DataError, match=r"boxes\.csv lacks the column\(s\) x1; it has path, x0, y0, right, y1"):
        load_dataset("image_folder", root=root, foreground=Foreground("boxes"))
    file.write_text("")
    with pytest.raises(DataError, match="is no CSV file"):
        load_dataset("image_folder", root=root, foreground=Foreground("boxes"))
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*boxes\.csv"):
        load_dataset("image_folder", root=root, foreground=Foreground("boxes"))
    with pytest.raises(DataError, match=r"cannot read .*boxes\.csv"):
        load_dataset("image_folder", root=pack(root, tmp_path / "s.tar.gz"), foreground=Foreground("boxes"))


def test_boxes_that_vanish_by_resizing_are_named(tmp_path):
    root = numbered_folder(tmp_path, train=3, test=1)
    rows = [f"{path.relative_to(root)},0,0,1,1" for path in root.glob("t*/*/*.png")]
    (root / "boxes.csv").write_text("\n".join(["path,x0,y0,x1,y1", *rows]))
    with pytest.raises(DataError, match="cover no pixel once the image is 2x2"):
        load_dataset("image_folder", root=root, size=2, foreground=Foreground("boxes"))


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mnits"}, "unknown data set 'mnits'; did you mean 'mnist'"),
        ({"size": 0}, "size is the height and width"),
        ({"channels": 2}, r"channels must be 1 \(grey\) or 3 \(RGB\), not 2"),
        ({"normalization": "standart"}, "did you mean 'standard'"),
        ({"foreground": Foreground("mask")}, "did you mean 'masks'"),
        ({"foreground": Foreground("masks")}, "'digits' has no masks; its foreground can be none, threshold"),
        ({"foreground": Foreground("boxes")}, "'digits' has no boxes; its foreground can be none, threshold"),
        ({"foreground": Foreground("threshold", threshold=51)}, r"brightness in \[0, 1\), not 51"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(DataError, match=message):
        load_dataset(**{"name": "digits", **options})


# Statistics, inputs and display


@pytest.mark.parametrize("normalization", ["unit", "standard"])
def test_inputs_follow_the_formula_and_display_inverts_them(normalization):
    dataset = random_dataset(normalization)
    values = dataset.splits["train"].images.astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, values.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, values.std(axis=(0, 2, 3)), rtol=1e-6)
    raw = dataset.splits["test"].images.astype(np.float64) / 255
    mean, std = (values.mean(axis=(0, 2, 3)), values.std(axis=(0, 2, 3))) if normalization == "standard" else (0, 1)
    expected = (raw - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    inputs = dataset.inputs("test")
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs, expected, atol=2e-6)
    chosen = np.array([4, 0])
    np.testing.assert_array_equal(dataset.inputs("test", chosen), inputs[chosen])
    shown = dataset.display(inputs)
    assert shown.dtype == np.float32
    assert shown.min() >= 0
    assert shown.max() <= 1
    np.testing.assert_allclose(shown, raw, atol=1e-6)
    np.testing.assert_array_equal(dataset.display(inputs[3]), shown[3])
    assert dataset.display(inputs + 100).max() == 1


def test_statistics_of_many_images():
    dataset = load_dataset("digits", validation_fraction=0.1)
    values = dataset.splits["train"].images / 255
    assert len(values) > 1024  # more than one block
    assert dataset.mean[0] == pytest.approx(values.mean(), rel=1e-6)
    assert dataset.std[0] == pytest.approx(values.std(), rel=1e-6)


def test_standardized_inputs_have_mean_zero_and_deviation_one():
    inputs = random_dataset("standard").inputs("train").astype(np.float64)
    np.testing.assert_allclose(inputs.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(inputs.std(axis=(0, 2, 3)), 1, atol=1e-6)


def test_unknown_split_is_named():
    with pytest.raises(DataError, match="no split 'vaildation'; did you mean 'validation'"):
        random_dataset().inputs("vaildation")


@pytest.mark.parametrize("level", [0, 7, 51, 255])
def test_a_constant_channel_cannot_be_standardized(level):
    splits = dict(random_dataset().splits)
    images = splits["train"].images.copy()
    images[:, 1] = level
    splits["train"] = Split(images, splits["train"].labels, splits["train"].foreground)
    with pytest.raises(DataError, match="channel 1 of data set 'flat' is constant"):
        build_dataset("flat", ["x", "y", "z"], splits, "standard")
    flat = build_dataset("flat", ["x", "y", "z"], splits, "unit")
    assert flat.std[1] == 0
    assert np.isfinite(flat.inputs("train")).all()


def test_digest_depends_on_everything_that_matters():
    base = random_dataset()
    assert base.digest == random_dataset().digest

    def changed(split="test", classes=base.classes, normalization="unit", **arrays):
        splits = {name: Split(part.images, part.labels, part.foreground) for name, part in base.splits.items()}
        part = splits[split]
        values = {"images": part.images, "labels": part.labels, "foreground": part.foreground, **arrays}
        return build_dataset("random", classes, {**splits, split: Split(**values)}, normalization).digest

    assert changed() == base.digest
    test = base.splits["test"]
    images, labels, foreground = test.images.copy(), test.labels.copy(), test.foreground.copy()
    images[3, 1, 2, 1] ^= 1
    labels[0] = (labels[0] + 1) % 3
    foreground[5, 4, 3] ^= True
    digests = {
        base.digest,
        changed(images=images),
        changed(labels=labels),
        changed(foreground=foreground),
        changed(classes=("x", "y", "z")),
        changed(normalization="standard"),
        random_dataset(masks=False).digest,
    }
    assert len(digests) == 7


def test_splits_that_do_not_fit_are_refused():
    base = random_dataset()
    train, test = base.splits["train"], base.splits["test"]
    bad = {
        "has images float64": Split(test.images / 255, test.labels, test.foreground),
        r"has images uint8 \(0,": Split(test.images[:0], test.labels[:0], test.foreground[:0]),
        r"has images uint8 \(11, 1,": Split(test.images[:, :1], test.labels, test.foreground),
        r"has labels int64 \(10,\)": Split(test.images, test.labels[1:], test.foreground),
        "has labels int32": Split(test.images, test.labels.astype(np.int32), test.foreground),
        r"int64 labels in 0\.\.2": Split(test.images, test.labels + 2, test.foreground),
        "must both have foreground": Split(test.images, test.labels),
        "has a foreground uint8": Split(test.images, test.labels, test.foreground.astype(np.uint8)),
    }
    for message, split in bad.items():
        with pytest.raises(DataError, match=message):
            build_dataset("random", base.classes, {**base.splits, "test": split})
    with pytest.raises(DataError, match="needs the splits train, validation, test; given: train"):
        build_dataset("random", base.classes, {"train": train})


# Files


def assert_same(first: Dataset, second: Dataset):
    assert (first.name, first.classes, first.normalization, first.digest) == (
        second.name,
        second.classes,
        second.normalization,
        second.digest,
    )
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.std, second.std)
    assert list(first.splits) == list(second.splits) == ["train", "validation", "test"]
    for split, part in first.splits.items():
        for name in ("images", "labels", "foreground"):
            one, other = getattr(part, name), getattr(second.splits[split], name)
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("normalization", ["unit", "standard"])
@pytest.mark.parametrize("masks", [True, False])
def test_round_trip(tmp_path, normalization, masks):
    dataset = random_dataset(normalization, masks)
    write_dataset(tmp_path / "data.h5", dataset, {"seed": "3", "digest": "of the code"})
    assert_same(read_dataset(tmp_path / "data.h5"), dataset)
    with h5py.File(tmp_path / "data.h5") as file:
        assert attributes(file) == {"kind": "dataset", "seed": "3", "digest": "of the code"}
        for array in [file["train/images"], file["test/labels"], *([file["train/foreground"]] if masks else [])]:
            assert array.attrs["units"]
            assert len(array.attrs["dimensions"].split(", ")) == array.ndim
            assert array.chunks[1:] == array.shape[1:]


def test_large_splits_are_chunked_by_rows(tmp_path):
    dataset = load_dataset("digits")
    write_dataset(tmp_path / "data.h5", dataset, {})
    with h5py.File(tmp_path / "data.h5") as file:
        assert file["train/images"].chunks == (1024, 1, 32, 32)
        assert file["test/images"].chunks == (len(dataset.splits["test"].labels), 1, 32, 32)
    assert_same(read_dataset(tmp_path / "data.h5"), dataset)


def test_writing_is_deterministic(tmp_path):
    write_dataset(tmp_path / "first.h5", random_dataset(), {"seed": "3"})
    time.sleep(1.1)  # a time stamp in the file would show
    write_dataset(tmp_path / "second.h5", random_dataset(), {"seed": "3"})
    assert (tmp_path / "first.h5").read_bytes() == (tmp_path / "second.h5").read_bytes()


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "data.h5"
    with pytest.raises(ArtifactError, match="does not exist"):
        read_dataset(path)
    write_dataset(path, random_dataset(), {})
    with h5py.File(path, "r+") as file:
        file["test/labels"][0] = (file["test/labels"][0] + 1) % 3
    with pytest.raises(ArtifactError, match=r"is damaged.*its digest is"):
        read_dataset(path)
    write_dataset(path, random_dataset(), {})
    with h5py.File(path, "r+") as file:
        del file["validation/images"]
    with pytest.raises(ArtifactError, match="is damaged"):
        read_dataset(path)
    write_dataset(path, random_dataset(), {})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ArtifactError, match="is damaged"):
        read_dataset(path)


def test_foreground_is_filled_from_plain_values():
    settings = {"kind": "threshold", "threshold": 0.5, "masks": "masks", "boxes": "boxes.csv"}
    assert pickle.loads(pickle.dumps(Foreground(**settings))) == Foreground("threshold", 0.5)


def test_importing_data_does_not_import_torch():
    code = "import sys, nnscan.data; print(sorted({'torch', 'torchvision', 'sklearn'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
