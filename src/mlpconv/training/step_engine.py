"""The engine of a run: training steps run eagerly, as a replayed CUDA graph, or compiled.

A replayed graph launches all kernels of a step at once, so that a GPU does not wait for Python between them. It
computes what an eager step computes, bit for bit: dropout draws from a generator seeded by (seed, step) before each
replay, and the learning rates are tensors on the device. A compiled step fuses operations and differs in rounding.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mlpconv.data.sampler import Batch
from mlpconv.errors import TrainingError, UsageError, first_line
from mlpconv.models.base import Network
from mlpconv.text import option
from mlpconv.training.optim import Optimizers, make_optimizers
from mlpconv.training.recipe import Recipe
from mlpconv.training.step import Forward, Inputs, Outcome, forward_pass, prepare, update

__all__ = ["Capture", "Mode", "StepEngine", "check_engine", "choose_engine"]

Mode = Literal["eager", "graph", "compile"]
Capture = Callable[[Callable[[], Outcome]], tuple[Callable[[], object], Outcome]]
"""Record an action; return what replays it, and the tensors that each replay writes."""

MIN_SPEEDUP = 1.02  # of graph over eager; below, the memory of a graph buys nothing
TIMED_STEPS = 10
MAX_SHAPES = 64  # compiled versions: batch shapes times the stages of freezing


class StepEngine:
    """Run training steps on a model and its optimizers.

    `capture` records a step to replay it; None runs every step eagerly. The first step of each batch shape, and after
    each change of the frozen layers, always runs eagerly: it allocates what a capture must find.
    """

    def __init__(
        self,
        model: Network,
        optimizers: Optimizers,
        recipe: Recipe,
        precision: str,
        mode: Mode = "eager",
        capture: Capture | None = None,
        forward: Forward = forward_pass,
    ) -> None:
        self.model, self.optimizers, self.recipe, self.precision = model, optimizers, recipe, precision
        self.forward = compiled_forward() if mode == "compile" else forward
        device = next(model.parameters()).device
        if capture is None and mode != "eager" and device.type == "cuda":
            capture = CudaCapture(device)
        self.capture = capture
        self.steps: dict[object, CapturedStep | None] = {}
        if capture is not None or device.type == "cuda":  # in every mode, for the same bits
            optimizers.lr_on(device)

    def __call__(self, batch: Batch, step: int) -> Outcome:
        """Update the weights once; the tensors of the outcome are valid until the next call."""
        inputs = prepare(batch, self.recipe, step, self.model.num_classes)
        if self.capture is None:
            return self.update(inputs)
        key = (inputs.images.shape, *(parameter.requires_grad for parameter in self.model.parameters()))
        if key not in self.steps:
            self.steps[key] = None
            return self.update(inputs)
        captured = self.steps[key]
        if captured is None:
            captured = self.steps[key] = CapturedStep(self.update, inputs, self.capture)
        return captured(inputs)

    def update(self, inputs: Inputs) -> Outcome:
        """Update the weights once, eagerly."""
        return update(self.model, self.optimizers, inputs, self.recipe, self.precision, self.forward)

    def reset(self) -> None:
        """Forget the captured steps, after the optimizers discarded their state."""
        self.steps.clear()


class CapturedStep:
    """A recorded step with the buffers that it reads."""

    def __init__(self, action: Callable[[Inputs], Outcome], inputs: Inputs, capture: Capture) -> None:
        self.inputs = inputs.map(torch.clone)
        self.replay, self.outcome = capture(lambda: action(self.inputs))

    def __call__(self, inputs: Inputs) -> Outcome:
        for buffer, value in zip(self.inputs, inputs, strict=True):
            if buffer is not None and value is not None:
                buffer.copy_(value, non_blocking=True)
        self.replay()
        return self.outcome


class CudaCapture:
    """Record actions as CUDA graphs that share one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, action: Callable[[], Outcome]) -> tuple[Callable[[], object], Outcome]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outcome = action()
        return graph.replay, outcome


def compiled_forward() -> Forward:
    """Return the forward pass compiled by torch.compile, for each shape anew; the backward pass is compiled with it."""
    config = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, MAX_SHAPES)
    compiled = torch.compile(forward_pass, dynamic=False)

    def forward(model: Network, images: Tensor) -> tuple[Tensor, list[tuple[float, Tensor]]]:
        try:
            return compiled(model, images)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise TrainingError(
                f"torch.compile cannot compile this network here ({first_line(error)}): it needs a C++ compiler on the "
                f"CPU, Triton on a GPU. Train with {option('engine', 'eager')}."
            ) from error

    return forward


def check_engine(recipe: Recipe, device: torch.device) -> None:
    """Raise UsageError if the recipe asks for an engine that this device or its virtual shards exclude."""
    if recipe.engine in ("graph", "compile") and recipe.virtual_shards > 1:
        raise UsageError(
            f"engine={recipe.engine} and virtual_shards={recipe.virtual_shards} exclude one another: steps of virtual "
            "shards run eagerly. Drop one of the two."
        )
    if recipe.engine == "graph" and device.type != "cuda":
        raise UsageError(
            f"engine=graph replays CUDA graphs, and this run is on the {device.type.upper()}: give engine=eager, "
            "compile or auto, or train on a GPU."
        )


def choose_engine(
    model: Network, load: Callable[[], Batch], recipe: Recipe, precision: str, device: torch.device
) -> tuple[Mode, str]:
    """Return the engine of a run and a message about it; `auto` times eager steps and graphs on the batch of `load`."""
    if recipe.engine != "auto":
        return recipe.engine, f"engine {recipe.engine}, as requested"
    if device.type != "cuda" or recipe.virtual_shards > 1:
        return "eager", ""
    batch = load()
    try:
        eager, graph = (time_engine(model, batch, recipe, precision, mode) for mode in ("eager", "graph"))
    except RuntimeError as error:
        return "eager", f"engine eager: CUDA graphs fail here ({first_line(error)})"
    choice: Mode = "graph" if eager > MIN_SPEEDUP * graph else "eager"
    times = f"a step of {len(batch.labels)} images takes {eager:.2f} ms eagerly and {graph:.2f} ms as a CUDA graph"
    return choice, f"engine {choice}: {times}"


def time_engine(model: Network, batch: Batch, recipe: Recipe, precision: str, mode: Mode) -> float:
    """Return the milliseconds of a training step on a copy of the network, after two steps to warm up."""
    model = copy.deepcopy(model)
    optimizers = make_optimizers(model, recipe)
    optimizers.set_lr(0.0)
    engine = StepEngine(model, optimizers, recipe, precision, mode)
    start = 0.0
    for step in range(2 + TIMED_STEPS):
        if step == 2:
            torch.cuda.synchronize(batch.images.device)
            start = time.perf_counter()
        engine(batch, step)
    torch.cuda.synchronize(batch.images.device)
    return 1000 * (time.perf_counter() - start) / TIMED_STEPS
