"""Write a network as a list of steps that a browser can run: convolutions, norms, activations, pools, joins.

Each step is JSON: its operation, settings, inputs and output shape (C, H, W); a vector (K,) is (K, 1, 1), and a fully
connected layer a 1x1 convolution on it. Other operations have op "other": torch computes them, the page shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from mlpconv.surgery.tracing.graph import module_of, shape_of, trace
from mlpconv.surgery.tracing.ops import argument_of, as_pair, data_inputs, describe, op_kind, op_name

__all__ = ["Program", "read_program"]

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "leakyrelu", "elu", "silu", "sigmoid", "tanh")
PASSED = ("dropout", "feature", "identity", "contiguous", "clone", "detach")
MAP_RANK, VECTOR_RANK = 4, 2
SPATIAL = {2, 3}

Settings = dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A traced network and its steps; `nodes[i]` is the graph node of `steps[i]`."""

    graph: fx.GraphModule
    steps: list[Settings]
    nodes: list[fx.Node]

    def module(self, step: int) -> nn.Module | None:
        """Return the module that a step calls; None for a function."""
        return module_of(self.nodes[step], self.graph)


def read_program(model: nn.Module, input_shape: tuple[int, int, int]) -> Program:
    """Trace a copy of the network in eval mode for images (C, H, W); raise SurgeryError if it cannot be traced."""
    graph = trace(model, input_shape, training=False)
    steps: list[Settings] = []
    nodes: list[fx.Node] = []
    sources: dict[fx.Node, list[int]] = {}  # the steps that a node's value comes from
    image: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            image.add(node)
            settings: Settings | None = {"op": "input", "name": "image", "shape": list(input_shape)}
            inputs: list[int] = []
        elif not node.op.startswith("call_") or not (read := list(data_inputs(node, image))):
            continue
        else:
            image.add(node)
            inputs = [step for source in read for step in sources[source]]
            settings = _settings(node, graph, [steps[step] for step in inputs])
        if settings is None:
            sources[node] = list(dict.fromkeys(inputs))
        else:
            sources[node] = [len(steps)]
            steps.append({"id": len(steps), "inputs": inputs} | settings)
            nodes.append(node)
    return Program(graph, steps, nodes)


def _settings(node: fx.Node, root: fx.GraphModule, inputs: list[Settings]) -> Settings | None:
    """Return what a node computes; None for one that passes its input on or has no picture."""
    full = shape_of(node)
    if full is None or op_kind(node, root) in PASSED or op_name(node, root) in PASSED:
        return None
    if len(full) not in (VECTOR_RANK, MAP_RANK):
        return None
    shape = [*full[1:], 1, 1] if len(full) == VECTOR_RANK else list(full[1:])
    name = str(node.target) if node.op == "call_module" else node.name
    known = _conv(node, root) or _pool(node, root) or _norm(node, root) or _other_known(node, root, inputs, shape)
    if known is None and inputs and inputs[0]["shape"] == shape and op_kind(node, root) == "shape":
        return None
    return (known or {"op": "other", "module": describe(node, root)}) | {"name": name, "shape": shape}


def _conv(node: fx.Node, root: fx.GraphModule) -> Settings | None:
    """Return the settings of a convolution, or of a fully connected layer as a 1x1 convolution."""
    module = module_of(node, root)
    if isinstance(module, nn.Linear):
        ones = {"kernel": [1, 1], "stride": [1, 1], "dilation": [1, 1], "padding": [0, 0]}
        flat = len(shape_of(node) or ()) == VECTOR_RANK
        linear = {"op": "conv", "in": module.in_features, "groups": 1, "bias": module.bias is not None, "linear": True}
        return linear | ones if flat else None
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return None
    padding = _padding(module)
    if padding is None:
        return None
    return {
        "op": "conv",
        "in": module.in_channels,
        "kernel": list(module.kernel_size),
        "stride": list(module.stride),
        "dilation": list(module.dilation),
        "padding": padding,
        "groups": module.groups,
        "bias": module.bias is not None,
    }


def _padding(conv: nn.Conv2d) -> list[int] | None:
    """Return the padding of rows and columns; None if it differs on the two sides."""
    if not isinstance(conv.padding, str):
        return list(conv.padding)
    if conv.padding == "valid":
        return [0, 0]
    extents = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(extent % 2 for extent in extents) else [extent // 2 for extent in extents]


def _pool(node: fx.Node, root: fx.GraphModule) -> Settings | None:
    """Return the settings of a pool, or of a global average."""
    module, name = module_of(node, root), op_name(node, root)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        pairs = {key: list(as_pair(getattr(module, f"{key}_size" if key == "kernel" else key)))
                 for key in ("kernel", "stride", "padding")}  # fmt: skip
        if isinstance(module, nn.MaxPool2d):
            plain = as_pair(module.dilation) == (1, 1) and not module.return_indices
            return {"op": "maxpool"} | pairs if plain else None
        plain = module.divisor_override is None
        return {"op": "avgpool", "countPad": module.count_include_pad} | pairs if plain else None
    if name in ("adaptiveavgpool2d", "adaptive_avg_pool2d"):
        size = module.output_size if isinstance(module, nn.AdaptiveAvgPool2d) else argument_of(node, 1, "output_size")
        return {"op": "mean"} if as_pair(size) == (1, 1) else None
    rank = len(shape_of(node.all_input_nodes[0]) or ())
    if name == "mean" and rank == MAP_RANK:
        dims = argument_of(node, 1, "dim")
        axes = {dim % rank for dim in dims} if isinstance(dims, tuple | list) else set()
        return {"op": "mean"} if axes == SPATIAL else None
    return None


def _norm(node: fx.Node, root: fx.GraphModule) -> Settings | None:
    """Return the settings of batch norm on feature maps, with running statistics."""
    module = module_of(node, root)
    fixed = isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    return {"op": "norm", "eps": module.eps} if isinstance(module, nn.BatchNorm2d) and fixed else None


def _other_known(node: fx.Node, root: fx.GraphModule, inputs: list[Settings], shape: list[int]) -> Settings | None:
    """Return the settings of an activation, a join, a flatten or a padding."""
    name, shapes = op_name(node, root), [step["shape"] for step in inputs]
    if name in ACTIVATIONS:
        return _activation(node, root, name)
    if name in ("cat", "concat") and argument_of(node, 1, "dim") in (1, -3):
        return {"op": "cat"}
    if name == "add" and shapes == [shape, shape]:
        return {"op": "add"}
    if name == "pad" and argument_of(node, 2, "mode") in ("constant", None) and not argument_of(node, 3, "value"):
        pad = _numbers(argument_of(node, 1, "pad"))
        return {"op": "pad", "pad": pad} if len(pad) == MAP_RANK else None
    values = shapes[0][0] * shapes[0][1] * shapes[0][2] if len(shapes) == 1 else 0
    if op_kind(node, root) == "shape" and name in ("flatten", "view", "reshape") and shape == [values, 1, 1]:
        return None if shapes[0] == shape else {"op": "flatten"}
    return None


def _activation(node: fx.Node, root: fx.GraphModule, name: str) -> Settings | None:
    module = module_of(node, root)
    if name == "elu" and getattr(module, "alpha", 1.0) != 1.0:
        return None
    settings: Settings = {"op": "act", "fn": "leaky_relu" if name == "leakyrelu" else name}
    if settings["fn"] == "leaky_relu":
        settings["slope"] = getattr(module, "negative_slope", None) or argument_of(node, 1, "negative_slope") or 0.01
    return settings


def _numbers(values: Any) -> list[int]:
    """Return a list of sizes as numbers; sizes that the forward pass computed are nodes with their value."""
    read: Callable[[Any], int] = lambda value: int(value.meta["val"] if isinstance(value, fx.Node) else value)  # noqa: E731
    return [read(value) for value in values] if isinstance(values, list | tuple) else []
