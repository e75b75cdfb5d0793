"""Linear baselines: the networks with convolution layers in place of mlpconv layers.

A linear convolution layer is a convolution and ReLU (section 3.1: a generalized linear model of the patch). Each block
keeps its first convolution without the 1x1s; a last 1x1 outputs the category maps. Fully connected heads (Table 5) are
an option of every network: `head="fc"` and `head="fc+dropout"`.
"""

from __future__ import annotations

from dataclasses import replace

from mlpconv.models.blocks import STD, NINConfig
from mlpconv.models.nin import NETWORKS as MLPCONV_NETWORKS

__all__ = ["NETWORKS", "linear_baseline"]


def linear_baseline(config: NINConfig) -> NINConfig:
    """Return the configuration with linear convolution layers; `nin_mnist` becomes `conv_mnist`."""
    blocks = []
    for index, block in enumerate(config.blocks):
        last = index == len(config.blocks) - 1
        channels = block.channels[:1] + (block.channels[-1:] if last else ())
        stds = block.stds or (STD,) * len(block.channels)
        blocks.append(replace(block, channels=channels, stds=stds[:1] + (stds[-1:] if last else ())))
    return replace(config, name=config.name.replace("nin_", "conv_", 1), blocks=tuple(blocks), family="conv")


NETWORKS: dict[str, NINConfig] = {
    config.name: config for config in (linear_baseline(config) for config in MLPCONV_NETWORKS.values())
}
