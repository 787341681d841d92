"""nnscan.infilling and nnscan.fitting: the network, its training, its files."""

import struct

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from nnscan import fitting, infilling
from nnscan.data import Split, build_dataset
from nnscan.errors import ModelError, TrainingError
from nnscan.explanations import Setting
from nnscan.fitting import Fitting
from nnscan.infilling import Infiller, blur_fill, fill_errors, hidden_error, hiding_masks, load_infiller, train_infiller
from nnscan.perturbations import generative_infilling
from nnscan.training import save_state

ORIGIN = {"code": "1", "created": "now"}
PROTOCOL = Fitting(steps=60, batch_size=16, learning_rate=5e-3)


@pytest.fixture(autouse=True)
def _quick(monkeypatch, one_thread):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(fitting, "RECORD", 20)
    monkeypatch.setattr(infilling, "WIDTH", 4)


@pytest.fixture(scope="module")
def dataset():
    """Upright stripes: what is hidden stands in the rows above and below."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, size in (("train", 120), ("validation", 20), ("test", 6)):
        stripes = rng.integers(0, 2, (size, 2, 1, 8), dtype=np.uint8).repeat(2, 3) * 200
        splits[split] = Split(stripes.repeat(16, 2) + np.uint8(20), np.arange(size) % 3)
    return build_dataset("stripes", ("a", "b", "c"), splits, "standard")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("infilling")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = train_infiller(dataset, Fitting(steps=250, batch_size=16, learning_rate=5e-3), folder, 0, ORIGIN, False)
    torch.set_num_threads(threads)
    return folder, results


def content(path):
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        (length,) = struct.unpack("<Q", data[:8])
        return data[8 + length :]
    return data


def test_it_fills_better_than_gray_and_blur(trained, dataset):
    folder, results = trained
    error = results.set_index("fill")["error"]
    assert list(error.index) == ["network", "mean", "blur"]
    assert error["network"] < 0.75 * min(error["mean"], error["blur"])
    written = pd.read_csv(folder / "infiller_results.csv")
    np.testing.assert_allclose(written["error"], results["error"], rtol=1e-6)
    assert pd.read_csv(folder / "infiller_history.csv")["loss"].iloc[-1] < 0.6 * error["mean"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "infiller.safetensors", "infiller_history.csv", "infiller_results.csv"
    ]  # fmt: skip
    network = load_infiller(folder / "infiller.safetensors")
    x = torch.from_numpy(dataset.inputs("validation"))
    assert fill_errors(network, x, 0).equals(fill_errors(network, x, 0))
    np.testing.assert_allclose(fill_errors(network, x, 0)["error"], results["error"], rtol=1e-5)
    maps = generative_infilling(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(512, 3)), x[:2], [0, 1],
                                Setting(infiller=network))  # fmt: skip
    assert maps.shape == (2, 16, 16)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (33, 28)])
def test_shown_pixels_stay_and_hidden_ones_do_not_matter(size):
    torch.manual_seed(0)
    network = Infiller(3, 4).eval()
    x, kept = torch.rand(2, 3, *size), hiding_masks(2, size, torch.Generator().manual_seed(1))
    found = network(x, kept).detach()
    assert found.shape == x.shape
    assert torch.equal(found * kept, x * kept)
    other = torch.where(kept > 0, x, torch.nan)  # not even this
    assert torch.equal(network(other, kept), found)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_masks_hide_cells_of_all_sizes_and_shares():
    masks = hiding_masks(300, (32, 32), torch.Generator().manual_seed(0))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    shares = masks.mean((1, 2, 3))
    assert float(shares.min()) < 0.05
    assert float(shares.max()) > 0.95
    assert 0.45 < float(shares.mean()) < 0.55
    changes = (masks.diff(dim=3) != 0).float().mean((1, 2, 3))
    assert float(changes.max()) > 0.4  # single pixels
    assert float(changes[(shares > 0.4) & (shares < 0.6)].min()) < 0.08  # large cells
    again = hiding_masks(300, (32, 32), torch.Generator().manual_seed(0))
    assert torch.equal(masks, again)


def test_errors_and_blur_by_hand():
    x = torch.zeros(1, 2, 2, 2)
    kept = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    filled = torch.tensor([[[[9.0, 1.0], [2.0, 9.0]], [[9.0, 3.0], [4.0, 9.0]]]])
    assert float(hidden_error(filled, x, kept)) == 2.5
    image, shown = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    image[..., :8], image[..., 8:12], shown[..., :12] = 0.0, 1.0, 1.0
    image[..., 12:] = 9.0  # hidden
    line = blur_fill(image, shown, torch.tensor([3.0]))[0, 0, 16]
    assert torch.equal(line[:12], image[0, 0, 16, :12])
    steps = torch.arange(12.0)
    weights = torch.exp(-((12 - steps) ** 2) / (2 * 2.0**2))  # two pixels, a sixteenth of 32
    assert float(line[12]) == pytest.approx(float((weights * line[:12]).sum() / weights.sum()), rel=1e-5)
    assert line[24:].tolist() == pytest.approx([3.0] * 8, abs=0.01)


def run(dataset, folder, seed=0):
    return train_infiller(dataset, PROTOCOL, folder, seed, ORIGIN, False)


def test_a_training_that_was_interrupted_ends_with_the_same_bits(dataset, tmp_path, monkeypatch):
    run(dataset, tmp_path / "whole")
    kept = fitting.save_state

    def stop(path, key, state):
        kept(path, key, state)
        if state["done"] == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "parts")
    monkeypatch.setattr(fitting, "save_state", kept)
    state = torch.get_rng_state()
    run(dataset, tmp_path / "parts")
    assert torch.equal(torch.get_rng_state(), state)
    run(dataset, tmp_path / "other", seed=1)
    for path in (tmp_path / "whole").iterdir():
        assert content(path) == content(tmp_path / "parts" / path.name), path.name
        assert content(path) != content(tmp_path / "other" / path.name), path.name
    assert pd.read_csv(tmp_path / "parts" / "infiller_history.csv")["step"].tolist() == [20, 40, 60]


def test_a_state_of_another_training_is_not_taken(dataset, tmp_path, caplog):
    first = run(dataset, tmp_path)
    save_state(tmp_path / "state_infiller.pt", "other", {"done": 60})
    assert run(dataset, tmp_path).equals(first)
    assert "belongs to another training" in caplog.text


def test_a_training_that_diverges_says_so(dataset, tmp_path):
    with pytest.raises(TrainingError, match="the training of a network Infiller diverged: loss"):
        train_infiller(dataset, Fitting(10, 16, float("inf")), tmp_path, 0, ORIGIN, False)


def test_files_that_hold_no_infiller_are_refused(trained, tmp_path):
    state = load_file(trained[0] / "infiller.safetensors")
    torch.save({"mean": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save({**state, "last.weight": torch.zeros(1, 1)}, tmp_path / "wrong.pt")
    (tmp_path / "damaged.safetensors").write_bytes((trained[0] / "infiller.safetensors").read_bytes()[:500])
    for name, reason in (
        ("other.pt", "is not one of an infiller"), ("wrong.pt", "does not fit"), ("damaged.safetensors", "damaged"),
        ("missing.pt", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=reason):
            load_infiller(tmp_path / name)
