"""What tests of attacks share: bounds on memory and time, and small honest data sets to be made hostile."""

from __future__ import annotations

import io
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnscan.errors import NnscanError


@contextmanager
def bounded(megabytes: int = 400, seconds: float = 20) -> Iterator[None]:
    """Inside the block the process gets this much memory more than it has, and this much time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, hard))

    def hang(*_: object) -> None:
        # no class that a reader might take for damage
        raise KeyboardInterrupt(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except KeyboardInterrupt as error:
        pytest.fail(str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(attack: Callable[[], object], error: type[NnscanError], megabytes: int = 400, seconds: float = 20) -> str:
    """Return the one sentence with which nnscan refuses what the attack reads, within bounded memory and time."""
    with bounded(megabytes, seconds), pytest.raises(error) as caught:
        attack()
    sentence = str(caught.value)
    assert sentence
    assert all(character.isprintable() or character == "\n" for character in sentence)
    assert len(sentence) < 3000
    return sentence


def picture(size: int = 8, form: str = "PNG", mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(content, form)
    return content.getvalue()


def image_folder(root: Path, classes: tuple[str, ...] = ("a", "b"), count: int = 4) -> Path:
    """Make train/<class>/*.png and test/<class>/*.png."""
    for part in ("train", "test"):
        for label in classes:
            folder = root / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(picture())
    return root
