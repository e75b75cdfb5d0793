"""Record the function calls of a forward pass and the tensors that connect them.

Independent of mlpconv's tracer, so that the survey's rules do not depend on what mlpconv can trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["Flow", "Step", "record"]


@dataclass(frozen=True)
class Step:
    """One function call."""

    name: str
    """Lower case, without leading and trailing underscores."""
    inputs: tuple[Tensor, ...]
    """All input tensors, including weights."""
    outputs: tuple[Tensor, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return tuple(self.outputs[0].shape)


@dataclass
class Flow:
    """All steps of one forward pass, in order."""

    steps: list[Step]
    image: Tensor
    output: Any

    def __post_init__(self) -> None:
        self.made_by: dict[int, list[int]] = {}
        self.used_by: dict[int, list[int]] = {}
        self.seen = {id(self.image)}
        for place, step in enumerate(self.steps):
            for tensor in step.inputs:
                self.used_by.setdefault(id(tensor), []).append(place)
            for tensor in step.outputs:
                self.made_by.setdefault(id(tensor), []).append(place)
            if any(id(tensor) in self.seen for tensor in step.inputs):
                self.seen |= {id(tensor) for tensor in step.outputs}

    def source(self, tensor: Tensor, before: int) -> int | None:
        """Return the last step before `before` that produced a tensor; None for the image and weights."""
        places = [place for place in self.made_by.get(id(tensor), ()) if place < before]
        return places[-1] if places else None

    def data(self, step: Step) -> list[Tensor]:
        """Return the inputs of a step that depend on the image."""
        return [tensor for tensor in step.inputs if id(tensor) in self.seen]


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        if outputs:
            inputs = tuple(leaf for leaf in tree_leaves((args, dict(kwargs or {}))) if isinstance(leaf, Tensor))
            name = getattr(func, "__name__", str(func)).lower().strip("_")
            # Tensors are kept alive, so that their ids are not reused.
            self.steps.append(Step(name, inputs, outputs, dict(kwargs or {}), tuple(args)))
        return result


@torch.no_grad()
def record(model: nn.Module, image: Tensor) -> Flow:
    """Record a forward pass of the image (N, C, H, W)."""
    recorder = _Recorder()
    with recorder:
        output = model(image)
    return Flow(recorder.steps, image, output)
