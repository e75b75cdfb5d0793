"""Every error a user can cause, as one family.

MlpconvError                the base: catch this to catch them all
├── UsageError              what was asked makes no sense: a name, an option, a setting   (exit code 2)
├── DataError               images, folders and data-set files
│   ├── ImageError          one image that cannot be read
│   ├── MissingSplit        a split that the data set does not have here
│   └── DownloadError       a download that failed or is not what was published
├── ModelFileError          a model file that is damaged, hostile or from another world
├── SurgeryError            a network that an operation cannot change, or not exactly
├── RunFolderError          a run folder in use, not empty, or not writable
├── CheckpointError         no whole checkpoint to go on from
└── TrainingError           training that cannot go on
    ├── CollapseError       the loss sits at ln(classes) with dead category maps
    └── NonFiniteError      a loss or weight became NaN or infinite

Interrupted                 a run that was asked to stop, and saved              (exit code 130, or 143 for SIGTERM)

Interrupted is a KeyboardInterrupt and no MlpconvError: a loop that goes on after an error must end at Ctrl-C.

Each message says what was given, what is accepted and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CheckpointError",
    "CollapseError",
    "DataError",
    "DownloadError",
    "ImageError",
    "Interrupted",
    "MissingSplit",
    "MlpconvError",
    "ModelFileError",
    "NonFiniteError",
    "RunFolderError",
    "SurgeryError",
    "TrainingError",
    "UsageError",
    "did_you_mean",
    "first_line",
]

MOST_NAMED = 60
"""Accepted names that a message lists; of more, it gives those near to the one given."""


class MlpconvError(Exception):
    """The base of every error of this package."""

    exit_code = 1


class UsageError(MlpconvError):
    """What was asked makes no sense: an unknown name, option or setting."""

    exit_code = 2


class DataError(MlpconvError):
    """Images, folders or data-set files that cannot be used."""


class ImageError(DataError):
    """One image that cannot be read."""


class MissingSplit(DataError):
    """A split (train, val or test) that the data set does not have here."""


class DownloadError(DataError):
    """A download that failed, or whose bytes are not those that were published."""


class ModelFileError(MlpconvError):
    """A model file that is missing, damaged, hostile or not one of ours."""


class SurgeryError(MlpconvError):
    """A network that an operation cannot change, or not without changing what it computes."""


class RunFolderError(MlpconvError):
    """A run folder that is in use, has content, or cannot be written."""


class CheckpointError(MlpconvError):
    """No whole checkpoint to go on from."""


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop by a signal; everything up to there is saved.

    As for Ctrl-C elsewhere in Python, `except Exception` does not catch it, nor does `except MlpconvError`.
    """

    def __init__(self, message: str, signal_number: int, folder: Path | None = None) -> None:
        super().__init__(message)
        self.signal_number, self.folder = signal_number, folder
        self.exit_code = 128 + signal_number


class TrainingError(MlpconvError):
    """Training that cannot go on."""


class CollapseError(TrainingError):
    """The loss sits at ln(number of classes) and every category map is dead."""


class NonFiniteError(TrainingError):
    """A loss or a weight became NaN or infinite."""


def _plain(name: str) -> str:
    """A name without what people spell in different ways: capitals, dashes and spaces."""
    return name.casefold().replace("-", "_").replace(" ", "_")


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message without its full stop; the class's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """Say which accepted name is nearest to the one given, and list them all; of very many, only those near it."""
    names = sorted(set(accepted))
    if len(names) > MOST_NAMED:
        some = difflib.get_close_matches(given, names, n=5, cutoff=0.4)
        return f"{'near it: ' + ', '.join(some) if some else f'like {names[0]!r}'}; {len(names):,} names are accepted."
    plain = {_plain(name): name for name in reversed(names)}
    near = difflib.get_close_matches(_plain(given), plain, n=1, cutoff=0.5)
    hint = f"did you mean {plain[near[0]]!r}? " if near else ""
    return f"{hint}Accepted: {', '.join(names)}."
