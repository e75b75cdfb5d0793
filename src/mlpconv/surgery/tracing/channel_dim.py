"""Find the channel dimension of a module's output from the data flow; in ConvNeXt, for example, it is the last."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlpconv.analysis.meta import meta_images, run_on_meta
from mlpconv.receptive_field.channel_layout import ChannelFollower
from mlpconv.surgery.tracing.graph import meta_copy

__all__ = ["channel_dim"]


@torch.no_grad()
def channel_dim(model: nn.Module, where: str, input_shape: tuple[int, int, int]) -> int | None:
    """Return the channel dimension (1, 2, ...) in the output of the module with this name, for an image (C, H, W).

    Returns None if it does not follow from the preceding convolutions and linear layers. The module is called once.
    """
    shadow, follower = meta_copy(model).eval(), ChannelFollower(run_on_meta)
    image = meta_images(shadow, 1, input_shape)
    dims: list[int | None] = []

    def record(_: nn.Module, __: object, output: Tensor) -> None:
        dim = follower.dim(output)
        dims.append(None if dim is None else dim + output.dim())

    shadow.get_submodule(where).register_forward_hook(record)
    follower.start(image)
    with follower:
        shadow(image)
    return dims[0]
