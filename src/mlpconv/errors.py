"""All errors that a user can cause.

MlpconvError                the base class: catch it to catch them all
├── UsageError              an invalid name, option or setting                       (exit code 2)
├── DataError               images, folders and data-set files
│   ├── ImageError          an image that cannot be read
│   ├── MissingSplit        a split that the data set lacks
│   └── DownloadError       a download that failed or differs from the published file
├── ModelFileError          a model file that is missing, damaged, hostile or of another format
├── SurgeryError            a network that an operation cannot change, or not exactly
├── RunFolderError          a run folder that is in use, not empty or not writable
├── ExportError             a model that cannot be exported, or an exported file that cannot be used
├── ServerError             a server that cannot start
├── CheckpointError         no valid checkpoint to resume from
└── TrainingError           training that cannot continue
    ├── CollapseError       the loss stays at ln(classes) with dead category maps
    └── NonFiniteError      a loss or weight became NaN or infinite

Interrupted                 a run stopped by a signal, after saving its state        (exit code 130, or 143 for SIGTERM)

Interrupted is a KeyboardInterrupt and not an MlpconvError, so that Ctrl-C also ends loops that catch errors.

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
    "ExportError",
    "ImageError",
    "Interrupted",
    "MissingSplit",
    "MlpconvError",
    "ModelFileError",
    "NonFiniteError",
    "RunFolderError",
    "ServerError",
    "SurgeryError",
    "TrainingError",
    "UsageError",
    "did_you_mean",
    "first_line",
]

MAX_LISTED = 70
"""A message lists up to this many accepted names; of more, it lists only the closest matches."""


class MlpconvError(Exception):
    """The base class of all errors of this package."""

    exit_code = 1


class UsageError(MlpconvError):
    """An invalid or unknown name, option or setting."""

    exit_code = 2


class DataError(MlpconvError):
    """Images, folders or data-set files that cannot be used."""


class ImageError(DataError):
    """An image that cannot be read."""


class MissingSplit(DataError):
    """A split (train, val or test) that the data set lacks."""


class DownloadError(DataError):
    """A download that failed or differs from the published file."""


class ModelFileError(MlpconvError):
    """A model file that is missing, damaged, hostile or of another format."""


class SurgeryError(MlpconvError):
    """A network that an operation cannot change, or not without changing its outputs."""


class RunFolderError(MlpconvError):
    """A run folder that is in use, not empty or not writable."""


class ExportError(MlpconvError):
    """A model that cannot be exported, or an exported file that cannot be used."""


class ServerError(MlpconvError):
    """A server that cannot start."""


class CheckpointError(MlpconvError):
    """No valid checkpoint to resume from."""


class Interrupted(KeyboardInterrupt):
    """A run stopped by a signal, after saving its state.

    Neither `except Exception` nor `except MlpconvError` catches it, as for Ctrl-C elsewhere in Python.
    """

    def __init__(self, message: str, signal_number: int, folder: Path | None = None) -> None:
        super().__init__(message)
        self.signal_number, self.folder = signal_number, folder
        self.exit_code = 128 + signal_number


class TrainingError(MlpconvError):
    """Training that cannot continue."""


class CollapseError(TrainingError):
    """The loss stays at ln(number of classes) and every category map is dead."""


class NonFiniteError(TrainingError):
    """A loss or weight became NaN or infinite."""


def _normalized(name: str) -> str:
    """Return a name in lower case with underscores in place of dashes and spaces."""
    return name.casefold().replace("-", "_").replace(" ", "_")


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message without its full stop, or the class name if it is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """Suggest the closest accepted name and list all of them; if there are too many, list only close matches."""
    names = sorted(set(accepted))
    if len(names) > MAX_LISTED:
        matches = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
        closest = f"closest: {', '.join(matches)}" if matches else f"for example {names[0]!r}"
        return f"{closest}; {len(names):,} names are accepted."
    originals = {_normalized(original): original for original in reversed(names)}
    matches = difflib.get_close_matches(_normalized(name), originals, n=1, cutoff=0.5)
    listed = ", ".join(names)
    return f"did you mean {originals[matches[0]]!r}? Accepted: {listed}." if matches else f"accepted: {listed}."
