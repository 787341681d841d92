"""Errors that a user may meet: what was asked, what exists, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Of names that a message lists; comparing longer or more ones would take minutes.
_LENGTH, _COUNT = 200, 1000


def printable(text: str) -> str:
    """Return text in which all characters that a terminal or an editor acts upon are written out; lines stay lines."""
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode("ascii") for one in text
    )


class NnscanError(Exception):
    """Base of every error that nnscan raises on purpose; its text is meant for the user."""

    def __str__(self) -> str:
        # names of a stranger's files and keys stand in it
        return printable(super().__str__())


class ConfigurationError(NnscanError, ValueError):
    """A configuration key or value is unknown or does not fit."""


class DataError(NnscanError, ValueError):
    """A data set is missing, damaged or inconsistent."""


class ModelError(NnscanError, ValueError):
    """A model or a checkpoint cannot be built, loaded or used as asked."""


class LayerError(ModelError, KeyError):
    """A layer name or module does not belong to the model."""

    def __str__(self) -> str:
        return printable(str(self.args[0]))


class TrainingError(NnscanError, RuntimeError):
    """Training diverged or produced a value that is not finite."""


class ScanError(NnscanError, RuntimeError):
    """A scan cannot be carried out as asked."""


class ArtifactError(NnscanError, OSError):
    """A file between two stages is missing, damaged or of another kind."""


class SlotError(NnscanError, OSError):
    """The lock that gives a job a GPU of its own cannot be had."""


def did_you_mean(name: str, existing: Iterable[str]) -> str:
    """Return a sentence part that names the closest match and all that exists.

    Args:
        name: What was asked for.
        existing: The names that would have been accepted.

    Returns:
        `"; did you mean 'x'? Known: a, b, x"`, without the question where nothing comes close.
    """
    known = [str(name)[:_LENGTH] for name in existing]
    close = difflib.get_close_matches(name[:_LENGTH], known[:_COUNT], n=1, cutoff=0.5)
    question = f"; did you mean {close[0]!r}?" if close else "."
    more = f", ... ({len(known)} in all)" if len(known) > _COUNT else ""
    return f"{question} Known: {', '.join(known[:_COUNT]) if known else 'nothing'}{more}"
