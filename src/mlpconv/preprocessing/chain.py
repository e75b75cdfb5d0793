"""A chain of preprocessing steps, fitted once on the training images."""

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

CHUNK = 1 << 22  # values processed at a time while fitting
SIDE_LIMIT = 4096
CHANNEL_LIMIT = 16384


class Preprocessing(nn.Module):
    """A chain of steps that maps (N, C, H, W) uint8 to (N, C, H, W) float32. Its buffers are in the state dict.

    `decode_options` say how image files are decoded to such pixels.
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
        self.names = _check_names(names)
        self.channels = _check_int("channels", channels, CHANNEL_LIMIT)
        self.size = (_check_int("rows", size[0], SIDE_LIMIT), _check_int("columns", size[1], SIDE_LIMIT))
        self.steps = nn.ModuleList(STEPS[name](channels, self.size) for name in self.names)
        self.ready = not any(cast("Step", step).fitted for step in self.steps)
        self.register_load_state_dict_post_hook(_mark_ready)  # type: ignore[no-untyped-call]

    @classmethod
    def create(
        cls,
        names: Sequence[str],
        channels: int,
        size: tuple[int, int],
        decode_options: DecodeOptions = DEFAULT_DECODING,
    ) -> Preprocessing:
        """Create an unfitted chain for images (channels, *size); raise UsageError for an unknown step name."""
        return cls(names, channels, size, decode_options)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Rebuild the chain from `config()`; `load_state_dict` then fills its buffers."""
        if not isinstance(config, Mapping) or set(config) - {"fit", "bits"} != {"steps", "channels", "size"}:
            raise UsageError("The configuration of a preprocessing has exactly: steps, channels, size, fit and bits.")
        steps, size = config["steps"], config["size"]
        if not isinstance(steps, (list, tuple)) or not isinstance(size, (list, tuple)) or len(size) != 2:
            raise UsageError("In the configuration of a preprocessing, steps is a list of names and size two numbers.")
        return cls(steps, config["channels"], (size[0], size[1]), DecodeOptions.from_dict(config))

    def config(self) -> dict[str, Any]:
        """Return a JSON-able configuration, the inverse of `from_config`."""
        config = {"steps": list(self.names), "channels": self.channels, "size": list(self.size)}
        return config | self.decode_options.to_dict()

    def fit(self, images: Images) -> Preprocessing:
        """Fit the steps to training images (N, C, H, W) uint8, in chunks; return self. UsageError if there are none."""
        self.check(images)
        if not len(images):
            raise UsageError("Preprocessing got no images to fit; give at least one.")
        with torch.no_grad():
            for index, step in enumerate(self.steps):
                if cast("Step", step).fitted:
                    cast("Step", step).fit(lambda index=index: self.chunks(images, index))  # type: ignore[misc]
        self.ready = True
        return self

    def chunks(self, images: Images, steps: int) -> Iterator[Tensor]:
        """Yield the images as floats after the first `steps` steps, a limited number of values at a time."""
        count = max(1, CHUNK // max(1, int(np.prod(images.shape[1:]))))
        for start in range(0, len(images), count):
            yield self.run(_tensor(images[start : start + count]), steps)

    def run(self, images: Tensor, steps: int) -> Tensor:
        """Apply the first `steps` steps to uint8 images."""
        x = images.float().div_(255)  # in place, here and in the steps, as large new tensors cause page faults
        for step in list(self.steps)[:steps]:
            x = step(x)
        return x

    def check(self, images: Images) -> None:
        """Raise UsageError unless the images are uint8 with the expected number of channels."""
        if images.ndim != 4 or images.dtype not in (torch.uint8, np.uint8):
            raise UsageError(
                f"Preprocessing got {images.ndim} dimensions of {images.dtype}; give raw uint8 images (N, C, H, W)."
            )
        if images.shape[1] != self.channels:
            raise UsageError(f"Preprocessing expects {self.channels} channels, got {images.shape[1]}: convert them.")

    def forward(self, images: Images) -> Tensor:
        """Map (N, C, H, W) uint8 to (N, C, H, W) float32; raise UsageError for other images, or before `fit`."""
        self.check(images)
        if not self.ready:
            raise UsageError("This preprocessing is not fitted yet: call fit(training images), or load its state.")
        return self.run(_tensor(images), len(self.steps))


def _mark_ready(module: nn.Module, _keys: object) -> None:
    """Mark the chain as fitted after its state is loaded."""
    cast("Preprocessing", module).ready = True


def _tensor(images: Images) -> Tensor:
    """Return the images as a tensor; arrays are copied, as a memory-mapped file may be read-only."""
    return images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the step names, at least one, all known and distinct; otherwise raise UsageError."""
    chain = (names,) if isinstance(names, str) else tuple(names)
    if not chain:
        raise UsageError(f"Preprocessing got no steps; give at least one of: {', '.join(STEPS)}.")
    for name in chain:
        if not isinstance(name, str) or name not in STEPS:
            shown = str(name)[:60]
            raise UsageError(f"There is no preprocessing step {shown!r}; {did_you_mean(shown, STEPS)}")
        if chain.count(name) > 1:
            raise UsageError(f"Preprocessing got the step {name!r} more than once; give it once.")
    return chain


def _check_int(name: str, value: object, limit: int) -> int:
    if type(value) is not int or not 1 <= value <= limit:
        raise UsageError(f"Preprocessing got {name}={str(value)[:60]}; give an integer from 1 to {limit}.")
    return value
