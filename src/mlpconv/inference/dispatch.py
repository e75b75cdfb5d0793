"""Which way a network computes fastest here: its engines, tried and compared with the plain network before use."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from mlpconv.inference.engine import LARGEST_INPUT, Engine, Forward, close, layers_of, supported, work_of
from mlpconv.models.base import Network

__all__ = ["Dispatcher", "WeightVersions", "modules_of", "state_of"]

WeightVersions = tuple[tuple[int, int, int], ...]
"""Which tensors a network has, and how often each was changed."""

LEAST_WORK = 20_000_000  # multiply-adds an image: for a smaller network preparing costs more than it brings
TRIED = 8  # images that engines are tried on
REPEATS = 5
CLEARLY = 1.25  # times as fast bfloat16 must be: below, a chance of the moment would decide about the numbers


@dataclass
class Dispatcher:
    """The engines of a network for as long as its weights stay as they are; None where there is none to trust.

    `auto` is the faster of them, once it was asked for.
    """

    state: WeightVersions
    tensors: list[Tensor]  # kept, so that their identities in `state` stay theirs
    fp32: Engine | None
    bf16: Engine | None
    auto: Engine | None = None
    process: int = field(default_factory=os.getpid)

    @classmethod
    def prepare(cls, model: Network, state: WeightVersions, x: Tensor) -> Dispatcher:
        """Build and try the engines on preprocessed images (N, C, H, W)."""
        give_back_freed_memory()
        fast = cls(state, [*model.parameters(), *model.buffers()], None, None)
        layers = layers_of(model) if supported() else None
        if layers is not None and work_of(layers, model.input_size[1:])[1] >= LEAST_WORK:
            expected, head = model(x[:TRIED]), cast("Forward", model.head)
            fast.fp32 = trusted(Engine(layers, head, torch.float32), x[:TRIED], expected)
            if torch.ops.mkldnn._is_mkldnn_bf16_supported():
                fast.bf16 = trusted(Engine(layers, head, torch.bfloat16), x[:TRIED], expected)
        return fast

    def fits(self, state: WeightVersions) -> bool:
        """Whether these are engines of that state of the network, made by this process.

        After a fork they would wait for the threads that their kernels were made for.
        """
        return self.state == state and self.process == os.getpid()

    def choose(self, precision: str, x: Tensor) -> Engine | None:
        """The engine for "fp32", or for "auto" the faster; None where `x` is too large for engines, or has NaN."""
        if self.fp32 is None:
            return None
        low, high = (float(value) for value in x.aminmax())
        if not -LARGEST_INPUT <= low <= high <= LARGEST_INPUT:
            return None
        if precision == "fp32" or self.bf16 is None:
            return self.fp32
        if self.auto is None:
            seconds = timed([self.fp32, self.bf16], x[:TRIED])
            self.auto = self.bf16 if seconds[0] > CLEARLY * seconds[1] else self.fp32
        return self.auto


def modules_of(model: nn.Module) -> list[nn.Module]:
    """A module and all in it: as `modules()`, which takes a good part of a small prediction."""
    found = [model]
    for module in found:  # grows as it goes
        if module._modules:
            found += [child for child in module._modules.values() if child is not None]
    return found


def state_of(modules: Iterable[nn.Module]) -> WeightVersions | None:
    """What tells whether a network is still the one it was; None where that cannot be told, or hooks wait for calls."""
    tensors: list[Tensor] = []
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        if module._parameters:
            tensors += [tensor for tensor in module._parameters.values() if tensor is not None]
        if module._buffers:
            tensors += [tensor for tensor in module._buffers.values() if tensor is not None]
    if any(tensor.is_inference() for tensor in tensors):  # such tensors do not count their changes
        return None
    return tuple([(id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors])


def trusted(engine: Engine, x: Tensor, expected: Tensor) -> Engine | None:
    """The engine, if it computes here what the plain network does."""
    try:
        found = engine(x)
    except RuntimeError:  # an operator that this build of torch has, but not for this CPU
        return None
    return engine if close(found, expected, engine.dtype) else None


def give_back_freed_memory() -> None:
    """Let glibc return what earlier engines held: compiled graphs that oneDNN still caches lie in between."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def timed(engines: list[Engine], x: Tensor) -> list[float]:
    """The best time of each engine in seconds, measured in turn."""
    seconds = [float("inf")] * len(engines)
    for _ in range(REPEATS):
        for number, engine in enumerate(engines):
            began = time.perf_counter()
            engine(x)
            seconds[number] = min(seconds[number], time.perf_counter() - began)
    return seconds
