"""Steps on rows (N, C) of numbers, done at each cell of maps (N, C, h, w); and what such a step does, seen on numbers.

Nothing needs to be known of a step that treats every image of a batch by itself: cells are images then. Whether it
does, and whether it is linear, is tried on random rows with random parameters, in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from mlpconv.surgery.tracing.graph import attribute

__all__ = ["Trial", "cells_of", "rows_of"]

COUNT = 13
SEED = 13124400
LEAST, MOST = 0.5, 1.5
"""Random parameters, and rows on which roots and logarithms are numbers."""
BETWEEN = 0.3
NEAR, ROUNDED = 1e-9, 1e-5

Rows = Mapping[fx.Node, Tensor]


def rows_of(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Every cell as an image of its own: (N, C, h, w) -> (N * h * w, *shape)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).reshape(-1, *shape)


def cells_of(rows: Tensor, maps: Tensor) -> Tensor:
    """What was made of every cell of (N, C, h, w), as maps: (N * h * w, ...) -> (N, K, h, w)."""
    images, _, height, width = maps.shape
    return rows.reshape(images, height, width, rows.shape[1:].numel()).permute(0, 3, 1, 2)


class Trial:
    """One step of a head, tried on rows of random numbers."""

    def __init__(
        self, node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]], root: nn.Module, shadow: nn.Module
    ) -> None:
        """`shapes` are those of the inputs that come from the image, for one image; `root` holds the numbers."""
        self.node, self.shapes, self.root, self.shadow = node, dict(shapes), root, shadow
        self.source = torch.Generator().manual_seed(SEED)
        self.parameters: dict[fx.Node, Any] = {}
        self.module = self._module(node)

    def by_image(self) -> bool:
        """Whether each image's result depends on that image alone."""
        rows = self._rows(positive=True)
        whole = self._results(rows)
        if whole is None or any(each.shape[:1] != (COUNT,) for each in whole):
            return False
        parts = [
            self._results({node: each[image : image + 1] for node, each in rows.items()}) for image in range(COUNT)
        ]
        return all(_same([each[image : image + 1] for each in whole], part) for image, part in enumerate(parts))

    def affine(self) -> bool:
        """Whether the result is a weighted sum of the inputs, and a constant."""
        ends = self._rows(), self._rows()
        inside = {node: BETWEEN * each + (1 - BETWEEN) * ends[1][node] for node, each in ends[0].items()}
        first, second, between = (self._results(rows) for rows in (*ends, inside))
        if (
            first is None
            or second is None
            or between is None
            or not all(bool(each.isfinite().all()) for each in between)
        ):
            return False
        mixed = [BETWEEN * a + (1 - BETWEEN) * b for a, b in zip(first, second, strict=True)]
        return all(each.is_floating_point() for each in between) and _same(mixed, between)

    def keeps_places(self) -> bool:
        """Whether it makes one number for each number, and knows no difference between the places of a row."""
        rows = self._rows(positive=True)
        order = {node: torch.arange(each.shape[1] - 1, -1, -1) for node, each in rows.items() if each.dim() > 1}
        first = self._results(rows)
        turned = self._results({node: each[:, order[node]] for node, each in rows.items()}) if len(order) == 1 else None
        if first is None or turned is None or len(first) != 1 or first[0].shape != next(iter(rows.values())).shape:
            return False
        return _same([first[0].flip(1)], turned)

    def _rows(self, *, positive: bool = False) -> dict[fx.Node, Tensor]:
        return {node: self._drawn((COUNT, *shape), positive=positive) for node, shape in self.shapes.items()}

    def _drawn(self, shape: tuple[int, ...], *, positive: bool) -> Tensor:
        if positive:
            return LEAST + (MOST - LEAST) * torch.rand(shape, generator=self.source, dtype=torch.float64)
        return torch.randn(shape, generator=self.source, dtype=torch.float64)

    def _results(self, rows: Rows) -> list[Tensor] | None:
        """The tensors that the step makes of these rows; None where it fails or needs more than they."""
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                result = self._call(self.node, self.module, lambda node: self._known(node, rows))
        except Exception:  # noqa: BLE001  (the step is not ours: on other rows it may raise anything)
            return None
        return [each for each in tree_leaves(result) if isinstance(each, Tensor)]

    def _known(self, node: fx.Node, rows: Rows) -> Any:
        """An argument of the step: rows, or what is worked out of parameters; LookupError for another."""
        if node in rows:
            return rows[node]
        if node not in self.parameters:
            self.parameters[node] = self._worked_out(node)
        return self.parameters[node]

    def _worked_out(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            constants: dict[str, Tensor] = getattr(node.graph, "owning_constants", {})
            if node.target in constants:
                return constants[str(node.target)]
            held = attribute(self.root, str(node.target))
            return self._drawn(tuple(held.shape), positive=True) if held.is_floating_point() else held.cpu()
        if isinstance(node.meta.get("val"), torch.dtype | torch.device):
            return node.meta["val"]
        if not node.op.startswith("call_"):
            raise LookupError(node.name)  # the size of a batch would be another one for cells
        return self._call(node, self._module(node), lambda each: self._known(each, {}))

    def _call(self, node: fx.Node, module: nn.Module | None, known: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg(node.args, known), fx.map_arg(node.kwargs, known)
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that a step calls, with random parameters."""
        if node.op != "call_module":
            return None
        module = copy.deepcopy(self.root.get_submodule(str(node.target))).cpu().double()
        for tensor in _floats(module):
            tensor.data = self._drawn(tuple(tensor.shape), positive=True)
        return module.train(self.shadow.get_submodule(str(node.target)).training)


def _floats(module: nn.Module) -> Iterator[Tensor]:
    yield from (each for each in (*module.parameters(), *module.buffers()) if each.is_floating_point())


def _same(one: list[Tensor], other: list[Tensor] | None) -> bool:
    return other is not None and len(one) == len(other) and all(map(_near, one, other))


def _near(one: Tensor, other: Tensor) -> bool:
    close = NEAR if one.dtype in (torch.float64, torch.int64) else ROUNDED
    same = one.shape == other.shape
    return same and torch.allclose(one.double(), other.double(), rtol=close, atol=close, equal_nan=True)
