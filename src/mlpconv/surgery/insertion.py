"""A 1x1 with its norm and activation that starts as the identity, and its place behind a module of a network."""

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


def _straight(slopes: int, like: Tensor) -> nn.Module:
    """A PReLU of slope 1, which bends nothing until it has learnt to."""
    return nn.PReLU(slopes, init=1.0).to(device=like.device, dtype=like.dtype)


ACTIVATIONS: dict[str, Callable[[int, Tensor], nn.Module]] = {
    "relu": lambda *_: nn.ReLU(inplace=True),
    "relu6": lambda *_: nn.ReLU6(inplace=True),
    "leaky_relu": lambda *_: nn.LeakyReLU(0.1),
    "elu": lambda *_: nn.ELU(),
    "gelu": lambda *_: nn.GELU(),
    "silu": lambda *_: nn.SiLU(),
    "prelu": _straight,
    "maxout": lambda *_: Maxout(PIECES),
    "identity": lambda *_: nn.Identity(),
}
"""Each from the number of channels, and a tensor of the device and number format that are meant."""


def is_identity_on(activation: str, bounds: Range) -> bool:
    """Whether the activation gives back every number between the bounds (maxout: of two equal pieces)."""
    low, high = bounds
    if activation in ("relu", "leaky_relu", "elu"):
        return low >= 0
    if activation == "relu6":
        return low >= 0 and high <= 6
    return activation in ("prelu", "maxout", "identity")


@dataclass(frozen=True)
class Insertion:
    """A 1x1 with what follows it, before it is built."""

    channels: int
    maps: bool
    """Whether it works on maps (N, C, H, W), or else on what has its channels last: (N, C), (N, L, C), (N, H, W, C)."""
    init: str
    """"identity" or "he"."""
    noise: float
    """Share of He's deviation that is added to an identity."""
    activation: str
    norm: bool
    seed: int
    mean: Tensor | None = None
    """(C,): what the norm takes for the mean of its input; zeros if None."""
    variance: Tensor | None = None
    written: bool = False
    """Whether the network writes into what stands here."""
    one_slope: bool = False
    """Whether a PReLU has one slope for all channels: its own are those of the second dimension."""

    @property
    def exact(self) -> bool:
        """Whether it starts as the identity."""
        return self.init == "identity" and not self.noise

    def build(self, like: Tensor) -> nn.Sequential:
        """The layers, on a tensor's device and in its number format."""
        parts = OrderedDict[str, nn.Module](conv=self.layer(like))
        if self.norm:
            parts["norm"] = self.norm_layer(like)
        if self.activation == "relu" and self.written:
            # The gradient of a ReLU needs its output as it was, that of this one its input.
            parts["activation"] = nn.Threshold(0.0, 0.0)
        elif self.activation != "identity":
            parts["activation"] = ACTIVATIONS[self.activation](1 if self.one_slope else self.channels, like)
        return nn.Sequential(parts)

    @torch.no_grad()
    def layer(self, like: Tensor) -> nn.Module:
        """The 1x1 alone."""
        pieces = PIECES if self.activation == "maxout" else 1
        if self.maps:
            made = uninitialised(nn.Conv2d, like, self.channels, self.channels * pieces, 1)
        else:
            made = uninitialised(nn.Linear, like, self.channels, self.channels * pieces)
        drawn = torch.randn(made.weight.shape, generator=torch.Generator().manual_seed(self.seed))  # type: ignore[arg-type]
        share = 1.0 if self.init == "he" else self.noise
        drawn *= share * (HE / self.channels) ** 0.5
        if self.init == "identity":
            eye = torch.eye(self.channels).repeat_interleave(pieces, 0)
            drawn += eye.reshape(drawn.shape)
        made.weight.copy_(drawn)  # type: ignore[operator]
        made.bias.zero_()  # type: ignore[operator]
        return made

    @torch.no_grad()
    def norm_layer(self, like: Tensor) -> nn.Module:
        """A batch norm that multiplies and shifts by what its statistics divide and shift by: nothing, in eval mode."""
        pieces = PIECES if self.activation == "maxout" else 1
        kind = nn.BatchNorm2d if self.maps else nn.BatchNorm1d
        made = kind(self.channels * pieces).to(device=like.device, dtype=like.dtype)
        if self.mean is not None and self.variance is not None:
            made.running_mean.copy_(self.mean.repeat_interleave(pieces))  # type: ignore[union-attr]
            made.running_var.copy_(self.variance.repeat_interleave(pieces))  # type: ignore[union-attr]
        made.weight.copy_((made.running_var.double() + made.eps).sqrt())  # type: ignore[union-attr]
        made.bias.copy_(made.running_mean)  # type: ignore[arg-type]
        return made


def append_module(module: nn.Module, insert: nn.Module) -> nn.Module:
    """A module that does what this one does and then the insert; no parameter of the module changes its name.

    A Sequential gets one part more, a bare activation or pool becomes a Sequential, and any other module an object of
    a class derived from its own, with the insert as its child `deepened`.
    """
    made: Any = copy.copy(module)
    made._modules = dict(module._modules)
    if type(module).forward is nn.Sequential.forward:
        made._modules[_free(module)] = insert
        return cast("nn.Module", made)
    if not any(True for _ in (*module.parameters(), *module.buffers(), *module.children())):
        return nn.Sequential(OrderedDict({type(module).__name__.lower(): module, "deepened": insert}))
    if hasattr(module, "deepened"):
        raise SurgeryError(f"This {type(module).__name__} is deepened already: name its child 'deepened'.")
    if isinstance(module, nn.Sequential | nn.ModuleDict | nn.ModuleList):
        raise SurgeryError(
            f"This {type(module).__name__} goes through its parts in a way of its own, and would through one more: "
            "name the last of its parts, or the module around it."
        )
    made._modules["deepened"] = insert
    made.__class__ = _deepened(type(module))
    return cast("nn.Module", made)


def _free(module: nn.Module) -> str:
    names = ["deepened", *(f"deepened{number}" for number in range(2, len(module._modules) + 3))]
    return next(name for name in names if name not in module._modules)


_DERIVED: dict[type, Any] = {}


def _deepened(kind: type) -> Any:
    """A class like `kind` whose forward goes on through the child `deepened`."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.deepened(kind.forward(self, *args, **kwargs))  # type: ignore[attr-defined]

    def reduce(self: Any, _: Any) -> Any:
        return _empty, (kind,), self.__dict__

    if kind not in _DERIVED:
        _DERIVED[kind] = type(f"Deepened{kind.__name__}", (kind,), {"forward": forward, "__reduce_ex__": reduce})
    return _DERIVED[kind]


def _empty(kind: type) -> Any:
    """An object of the derived class, to be filled: how copies and pickles begin."""
    made = _deepened(kind)
    return made.__new__(made)
