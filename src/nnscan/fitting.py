"""Training of small helper networks for a fixed number of steps, deterministic and resumable.

These are networks that methods of explanation need beside the one that is explained: one that fills hidden pixels, one
that makes images of codes. Their cost should not depend on the size of the data set, so steps are counted, not epochs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnscan.errors import TrainingError
from nnscan.training import load_state, save_state

log = logging.getLogger(__name__)

RECORD = 100
"""Steps between two rows of the history, after each of which the state is kept."""


@dataclass(frozen=True)
class Fitting:
    """How a helper network is trained.

    Attributes:
        steps: Steps of Adam.
        batch_size: Images in a step, drawn with replacement.
        learning_rate: Learning rate of the first step; it falls linearly to zero.
    """

    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 2e-3


def fit(
    network: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    count: int,
    protocol: Fitting,
    seed: int,
    state_path: Path,
    key: str,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a network in place and return its history: step, and the mean loss of the steps since the last row.

    A state file is kept with each row; a call that finds one of the same key goes on there, with the same bits in the
    end. It is left for the caller to delete, once the results are written. Call this inside `training.deterministic`.

    Args:
        network: The network, on its device.
        loss: Gives the loss of training images from their positions (n,) and a generator (CPU) for all that is drawn.
        count: Number of training images.
        protocol: Steps, batch size and learning rate.
        seed: Of the images and of what the loss draws.
        state_path: The state file.
        key: Tells this training from others.
        progress: Show a progress bar.

    Raises:
        TrainingError: A loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), protocol.learning_rate)
    history: list[dict[str, float]] = []
    done = 0
    state = load_state(state_path, key)
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        history, done = list(state["history"]), state["done"]
        log.info("the training of a %s goes on after step %d", type(network).__name__, done)
    network.train()
    total = 0.0
    with tqdm(
        total=protocol.steps, initial=done, desc=type(network).__name__, mininterval=5, disable=not progress
    ) as bar:
        while done < protocol.steps:
            for group in optimizer.param_groups:
                group["lr"] = protocol.learning_rate * (1 - done / protocol.steps)
            batch = torch.randint(count, (protocol.batch_size,), generator=generator)
            found = loss(batch, generator)
            if not math.isfinite(found.item()):
                raise TrainingError(
                    f"the training of a network {type(network).__name__} diverged: loss {found.item()} in step "
                    f"{done + 1} at learning rate {protocol.learning_rate}; lower it"
                )
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total, done = total + found.item(), done + 1
            bar.update()
            if done % RECORD == 0 or done == protocol.steps:
                since = done - (int(history[-1]["step"]) if history else 0)
                history.append({"step": done, "loss": total / since})
                total = 0.0
                log.info("%s", history[-1])
                save_state(
                    state_path,
                    key,
                    {
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "generator": generator.get_state(),
                        "history": history,
                        "done": done,
                    },
                )
    network.eval()
    return history
