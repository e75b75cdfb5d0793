"""Build a 1x1 with norm and activation that starts as the identity, and append it to a module."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mlpconv.errors import SurgeryError
from mlpconv.layers import Maxout
from mlpconv.surgery.folding.linear_maps import uninitialised
from mlpconv.surgery.tracing.ranges import Range

__all__ = ["ACTIVATIONS", "Insertion", "append_module", "is_identity_on"]

HE = 2.0
PIECES = 2


def _linear_prelu(slopes: int, like: Tensor) -> nn.Module:
    """Return a PReLU of slope 1, which is the identity until it is trained."""
    return nn.PReLU(slopes, init=1.0).to(device=like.device, dtype=like.dtype)


ACTIVATIONS: dict[str, Callable[[int, Tensor], nn.Module]] = {
    "relu": lambda *_: nn.ReLU(inplace=True),
    "relu6": lambda *_: nn.ReLU6(inplace=True),
    "leaky_relu": lambda *_: nn.LeakyReLU(0.1),
    "elu": lambda *_: nn.ELU(),
    "gelu": lambda *_: nn.GELU(),
    "silu": lambda *_: nn.SiLU(),
    "prelu": _linear_prelu,
    "maxout": lambda *_: Maxout(PIECES),
    "identity": lambda *_: nn.Identity(),
}
"""Constructors; the arguments are the number of channels and a tensor of the wanted device and dtype."""


def is_identity_on(activation: str, bounds: Range) -> bool:
    """Return whether the activation is the identity between the bounds (maxout: of two equal pieces)."""
    low, high = bounds
    if activation in ("relu", "leaky_relu", "elu"):
        return low >= 0
    if activation == "relu6":
        return low >= 0 and high <= 6
    return activation in ("prelu", "maxout", "identity")


@dataclass(frozen=True)
class Insertion:
    """The settings of a 1x1 with its norm and activation; `build` creates the layers."""

    channels: int
    maps: bool
    """Whether the input is (N, C, H, W); otherwise its channels come last: (N, C), (N, L, C), (N, H, W, C)."""
    init: str
    """"identity" or "he"."""
    noise: float
    """Fraction of He's standard deviation added to the identity."""
    activation: str
    norm: bool
    seed: int
    mean: Tensor | None = None
    """(C,): the running mean of the norm; zeros if None."""
    variance: Tensor | None = None
    """(C,): the running variance of the norm; ones if None."""
    written: bool = False
    """Whether the network writes in place into the output."""
    one_slope: bool = False
    """Whether a PReLU has one slope for all channels: channels that come last cannot have slopes of their own."""

    @property
    def exact(self) -> bool:
        """Whether the insertion starts as the identity."""
        return self.init == "identity" and not self.noise

    def build(self, like: Tensor) -> nn.Sequential:
        """Return the layers with the device and dtype of `like`."""
        layers = OrderedDict[str, nn.Module](conv=self.layer(like))
        if self.norm:
            layers["norm"] = self.norm_layer(like)
        if self.activation == "relu" and self.written:
            # The gradient of nn.ReLU needs its output unchanged; that of nn.Threshold needs its input.
            layers["activation"] = nn.Threshold(0.0, 0.0)
        elif self.activation != "identity":
            layers["activation"] = ACTIVATIONS[self.activation](1 if self.one_slope else self.channels, like)
        return nn.Sequential(layers)

    @torch.no_grad()
    def layer(self, like: Tensor) -> nn.Module:
        """Return the 1x1."""
        pieces = PIECES if self.activation == "maxout" else 1
        if self.maps:
            layer = uninitialised(nn.Conv2d, like, self.channels, self.channels * pieces, 1)
        else:
            layer = uninitialised(nn.Linear, like, self.channels, self.channels * pieces)
        weight = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(self.seed))  # type: ignore[arg-type]
        fraction = 1.0 if self.init == "he" else self.noise
        weight *= fraction * (HE / self.channels) ** 0.5
        if self.init == "identity":
            eye = torch.eye(self.channels).repeat_interleave(pieces, 0)
            weight += eye.reshape(weight.shape)
        layer.weight.copy_(weight)  # type: ignore[operator]
        layer.bias.zero_()  # type: ignore[operator]
        return layer

    @torch.no_grad()
    def norm_layer(self, like: Tensor) -> nn.Module:
        """Return a batch norm whose weight and bias undo its running statistics: the identity in eval mode."""
        pieces = PIECES if self.activation == "maxout" else 1
        norm_class = nn.BatchNorm2d if self.maps else nn.BatchNorm1d
        norm = norm_class(self.channels * pieces).to(device=like.device, dtype=like.dtype)
        if self.mean is not None and self.variance is not None:
            norm.running_mean.copy_(self.mean.repeat_interleave(pieces))  # type: ignore[union-attr]
            norm.running_var.copy_(self.variance.repeat_interleave(pieces))  # type: ignore[union-attr]
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())  # type: ignore[union-attr]
        norm.bias.copy_(norm.running_mean)  # type: ignore[arg-type]
        return norm


def append_module(module: nn.Module, insert: nn.Module) -> nn.Module:
    """Return a module that applies `module` and then `insert`; the parameters of `module` keep their names.

    A Sequential gets another child, a module without state becomes a Sequential, and any other module becomes an object
    of a derived class with the insert as its child `deepened`. Raises SurgeryError for containers with a forward of
    their own and modules that have a child `deepened`.
    """
    deepened: Any = copy.copy(module)
    deepened._modules = dict(module._modules)
    if type(module).forward is nn.Sequential.forward:
        deepened._modules[_unused_name(module)] = insert
        return cast("nn.Module", deepened)
    if not any(True for _ in (*module.parameters(), *module.buffers(), *module.children())):
        return nn.Sequential(OrderedDict({type(module).__name__.lower(): module, "deepened": insert}))
    if hasattr(module, "deepened"):
        raise SurgeryError(f"This {type(module).__name__} is deepened already: name its child 'deepened'.")
    if isinstance(module, nn.Sequential | nn.ModuleDict | nn.ModuleList):
        raise SurgeryError(
            f"This {type(module).__name__} iterates over its children in its own way, and would over an inserted one: "
            "name its last child, or the module around it."
        )
    deepened._modules["deepened"] = insert
    deepened.__class__ = _derived_class(type(module))
    return cast("nn.Module", deepened)


def _unused_name(module: nn.Module) -> str:
    names = ["deepened", *(f"deepened{number}" for number in range(2, len(module._modules) + 3))]
    return next(name for name in names if name not in module._modules)


_DERIVED: dict[type, Any] = {}


def _derived_class(kind: type) -> Any:
    """Return a class derived from `kind` whose forward ends with the child `deepened`."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.deepened(kind.forward(self, *args, **kwargs))  # type: ignore[attr-defined]

    def reduce(self: Any, _: Any) -> Any:
        return _new, (kind,), self.__dict__

    if kind not in _DERIVED:
        _DERIVED[kind] = type(f"Deepened{kind.__name__}", (kind,), {"forward": forward, "__reduce_ex__": reduce})
    return _DERIVED[kind]


def _new(kind: type) -> Any:
    """Return an object of the derived class without state, for copy and pickle to fill."""
    derived = _derived_class(kind)
    return derived.__new__(derived)
