"""The network that a word on the command line stands for: a model file, one of our names, or another library's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from mlpconv.inference import Classifier

    Opened = tuple[nn.Module, tuple[int, int, int]]

__all__ = ["import_vision", "is_foreign", "open_model", "open_parts"]

IMAGENET = (3, 224, 224)
VISION = "pip install 'mlpconv[vision]'"
OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def open_model(given: str, *, weights: bool = True) -> Opened:
    """The network that a path or name stands for, and (C, H, W) of its usual images; raises as `open_parts` does.

    With `weights=False` the parameters of a network that comes from no file may have shapes and no numbers: it takes
    no memory then, however large it is.
    """
    from mlpconv.models.registry import list_models

    if weights or os.path.lexists(given) or not (is_foreign(given) or given in list_models()):
        return open_parts(given)[:2]
    try:
        with _weightless():
            return open_parts(given)[:2]
    except RuntimeError:  # one that reads its own weights while it is made
        return open_parts(given)[:2]


@contextmanager
def _weightless() -> Iterator[None]:
    """What is made meanwhile has parameters without storage; buffers, such as tables of indices, have their numbers."""
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def emptied(_: nn.Module, __: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        handle.remove()


def open_parts(given: str) -> tuple[nn.Module, tuple[int, int, int], Classifier | None]:
    """The network that a path or name stands for, the size of its images, and the model file it came from, if any.

    A path goes before a name. Model files and run folders have their weights; an architecture such as nin_cifar10,
    torchvision:resnet50 or timm:convnext_tiny has random ones. Raises UsageError for an unknown name or a library that
    is not installed, ModelFileError for a file that cannot be read.
    """
    from mlpconv import inference
    from mlpconv.errors import ModelFileError, UsageError, did_you_mean
    from mlpconv.models.registry import create_model, list_models

    if is_foreign(given):
        library, _, name = given.partition(":")
        return *_LIBRARIES[library](name), None
    if not os.path.lexists(given) and given in list_models():
        network = create_model(given)
        return network, network.input_size, None
    try:
        classifier = inference.load(given)
    except ModelFileError:
        if os.path.lexists(given):
            raise
        raise UsageError(
            f"There is no file, run folder or architecture {given[:300]!r}; {did_you_mean(given, list_models())} "
            "Of other libraries: torchvision:NAME or timm:NAME."
        ) from None
    return classifier.model, classifier.input_size, classifier


def is_foreign(given: str) -> bool:
    """Whether a word stands for a network of another library, such as torchvision:resnet50."""
    library, _, name = given.partition(":")
    return library in _LIBRARIES and bool(name)


def import_vision(module: str) -> Any:
    """A module of torchvision or timm; UsageError where the library is not installed.

    Beside a PyTorch of another build torchvision's compiled operators are missing and its import fails over their
    names; the names alone are enough to build its networks.
    """
    from importlib import import_module

    import torch

    from mlpconv.errors import UsageError

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"{module.partition('.')[0]} is not installed; {VISION} brings it.") from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]
    for operator in OPERATORS:
        torch.library.define(f"torchvision::{operator}", SCHEMA)
    return import_module(module)


def _from_torchvision(name: str) -> Opened:
    """One of torchvision's classification networks, with random weights, for the size of its published ones."""
    models = import_vision("torchvision.models")
    name = _accepted_name("torchvision", name, models.list_models(module=models))
    # Without this word GoogLeNet and Inception warn that their start will change one day.
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = models.get_model(name, weights=None, **extra)
    size = getattr(network, "image_size", None) or models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    return network, (3, size, size)


def _from_timm(name: str) -> Opened:
    """One of timm's architectures, with random weights, for the size that it, or the tag of its weights, states."""
    timm = import_vision("timm")
    architecture, dot, tag = name.partition(".")
    name = _accepted_name("timm", architecture, timm.list_models())
    if dot:
        tagged = [each for each in timm.list_pretrained() if each.partition(".")[0] == name]
        name = _accepted_name("timm", f"{name}.{tag}", tagged)
    network = timm.create_model(name, pretrained=False)
    channels, rows, columns = getattr(network, "default_cfg", {}).get("input_size", IMAGENET)
    return network, (channels, rows, columns)


def _accepted_name(library: str, name: str, accepted: list[str]) -> str:
    """The library's own spelling of a name, whatever its capitals; UsageError for a name that it does not have."""
    from mlpconv.errors import UsageError, did_you_mean

    spelled = {each.lower(): each for each in accepted}.get(name.lower())
    if spelled is None:
        raise UsageError(f"{library} has no image classifier {name[:100]!r}; {did_you_mean(name[:100], accepted)}")
    return spelled


_LIBRARIES = {"torchvision": _from_torchvision, "timm": _from_timm}
