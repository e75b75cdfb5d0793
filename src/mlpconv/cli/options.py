"""Options that several verbs share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mlpconv.errors import UsageError
from mlpconv.files import EXPORTED, MODEL_FILE, is_stream

__all__ = [
    "AnyModel", "DataDir", "Model", "Switch", "check_can_be_written", "check_data_dir", "check_from_one",
    "check_model_file", "image_size", "is_exported", "shipped_names",
]  # fmt: skip

Switch = Annotated[bool, Parameter(negative=())]
"""A flag that is off by default and has no --no- form."""


def shipped_names() -> list[str]:
    """Return the names of the shipped networks, as `models.weights.pretrained_names` does, without importing torch."""
    return sorted(file.stem for file in (Path(__file__).parents[1] / "weights").glob("*.safetensors"))


Model = Annotated[
    str, Parameter(help=f"A model file, a run folder, or the name of a shipped network: {', '.join(shipped_names())}.")
]
"""The network that a verb uses."""
AnyModel = Annotated[
    str,
    Parameter(
        help="A model file, a run folder, a file from `mlpconv export` (.onnx or .xml), or the name of a shipped "
        f"network: {', '.join(shipped_names())}."
    ),
]
"""The network of a verb that also runs exported files."""


DataDir = Annotated[
    Path | None,
    Parameter(name="--data", help="Folder with the files of a named data set, if they are not in the cache."),
]
"""Where a verb finds a named data set."""


def check_data_dir(folder: Path | None, data: str | None, option: str = "DATA") -> None:
    """Raise UsageError for a --data that is no folder, or that has no effect as `data` is not a named data set."""
    from mlpconv.data.catalog import CATALOG

    if folder is None:
        return
    meaning = "--data is the folder with the files of a named data set"
    if not folder.is_dir():
        advice = f"; did you mean {option} {folder}?" if str(folder) in CATALOG else ": give a folder."
        raise UsageError(f"{meaning}, and {str(folder)!r} is no folder{advice}")
    if data is not None and data not in CATALOG:
        raise UsageError(f"{meaning}, and {data!r} is none ({', '.join(CATALOG)}): leave --data out.")


def is_exported(model: str) -> bool:
    """Return whether a model is named like an exported file; a run folder may have any name."""
    return Path(model).suffix.lower() in EXPORTED and not os.path.isdir(model)  # noqa: PTH112


def check_from_one(**options: int) -> None:
    """Raise UsageError for an option that is less than 1."""
    for name, value in options.items():
        if value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected an integer of at least 1.")


def check_can_be_written(**files: Path | None) -> None:
    """Raise UsageError, before any work, for an option that names a folder, or a file in one that cannot take it."""
    for name, file in files.items():
        if file is None:
            continue
        folder = file.absolute().parent
        if file.is_dir() or not folder.is_dir():
            raise UsageError(f"--{name} is {str(file)!r}; expected a file in a folder that exists.")
        if not os.access(folder, os.W_OK | os.X_OK) and not is_stream(file):
            raise UsageError(f"--{name} is {str(file)!r}, and its folder is not writable: give a file in another one.")


def check_model_file(model: str, **files: Path | None) -> None:
    """Raise UsageError for an option that names no file to write, the model's own, or one with an exported name."""
    check_can_be_written(**files)
    for name, file in files.items():
        if file is not None and any(_same(file, source) for source in (Path(model), Path(model, MODEL_FILE))):
            raise UsageError(f"--{name} is {str(file)!r}, the model itself, which would be lost: give another file.")
        if file is not None and is_exported(str(file)):
            raise UsageError(
                f"--{name} is {str(file)!r}; expected a model file, such as {str(file.with_suffix('.safetensors'))!r}, "
                "which `mlpconv export` turns into .onnx or .xml."
            )


def _same(file: Path, other: Path) -> bool:
    """Return whether two paths lead to one file."""
    try:
        return file.samefile(other)
    except (OSError, ValueError):  # one of them does not exist
        return False


def image_size(text: str) -> tuple[int, int, int]:
    """Parse 3x32x32 as (C, H, W); raise UsageError for anything else."""
    numbers = re.fullmatch(r"(\d{1,6})[x×,](\d{1,6})[x×,](\d{1,6})", text.strip())
    if numbers is None or not all(int(number) for number in numbers.groups()):
        raise UsageError(f"--input is {text!r}; expected channels, rows and columns, as in 3x32x32.")
    channels, rows, columns = map(int, numbers.groups())
    return channels, rows, columns
