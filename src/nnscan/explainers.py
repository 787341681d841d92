"""All methods of explanation, by the names of the configuration and by those of the literature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnscan import (
    attention,
    cam,
    controls,
    gradients,
    maps,
    maximisation,
    perturbations,
    relevance,
    surrogates,
)
from nnscan.cam import grad_cam
from nnscan.errors import ConfigurationError, did_you_mean
from nnscan.explanations import Method
from nnscan.gradients import BACKPROPAGATIONS
from nnscan.scores import Explainer

_MODULES = (perturbations, gradients, relevance, cam, maximisation, attention, surrogates, maps, controls)

METHODS: Mapping[str, Method] = {method.name: method for module in _MODULES for method in module.METHODS}
"""All methods by name, in the order of the survey's table 3 (Si et al. 2022), then nnscan's own and the controls."""

EXPLAINERS: Mapping[str, Explainer] = {"CAM": cam.cam, "Grad-CAM": grad_cam, **BACKPROPAGATIONS}
"""The explainers that the theses show, by the names that they use."""


def check_names(named: Mapping[str, Sequence[str]]) -> None:
    """Check that methods exist.

    Args:
        named: Their names, by the key of the configuration that names them (`configuration.Study.named_methods`).

    Raises:
        ConfigurationError: There is no such method; the closest names are given.
    """
    for key, names in named.items():
        for name in names:
            if name not in METHODS:
                place = f"{key}: " if key else ""
                raise ConfigurationError(f"{place}there is no method {name!r}{did_you_mean(name, METHODS)}")


def chosen(names: Sequence[str] | None) -> list[Method]:
    """Return methods by name, in the register's order; all of them for None.

    Raises:
        ConfigurationError: There is no such method; the closest names are given.
    """
    check_names({"": names or ()})
    return [method for name, method in METHODS.items() if names is None or name in names]
