"""A network whose forward pass is a graph: the modules of the original under their names, in another order of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.tracing.stored_graph import restore_graph, store_graph

__all__ = ["Rewritten"]


class Rewritten(nn.Module):
    """A network after surgery: (N, C, H, W) -> what the original returns.

    It holds all modules, parameters and buffers of the original under their names, those included that this forward
    pass does not use. The forward pass is one graph in eval mode and one in training, chosen by `training` of the
    network as a whole, as the original chose by its own.
    """

    def __init__(self, root: nn.Module, graphs: Mapping[str, fx.Graph], constants: Mapping[str, Tensor]) -> None:
        """`root` is taken over, not copied; `graphs` are those of "eval", "train" and "maps"."""
        super().__init__()
        own = set(vars(self))
        for name, value in vars(root).items():
            if name not in own:
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
        """One function for each graph."""
        return {name: type(fx.GraphModule(self, graph)).forward for name, graph in self.graphs.items()}

    def forward(self, x: Tensor) -> Any:
        """(N, C, H, W) -> what the original returns."""
        name = "train" if self.training else "eval"
        if name not in self._passes:
            raise SurgeryError(
                f"The forward pass of {self.original} in training could not be written down, so this network only "
                "works in eval mode: train the original, and operate on it again."
            )
        return self._passes[name](self, x)

    def category_maps(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, h, w): each class's logit at each place, before what makes one number of them."""
        maps: Tensor = self._passes["maps"](self, x)
        return maps

    def __getstate__(self) -> dict[str, Any]:
        """All but the compiled functions, which a copy makes anew from the graphs."""
        state = {name: value for name, value in vars(self).items() if name != "_passes"}
        return state | {"graphs": {name: store_graph(graph) for name, graph in self.graphs.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.graphs = {name: restore_graph(steps) for name, steps in state["graphs"].items()}
        self._passes = self._compiled()

    def extra_repr(self) -> str:
        """What the module's repr shows."""
        return f"rewritten from {self.original}"


def _plain(graph: fx.Graph) -> fx.Graph:
    """A copy without what tracing left in it."""
    plain = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = plain.graph_copy(graph, copies)
    plain.output(output)
    for node in plain.nodes:
        node.meta.clear()
    plain.lint()
    return plain
