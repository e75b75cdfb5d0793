"""The network that a page explores: its steps, its images, and every number, computed by torch in double precision."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mlpconv.data import Split
from mlpconv.errors import UsageError
from mlpconv.evaluation import evaluate, wilson
from mlpconv.explorer.edits import Edit, apply, parse_edits
from mlpconv.explorer.program import Program, read_program
from mlpconv.inference import Classifier
from mlpconv.text import printable

__all__ = ["MAX_IMAGES", "Subject"]

MAX_IMAGES = 64
KEPT = 3
"""Forward passes that are kept, so that asking for more layers of one costs nothing."""

Weights = dict[str, tuple[Tensor, Tensor | None]]
Values = dict[fx.Node, Any]


class Subject:
    """A classifier on the page, with its images and, where there are some, held-out images to evaluate on.

    `source` is what the user named; the page shows it and uses it in code to copy. Raises SurgeryError for a network
    that cannot be traced.
    """

    def __init__(self, classifier: Classifier, source: str, held_out: Split | None = None, why: str = "") -> None:
        self.classifier, self.source = classifier, source
        self.held_out, self.why = held_out, why
        self.program: Program = read_program(classifier.model, classifier.input_size)
        self.program.graph.double().eval()
        for module in self.program.graph.modules():
            if hasattr(module, "inplace"):
                setattr(module, "inplace", False)  # noqa: B010  the values before an activation are shown too
        self.names: list[str] = []
        self.images: list[Any] = []
        """What was added, for a second network to decode at its own size."""
        self.pixels: list[Tensor] = []
        self._lock = threading.Lock()
        self._passes: OrderedDict[tuple[int, str], Values] = OrderedDict()

    def add(self, image: Any, name: str) -> int:
        """Add an image (whatever `Classifier.pixels` reads) under a name; return its number.

        Raises ImageError for a file that is not a readable image, UsageError if there are MAX_IMAGES already.
        """
        pixels = self.classifier.pixels(image)
        with self._lock:
            if len(self.names) >= MAX_IMAGES:
                raise UsageError(f"There are {MAX_IMAGES} images already; restart mlpconv explore to begin again.")
            self.images.append(image)
            self.pixels.append(pixels[0])
            self.names.append(printable(name)[:100] or "image")
            return len(self.names) - 1

    def describe(self) -> dict[str, Any]:
        """Return what the page needs to know, JSON-able."""
        return {
            "name": printable(self.classifier.model.config.name),
            "source": self.source,
            "classes": [printable(name) for name in self.classifier.classes],
            "steps": self.program.steps,
            "images": list(self.names),
            "heldOut": {"count": 0 if self.held_out is None else len(self.held_out), "why": self.why},
            "canAdd": True,
        }

    def input(self, image: int) -> Tensor:
        """Return the preprocessed image (1, C, H, W) in double precision; raise UsageError for an unknown number."""
        if not 0 <= image < len(self.pixels):
            raise UsageError(f"There is no image {image}; there are {len(self.pixels)}, numbered from 0.")
        with torch.inference_mode():
            prepared: Tensor = self.classifier.preprocessing(self.pixels[image][None])
            return prepared.double()

    def outputs(self, image: int, edits: str, steps: Sequence[int]) -> list[Tensor]:
        """Return the outputs (C, H, W) of some steps for one image, with the network edited.

        Raises UsageError for an unknown image, step or edit.
        """
        unknown = [step for step in steps if not 0 <= step < len(self.program.steps)]
        if unknown:
            raise UsageError(f"There is no step {unknown[0]}; there are {len(self.program.steps)}, numbered from 0.")
        changed = apply(parse_edits(edits, self.program), self.program)
        with self._lock:
            values = self._pass(image, "", {}) if not changed else self._pass(image, edits, changed)
        nodes = self.program.nodes
        return [values[nodes[step]].reshape(self.program.steps[step]["shape"]) for step in steps]

    def _pass(self, image: int, edits: str, changed: Weights) -> Values:
        """Return the values of a forward pass; with edits, only what they can change is computed."""
        key = (image, edits)
        if key not in self._passes:
            known = self._pass(image, "", {}) if changed else {}
            self._passes[key] = forward(self.program, self.input(image), changed, known)
            while len(self._passes) > KEPT:
                self._passes.popitem(last=False)
        self._passes.move_to_end(key)
        return self._passes[key]

    def weights(self, step: int, edits: str, only: int | None = None) -> Tensor:
        """Return the weights of a step as one vector: weight and bias, or scale, shift, mean and variance of a norm.

        `only` is a single filter of a convolution. Raises UsageError for a step without weights, or no such filter.
        """
        module = self.program.module(step) if 0 <= step < len(self.program.steps) else None
        if isinstance(module, nn.BatchNorm2d):
            return norm_vector(module)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise UsageError(f"Step {step} has no weights.")
        changed = apply(parse_edits(edits, self.program), self.program)
        weight, bias = changed.get(self.program.steps[step]["name"], (module.weight.detach(), module.bias))
        if only is not None and not 0 <= only < len(weight):
            raise UsageError(f"There is no filter {only}; there are {len(weight)}, numbered from 0.")
        rows = slice(None) if only is None else slice(only, only + 1)
        return torch.cat([part.detach()[rows].reshape(-1) for part in (weight, bias) if part is not None])

    def accuracy(self, edits: str) -> dict[str, Any]:
        """Return the edited network's accuracy on the held-out images, with Wilson's 95 % interval.

        Raises UsageError where there are none.
        """
        if self.held_out is None:
            raise UsageError(self.why or "There are no held-out images: pass --evaluate DATA.")
        changed = parse_edits(edits, self.program)
        result = evaluate(self._edited(changed), self.held_out)
        correct = round(result.n * result.accuracy)
        low, high = wilson(correct, result.n)
        return {"n": result.n, "correct": correct, "accuracy": correct / result.n, "low": low, "high": high}

    def _edited(self, edits: tuple[Edit, ...]) -> Classifier:
        """Return a classifier with the edited weights; without edits the classifier itself."""
        old = self.classifier
        if not edits:
            return old
        model = deepcopy(old.model)
        with torch.no_grad():
            for name, (weight, bias) in apply(edits, self.program).items():
                module = model.get_submodule(name)
                if not isinstance(module, nn.Conv2d | nn.Linear):
                    raise UsageError(f"{name} has no weights.")
                module.weight.copy_(weight)
                if bias is not None and module.bias is not None:
                    module.bias.copy_(bias)
        return Classifier(model, old.preprocessing, old.classes, old.input_size, old.info)


def norm_vector(norm: nn.BatchNorm2d) -> Tensor:
    """Return scale, shift, mean and variance of a batch norm as one vector."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise UsageError("This batch norm has no running statistics.")
    scale = torch.ones_like(mean) if norm.weight is None else norm.weight.detach()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
    return torch.cat([scale, shift, mean, variance])


def forward(program: Program, image: Tensor, changed: Weights, known: Values | None = None) -> Values:
    """Return the value of every node for one image (1, C, H, W), with changed weights of some modules.

    `known` are the values without changes; those that the changes cannot reach are used again.
    """
    runner = _Runner(program.graph, changed, known or {})
    with torch.inference_mode():
        runner.run(image)
    return runner.values


class _Runner(fx.Interpreter):
    """Run the graph node by node and keep every value."""

    def __init__(self, graph: fx.GraphModule, changed: Weights, known: Values) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.changed, self.known = changed, known
        self.values: Values = {}
        self.reached: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        if n.target in self.changed or not self.reached.isdisjoint(n.all_input_nodes):
            self.reached.add(n)
        reuse = n in self.known and n not in self.reached
        self.values[n] = self.known[n] if reuse else super().run_node(n)
        return self.values[n]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target not in self.changed:
            return super().call_module(target, args, kwargs)
        module, (weight, bias) = self.module.get_submodule(target), self.changed[target]
        if isinstance(module, nn.Conv2d):
            return module._conv_forward(args[0], weight, bias)
        return F.linear(args[0], weight, bias)
