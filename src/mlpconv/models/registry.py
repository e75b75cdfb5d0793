"""Networks by name, and networks from the data in a model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlpconv.errors import UsageError, did_you_mean
from mlpconv.models import googlenet, linear, nin
from mlpconv.models.base import Network
from mlpconv.models.blocks import NINConfig, widened
from mlpconv.models.googlenet import GoogLeNet, GoogLeNetConfig
from mlpconv.models.nin import NIN
from mlpconv.models.validate import LIMITS, choice, multiplier, sides, whole

__all__ = ["FAMILY_OPTIONS", "build", "create_model", "list_models"]

_NIN_OPTIONS: dict[str, str] = {
    "num_classes": "K, the number of classes",
    "in_channels": "C, the channels of an image",
    "size": "rows and columns of the images it is meant for: a number or two",
    "width": "multiplier of the hidden channels, rounded to multiples of 8",
    "activation": "relu, leaky_relu, elu, gelu, silu, maxout or identity",
    "norm": "None or batch: batch norm after every convolution but the last",
    "dropout": "share of values dropped after the pools; None is the network's own",
    "last_relu": "whether the activation follows the last 1x1 as well",
    "head": "gap, fc or fc+dropout",
    "init": "paper, he or identity",
    "pool2": "max or avg: the pool after the second block",
    "pool_first": "whether max-pooling comes before norm and activation",
}

_GOOGLENET_OPTIONS: dict[str, str] = {
    **{name: text for name, text in _NIN_OPTIONS.items() if name not in ("pool2", "pool_first")},
    "dropout": "share of values dropped before the last layer; None is 0.4",
    "aux_heads": "whether to have the two auxiliary heads of training",
}

FAMILY_OPTIONS: dict[str, dict[str, str]] = {
    "nin": _NIN_OPTIONS,
    "conv": _NIN_OPTIONS,
    "googlenet": _GOOGLENET_OPTIONS,
}
"""What `create_model` accepts for each family, each with a sentence of help."""

_CONFIGS: dict[str, NINConfig | GoogLeNetConfig] = {
    **nin.NETWORKS,
    **linear.NETWORKS,
    googlenet.CONFIG.name: googlenet.CONFIG,
}


def list_models() -> list[str]:
    """The names that `create_model` takes, in alphabetical order."""
    return sorted(_CONFIGS)


def create_model(name: str, **options: Any) -> Network:
    """The network of this name, freshly initialised; UsageError for an unknown name, option or value."""
    if name not in _CONFIGS:
        raise UsageError(f"There is no model {name!r}; {did_you_mean(str(name), _CONFIGS)}")
    config = _CONFIGS[name]
    family = "googlenet" if isinstance(config, GoogLeNetConfig) else config.family
    for option in options:
        if option not in FAMILY_OPTIONS[family]:
            raise UsageError(f"{name} has no option {option!r}; {did_you_mean(option, FAMILY_OPTIONS[family])}")
    given = {key: value for key, value in options.items() if value is not None or key == "norm"}
    if "size" in given:
        given["size"] = sides(given["size"])
    if isinstance(config, GoogLeNetConfig):
        return GoogLeNet(replace(config, **given))
    return NIN(_with_options(config, given))


def build(config: Mapping[str, Any]) -> Network:
    """The network that a configuration's `to_dict()` describes; UsageError for anything else."""
    family = config.get("family") if isinstance(config, Mapping) else None
    choice("A network's family", family, FAMILY_OPTIONS)
    if family == "googlenet":
        return GoogLeNet(GoogLeNetConfig.from_dict(config))
    return NIN(NINConfig.from_dict(config))


def _with_options(config: NINConfig, given: dict[str, Any]) -> NINConfig:
    """The configuration with options in place of its own values."""
    width = multiplier("width", given.pop("width", 1.0))
    classes = whole("num_classes", given.pop("num_classes", config.num_classes), 1, LIMITS["channels"])
    blocks = [replace(block, channels=tuple(widened(c, width) for c in block.channels)) for block in config.blocks]
    blocks[-1] = replace(blocks[-1], channels=(*blocks[-1].channels[:-1], classes))
    if "pool2" in given:
        blocks[1] = replace(blocks[1], pool=choice("pool2", given.pop("pool2"), ("max", "avg")))
    return replace(config, blocks=tuple(blocks), **given)
