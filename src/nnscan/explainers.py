"""All explainers, by the names that the literature uses."""

from __future__ import annotations

from collections.abc import Mapping

from nnscan.cam import cam, grad_cam
from nnscan.gradients import BACKPROPAGATIONS
from nnscan.scores import Explainer

EXPLAINERS: Mapping[str, Explainer] = {"CAM": cam, "Grad-CAM": grad_cam, **BACKPROPAGATIONS}
"""All explainers by name."""
