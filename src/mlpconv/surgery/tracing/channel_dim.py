"""Which dimension holds the channels of what a module makes: the data flow tells, as in the ConvNeXt it is the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from mlpconv.analysis.meta import on_meta
from mlpconv.receptive_field.channel_layout import ChannelFollower
from mlpconv.surgery.tracing.graph import meta_copy

__all__ = ["channel_dim"]


class _WithoutStorage(ChannelFollower):  # type: ignore[no-untyped-call]
    """Follows an image that has a shape and no numbers, past tables of indices that have both."""

    def compute(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one operation."""
        args, kwargs = on_meta(args, kwargs)
        return func(*args, **kwargs)


@torch.no_grad()
def channel_dim(model: nn.Module, where: str, input_shape: tuple[int, int, int]) -> int | None:
    """The dimension (1, 2, ...) of the channels in the tensor that the module of this name makes of an image (C, H, W).

    None where that does not follow from the convolutions and linear layers before it. The module is called once.
    """
    shadow, follower = meta_copy(model).eval(), _WithoutStorage()
    dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)
    image = torch.empty((1, *input_shape), dtype=dtype, device="meta")
    found: list[int | None] = []

    def look(_: nn.Module, __: object, output: Tensor) -> None:
        dim = follower.dim(output)
        found.append(None if dim is None else dim + output.dim())

    shadow.get_submodule(where).register_forward_hook(look)
    follower.start(image)
    with follower:
        shadow(image)
    return found[0]
