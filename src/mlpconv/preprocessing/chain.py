"""A chain of preprocessing steps: fitted once, then raw pixels in and floats out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mlpconv.decode_options import DEFAULT_DECODING, DecodeOptions
from mlpconv.errors import UsageError, did_you_mean
from mlpconv.preprocessing.steps import STEPS, Step

__all__ = ["Preprocessing"]

Images = Tensor | np.ndarray

CHUNK = 1 << 22  # values worked on at once while fitting
SIDE_LIMIT = 4096
CHANNEL_LIMIT = 16384


class Preprocessing(nn.Module):
    """A chain of steps: (N, C, H, W) uint8 -> (N, C, H, W) float32. Its buffers travel in the state dict.

    `decode_options` says how image files become such pixels.
    """

    def __init__(
        self,
        names: Sequence[str],
        channels: int,
        size: tuple[int, int],
        decode_options: DecodeOptions = DEFAULT_DECODING,
    ) -> None:
        super().__init__()
        self.decode_options = decode_options
        self.names = _checked(names)
        self.channels = _whole("channels", channels, CHANNEL_LIMIT)
        self.size = (_whole("rows", size[0], SIDE_LIMIT), _whole("columns", size[1], SIDE_LIMIT))
        self.steps = nn.ModuleList(STEPS[name](channels, self.size) for name in self.names)
        self.ready = not any(cast("Step", step).fitted for step in self.steps)
        self.register_load_state_dict_post_hook(_now_ready)  # type: ignore[no-untyped-call]

    @classmethod
    def create(
        cls,
        names: Sequence[str],
        channels: int,
        size: tuple[int, int],
        decode_options: DecodeOptions = DEFAULT_DECODING,
    ) -> Preprocessing:
        """The chain of these steps for images (channels, *size), to be fitted; UsageError for an unknown name.

        `decode_options` says how image files become such images.
        """
        return cls(names, channels, size, decode_options)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """The chain that `config()` described, its buffers to be filled by `load_state_dict`."""
        if not isinstance(config, Mapping) or set(config) - {"fit", "bits"} != {"steps", "channels", "size"}:
            raise UsageError("A preprocessing is described by its steps, channels, size, fit and bits, and no more.")
        steps, size = config["steps"], config["size"]
        if not isinstance(steps, (list, tuple)) or not isinstance(size, (list, tuple)) or len(size) != 2:
            raise UsageError("A preprocessing's steps are a list of names, and its size is two numbers.")
        return cls(steps, config["channels"], (size[0], size[1]), DecodeOptions.from_dict(config))

    def config(self) -> dict[str, Any]:
        """JSON-able; `from_config` is its inverse."""
        described = {"steps": list(self.names), "channels": self.channels, "size": list(self.size)}
        return described | self.decode_options.to_dict()

    def fit(self, images: Images) -> Preprocessing:
        """Learn from training images (N, C, H, W) uint8, some at a time; returns itself. UsageError for none."""
        self.check(images)
        if not len(images):
            raise UsageError("Preprocessing got no images to learn from; at least one is accepted.")
        with torch.no_grad():
            for index, step in enumerate(self.steps):
                if cast("Step", step).fitted:
                    cast("Step", step).fit(lambda index=index: self.chunks(images, index))  # type: ignore[misc]
        self.ready = True
        return self

    def chunks(self, images: Images, steps: int) -> Iterator[Tensor]:
        """The images as floats after the first `steps` steps, a bounded number of values at a time."""
        many = max(1, CHUNK // max(1, int(np.prod(images.shape[1:]))))
        for start in range(0, len(images), many):
            yield self.run(_tensor(images[start : start + many]), steps)

    def run(self, images: Tensor, steps: int) -> Tensor:
        """uint8 images through the first `steps` steps."""
        x = images.float().div_(255)  # in place, here and in the steps: large new tensors cost page faults
        for step in list(self.steps)[:steps]:
            x = step(x)
        return x

    def check(self, images: Images) -> None:
        """Refuse what are not uint8 images of these channels: UsageError."""
        if images.ndim != 4 or images.dtype not in (torch.uint8, np.uint8):
            given = f"{images.ndim} dimensions of {images.dtype}"
            raise UsageError(f"Preprocessing got {given}; raw uint8 images (N, C, H, W) are accepted.")
        if images.shape[1] != self.channels:
            raise UsageError(
                f"Preprocessing got {images.shape[1]} channels; {self.channels} are accepted: convert them."
            )

    def forward(self, images: Images) -> Tensor:
        """(N, C, H, W) uint8 -> (N, C, H, W) float32; UsageError for other images, or before `fit`."""
        self.check(images)
        if not self.ready:
            raise UsageError("This preprocessing is not fitted yet: call fit(training images), or load its state.")
        return self.run(_tensor(images), len(self.steps))


def _now_ready(module: nn.Module, _keys: object) -> None:
    """After a state was loaded there is nothing left to fit."""
    cast("Preprocessing", module).ready = True


def _tensor(images: Images) -> Tensor:
    """A tensor of the images; arrays are copied, as a file mapped into memory may be read-only."""
    return images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    """The names of a chain: at least one, each known, none twice."""
    chain = (names,) if isinstance(names, str) else tuple(names)
    if not chain:
        raise UsageError(f"Preprocessing got no steps; at least one is accepted, of: {', '.join(STEPS)}.")
    for name in chain:
        if not isinstance(name, str) or name not in STEPS:
            given = str(name)[:60]
            raise UsageError(f"There is no preprocessing step {given!r}; {did_you_mean(given, STEPS)}")
        if chain.count(name) > 1:
            raise UsageError(f"Preprocessing got the step {name!r} more than once; each is accepted once.")
    return chain


def _whole(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise UsageError(f"Preprocessing got {name}={str(value)[:60]}; a whole number from 1 to {most} is accepted.")
    return value
