"""Create networks of torchvision and timm by name, with random weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mlpconv.errors import UsageError, did_you_mean

__all__ = ["create_external", "create_timm", "import_vision", "is_external", "weightless"]

IMAGENET = (3, 224, 224)
VISION = "pip install 'mlpconv[vision]'"
OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
Sized = tuple[nn.Module, tuple[int, int, int]]
"""A network, and (C, H, W) of the images that it is designed for."""


def is_external(name: str) -> bool:
    """Return whether a name is that of a network of another library, such as torchvision:resnet50."""
    library, _, network = name.partition(":")
    return library in _LIBRARIES and bool(network)


def create_external(name: str) -> Sized:
    """Return the network of a name such as timm:convnext_tiny, and (C, H, W) of its usual images.

    Raises UsageError for a name that the library does not have, and if the library is not installed.
    """
    library, _, network = name.partition(":")
    return _LIBRARIES[library](network)


@contextmanager
def weightless() -> Iterator[None]:
    """Build networks inside this context with parameters on the meta device; buffers keep their values."""

    def move_to_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(move_to_meta)
    try:
        yield
    finally:
        handle.remove()


def import_vision(module: str) -> Any:
    """Import a module of torchvision or timm; raise UsageError if the library is not installed.

    With a different build of PyTorch, torchvision's compiled operators are missing and its import fails; declaring
    their names is enough to build its networks.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"{module.partition('.')[0]} is not installed; install it with: {VISION}.") from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]
    for operator in OPERATORS:
        torch.library.define(f"torchvision::{operator}", SCHEMA)
    return import_module(module)


def _from_torchvision(name: str) -> Sized:
    """Create a torchvision classification network, for the image size of its published weights."""
    models = import_vision("torchvision.models")
    name = _accepted_name("torchvision", name, models.list_models(module=models))
    # Without this argument GoogLeNet and Inception warn that their initialisation will change.
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = models.get_model(name, weights=None, **extra)
    size = getattr(network, "image_size", None) or models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    return network, (3, size, size)


def _from_timm(name: str) -> Sized:
    """Create a timm architecture, for the image size in its default configuration or that of the tag."""
    timm = import_vision("timm")
    architecture, dot, tag = name.partition(".")
    name = _accepted_name("timm", architecture, timm.list_models())
    if dot:
        tagged = [entry for entry in timm.list_pretrained() if entry.partition(".")[0] == name]
        name = _accepted_name("timm", f"{name}.{tag}", tagged)
    network = timm.create_model(name, pretrained=False)
    channels, rows, columns = getattr(network, "default_cfg", {}).get("input_size", IMAGENET)
    return network, (channels, rows, columns)


def create_timm(name: str, **options: Any) -> nn.Module:
    """Create a timm architecture with random weights; raises UsageError for an unknown name."""
    timm = import_vision("timm")
    network: nn.Module = timm.create_model(
        _accepted_name("timm", name, timm.list_models()), pretrained=False, **options
    )
    return network


def _accepted_name(library: str, name: str, accepted: list[str]) -> str:
    """Return the library's spelling of a name, ignoring case; raise UsageError for an unknown name."""
    spelling = {entry.lower(): entry for entry in accepted}.get(name.lower())
    if spelling is None:
        raise UsageError(f"{library} has no image classifier {name[:100]!r}; {did_you_mean(name[:100], accepted)}")
    return spelling


_LIBRARIES = {"torchvision": _from_torchvision, "timm": _from_timm}
