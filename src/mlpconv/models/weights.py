"""Load the weights that ship with the package, also into a network with other classes or channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mlpconv.errors import UsageError, did_you_mean
from mlpconv.models.base import Network

__all__ = ["WEIGHTS", "load_pretrained", "pretrained_config", "pretrained_names", "pretrained_path"]

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
"""One model file for each network that ships with weights."""
PREFIX = "model."


def pretrained_names() -> list[str]:
    """Return the names of the networks whose weights ship with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def pretrained_config(name: str) -> dict[str, Any]:
    """Return the configuration of a network's shipped weights; raise UsageError for a network without them."""
    with safe_open(pretrained_path(name), framework="pt") as file:
        config: dict[str, Any] = json.loads(file.metadata()["mlpconv"])["model"]
    return config


@torch.no_grad()
def load_pretrained(network: Network, name: str) -> None:
    """Copy shipped weights into a network, except for the classifier if its number of classes differs.

    If the number of input channels differs, each gets the mean of the shipped filters over their channels, scaled so
    that a grey image has the same activations. Raises UsageError, naming the parameter, if any other shape differs.
    """
    with safe_open(pretrained_path(name), framework="pt") as file:
        shipped = {key.removeprefix(PREFIX): file.get_tensor(key) for key in file.keys() if key.startswith(PREFIX)}  # noqa: SIM118
    state = network.state_dict()
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    first = names[id(network.first_conv.weight)]
    classifier = {names[id(parameter)] for parameter in network.last_layer.parameters()}
    for key, tensor in state.items():
        source = shipped.get(key)
        if source is not None and key == first and source.shape[1] != tensor.shape[1]:
            source = _with_channels(source, tensor.shape[1])
        if source is None or (source.shape != tensor.shape and key not in classifier):
            raise UsageError(
                f"The shipped weights of {name} do not fit these options: {key} is {tuple(tensor.shape)} here. "
                "num_classes, in_channels, size and dropout may differ from those of the shipped network."
            )
        if source.shape == tensor.shape:
            tensor.copy_(source)


def _with_channels(weight: Tensor, channels: int) -> Tensor:
    """Return (D, C, k, k) as (D, channels, k, k) with equal channels and the same sum over them."""
    return (weight.float().sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1)


def pretrained_path(name: str) -> Path:
    """Return the model file of a network's shipped weights; raise UsageError for a network without them."""
    if name not in pretrained_names():
        raise UsageError(f"No weights of {name!r} ship with the package; {did_you_mean(name, pretrained_names())}")
    return WEIGHTS / f"{name}.safetensors"
