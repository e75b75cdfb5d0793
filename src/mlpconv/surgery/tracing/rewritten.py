"""A network whose forward pass is a rewritten graph over the original's modules, under their original names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.tracing.stored_graph import restore_graph, store_graph

__all__ = ["Rewritten"]


class Rewritten(nn.Module):
    """A network after surgery: (N, C, H, W) -> the original's output.

    It has all modules, parameters and buffers of the original under their names, including those that the forward pass
    no longer uses. It has one graph for eval mode and one for training, selected by its own `training` flag.
    """

    def __init__(self, root: nn.Module, graphs: Mapping[str, fx.Graph], constants: Mapping[str, Tensor]) -> None:
        """Take over the modules and tensors of `root`; `graphs` are those of "eval", "train" and "maps"."""
        super().__init__()
        reserved = set(vars(self))
        for name, value in vars(root).items():
            if name not in reserved:
                self.__dict__[name] = value
        for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            setattr(self, store, getattr(root, store))
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)
        self.training = root.training
        self.original = type(root).__name__
        self.graphs = {name: _plain(graph) for name, graph in graphs.items()}
        self._passes = self._compiled()

    def _compiled(self) -> dict[str, Callable[..., Any]]:
        """Return one compiled function per graph."""
        return {name: type(fx.GraphModule(self, graph)).forward for name, graph in self.graphs.items()}

    def forward(self, x: Tensor) -> Any:
        """Return the original's output for images (N, C, H, W)."""
        name = "train" if self.training else "eval"
        if name not in self._passes:
            raise SurgeryError(
                f"The training forward pass of {self.original} could not be traced, so this network only works in eval "
                "mode: train the original and repeat the surgery."
            )
        return self._passes[name](self, x)

    def category_maps(self, x: Tensor) -> Tensor:
        """Return the logit of each class at each position, (N, C, H, W) -> (N, K, h, w), before pooling."""
        maps: Tensor = self._passes["maps"](self, x)
        return maps

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the compiled functions, which `__setstate__` recompiles from the graphs."""
        state = {name: value for name, value in vars(self).items() if name != "_passes"}
        return state | {"graphs": {name: store_graph(graph) for name, graph in self.graphs.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.graphs = {name: restore_graph(steps) for name, steps in state["graphs"].items()}
        self._passes = self._compiled()

    def extra_repr(self) -> str:
        """Return the text for the module's repr."""
        return f"rewritten from {self.original}"


def _plain(graph: fx.Graph) -> fx.Graph:
    """Return a copy of the graph without the metadata of tracing."""
    plain = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = plain.graph_copy(graph, copies)
    plain.output(output)
    for node in plain.nodes:
        node.meta.clear()
    plain.lint()
    return plain
