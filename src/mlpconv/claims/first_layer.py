"""The filters of the first layer, before and after training, for a claim that measures their orientation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mlpconv.claims.claim_files import ClaimFile
from mlpconv.claims.measured.orientation_tuning import orientation_index
from mlpconv.claims.results import DAMAGES, read_result, rerun, result_path
from mlpconv.claims.trial import ClaimRun, trained_network
from mlpconv.errors import DataError
from mlpconv.files import write_atomic

__all__ = ["METRIC", "filter_indices", "filters_path", "keep_filters", "read_filters"]

METRIC = "orientation"
SEED = 1
"""The run whose filters are kept: the first, not the best looking."""
ROUNDING = 1e-5
Weights: TypeAlias = npt.NDArray[np.float32]


def filters_path(folder: Path, data: str, name: str) -> Path:
    """Return the file of the filters of a claim on a data set."""
    return result_path(folder, data, name).with_name(f"{name}-filters.npz")


def filter_indices(weights: Weights) -> list[float]:
    """Return the orientation index of each filter: (F, C, k, k) -> F numbers."""
    return [orientation_index(torch.from_numpy(weight)[None]) for weight in weights]


def keep_filters(file: ClaimFile, data: str, folder: Path, note: Callable[[str], None]) -> None:
    """Store the first layers of the first run of every arm, if the claim measures their orientation.

    The networks are trained again, with the same bits; a file that belongs to the result stays as it is.
    """
    result = read_result(folder, data, file)
    if result is None or all(comparison.metric != METRIC for comparison in file.claim.comparisons):
        return
    try:
        if read_filters(file, data, folder, result):
            return
    except DataError:
        note(f"{filters_path(folder, data, file.claim.name)} is damaged: it is written again.")
    weights: dict[str, Weights] = {}
    for name, arm in file.claim.arms.items():
        stored = result["arms"][name]
        trial = ClaimRun(data, stored["words"], SEED, stored["learning_rate"], arm.epochs, arm.train_images)
        first = next(module for module in trained_network(trial).modules() if isinstance(module, nn.Conv2d))
        weights[name] = first.weight.detach().contiguous().numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, arms=np.array(list(weights)), weights=np.stack(list(weights.values())))
    write_atomic(filters_path(folder, data, file.claim.name), buffer.getvalue())


def read_filters(file: ClaimFile, data: str, folder: Path, result: dict[str, Any]) -> dict[str, Weights]:
    """Return the stored filters (F, C, k, k) by arm; empty if there are none, or if they are not those of the result.

    Raises DataError if the file is damaged.
    """
    path = filters_path(folder, data, file.claim.name)
    if not path.is_file():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            weights = dict(zip(map(str, stored["arms"]), stored["weights"], strict=True))
            indices = {name: float(np.mean(filter_indices(values))) for name, values in weights.items()}
            measured = {name: arm["values"][METRIC][SEED - 1] for name, arm in result["arms"].items()}
    except DAMAGES as error:
        command = rerun(folder, data, file)
        raise DataError(f"{str(path)!r} is damaged: `{command}` writes it again.") from error
    same = set(indices) == set(measured) and all(abs(indices[name] - measured[name]) < ROUNDING for name in indices)
    return weights if same else {}
