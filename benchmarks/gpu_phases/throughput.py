"""Images per second in training and inference: eager, bfloat16 in channels-last, CUDA graphs, and torch.compile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from plain import network as plain
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_phases.clock import rate
from mlpconv.analysis import profile
from mlpconv.models import create_model
from mlpconv.training.optim import make_optimizers
from mlpconv.training.recipe import Recipe

__all__ = ["run"]

NETWORKS: dict[str, tuple[str, ...]] = {
    "nin_cifar10": ("fp32", "bf16", "bf16-graph"),
    "plain": ("fp32", "bf16-graph"),
    "nin_mnist": ("bf16-graph",),
    "nin_svhn": ("bf16-graph",),
    "nin_imagenet": ("bf16-graph",),
    "nin_cifar10 compiled": ("bf16-compile", "bf16-compile-mm"),
    "plain compiled": ("bf16-compile",),
}
"""What is measured, most important first. Compiling takes half a minute; -mm compiles 1x1s as matrix products."""
BATCH = {"nin_imagenet": 256}
SMALL = {"nin_tiny": ("fp32", "bf16")}


def run(device: torch.device, *, small: bool, deadline: float, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return images per second by network, work and mode, and the share of the bf16 matmul peak of this process."""
    result: dict[str, Any] = {}
    side = 512 if small else 8192
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    peak = 2 * side**3 * rate(lambda: left @ left, device)
    for title, modes in (SMALL if small else NETWORKS).items():
        name = title.removesuffix(" compiled")
        for mode in modes:
            if device.type != "cuda" and (mode == "bf16-graph" or "compile" in mode):
                continue
            if time.perf_counter() > deadline - (20 if "compile" in mode else 5):
                return result | {"left_out": f"{title} {mode} and what follows: no time was left"}
            result.setdefault(name, {})[mode] = measured(name, mode, device, peak, small=small)
            say(result)
    return result


def measured(name: str, mode: str, device: torch.device, peak: float, *, small: bool) -> dict[str, Any]:
    """Measure training and inference of one network in one mode; a failure is the result."""
    figures: dict[str, Any] = {}
    for work in ("training", "inference"):
        try:
            batch = 64 if small else BATCH.get(name, 1024)
            case = Case(name, mode, device, batch)
            images = batch * rate(case.train if work == "training" else case.infer, device, 0.02 if small else 0.1)
            share = images * case.macs * 2 * (3 if work == "training" else 1) / peak
            figures[work] = {"images_per_second": round(images), "share_of_peak": round(share, 4), "batch": batch}
        except Exception as error:  # noqa: BLE001  (whatever a driver raises is the result)
            figures[work] = {
                "failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            }
    return figures


def built(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network with batch norm, or the plain port of nin_cifar10, and (C, H, W) of its images."""
    if name == "plain":
        return plain(), (3, 32, 32)
    network = create_model(name, norm="batch", init="he", last_relu=False)
    return network, network.input_size


class Case:
    """One network with its optimiser and a batch of random images on the device."""

    def __init__(self, name: str, mode: str, device: torch.device, batch: int) -> None:
        torch.manual_seed(0)
        self.device, self.precise = device, mode == "fp32"
        self.model, shape = built(name)
        self.macs = profile(self.model, shape).totals.macs
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images = torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (batch,), device=device)
        self.optimizers = make_optimizers(self.model, Recipe(optimizer="sgd", lr=1e-4))
        self.optimizers.set_lr(1e-4)
        self.forward: Callable[[Tensor], Tensor] = self.model
        self.train, self.infer = self._step, self._look
        if "compile" in mode:
            torch._dynamo.reset()
            self.forward = torch.compile(self.model, options={"conv_1x1_as_mm": mode.endswith("-mm")})
        if mode == "bf16-graph":
            self.train, self.infer = (captured(action, device) for action in (self._step, self._look))

    def _logits(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=not self.precise):
            return self.forward(self.images).float()

    def _step(self) -> None:
        self.model.train()
        self.optimizers.zero_grad()
        F.cross_entropy(self._logits(), self.labels).backward()
        self.optimizers.step()

    def _look(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self._logits()


def captured(action: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Return an action that replays another as one CUDA graph."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            action()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay
