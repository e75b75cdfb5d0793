"""Choose the fastest way to run a network on this CPU; engines are compared with the plain network before use."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mlpconv.inference.engine import Engine, close, supported
from mlpconv.inference.layer_chain import LARGEST_INPUT, Forward, chain_of
from mlpconv.models.base import Network
from mlpconv.models.nin import NIN

__all__ = ["Dispatcher", "WeightVersions", "device_of", "modules_of", "state_of", "trusted_engine"]

WeightVersions = tuple[tuple[int, int, int], ...]
"""The identity and version counter of every tensor of a network."""

MIN_MACS = 20_000_000  # multiply-adds per image; a smaller network does not repay the compilation
TRIAL_IMAGES = 8
REPEATS = 5
MIN_SPEEDUP = 1.25  # of bfloat16 over float32; below that, timing noise would decide


@dataclass
class Dispatcher:
    """The engines of a network with its current weights; None if there is none or its outputs differ.

    `auto` is the faster engine, once measured.
    """

    state: WeightVersions
    tensors: list[Tensor]  # kept alive, so that their ids in `state` stay unique
    fp32: Engine | None
    bf16: Engine | None
    auto: Engine | None = None
    process: int = field(default_factory=os.getpid)

    @classmethod
    def prepare(cls, model: Network, state: WeightVersions, x: Tensor) -> Dispatcher:
        """Build the engines and try them on preprocessed images (N, C, H, W)."""
        trim_memory()
        dispatcher = cls(state, [*model.parameters(), *model.buffers()], None, None)
        chain = chain_of(model, tuple(x.shape[2:])) if supported() else None
        if chain is not None and chain.macs >= MIN_MACS:
            x = x[:TRIAL_IMAGES]
            expected = model(x)
            dispatcher.fp32 = trusted(Engine(chain, torch.float32), x, expected)
            # With SqueezeNet and EfficientNet-Lite0, 2 and 5 % of images would change their class in bfloat16.
            if isinstance(model, NIN) and torch.ops.mkldnn._is_mkldnn_bf16_supported():
                dispatcher.bf16 = trusted(Engine(chain, torch.bfloat16), x, expected)
        return dispatcher

    def fits(self, state: WeightVersions) -> bool:
        """Return whether these engines were built for this state of the network, in this process.

        In a forked child they would wait for threads of the parent.
        """
        return self.state == state and self.process == os.getpid()

    def choose(self, precision: str, x: Tensor) -> Engine | None:
        """Return the engine for "fp32", or the faster one for "auto"; None if `x` has NaN or values too large."""
        if self.fp32 is None:
            return None
        if not within_limits(x):
            return None
        if precision == "fp32" or self.bf16 is None:
            return self.fp32
        if self.auto is None:
            seconds = timed([self.fp32, self.bf16], x[:TRIAL_IMAGES])
            self.auto = self.bf16 if seconds[0] > MIN_SPEEDUP * seconds[1] else self.fp32
        return self.auto


def within_limits(x: Tensor) -> bool:
    """Return whether no preprocessed pixel is NaN or too large for an engine."""
    low, high = (float(value) for value in x.aminmax())
    return -LARGEST_INPUT <= low <= high <= LARGEST_INPUT


def trusted_engine(model: Network, x: Tensor, precision: str, plain: Forward, *, features: bool) -> Engine | None:
    """Return an engine for `plain`, tried on preprocessed images (N, C, H, W); None if there is none.

    `plain` maps them to the logits of the model, or with `features` to the spatial means of its features (N, D).
    """
    usable = supported() and x.device.type == "cpu" and len(x) and within_limits(x)
    chain = chain_of(model, tuple(x.shape[2:]), features=features) if usable else None
    if chain is None or chain.macs < MIN_MACS:
        return None
    rounded = precision == "bf16"
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        expected = plain(
            x
        ).float()  # rounded as the engine is: bfloat16 alone can exceed the tolerance of a deep network
    with torch.autocast("cpu", enabled=False):  # the engine casts by itself
        return trusted(Engine(chain, torch.bfloat16 if rounded else torch.float32), x, expected)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return a module and its submodules, faster than `modules()`, which dominates small predictions."""
    modules = [model]
    for module in modules:  # grows during the loop
        if module._modules:
            modules += [child for child in module._modules.values() if child is not None]
    return modules


def state_of(modules: Iterable[nn.Module]) -> WeightVersions | None:
    """Return the state that detects changed weights; None if changes cannot be detected, or modules have hooks."""
    state: list[tuple[int, int, int]] = []
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is None:
                    continue
                if tensor.is_inference():  # such a tensor has no version counter
                    return None
                state.append((id(tensor), tensor.data_ptr(), tensor._version))
    return tuple(state)


def device_of(modules: Iterable[nn.Module]) -> torch.device:
    """Return the device of the first parameter, the CPU if there is none; much faster than `parameters()`."""
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None:
                return parameter.device
    return torch.device("cpu")


def trusted(engine: Engine, x: Tensor, expected: Tensor) -> Engine | None:
    """Return the engine if its outputs match those of the plain network, else None."""
    try:
        logits = engine(x)
    except RuntimeError:  # an operator that is not available on this CPU
        return None
    return engine if close(logits, expected, engine.dtype) else None


def trim_memory() -> None:
    """Let glibc return the memory of earlier engines, which is fragmented by graphs that oneDNN still caches."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def timed(engines: list[Engine], x: Tensor) -> list[float]:
    """Return the best time of each engine in seconds, measured in turn."""
    seconds = [float("inf")] * len(engines)
    for _ in range(REPEATS):
        for number, engine in enumerate(engines):
            start = time.perf_counter()
            engine(x)
            seconds[number] = min(seconds[number], time.perf_counter() - start)
    return seconds
