"""nnscan.places: where a data set's files lie, and whether they have changed."""

import os

import pytest

from nnscan.places import NO_FILES, data_places, data_root, data_state, needs_files


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (1_000_000, 1_000_000))
    return path


def test_the_root_is_the_given_one_else_the_environment_s_else_data(monkeypatch, tmp_path):
    monkeypatch.delenv("NNSCAN_DATA", raising=False)
    assert str(data_root(None)) == "data"
    monkeypatch.setenv("NNSCAN_DATA", str(tmp_path))
    assert data_root(None) == tmp_path
    assert str(data_root("other")) == "other"


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("camvid", "camvid/classes.txt"),
        ("image_folder", "train/cat/1.png"),
        ("broden", "images/cat/1.png"),
    ],
)
def test_a_change_of_name_size_time_or_number_of_files_is_noticed(tmp_path, source, file):
    path = write(tmp_path / file)
    states = [data_state(source, tmp_path)]
    write(tmp_path / file, "xy")
    states.append(data_state(source, tmp_path))
    write(tmp_path / file)
    os.utime(path, (1_000_001, 1_000_001))
    states.append(data_state(source, tmp_path))
    other = write(path.with_name("other.png"))
    states.append(data_state(source, tmp_path))
    other.rename(path.with_name("another.png"))
    states.append(data_state(source, tmp_path))
    assert len(set(states)) == 5
    path.with_name("another.png").unlink()
    write(path)
    assert data_state(source, tmp_path) == states[0]


def test_files_of_other_data_sets_under_the_same_root_do_not_count(tmp_path):
    write(tmp_path / "MNIST/raw/train-images-idx3-ubyte")
    before = data_state("mnist", tmp_path)
    write(tmp_path / "camvid/classes.txt")
    write(tmp_path / "notes.txt")
    assert data_state("mnist", tmp_path) == before


def test_labelled_images_are_the_folder_itself_and_what_lies_below_it(tmp_path):
    write(tmp_path / "index.csv")
    assert data_places("broden", tmp_path) == [tmp_path]
    before = data_state("broden", tmp_path)
    write(tmp_path / "images/deep/down/1.png")
    assert data_state("broden", tmp_path) != before
    assert data_state("broden", tmp_path / "nowhere") == data_state("digits", None)


def test_an_archive_counts_by_itself_and_data_moved_as_they_are_stay_the_same(tmp_path):
    first, second = write(tmp_path / "a/images.tar.gz"), write(tmp_path / "b/images.tar.gz")
    assert data_state("image_folder", first) == data_state("image_folder", second)
    write(second, "longer")
    assert data_state("image_folder", first) != data_state("image_folder", second)


def test_links_are_followed_as_when_the_data_are_read(tmp_path):
    for version, content in (("v1", "x"), ("v2", "longer")):
        write(tmp_path / "data" / version / "cat/1.png", content)
        (tmp_path / version).mkdir()
        (tmp_path / version / "train").symlink_to(tmp_path / "data" / version)
    first = data_state("image_folder", tmp_path / "v1")
    assert first not in (data_state("image_folder", tmp_path / "v2"), NO_FILES)
    write(tmp_path / "data/v1/cat/2.png")
    changed = data_state("image_folder", tmp_path / "v1")
    assert changed != first
    (tmp_path / "v1/train/loop").symlink_to(tmp_path / "v1")
    (tmp_path / "v1/train/nowhere").symlink_to(tmp_path / "nowhere")
    assert data_state("image_folder", tmp_path / "v1") not in (first, changed)


def test_data_that_are_not_there_or_come_with_a_package_have_a_state_too(tmp_path):
    assert data_state("mnist", tmp_path) == data_state("digits", None)
    assert data_places("digits", None) == []
    assert data_state("mnist", tmp_path) == NO_FILES
    assert [needs_files(source) for source in ("mnist", "cifar10", "camvid", "image_folder", "digits")] == [
        *[True] * 4, False,
    ]  # fmt: skip
