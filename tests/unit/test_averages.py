"""nnscan.averages: simple, confidence-driven and ascended class averages, and their file."""

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from nnscan.artifacts import read_provenance
from nnscan.averages import (
    ascended_averages,
    class_averages,
    confidence_averages,
    confidences,
    read_averages,
    write_averages,
)
from nnscan.errors import ArtifactError, DataError, ModelError, TrainingError


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(40, 3, 4, 5)).astype(np.float32)


@pytest.fixture
def labels():
    return np.arange(40) % 4


@pytest.fixture
def classifier():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 2 * 3, 4))


def loop_mean(images, chosen):
    total = np.zeros(images.shape[1:])
    for index in chosen:
        total += images[index]
    return total / len(chosen)


def test_class_average_is_the_mean_of_its_images(images, labels):
    averages = class_averages(images, labels, 4, rescale=False)
    assert averages.shape == (4, 3, 4, 5)
    assert averages.dtype == torch.float32
    for label in range(4):
        own = [index for index in range(40) if labels[index] == label]
        np.testing.assert_allclose(averages[label], loop_mean(images, own), rtol=0, atol=1e-7)


def test_rescaled_average_spans_the_channels_of_its_class(images, labels):
    plain = class_averages(images, labels, 4, rescale=False)
    averages = class_averages(images, labels, 4)
    for label in range(4):
        for channel in range(3):
            own = images[labels == label, channel]
            result = averages[label, channel]
            assert result.min() == own.min()
            assert result.max() == own.max()
            mean = plain[label, channel]
            stretched = (mean - mean.min()) / (mean.max() - mean.min()) * (own.max() - own.min()) + own.min()
            torch.testing.assert_close(result, stretched, rtol=0, atol=1e-5)


def test_rescaling_and_normalisation_commute(images, labels):
    scale = np.array([0.2, 1, 3], dtype=np.float32)[:, None, None]
    shift = np.array([-1, 0, 5], dtype=np.float32)[:, None, None]
    expected = class_averages(images, labels, 4) * torch.tensor(scale) + torch.tensor(shift)
    torch.testing.assert_close(class_averages(images * scale + shift, labels, 4), expected, rtol=0, atol=1e-5)


def test_constant_channel_keeps_its_mean(labels):
    images = np.ones((40, 1, 2, 2), dtype=np.float32)
    images[::8] = 3  # class 0: each pixel is 3 in half of the images, so the average is constant
    torch.testing.assert_close(class_averages(images, labels, 4)[0], torch.full((1, 2, 2), 2.0))


def test_arrays_and_tensors_give_the_same(images, labels, classifier):
    arrays = confidence_averages(classifier, images, labels, 4, 3)
    tensors = confidence_averages(classifier, torch.tensor(images), torch.tensor(labels), 4, 3)
    assert torch.equal(class_averages(images, labels, 4), class_averages(torch.tensor(images), torch.tensor(labels), 4))
    assert all(torch.equal(*pair) for pair in zip(arrays, tensors, strict=True))


def test_class_without_images_is_named(images, labels, classifier):
    labels = np.where(labels == 2, 3, labels)
    with pytest.raises(DataError, match="no image of class 2, 4"):
        class_averages(images, labels, 5)
    with pytest.raises(DataError, match="no image of class 2;"):
        confidence_averages(classifier, images, labels, 4, 3)


def test_wrong_data_are_named(images, labels, classifier):
    with pytest.raises(DataError, match="40 images, but 39 labels"):
        class_averages(images, labels[1:], 4)
    with pytest.raises(DataError, match="from 0 to 3, but there are 3 classes"):
        class_averages(images, labels, 3)
    with pytest.raises(DataError, match="floating-point"):
        class_averages(images.astype(np.uint8), labels, 4)
    with pytest.raises(DataError, match="k=0"):
        confidence_averages(classifier, images, labels, 4, 0)
    with pytest.raises(DataError, match="no images"):
        confidences(classifier, images[:0])
    with pytest.raises(ModelError, match="4 class scores, but the data 5"):
        confidence_averages(classifier, images, np.arange(40) % 5, 5, 2)


def test_confidences_are_the_softmax(images, classifier, monkeypatch):
    monkeypatch.setattr("nnscan.averages.BATCH", 7)
    result = confidences(classifier, images).numpy()
    with torch.no_grad():
        scores = classifier(torch.tensor(images)).double().numpy()
    np.testing.assert_allclose(result, np.exp(scores) / np.exp(scores).sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(result.sum(1), 1)


def test_confidences_that_are_not_finite_are_an_error(images, classifier):
    with torch.no_grad():
        classifier[3].bias[1] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        confidences(classifier, images)


def test_confidence_averages_take_the_extreme_images_of_the_class(images, labels, classifier):
    most, least = confidence_averages(classifier, images, labels, 4, 3)
    confidence = confidences(classifier, images).numpy()
    for label in range(4):
        ranked = sorted((index for index in range(40) if labels[index] == label), key=lambda i: confidence[i, label])
        np.testing.assert_allclose(least[label], loop_mean(images, ranked[:3]), rtol=0, atol=1e-6)
        np.testing.assert_allclose(most[label], loop_mean(images, ranked[-3:]), rtol=0, atol=1e-6)


def test_k_above_the_class_size_takes_all_images(images, labels, classifier):
    plain = class_averages(images, labels, 4, rescale=False)
    for averages in confidence_averages(classifier, images, labels, 4, 999):
        torch.testing.assert_close(averages, plain)


def test_saturated_confidences_are_still_ranked():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.stack([20 + x.flatten(1).sum(1), torch.zeros(len(x))], dim=1)

    images = np.array([0, 5, 1, 0, 0, 0], dtype=np.float32).reshape(6, 1, 1, 1)
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert (confidences(Sure(), images).float()[:, 0] == 1).all()
    most, least = confidence_averages(Sure(), images, labels, 2, 1)
    assert (most[0].item(), least[0].item()) == (5, 0)


def test_ascent_raises_the_confidence_of_every_class(images, labels, classifier):
    start = class_averages(images, labels, 4, rescale=False)
    before = confidences(classifier, start).diagonal()
    short = ascended_averages(classifier, start, steps=5, rate=0.05)
    after = confidences(classifier, short).diagonal()
    long = confidences(classifier, ascended_averages(classifier, start, steps=50, rate=0.05)).diagonal()
    assert (after > before).all()
    assert (long > after).all()


def test_ascent_step_is_the_gradient_of_the_log_confidence(images, classifier):
    start = torch.tensor(images[:4])
    source = start.clone().requires_grad_()
    own = torch.stack([torch.log_softmax(classifier(image[None])[0], 0)[i] for i, image in enumerate(source)])
    (gradient,) = torch.autograd.grad(own.sum(), source)
    torch.testing.assert_close(ascended_averages(classifier, start, steps=1, rate=0.3), start + 0.3 * gradient)


def test_ascent_stops_at_the_threshold(images, labels, classifier):
    start = class_averages(images, labels, 4)
    reached = confidences(classifier, start).diagonal()
    stop = float(reached.sort().values[1:3].mean())  # two images have arrived, two have not
    result = ascended_averages(classifier, start, steps=3, rate=0.01, stop=stop)
    moved = (result != start).flatten(1).any(1)
    assert moved.tolist() == (reached < stop).tolist()
    assert torch.equal(ascended_averages(classifier, start, steps=0, rate=1), start)


def test_ascent_that_cannot_go_on_is_an_error(images, classifier):
    with pytest.raises(TrainingError, match="lower rate"):
        ascended_averages(classifier, np.full((4, 3, 4, 5), np.inf, dtype=np.float32), steps=3, rate=1)
    with pytest.raises(ModelError, match="4 class scores, but there are 5"):
        ascended_averages(classifier, images[:5], steps=1, rate=1)


def test_model_and_images_are_left_unchanged(images, labels):
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.linear = nn.Linear(60, 4)

        def forward(self, x):
            return self.linear(self.norm(x.relu_()).flatten(1))

    model = Careless().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    copy = images.copy()
    confidences(model, images)
    confidence_averages(model, images, labels, 4, 3)
    ascended_averages(model, images[:4], steps=2, rate=0.1)
    assert np.array_equal(images, copy)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_file_returns_what_was_written(tmp_path, images, labels, classifier):
    averages = {"simple": class_averages(images, labels, 4)}
    averages["most"], averages["least"] = confidence_averages(classifier, images, labels, 4, 3)
    averages["ascended"] = ascended_averages(classifier, averages["simple"], 2, 0.1)
    matrices = {kind: confidences(classifier, average) for kind, average in averages.items()}
    path = tmp_path / "averages.h5"
    write_averages(path, averages, ["猫", "dog", "car", "tree"], {"data": "abc"}, matrices)
    read = read_averages(path)
    assert list(read) == ["simple", "most", "least", "ascended"]
    assert all(torch.equal(read[kind], averages[kind]) for kind in averages)
    assert read_provenance(path)["data"] == "abc"
    with h5py.File(path) as file:
        assert [name.decode() for name in file["classes"][()]] == ["猫", "dog", "car", "tree"]
        assert np.array_equal(file["confidences/most"][()], matrices["most"].numpy())
        assert [axis.label for axis in file["averages/simple"].dims] == ["class", "channel", "row", "column"]


def test_file_refuses_what_does_not_belong_together(tmp_path):
    path = tmp_path / "averages.h5"
    averages = {"simple": torch.zeros(2, 1, 3, 3)}
    with pytest.raises(ArtifactError, match="give one for each"):
        write_averages(path, averages, ["a", "b"], {}, {})
    with pytest.raises(ArtifactError, match="do not fit 3 classes"):
        write_averages(path, averages, ["a", "b", "c"], {}, {"simple": torch.zeros(2, 2)})
    assert not path.exists()
    with pytest.raises(ArtifactError, match="does not exist"):
        read_averages(path)
