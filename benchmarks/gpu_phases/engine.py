"""The engines of training on a GPU: eager and replayed steps have the same bits; their speed by batch size."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from gpu_phases.clock import rate
from mlpconv.data.sampler import Batch
from mlpconv.models import create_model
from mlpconv.training.optim import make_optimizers
from mlpconv.training.recipe import Recipe
from mlpconv.training.step_engine import StepEngine

__all__ = ["engine", "run"]

BATCHES = (128, 192, 512, 1024)
TRACED = 5  # steps
RANGES = "Optimizer."
"""How the names of ranges of several kernels begin, such as Optimizer.step#Muon.step."""


def run(device: torch.device, *, small: bool, deadline: float, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return the checks by optimizer, and figures by batch size and engine."""
    result: dict[str, Any] = {"checks": {}, "steps": {}}
    modes = ("eager", "graph") if device.type == "cuda" else ("eager",)
    if len(modes) > 1:
        for optimizer in ("sgd", "adamw", "muon"):
            result["checks"][f"a replayed step of {optimizer} has the bits of an eager one"] = same_bits(
                optimizer, device
            )
            say(result)
    for batch in (16,) if small else BATCHES:
        for mode in modes:
            if time.perf_counter() > deadline - 10:
                return result | {"left_out": f"batch {batch} {mode} and what follows: no time was left"}
            action = engine("nin_tiny" if small else "nin_cifar10", mode, device, batch)
            figures = {"images_per_second": round(batch * rate(action, device, 0.02 if small else 0.15))}
            result["steps"].setdefault(str(batch), {})[mode] = figures | traced(action, device)
            say(result)
    return result


def engine(name: str, mode: Any, device: torch.device, batch: int, **settings: Any) -> Callable[[], object]:
    """Return a training step in bf16 with batch norm on random images, after the steps that warm it up."""
    run_step = built(name, mode, device, batch, Recipe(optimizer="muon", lr=1e-3, **settings))
    run_step(0)
    run_step(1)
    return lambda: run_step(2)


def built(name: str, mode: Any, device: torch.device, batch: int, recipe: Recipe) -> Callable[[int], Any]:
    torch.manual_seed(0)
    model = create_model(name, norm="batch", init="he", last_relu=False, dropout=recipe.dropout)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = torch.randn(batch, *model.input_size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(model.num_classes, (batch,), device=device)
    optimizers = make_optimizers(model, recipe)
    optimizers.set_lr(recipe.lr)
    steps = StepEngine(model, optimizers, recipe, "bf16", mode)
    return lambda step: steps(Batch(images, labels), step)


def same_bits(optimizer: Any, device: torch.device) -> bool | str:
    """Train both ways with dropout in deterministic mode; True, or how many of the losses differ."""
    recipe = Recipe(optimizer=optimizer, lr=1e-2, dropout=0.5)
    torch.use_deterministic_algorithms(True, warn_only=True)
    losses = []
    for mode in ("eager", "graph"):
        step = built("nin_cifar10", mode, device, 53, recipe)
        losses.append([float(step(number).loss) for number in range(8)])
    torch.use_deterministic_algorithms(False)
    unlike = sum(before != after for before, after in zip(*losses, strict=True))
    return f"{unlike} of {len(losses[0])} losses differ" if unlike else True


def traced(action: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return the launches of a step, its kernels, and the share of the time in which no kernel ran."""
    if device.type != "cuda":
        return {}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(TRACED):
            action()
        torch.cuda.synchronize(device)
    kernels, launches, busy = [], 0, Counter[str]()
    for event in profile.events() or ():
        if event.device_type.name == "CUDA" and not event.name.startswith(RANGES):
            kernels.append((event.time_range.start, event.time_range.end))
            busy[event.name] += event.time_range.end - event.time_range.start
        launches += "LaunchKernel" in event.name or "GraphLaunch" in event.name
    if not kernels:
        return {}
    span = max(end for _, end in kernels) - min(start for start, _ in kernels)
    longest = {name[:60]: round(us / TRACED) for name, us in busy.most_common(6)}
    return {
        "launches": round(launches / TRACED),
        "kernels": round(len(kernels) / TRACED),
        "idle_share": round(max(0.0, 1 - sum(busy.values()) / span), 3),
        "longest_us": longest,
    }
