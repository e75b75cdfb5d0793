"""Rewrite the linear layers of a head as convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.heads.layout import Layout, layout_of_maps
from mlpconv.surgery.heads.modules import as_convolution
from mlpconv.surgery.heads.steps import Steps
from mlpconv.surgery.tracing.accept import is_parametrized, removal_advice, shared_names
from mlpconv.surgery.tracing.graph import module_of, shape_of
from mlpconv.surgery.tracing.ops import MAP, argument_of, describe

__all__ = ["LinearSteps"]


class LinearSteps(Steps):
    """Rewrite layers whose outputs are weighted sums of all channels."""

    def conv1x1(self, node: fx.Node) -> Layout:
        """Apply an existing 1x1 convolution to the maps."""
        layout = self.compact(self.input_of(node))
        if layout.index.dim() != MAP - 1 or not layout.plain or layout.mix is not None:
            return self.refuse(node)
        channels = (shape_of(node) or ())[1]
        return layout_of_maps(self.copy_step(node, layout.base), (channels, *layout.size[1:]), dilation=layout.dilation)

    def linear(self, node: fx.Node) -> Layout:
        """Replace a linear layer on flattened maps by a convolution whose kernel covers the maps."""
        layout = self.compact(self.input_of(node))
        if layout.index.dim() != 1 and not (layout.one_cell and layout.index[..., 0].numel() == 1):
            raise SurgeryError(
                f"{describe(node, self.shadow)} works on {layout.index.dim()} dimensions per image; 1 is accepted."
            )
        module, name = module_of(node, self.shadow), str(node.target)
        if module is None:
            name = self._owner(node)
            if not name:
                return self.kernel_of(node, layout, node.args[1:], node.kwargs)
        own = self.edits.root.get_submodule(name)
        if module is not None and (type(module).forward is not nn.Linear.forward or module._forward_pre_hooks):
            advice = removal_advice(own) or "it overrides nn.Linear: replace it"
            raise SurgeryError(f"{describe(node, self.shadow)} cannot become a convolution: {advice} first.")
        shared = shared_names(self.edits.root, own)
        if shared or is_parametrized(own) or self.call_count(name) > 1:
            why = f"shares memory with {', '.join(shared)}" if shared else "is parametrized or called more than once"
            self.edits.note(f"{name} {why}: it is kept, and its weight becomes the kernel in each forward pass.")
            keys = ("weight", "bias")[: 1 + (own.bias is not None)]
            return self.kernel_of(node, layout, [self.graph.get_attr(f"{name}.{key}") for key in keys], {})
        self.edits.rounded |= layout.mix is not None or not layout.has_each_once
        self.edits.put(name, lambda: as_convolution(cast("nn.Linear", own), layout))
        base = self.graph.call_module(name, (layout.base,))
        return _output_layout(base, layout, cast("nn.Linear", own).out_features)

    def _owner(self, node: fx.Node) -> str:
        """Return the name of the nn.Linear subclass whose forward is this function call, or an empty string."""
        weight = argument_of(node, 1, "weight")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or len(weight.users) != 1:
            return ""
        name = str(weight.target).removesuffix(".weight")
        own = self.edits.root.get_submodule(name) if name != weight.target else None
        bias = argument_of(node, 2, "bias")
        own_bias = f"{name}.bias" if isinstance(own, nn.Linear) and own.bias is not None else None
        same = (bias.target if isinstance(bias, fx.Node) else bias) == own_bias
        return name if isinstance(own, nn.Linear) and same and not own._buffers and len(own._modules) == 0 else ""

    def kernel_of(self, node: fx.Node, layout: Layout, args: Sequence[Any], kwargs: Any) -> Layout:
        """Insert a convolution that reshapes a linear layer's weight to its kernel in every forward pass."""
        parameters = dict(zip(("weight", "bias"), args, strict=False)) | dict(kwargs)
        if layout.mix is not None or not layout.plain:
            return self.refuse(node)
        features = (shape_of(node) or ())[-1]
        self.edits.places.add(describe(node, self.shadow))
        kernel = self.call(torch.reshape, parameters["weight"], (features, *layout.size))
        base = self.call(F.conv2d, layout.base, kernel, parameters.get("bias"), dilation=layout.dilation)
        return _output_layout(base, layout, features)


def _output_layout(base: fx.Node, layout: Layout, features: int) -> Layout:
    """Return the layout of a linear layer's output, as maps of one cell; `layout` is that of its input."""
    return Layout(base, (features, 1, 1), torch.arange(features).reshape(*layout.index.shape[:-1], features))
