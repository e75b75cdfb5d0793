"""Other people's receptive field calculators, each asked for the field of a network's last maps."""

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
"""Either the "field" along the rows in pixels, or why it "failed"; nothing where the library is not installed."""


def versions() -> dict[str, str]:
    """The libraries' names and versions, in the order of LIBRARIES; "absent" where one is not installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name.split(",")[0])
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the libraries print and warn of is not shown."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def torchscan(model: nn.Module, shape: Shape) -> Answer:
    """The last layer's field, as torchscan adds it up."""
    from torchscan import crawl_module

    return {"field": round(crawl_module(model, shape)["layers"][-1]["rf"])}


def rf_calc(model: nn.Module, shape: Shape) -> Answer:
    """The last layer's field, as rf-calc reads it from the printed network."""
    from rf_calc import receptive_field

    frame = receptive_field(model, shape[1])
    return {"field": int(frame["Receptive_field"].iloc[-1].split("*")[0])}


def receptivefield(model: nn.Module, shape: Shape) -> Answer:
    """What gradients of the network as it is give."""
    return _by_gradients(lambda: model, shape)


def receptivefield_positive(model: nn.Module, shape: Shape) -> Answer:
    """What gradients give after the preparation that the library recommends: average pools, positive weights."""
    with Straight():
        return _by_gradients(lambda: made_positive(model).float(), shape)


class _Kept(nn.Module):
    """Keeps its maps where the library looks for them."""

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
    field = PytorchReceptiveField(lambda: _Kept(make()))
    (found,) = field.compute(ImageShape(w=columns, h=rows, c=channels))
    size = max(found.rf.size)  # it counts rows as width
    return {"field": int(size)} if size == size else {"failed": "NaN"}


def asked(library: Callable[[nn.Module, Shape], Answer]) -> Callable[[nn.Module, Shape], Answer]:
    """The library's answer, or the kind of error that it ends with."""

    def ask(model: nn.Module, shape: Shape) -> Answer:
        try:
            with quiet():
                return library(model, shape)
        except ModuleNotFoundError:
            return {}
        except Exception as error:  # noqa: BLE001  (whatever another library raises is its answer)
            return {"failed": type(error).__name__}

    return ask


LIBRARIES = {
    "torchscan": asked(torchscan),
    "rf-calc": asked(rf_calc),
    "receptivefield": asked(receptivefield),
    "receptivefield, prepared": asked(receptivefield_positive),
}
