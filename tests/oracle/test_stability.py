"""Stability: adversarial steps by hand, sensitivity against its definition and Captum's."""

import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max
from captum.robust import FGSM
from torch import nn

from networks import CLASSES, Detached, Residual, images, plain, scores_of
from nnscan.controls import METHODS
from nnscan.explanations import Method, Setting, simply
from nnscan.gradients import backpropagation
from nnscan.metrics import COLUMNS, Inputs
from nnscan.resemblance import rank_correlation, shared_peaks
from nnscan.scores import answers
from nnscan.stability import (
    DRAWS,
    NOISE,
    RADIUS,
    even_draws,
    fgsm,
    gaussian_draws,
    max_sensitivity,
    stability_scores,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LOW = torch.tensor([-9.0, -9.0], dtype=torch.float64).reshape(2, 1, 1)
HIGH = torch.tensor([9.0, 1.0], dtype=torch.float64).reshape(2, 1, 1)
GRADIENT = Method(**{**vars(METHODS[0]), "name": "gradient", "explain": simply(backpropagation)})


def given_of(x, seed=0):
    classes = [number % 3 for number in range(len(x))]
    return Inputs(x, classes, np.arange(len(x)), LOW, HIGH, 0 * LOW, setting=Setting(seed=seed))


def test_the_step_of_a_linear_model_is_the_sign_of_its_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 2)).double()
    x = images().clamp(-8, 0.5)
    step = torch.tensor([0.25, 4.0], dtype=torch.float64).reshape(2, 1, 1)
    against = (model[1].weight[1] - model[1].weight[0]).detach().sign().reshape(2, 8, 8)
    expected = x + step * against
    expected[:, 1] = expected[:, 1].clamp(max=1)
    torch.testing.assert_close(fgsm(model, x, [0, 0, 0], step, LOW, HIGH), expected)


def test_the_step_is_that_of_captum():
    model, x = plain(), images(5).clamp(-8, 1)
    classes = [number % 3 for number in range(5)]
    attack = FGSM(lambda given: model(given.clone()), nn.CrossEntropyLoss(reduction="none"), -9, 1)
    attack.zero_thresh = 0  # below 1e-6 it takes gradients as zero
    expected = attack.perturb(x.clone(), epsilon=0.25, target=torch.tensor(classes))
    found = fgsm(model, x, classes, torch.full((2, 1, 1), 0.25), torch.full((2, 1, 1), -9.0), torch.ones(2, 1, 1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("build", [plain, Residual])
def test_the_step_raises_the_loss(build):
    model, x = build(), images(20).clamp(-8, 1)
    classes = [number % 3 for number in range(20)]
    found = fgsm(model, x, classes, torch.full((2, 1, 1), 1e-4), LOW, HIGH)
    losses = [
        nn.functional.cross_entropy(scores_of(model, own), torch.tensor(classes), reduction="none").detach()
        for own in (x, found)
    ]
    assert bool((losses[1] > losses[0]).all())
    torch.testing.assert_close(found[18:], fgsm(model, x[18:], classes[18:], torch.full((2, 1, 1), 1e-4), LOW, HIGH))


def test_draws():
    given = given_of(images(2), 3)
    even = torch.stack(list(even_draws(given, 0.5, 200)))
    assert even[:, 0].abs().max() == pytest.approx(9, rel=0.01)  # half of the range from -9 to 9
    assert even[:, 1].abs().max() == pytest.approx(5, rel=0.01)
    assert float(even[:, 1].mean()) == pytest.approx(0, abs=0.1)
    gauss = torch.stack(list(gaussian_draws(given, 0.1, 200)))
    assert float(gauss[:, 1].std()) == pytest.approx(1, rel=0.02)
    assert not torch.equal(gauss[0], next(gaussian_draws(given_of(images(2), 4), 0.1, 1)))


@pytest.mark.parametrize("build", [plain, Residual])
def test_sensitivity_is_its_definition_and_captums(build):
    model, x = build(), images(5)
    given = given_of(x)
    maps = backpropagation(model, x, given.classes)
    changes = list(even_draws(given, RADIUS, DRAWS))
    found = max_sensitivity(maps, [backpropagation(model, x + change, given.classes) for change in changes])
    for number in range(5):
        norms = []
        for change in changes:
            own = backpropagation(model, (x[number] + change)[None], given.classes[number : number + 1])[0]
            norms.append(float((own - maps[number]).square().sum().sqrt() / maps[number].square().sum().sqrt()))
        assert found[number] == pytest.approx(max(norms))
    waiting = iter(changes)

    def explain(own, target):  # Captum gives the inputs as a tuple at first
        first = isinstance(own, tuple)
        result = backpropagation(model, own[0] if first else own, target.tolist())
        return (result,) if first else result

    expected = sensitivity_max(
        explain,
        x,
        perturb_func=lambda own: own + next(waiting),
        n_perturb_samples=DRAWS,
        max_examples_per_batch=5,
        target=torch.tensor(given.classes),
    )
    np.testing.assert_allclose(found, expected.numpy())


def test_a_map_that_is_zero_has_no_sensitivity():
    maps = torch.zeros(2, 3, 3)
    maps[1] = 1
    found = max_sensitivity(maps, [maps, maps + 1])
    assert np.isnan(found[0])
    assert found[1] == 1


def test_without_a_gradient_there_is_noise_but_no_adversarial_step():
    given = given_of(images(4).clamp(-8, 1))
    frame = stability_scores(Detached(plain()), given, METHODS).set_index(["method", "metric"])
    for method in METHODS:
        own = frame.loc[method.name]
        assert own.loc[["fgsm_rank", "fgsm_peaks"], "value"].isna().all()
        assert own.loc[["fgsm_rank", "fgsm_peaks"], "reason"].str.startswith("no gradient leads").all()
        assert own.loc[["noise_rank", "max_sensitivity"], "value"].notna().all()


def test_scores():
    model, x = plain(), images(20).clamp(-8, 1)
    given = given_of(x)
    assert given.classes[:3] != CLASSES
    state = torch.get_rng_state()
    frame = stability_scores(model, given, [GRADIENT, *METHODS], (0.01, 0.2))
    assert torch.equal(torch.get_rng_state(), state)
    assert tuple(frame.columns) == COLUMNS
    value = frame.set_index(["method", "metric"])[["sample", "case", "value"]]
    maps = backpropagation(model, x, given.classes)
    steps = value.loc[("gradient", "fgsm_rank")]
    assert steps["case"].str.startswith(("kept at", "flipped at")).all()
    assert {"kept at 0.01", "flipped at 0.2"} <= set(steps["case"])
    for epsilon, own in (
        (0.01, steps[steps["case"].str.endswith("0.01")]),
        (0.2, steps[steps["case"].str.endswith("0.2")]),
    ):
        stepped = fgsm(model, x, given.classes, epsilon * given.range, LOW, HIGH)
        after = backpropagation(model, stepped, given.classes)
        np.testing.assert_allclose(own["value"], rank_correlation(maps, after))
        flipped = [a != b for a, b in zip(answers(model, x), answers(model, stepped), strict=True)]
        assert own["case"].str.startswith("flipped").tolist() == flipped
    peaks = value.loc[("gradient", "fgsm_peaks")]
    np.testing.assert_allclose(peaks["value"].iloc[20:], shared_peaks(maps, after))
    noisy = [
        rank_correlation(maps, backpropagation(model, x + change, given.classes))
        for change in gaussian_draws(given, NOISE, DRAWS)
    ]
    np.testing.assert_allclose(value.loc[("gradient", "noise_rank")]["value"], np.mean(noisy, axis=0))
    assert value.loc[("random", "noise_rank")]["value"].abs().mean() < 0.1
    assert value.loc[("edges", "max_sensitivity")]["value"].between(0, 1).all()
    one = stability_scores(model, given_of(x[:1]), [GRADIENT, *METHODS], (0.01, 0.2))
    np.testing.assert_allclose(one["value"], frame[frame["sample"] == 0]["value"])
