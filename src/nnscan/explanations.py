"""What a method of explanation is: a function with the facts that a survey's table states of it.

A method explains inputs by maps, or a class by images that it makes itself (activation maximisation). It refuses a
model or data that it does not fit by an error that names the reason. Maps are raw: signed where the method is, in the
method's own units; a larger value always means more evidence for the class. Stretching them is a matter of drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from nnscan.moments import open_moments, read_layer
from nnscan.quantity import Form, Noise, quantity_parts
from nnscan.scores import Explainer

Family = Literal[
    "perturbation",
    "gradient",
    "rule-based",
    "class activation",
    "activation maximisation",
    "attention",
    "model-agnostic",
    "nnscan",
    "control",
]
"""The survey's groups of methods (table 3), nnscan's own maps, and the controls beside them."""


@dataclass(frozen=True)
class Scanned:
    """What maps of nnscan need of a scan: its last layer with places.

    Attributes:
        layer: The layer.
        samples: Positions of the inputs in their split (N,).
        quantities: Feature quantity F(I, x) of each neuron for each input (N, K, h, w); NaN without foreground masks.
        absolute: Sum of |I| over each filter's neurons (N, K, H / b, W / b).
        block: Side b of the blocks of pixels of the learning images.
    """

    layer: str
    samples: NDArray[np.int64]
    quantities: NDArray[np.float64]
    absolute: NDArray[np.floating]
    block: int

    def part(self, places: NDArray[np.int64]) -> Scanned:
        """Return what the scan says of some of its inputs (n,), by their places among its samples."""
        return replace(
            self, samples=self.samples[places], quantities=self.quantities[places], absolute=self.absolute[places]
        )


def read_scanned(paths: Sequence[str | Path], noise: Noise = "linear", form: Form = "printed") -> Scanned:
    """Return what maps need of the shards of a scan: of the deepest scanned layer whose neurons have places.

    Of a network without such a layer it is the deepest one.

    Args:
        paths: The shards.
        noise: See `quantity.feature_quantity`.
        form: See `quantity.feature_quantity`.
    """
    with open_moments(paths[0]) as file:
        placed = [layer for layer in file.layers if np.prod(file.file[f"layers/{layer}/activation"].shape[2:]) > 1]
        layer = (placed or file.layers)[-1]
    moments = read_layer(paths, layer)
    quantities = quantity_parts(moments, layer, noise, form)["fq"]
    return Scanned(layer, moments.samples, quantities, moments.absolute_images[layer], moments.block)


@dataclass(frozen=True)
class Setting:
    """What a method may use beside the model, the inputs and the classes.

    Attributes:
        seed: Of everything that a method draws. What is drawn for an input depends on the seed alone, not on the other
            inputs of the call.
        scanned: What a scan says of these very inputs, for nnscan's own maps.
        infiller: A network that fills the hidden pixels of an image, `(x (N, C, H, W), kept (N, 1, H, W)) -> (N, C, H,
            W)`, for generative infilling.
        generator: A network that makes images (N, C, H, W) of codes, for activation maximisation with a prior.
        box: The smallest and the largest value of each channel (C,), as fed to the network (`data.Dataset.box`), for
            activation maximisation and deep Taylor decomposition.
    """

    seed: int = 0
    scanned: Scanned | None = None
    infiller: nn.Module | None = None
    generator: nn.Module | None = None
    box: tuple[tuple[float, ...], tuple[float, ...]] | None = None


Explanation = Callable[[nn.Module, Tensor, Sequence[int], Setting], Tensor]
"""`(model, x (N, C, H, W), classes, setting)` -> (N, H, W) maps, or (N,) what their sums should be."""

Synthesis = Callable[[nn.Module, tuple[int, int, int], Sequence[int], Setting], Tensor]
"""`(model, shape (C, H, W), classes, setting)` -> (N, C, H, W) images, one for each class."""


@dataclass(frozen=True)
class Method:
    """A method of explanation and what the survey's table 3 says of it.

    Attributes:
        name: As in the configuration, lower case with underscores.
        title: As in tables and figures.
        family: Its group.
        detail: Whether its maps are as fine as pixels, or mark regions; None for images of a class.
        class_specific: Whether the map depends on the class that is explained.
        online: Whether the explanation comes with the forward pass, of a network that was built for it.
        transparent: Whether the method looks into the model; False if it only asks for its answers.
        explains: What is explained, such as "class score".
        scope: "local" explains one input, "global" a class or neuron as such.
        paper: Who and what, in short.
        year: Of the paper.
        needs: What the model or the data must have, in words; empty if nothing.
        explain: The maps; None for a method that makes images.
        synthesise: The images; None for a method that explains inputs.
        total: What the sum of a map should be where the method promises it (completeness, conservation).
    """

    name: str
    title: str
    family: Family
    detail: Literal["fine-grained", "regional"] | None
    class_specific: bool
    online: bool
    transparent: bool
    explains: str
    scope: Literal["local", "global"]
    paper: str
    year: int
    needs: tuple[str, ...] = ()
    explain: Explanation | None = field(default=None, repr=False)
    synthesise: Synthesis | None = field(default=None, repr=False)
    total: Explanation | None = field(default=None, repr=False)


def simply(explain: Explainer) -> Explanation:
    """Return a method that needs no setting as one that is given it."""
    return lambda model, x, classes, setting: explain(model, x, classes)
