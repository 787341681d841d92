"""nnscan, the Neural Network Scanner: what every neuron and every filter of a convolutional network has learned.

The public names are loaded on first use, so that importing a light module does not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnscan.anomaly import anomaly_filters
    from nnscan.broden import read_broden, write_broden
    from nnscan.dimension import two_nn
    from nnscan.dissection import network_dissection
    from nnscan.models import load_model
    from nnscan.properties import interpretable_properties
    from nnscan.quantity import feature_quantity
    from nnscan.scanner import filter_images, learning_images, scan
    from nnscan.similarities import similarity

_HOMES = {
    "anomaly_filters": "anomaly",
    "feature_quantity": "quantity",
    "filter_images": "scanner",
    "interpretable_properties": "properties",
    "learning_images": "scanner",
    "load_model": "models",
    "network_dissection": "dissection",
    "read_broden": "broden",
    "scan": "scanner",
    "similarity": "similarities",
    "two_nn": "dimension",
    "write_broden": "broden",
}

__all__ = [
    "anomaly_filters",
    "feature_quantity",
    "filter_images",
    "interpretable_properties",
    "learning_images",
    "load_model",
    "network_dissection",
    "read_broden",
    "scan",
    "similarity",
    "two_nn",
    "write_broden",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"nnscan.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nnscan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
