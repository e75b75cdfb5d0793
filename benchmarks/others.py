"""Receptive fields of the last feature maps, as other libraries compute them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch
from gradients import Straight, made_positive
from torch import Tensor, nn

__all__ = ["LIBRARIES", "versions"]

Shape = tuple[int, int, int]
Answer = dict[str, Any]
"""The "field" along the rows in pixels, or the error as "failed"; empty if the library is not installed."""


def versions() -> dict[str, str]:
    """Return the version of each of LIBRARIES, "absent" if it is not installed."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name.split(",")[0])
        except metadata.PackageNotFoundError:
            installed[name] = "absent"
    return installed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the output and the warnings of the libraries."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def torchscan(model: nn.Module, shape: Shape) -> Answer:
    """Return the field of the last layer from torchscan."""
    from torchscan import crawl_module

    return {"field": round(crawl_module(model, shape)["layers"][-1]["rf"])}


def rf_calc(model: nn.Module, shape: Shape) -> Answer:
    """Return the field of the last layer from rf-calc, which parses the printed network."""
    from rf_calc import receptive_field

    frame = receptive_field(model, shape[1])
    return {"field": int(frame["Receptive_field"].iloc[-1].split("*")[0])}


def receptivefield(model: nn.Module, shape: Shape) -> Answer:
    """Return the field from gradients of the unmodified network."""
    return _by_gradients(lambda: model, shape)


def receptivefield_positive(model: nn.Module, shape: Shape) -> Answer:
    """Return the field from gradients after the recommended preparation: average pools, positive weights."""
    with Straight():
        return _by_gradients(lambda: made_positive(model).float(), shape)


class _Recorder(nn.Module):
    """A network that stores its feature maps where the library reads them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.model(x)
        self.__dict__["feature_maps"] = [maps]
        return maps


def _by_gradients(make: Callable[[], nn.Module], shape: Shape) -> Answer:
    from receptivefield.pytorch import PytorchReceptiveField
    from receptivefield.types import ImageShape

    torch.manual_seed(0)
    channels, rows, columns = shape
    field = PytorchReceptiveField(lambda: _Recorder(make()))
    (description,) = field.compute(ImageShape(w=columns, h=rows, c=channels))
    size = max(description.rf.size)  # the library takes rows for the width
    return {"field": int(size)} if size == size else {"failed": "NaN"}


def guarded(library: Callable[[nn.Module, Shape], Answer]) -> Callable[[nn.Module, Shape], Answer]:
    """Return a function that calls the library and returns its answer or the class of its exception."""

    def call(model: nn.Module, shape: Shape) -> Answer:
        try:
            with quiet():
                return library(model, shape)
        except ModuleNotFoundError:
            return {}
        except Exception as error:  # noqa: BLE001  (any exception of a library is a result)
            return {"failed": type(error).__name__}

    return call


LIBRARIES = {
    "torchscan": guarded(torchscan),
    "rf-calc": guarded(rf_calc),
    "receptivefield": guarded(receptivefield),
    "receptivefield, prepared": guarded(receptivefield_positive),
}
