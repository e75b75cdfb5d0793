"""Apply steps on rows (N, C) at each cell of maps (N, C, h, w), and test numerically what such a step does.

A step that treats the images of a batch independently also works on cells in place of images. Whether it does, and
whether it is affine, is tested on random rows with random parameters in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from mlpconv.surgery.tracing.graph import attribute

__all__ = ["StepTest", "cells_of", "rows_of"]

COUNT = 13
SEED = 13124400
LOW, HIGH = 0.5, 1.5
"""Range of random parameters, and of positive rows, for which roots and logarithms are finite."""
MIX = 0.3
"""Position of the interpolated point in the test for affine steps."""
TOLERANCE, TOLERANCE_FLOAT32 = 1e-9, 1e-5

Rows = Mapping[fx.Node, Tensor]


def rows_of(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Turn cells into batch entries: (N, C, h, w) -> (N * h * w, *shape)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).reshape(-1, *shape)


def cells_of(rows: Tensor, maps: Tensor) -> Tensor:
    """Turn batch entries back into cells: (N * h * w, ...) -> (N, K, h, w), for `maps` (N, C, h, w)."""
    images, _, height, width = maps.shape
    return rows.reshape(images, height, width, rows.shape[1:].numel()).permute(0, 3, 1, 2)


class StepTest:
    """A numerical test of one step of a head on random rows."""

    def __init__(
        self, node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]], root: nn.Module, shadow: nn.Module
    ) -> None:
        """Prepare the test; `shapes` are per-image shapes of the data inputs, `root` holds the parameters."""
        self.node, self.shapes, self.root, self.shadow = node, dict(shapes), root, shadow
        self.source = torch.Generator().manual_seed(SEED)
        self.parameters: dict[fx.Node, Any] = {}
        self.module = self._module(node)

    def is_per_image(self) -> bool:
        """Return whether the result of each image depends on that image only."""
        rows = self._random_rows(positive=True)
        batch = self._results(rows)
        if batch is None or any(tensor.shape[:1] != (COUNT,) for tensor in batch):
            return False
        images = [slice(image, image + 1) for image in range(COUNT)]
        singles = [self._results({node: row[image] for node, row in rows.items()}) for image in images]
        return all(
            _all_close([tensor[image] for tensor in batch], single)
            for image, single in zip(images, singles, strict=True)
        )

    def is_affine(self) -> bool:
        """Return whether the result is a weighted sum of the inputs plus a constant."""
        start, end = self._random_rows(), self._random_rows()
        middle = {node: MIX * row + (1 - MIX) * end[node] for node, row in start.items()}
        first, second, result = (self._results(rows) for rows in (start, end, middle))
        if first is None or second is None or result is None:
            return False
        if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in result):
            return False
        return _all_close([MIX * a + (1 - MIX) * b for a, b in zip(first, second, strict=True)], result)

    def is_equivariant(self) -> bool:
        """Return whether the result has the shape of the input and follows a permutation of the channels."""
        rows = self._random_rows(positive=True)
        row = next(iter(rows.values()))
        if len(rows) != 1 or row.dim() == 1:
            return False
        result, flipped = self._results(rows), self._results({node: row.flip(1) for node in rows})
        if result is None or flipped is None or len(result) != 1 or result[0].shape != row.shape:
            return False
        return _all_close([result[0].flip(1)], flipped)

    def _random_rows(self, *, positive: bool = False) -> dict[fx.Node, Tensor]:
        return {node: self._random((COUNT, *shape), positive=positive) for node, shape in self.shapes.items()}

    def _random(self, shape: tuple[int, ...], *, positive: bool) -> Tensor:
        if positive:
            return LOW + (HIGH - LOW) * torch.rand(shape, generator=self.source, dtype=torch.float64)
        return torch.randn(shape, generator=self.source, dtype=torch.float64)

    def _results(self, rows: Rows) -> list[Tensor] | None:
        """Return the tensors that the step computes from these rows; None if it fails or needs other inputs."""
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                result = self._call(self.node, self.module, lambda node: self._argument(node, rows))
        except Exception:  # noqa: BLE001  (a user's step may raise anything on other rows)
            return None
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def _argument(self, node: fx.Node, rows: Rows) -> Any:
        """Return an argument of the step: rows, or a value computed from parameters; LookupError for other inputs."""
        if node in rows:
            return rows[node]
        if node not in self.parameters:
            self.parameters[node] = self._parameter(node)
        return self.parameters[node]

    def _parameter(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            constants: dict[str, Tensor] = getattr(node.graph, "owning_constants", {})
            if node.target in constants:
                return constants[str(node.target)]
            tensor = attribute(self.root, str(node.target))
            return self._random(tuple(tensor.shape), positive=True) if tensor.is_floating_point() else tensor.cpu()
        if isinstance(node.meta.get("val"), torch.dtype | torch.device):
            return node.meta["val"]
        if not node.op.startswith("call_"):
            raise LookupError(node.name)  # the batch size differs between images and cells
        return self._call(node, self._module(node), lambda source: self._argument(source, {}))

    def _call(self, node: fx.Node, module: nn.Module | None, value_of: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg(node.args, value_of), fx.map_arg(node.kwargs, value_of)
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _module(self, node: fx.Node) -> nn.Module | None:
        """Return a copy of the module that a step calls, with random parameters."""
        if node.op != "call_module":
            return None
        module = copy.deepcopy(self.root.get_submodule(str(node.target))).cpu().double()
        for tensor in _floats(module):
            tensor.data = self._random(tuple(tensor.shape), positive=True)
        return module.train(self.shadow.get_submodule(str(node.target)).training)


def _floats(module: nn.Module) -> Iterator[Tensor]:
    yield from (tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point())


def _all_close(expected: list[Tensor], actual: list[Tensor] | None) -> bool:
    return actual is not None and len(expected) == len(actual) and all(map(_close, expected, actual))


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = TOLERANCE if a.dtype in (torch.float64, torch.int64) else TOLERANCE_FLOAT32
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
