"""Time the networks of a claim: inference and a training step, all arms in turn, in one process and one thread."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpconv.claims.budget import BUDGET, load_images
from mlpconv.claims.claim_files import ClaimFile
from mlpconv.claims.networks import build
from mlpconv.claims.results import read_result, rerun, result_header
from mlpconv.claims.trial import make_optimizer
from mlpconv.errors import DataError, UsageError
from mlpconv.files import json_bytes, write_atomic
from mlpconv.text import counted
from mlpconv.threads import one_thread
from mlpconv.training.memory import flushing_denormals
from mlpconv.training.seeding import keeping_random_states, seed_torch

__all__ = ["KINDS", "LEAST_ROUNDS", "measure_times", "read_times", "time_lines", "times_path"]

LEAST_ROUNDS = 3
STEPS = 10
"""Calls in a row that are timed together: the components of a PCA are computed again in one training step of ten."""
KINDS = ("inference", "training step")
QUARTILES = ("median", "low", "high")


def times_path(folder: Path, data: str, name: str) -> Path:
    """Return the file of the times of a claim on a data set."""
    return folder / "times" / data / f"{name}.json"


def measure_times(
    file: ClaimFile, data: str, folder: Path, rounds: int, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Time every arm of a claim that has a result on this data set; write and return the times.

    In each round every arm runs once, in an order that moves on by one arm a round, so that no arm always follows the
    same one. Written are median and quartiles in milliseconds per batch.
    """
    if rounds < LEAST_ROUNDS:
        raise UsageError(f"--rounds is {rounds}; at least {LEAST_ROUNDS} are accepted.")
    if not file.claim.comparisons or data not in file.claim.data:
        accepted = ", ".join(file.claim.data if file.claim.comparisons else ())
        raise UsageError(f"{file.claim.name} has no networks on {data}; accepted: {accepted or 'measured claims'}.")
    result = read_result(folder, data, file)
    if result is None:
        command = rerun(folder, data, file)
        raise UsageError(f"There is no result of {file.claim.name} on {data} in {str(folder)!r}: `{command}` makes it.")
    path = times_path(folder, data, file.claim.name)
    path.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is known before minutes of timing
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with one_thread(), flushing_denormals(), keeping_random_states(torch.device("cpu")):
        seed_torch(0, torch.device("cpu"))
        calls = _calls({name: arm["words"] for name, arm in result["arms"].items()}, file, data)
        times = _in_turn(calls, rounds, progress)
    arms: dict[str, dict[str, Any]] = {name: {} for name in result["arms"]}
    for (name, kind), values in times.items():
        found = np.percentile(values, (50, 25, 75))
        arms[name][kind] = {key: round(value, 4) for key, value in zip(QUARTILES, found, strict=True)}
    content = result_header(file) | {
        "command": f"mlpconv claims time {file.argument} --data {data} --rounds {rounds}",
        "data": data,
        "batch": BUDGET[data].batch,
        "rounds": rounds,
        "steps_timed_together": STEPS,
        "threads": 1,
        "load_before": load,
        "unit": "milliseconds per batch: median, lower and upper quartile",
        "arms": arms,
    }
    write_atomic(path, json_bytes(content))
    return content


def time_lines(file: ClaimFile, data: str, times: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line of text for every arm: median and quartiles of each kind of time."""
    for name in file.claim.arms:
        arm = times["arms"][name]
        shown = (f"{k} {arm[k]['median']:.2f} [{arm[k]['low']:.2f}, {arm[k]['high']:.2f}] ms" for k in KINDS)
        batch = counted(times["batch"], "image")
        yield f"{file.claim.name}, {data}: {name}: {', '.join(shown)} ({batch}, {counted(times['rounds'], 'round')})"


def _calls(words: Mapping[str, str], file: ClaimFile, data: str) -> dict[tuple[str, str], Callable[[], None]]:
    """Return what is timed, by arm and kind: some batches of inference, or as many training steps."""
    images = load_images(data)
    shape = images.shape._replace(side=2 * images.shape.side) if file.claim.canvas else images.shape
    generator = torch.Generator().manual_seed(0)
    size = (BUDGET[data].batch, shape.channels, shape.side, shape.side)
    batch = torch.randn(size, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(shape.classes, (len(batch),), generator=generator)
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    for name, text in words.items():
        for kind, call in zip(KINDS, (_infer, _train), strict=True):
            network = build(text, shape)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            calls[name, kind] = call(network, batch, labels)
    return calls


def _infer(network: nn.Module, batch: Tensor, labels: Tensor) -> Callable[[], None]:  # noqa: ARG001
    network.eval()

    @torch.no_grad()
    def call() -> None:
        for _ in range(STEPS):
            network(batch)

    return call


def _train(network: nn.Module, batch: Tensor, labels: Tensor) -> Callable[[], None]:
    network.train()
    optimizer = make_optimizer(network, learning_rate=1e-3)

    def call() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(network(batch), labels).backward()
            optimizer.step()

    return call


def _in_turn(
    calls: Mapping[tuple[str, str], Callable[[], None]], rounds: int, progress: Callable[[int], None]
) -> dict[tuple[str, str], list[float]]:
    """Return the milliseconds per batch of each call in each round, after one round that is not counted."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    keys = list(calls)
    for number in range(rounds + 1):
        for key in keys[number % len(keys) :] + keys[: number % len(keys)]:
            start = time.perf_counter()
            calls[key]()
            times[key].append((time.perf_counter() - start) * 1000 / STEPS)
        progress(number + 1)
    return {key: values[1:] for key, values in times.items()}


def read_times(file: ClaimFile, data: str, folder: Path) -> dict[str, Any] | None:
    """Return the stored times of a claim, None if there are none; raise DataError if they are damaged."""
    path = times_path(folder, data, file.claim.name)
    try:
        stored: dict[str, Any] = json.loads(path.read_bytes())
        for name in file.claim.arms:
            for kind in KINDS:
                if not all(math.isfinite(stored["arms"][name][kind][key]) for key in QUARTILES):
                    raise ValueError("a time is not finite")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        command = rerun(folder, data, file, "time")
        raise DataError(f"{str(path)!r} is damaged: `{command}` writes it again.") from error
    return stored
