"""Linear layers of a head as convolutions."""

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
from mlpconv.surgery.proof.accept import is_parametrized, removal_advice, shared_names
from mlpconv.surgery.tracing.graph import module_of, shape_of
from mlpconv.surgery.tracing.ops import MAP, argument_of, describe

__all__ = ["LinearSteps"]


class LinearSteps(Steps):
    """Layers whose outputs are weighted sums of all channels."""

    def conv1x1(self, node: fx.Node) -> Layout:
        """A 1x1 convolution that is one already."""
        layout = self.compact(self.input_of(node))
        if layout.index.dim() != MAP - 1 or not layout.plain or layout.mix is not None:
            return self.refuse(node)
        channels = (shape_of(node) or ())[1]
        return layout_of_maps(self.again(node, layout.base), (channels, *layout.size[1:]), dilation=layout.dilation)

    def linear(self, node: fx.Node) -> Layout:
        """A linear layer on flattened maps, as a convolution as large as the maps."""
        layout = self.compact(self.input_of(node))
        if layout.index.dim() != 1 and not (layout.one_cell and layout.index[..., 0].numel() == 1):
            raise SurgeryError(
                f"{describe(node, self.shadow)} works on {layout.index.dim()} dimensions; 1 is accepted."
            )
        module, name = module_of(node, self.shadow), str(node.target)
        if module is None:
            name = self._owner(node)
            if not name:
                return self.kernel_of(node, layout, node.args[1:], node.kwargs)
        own = self.edits.root.get_submodule(name)
        if module is not None and (type(module).forward is not nn.Linear.forward or module._forward_pre_hooks):
            what = removal_advice(own) or "it is a linear layer of its own kind: replace it"
            raise SurgeryError(f"{describe(node, self.shadow)} cannot become a convolution: {what} first.")
        shared = shared_names(self.edits.root, own)
        if shared or is_parametrized(own) or self.times(name) > 1:
            why = f"shares memory with {', '.join(shared)}" if shared else "is worked out anew or used twice"
            self.edits.note(f"{name} {why}: it stays, and its weight is used as the kernel of a convolution.")
            read = [self.graph.get_attr(f"{name}.{each}") for each in ("weight", "bias")[: 1 + (own.bias is not None)]]
            return self.kernel_of(node, layout, read, {})
        self.edits.rounded |= layout.mix is not None or not layout.has_each_once
        self.edits.put(name, lambda: as_convolution(cast("nn.Linear", own), layout))
        made = self.graph.call_module(name, (layout.base,))
        return _rows(made, layout, cast("nn.Linear", own).out_features)

    def _owner(self, node: fx.Node) -> str:
        """The linear layer of a library's own class whose forward only calls this function; empty where it is none."""
        weight = argument_of(node, 1, "weight")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or len(weight.users) != 1:
            return ""
        name = str(weight.target).removesuffix(".weight")
        own = self.edits.root.get_submodule(name) if name != weight.target else None
        bias = argument_of(node, 2, "bias")
        held = f"{name}.bias" if isinstance(own, nn.Linear) and own.bias is not None else None
        same = (bias.target if isinstance(bias, fx.Node) else bias) == held
        return name if isinstance(own, nn.Linear) and same and not own._buffers and len(own._modules) == 0 else ""

    def kernel_of(self, node: fx.Node, layout: Layout, args: Sequence[Any], kwargs: Any) -> Layout:
        """A convolution whose kernel is worked out from a linear layer's weight each time."""
        given = dict(zip(("weight", "bias"), args, strict=False)) | dict(kwargs)
        if layout.mix is not None or not layout.plain:
            return self.refuse(node)
        outs = (shape_of(node) or ())[-1]
        self.edits.places.add(describe(node, self.shadow))
        kernel = self.call(torch.reshape, given["weight"], (outs, *layout.size))
        made = self.call(F.conv2d, layout.base, kernel, given.get("bias"), dilation=layout.dilation)
        return _rows(made, layout, outs)


def _rows(base: fx.Node, before: Layout, count: int) -> Layout:
    """What a linear layer makes, as maps of one cell."""
    return Layout(base, (count, 1, 1), torch.arange(count).reshape(*before.index.shape[:-1], count))
