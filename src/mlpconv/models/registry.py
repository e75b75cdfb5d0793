"""Create networks by name, and build them from the configuration in a model file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlpconv.errors import UsageError, did_you_mean
from mlpconv.models import efficientnet_lite, googlenet, linear, nin, squeezenet, timm_network
from mlpconv.models.base import Config, Network
from mlpconv.models.blocks import NINConfig, widened
from mlpconv.models.validate import LIMITS, choice, integer, multiplier, sides
from mlpconv.models.weights import load_pretrained, pretrained_config, pretrained_names
from mlpconv.text import option

__all__ = ["FAMILY_OPTIONS", "build", "create_model", "list_models"]

_COMMON: dict[str, str] = {
    "num_classes": "K, the number of classes",
    "in_channels": "C, the number of image channels",
    "size": "rows and columns of the images that the network is designed for: one number or two",
    "width": "multiplier of the hidden channels, rounded to multiples of 8",
    "dropout": "dropout probability in training; None is the default of the network",
}
_NIN_OPTIONS: dict[str, str] = {
    **_COMMON,
    "activation": "relu, leaky_relu, elu, gelu, silu, maxout or identity",
    "norm": "None or batch: batch norm after every convolution except the last",
    "last_relu": "whether an activation follows the last 1x1",
    "head": "gap, fc or fc+dropout",
    "init": "paper, he or identity",
    "pool2": "max or avg: the pool after the second block",
    "pool_first": "whether max-pooling precedes norm and activation",
    "depth": "convolutions of each mlpconv layer: the k x k one and 1x1s; 1 is the linear baseline",
    "kernel": "size of the first convolution of each mlpconv layer, an odd number",
}
_NIN_ONLY = ("pool2", "pool_first", "depth", "kernel")
_GOOGLENET_OPTIONS: dict[str, str] = {
    **{name: text for name, text in _NIN_OPTIONS.items() if name not in _NIN_ONLY},
    "aux_heads": "whether to create the two auxiliary heads for training",
}


def _nin_with(config: Config, options: dict[str, Any]) -> NINConfig:
    """Return the configuration of a Network In Network with the options replaced."""
    if not isinstance(config, NINConfig):
        raise UsageError(f"{config.name} is a {config.family} network; a Network In Network is accepted.")
    width = multiplier("width", options.pop("width", 1.0))
    classes = integer("num_classes", options.pop("num_classes", config.num_classes), 1, LIMITS["channels"])
    blocks = list(config.blocks)
    if "depth" in options:
        depth, last = options.pop("depth"), len(blocks) - 1
        blocks = [block.with_depth(depth, last=index == last) for index, block in enumerate(blocks)]
    if "kernel" in options:
        kernel = options.pop("kernel")
        blocks = [block.with_kernel(kernel) for block in blocks]
    blocks = [replace(block, channels=tuple(widened(c, width) for c in block.channels)) for block in blocks]
    blocks[-1] = replace(blocks[-1], channels=(*blocks[-1].channels[:-1], classes))
    if "pool2" in options:
        blocks[1] = replace(blocks[1], pool=choice("pool2", options.pop("pool2"), ("max", "avg")))
    return replace(config, blocks=tuple(blocks), **options)


@dataclass(frozen=True)
class _Family:
    """The network class, configuration and options of a family."""

    network: Callable[[Any], Network]
    from_dict: Callable[[Mapping[str, Any]], Any]
    options: dict[str, str]
    """The options of `create_model`, each with its help."""
    with_options: Callable[[Any, dict[str, Any]], Any] = lambda config, options: replace(config, **options)


_FAMILIES: dict[str, _Family] = {
    "nin": _Family(nin.NIN, NINConfig.from_dict, _NIN_OPTIONS, _nin_with),
    "conv": _Family(nin.NIN, NINConfig.from_dict, _NIN_OPTIONS, _nin_with),
    "googlenet": _Family(googlenet.GoogLeNet, googlenet.GoogLeNetConfig.from_dict, _GOOGLENET_OPTIONS),
    "squeezenet": _Family(
        squeezenet.SqueezeNet,
        squeezenet.SqueezeNetConfig.from_dict,
        _COMMON | {"last_relu": "whether a ReLU follows the category maps"},
    ),
    "efficientnet_lite": _Family(
        efficientnet_lite.EfficientNetLite,
        efficientnet_lite.EfficientNetLiteConfig.from_dict,
        _COMMON | {"norm": "None or batch: batch norm after every convolution"},
    ),
}
_OF_OTHERS: dict[str, _Family] = {
    "timm": _Family(timm_network.TimmNetwork, timm_network.TimmConfig.from_dict, {}),
}
"""Families that a model file may name and `create_model` does not create."""
FAMILY_OPTIONS: dict[str, dict[str, str]] = {name: family.options for name, family in _FAMILIES.items()}
"""The options of `create_model` for each family, each with its help."""

_CONFIGS: dict[str, Config] = {
    **nin.NETWORKS,
    **linear.NETWORKS,
    **{config.name: config for config in (googlenet.CONFIG, squeezenet.CONFIG, efficientnet_lite.CONFIG)},
}


def list_models() -> list[str]:
    """Return the names that `create_model` accepts, sorted."""
    return sorted(_CONFIGS)


def create_model(name: str, *, pretrained: bool = False, **options: Any) -> Network:
    """Return a network by name, with random weights or, with `pretrained`, the weights that ship with the package.

    `options` are those of the network's family (`FAMILY_OPTIONS`). With `pretrained=True` their defaults are the
    configuration of the shipped weights; a different `num_classes` initialises a new classifier, and different
    `in_channels` each get the mean filter of the first convolution. Raises UsageError for an unknown name, option or
    value, and if no weights ship for this network or they do not fit the options.
    """
    if name not in _CONFIGS:
        raise _unknown(name)
    family = _FAMILIES[_CONFIGS[name].family]
    for key in options:
        if key not in family.options:
            raise UsageError(f"{name} has no option {key!r}; {did_you_mean(key, family.options)}")
    settings = {key: value for key, value in options.items() if value is not None or key == "norm"}
    if "size" in settings:
        settings["size"] = sides(settings["size"])
    base = family.from_dict(pretrained_config(name)) if pretrained else _CONFIGS[name]
    network = family.network(family.with_options(base, settings))
    if pretrained:
        load_pretrained(network, name)
    return network


def _unknown(name: str) -> UsageError:
    """Return the error for a name that is no architecture; it may be that of trained weights, as digits."""
    if name in pretrained_names():
        return UsageError(
            f"{name} is a trained network of the architecture {pretrained_config(name)['name']}: "
            f"mlpconv.load({name!r}) opens it, and {option('source', name)} trains from its weights."
        )
    return UsageError(f"There is no model {name!r}; {did_you_mean(str(name), _CONFIGS)}")


def build(config: Mapping[str, Any]) -> Network:
    """Return the network of a configuration written by `to_dict()`; raise UsageError for anything else."""
    name = config.get("family") if isinstance(config, Mapping) else None
    families = _FAMILIES | _OF_OTHERS
    family = families[choice("A network's family", name, families)]
    return family.network(family.from_dict(config))
