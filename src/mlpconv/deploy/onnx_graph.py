"""Write a network as an ONNX graph: raw pixels in; probabilities, logits and category maps out."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mlpconv.deploy.exportable import Exportable
from mlpconv.deploy.same_padding import join_same_padding, short_formulas, translations
from mlpconv.errors import ExportError, UsageError, first_line

__all__ = ["OPSET", "GraphBytes", "PixelsToOutputs", "onnx_graph", "other_size"]

OPSET = 20
MAX_TERMS = 30  # operations in the expression of a map's size
MISSING = "Exporting needs {}; install it with: pip install 'mlpconv[export]'."


class GraphBytes(NamedTuple):
    """A serialised ONNX model."""

    content: bytes
    outputs: tuple[str, ...]
    any_size: bool
    """Whether images of other sizes than `input_size` are accepted."""


class PixelsToOutputs(nn.Module):
    """uint8 pixels (N, C, H, W) -> probabilities (N, K), logits (N, K) and, if there are any, maps (N, K, h, w)."""

    def __init__(self, source: Exportable) -> None:
        super().__init__()
        self.preprocessing, self.network, self.fixed_size = source.preprocessing, source.model, source.fixed_size
        self.input_size, self.min_size = source.input_size, source.min_size
        self.eval()
        pixels = torch.randint(0, 256, (2, *source.input_size), dtype=torch.uint8)
        self.has_maps = self.maps_are_logits = False
        with torch.no_grad():
            x = self._preprocessed(pixels)
            logits = self.network(x)
            try:
                maps = self._maps(x)
            except (UsageError, AttributeError):
                return
            self.has_maps = True
            self.maps_are_logits = torch.allclose(maps.mean((2, 3)), logits, rtol=1e-4, atol=1e-4)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the outputs."""
        return ("probabilities", "logits", "maps") if self.has_maps else ("probabilities", "logits")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) uint8 -> the outputs; one pass of the network if the mean of each map is the logit."""
        x = self._preprocessed(images)
        if not self.has_maps:
            logits = self.network(x)
            return logits.softmax(1), logits
        maps = self._maps(x)
        logits = maps.mean((2, 3)) if self.maps_are_logits else self.network(x)
        return logits.softmax(1), logits, maps

    def accepts_other_sizes(self) -> bool:
        """Return whether the network accepts images of another size than `input_size`."""
        try:
            with torch.no_grad():
                self(torch.zeros(1, *other_size(self.input_size), dtype=torch.uint8))
        except Exception:  # noqa: BLE001  (whatever a network raises for a wrong size)
            return False
        return True

    def _maps(self, x: Tensor) -> Tensor:
        """Return the category maps; raise AttributeError or UsageError for a network without them."""
        category_maps: Any = self.network.category_maps
        return cast("Tensor", category_maps(x))

    def _preprocessed(self, images: Tensor) -> Tensor:
        return self.preprocessing.run(images, len(self.preprocessing.steps))


def other_size(input_size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of somewhat larger images, for checks."""
    return input_size[0], input_size[1] + 6, input_size[2] + 9


def onnx_graph(graph: PixelsToOutputs, *, fixed_size: bool = False) -> GraphBytes:
    """Return a network as a serialised ONNX model for any number of images, and any size unless `fixed_size`.

    Raises ExportError for a network that cannot be traced or has an operator that ONNX lacks, and if the onnx packages
    are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ExportError(MISSING.format(error.name)) from None
    if not fixed_size and not graph.fixed_size and graph.accepts_other_sizes():
        with suppress(ExportError):  # the network works at one size only, or its trace cannot be generalised
            return GraphBytes(_serialised(graph, any_size=True), graph.outputs, True)
    return GraphBytes(_serialised(graph, any_size=False), graph.outputs, False)


def _serialised(graph: PixelsToOutputs, *, any_size: bool) -> bytes:
    pixels = torch.randint(0, 256, (3, *graph.input_size), dtype=torch.uint8)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {0: dynamic, 2: dynamic, 3: dynamic} if any_size else {0: dynamic}
    running: list[str] = []
    with _quiet(), _tracked(graph, running), _simple_sizes(graph), short_formulas():
        try:
            traced = torch.export.export(
                graph, (pixels,), dynamic_shapes=(shapes,), strict=False,
                prefer_deferred_runtime_asserts_over_guards=any_size,
            )  # fmt: skip
        except Exception as error:
            raise ExportError(_explain("traced", graph, running, error)) from error
    join_same_padding(traced.graph)
    with _quiet():
        try:
            program: Any = torch.onnx.export(
                traced, dynamo=True, external_data=False, input_names=["images"], output_names=list(graph.outputs),
                opset_version=OPSET, verbose=False, custom_translation_table=translations(),
            )  # fmt: skip
        except Exception as error:
            raise ExportError(_explain("written as ONNX", graph, [], error)) from error
    stream = io.BytesIO()
    program.save(stream, external_data=False)
    return stream.getvalue()


def _explain(done: str, graph: PixelsToOutputs, running: list[str], error: Exception) -> str:
    """Return which module cannot be exported, and why."""
    name = type(graph.network).__name__
    where = f", at the module {running[-1]!r}" if running else ""
    cause: BaseException = error
    while cause.__cause__ is not None:  # the innermost exception names the operator
        cause = cause.__cause__
    return f"The network {name} cannot be {done}{where}: {first_line(cause)[:300]}."


@contextmanager
def _tracked(graph: PixelsToOutputs, running: list[str]) -> Iterator[None]:
    """Keep the names of the modules whose forward pass is running; an exception leaves them in the list."""
    with ExitStack() as hooks:
        for name, module in graph.network.named_modules():
            if name:
                before, after = partial(_begin, running, name), partial(_end, running)
                hooks.enter_context(module.register_forward_pre_hook(before))
                hooks.enter_context(module.register_forward_hook(after))
        yield


def _begin(running: list[str], name: str, _module: nn.Module, _inputs: object) -> None:
    running.append(name)


def _end(running: list[str], _module: nn.Module, _inputs: object, _output: object) -> None:
    running.pop()


@contextmanager
def _simple_sizes(graph: PixelsToOutputs) -> Iterator[None]:
    """Raise an exception in a trace whose maps have sizes that are long expressions of the image's size.

    Padding that depends on the size doubles the expression at each layer, and the trace would take minutes.
    """

    def check(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        sides: list[Any] = list(inputs[0].shape[2:]) if inputs and isinstance(inputs[0], Tensor) else []
        if any(isinstance(side, torch.SymInt) and side.node.expr.count_ops() > MAX_TERMS for side in sides):
            raise ExportError("the padding depends on the size of the images")

    with ExitStack() as hooks:
        for module in graph.network.modules():
            hooks.enter_context(module.register_forward_pre_hook(check))
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings and log messages of the exporter, which are about torch and not about the network."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
