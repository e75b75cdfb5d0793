"""From raw pixels to what a network takes: a chain of fitted steps that travels inside the model file.

Pixels are uint8 and become floats from 0 to 1; then each step of the chain, in order, each (N, C, H, W) -> the same:

- scale         nothing more
- mean          minus the mean of each channel over the training images
- standardize   the same, divided by each channel's standard deviation
- gcn           global contrast normalisation: each image minus its own mean, scaled to the norm 55
- zca           whitening: minus the mean image, times (covariance + 0.1 I)^(-1/2), fitted on the training images
- lcn           local contrast normalisation: each pixel against its 9x9 neighbourhood, a channel at a time

The paper takes gcn, zca for CIFAR (as Goodfellow et al., Maxout Networks, 2013), lcn for SVHN and mean for MNIST.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from mlpconv.errors import UsageError, did_you_mean

__all__ = ["STEPS", "Preprocessing"]

Images = Tensor | np.ndarray
Chunks = Callable[[], Iterator[Tensor]]  # goes once through the training images, after the earlier steps

CHUNK = 1 << 22  # values worked on at once while fitting
ZCA_LIMIT = 8192  # values an image: the covariance takes the square of it, 8 bytes each
SIDE_LIMIT = 4096
CHANNEL_LIMIT = 16384


class Step(nn.Module):
    """One step: (N, C, H, W) float -> the same shape; this one changes nothing. `fit` is called where `fitted`."""

    fitted = False

    def fit(self, chunks: Chunks) -> None:
        """Learn from the training images."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Standardize(Step):
    """Minus each channel's mean and, if `divide`, over its standard deviation; a constant channel is not divided."""

    fitted = True
    floor = 1e-5
    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, *, divide: bool = True) -> None:
        super().__init__()
        self.divide = divide
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1), persistent=divide)

    def fit(self, chunks: Chunks) -> None:
        mean, variance = _moments(chunks)
        deviation = variance.sqrt()
        self.mean.copy_(mean.view(-1, 1, 1))
        if self.divide:
            self.deviation.copy_(torch.where(deviation < self.floor, 1.0, deviation).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class GCN(Step):
    """Each image minus the mean of all its values, scaled to the norm 55; a constant image becomes 0."""

    scale = 55.0
    floor = 1e-8

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        flat = flat - flat.mean(1, keepdim=True)  # the first mean is rounded: what is left must not be blown up
        divisor = torch.linalg.vector_norm(flat, dim=1, keepdim=True) / self.scale
        return (flat / torch.where(divisor < self.floor, 1.0, divisor)).view_as(x)


class ZCA(Step):
    """Whitening by the symmetric root: (x - mean) @ (covariance + 0.1 I)^(-1/2), for images of the fitted size only."""

    fitted = True
    bias = 0.1
    mean: Tensor
    matrix: Tensor

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (channels, *size)
        values = channels * size[0] * size[1]
        if values > ZCA_LIMIT:
            raise UsageError(
                f"zca was asked for images of {_times(self.shape)} = {values:,} values; at most {ZCA_LIMIT:,} are "
                "accepted, as its matrix takes the square of that. Use smaller images, or gcn, lcn or standardize."
            )
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("matrix", torch.eye(values))

    def fit(self, chunks: Chunks) -> None:
        """Mean image and covariance in float64, divided by the number of images."""
        values = self.mean.numel()
        count, total = 0, torch.zeros(values, dtype=torch.float64)
        for chunk in chunks():
            self.check(chunk)
            total += chunk.flatten(1).sum(0, dtype=torch.float64).cpu()
            count += len(chunk)
        mean = total / count
        covariance = torch.zeros(values, values, dtype=torch.float64)
        for chunk in chunks():
            centred = chunk.flatten(1).cpu().double() - mean
            covariance.addmm_(centred.T, centred)
        eigenvalues, vectors = torch.linalg.eigh(covariance / count)
        roots = (eigenvalues.clamp_min(0) + self.bias).rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_((vectors * roots) @ vectors.T)

    def check(self, x: Tensor) -> None:
        """Refuse images of another size: UsageError."""
        if tuple(x.shape[1:]) != self.shape:
            raise UsageError(
                f"zca got images of {_times(x.shape[1:])}; it is fitted to {_times(self.shape)} and accepts no other. "
                "Resize the images, or preprocess without zca."
            )

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        with torch.autocast(x.device.type, enabled=False):  # 16 bits are too few for the sums of a whitening
            return ((x.flatten(1) - self.mean) @ self.matrix).view_as(x)


class LCN(Step):
    """Local contrast normalisation (Jarrett et al., ICCV 2009), on each channel.

    Minus the Gaussian mean of the neighbourhood, then divided by the larger of the neighbourhood's deviation and the
    image's mean deviation. The 9x9 window (deviation 2 pixels) is cut at the border and weighed anew.
    """

    floor = 1e-4
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.exp(-((torch.arange(9.0) - 4) ** 2) / (2 * 2.0**2))
        self.register_buffer("window", row / row.sum(), persistent=False)

    def blur(self, x: Tensor) -> Tensor:
        """The weighted mean of each neighbourhood: (M, 1, H, W) -> the same."""
        column, row = self.window.view(1, 1, 9, 1), self.window.view(1, 1, 1, 9)
        cover = conv2d(conv2d(torch.ones_like(x[:1]), column, padding=(4, 0)), row, padding=(0, 4))
        return conv2d(conv2d(x, column, padding=(4, 0)), row, padding=(0, 4)) / cover

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, *x.shape[2:])
        flat = flat - flat.mean(dim=(2, 3), keepdim=True)  # changes nothing but the rounding of what is nearly constant
        with torch.autocast(x.device.type, enabled=False):
            centred = flat - self.blur(flat)
            deviation = self.blur(centred**2).clamp_min(0).sqrt()
        typical = deviation.mean(dim=(2, 3), keepdim=True)
        return (centred / torch.maximum(deviation, typical).clamp_min(self.floor)).view_as(x)


STEPS: dict[str, Callable[[int, tuple[int, int]], Step]] = {
    "scale": lambda _channels, _size: Step(),
    "mean": lambda channels, _size: Standardize(channels, divide=False),
    "standardize": lambda channels, _size: Standardize(channels),
    "gcn": lambda _channels, _size: GCN(),
    "zca": ZCA,
    "lcn": lambda _channels, _size: LCN(),
}


class Preprocessing(nn.Module):
    """A chain of steps: (N, C, H, W) uint8 -> (N, C, H, W) float32. Its buffers travel in the state dict."""

    def __init__(self, names: Sequence[str], channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.names = _checked(names)
        self.channels = _whole("channels", channels, CHANNEL_LIMIT)
        self.size = (_whole("rows", size[0], SIDE_LIMIT), _whole("columns", size[1], SIDE_LIMIT))
        self.steps = nn.ModuleList(STEPS[name](channels, self.size) for name in self.names)
        self.ready = not any(cast("Step", step).fitted for step in self.steps)
        self.register_load_state_dict_post_hook(_now_ready)  # type: ignore[no-untyped-call]

    @classmethod
    def create(cls, names: Sequence[str], channels: int, size: tuple[int, int]) -> Preprocessing:
        """The chain of these steps for images (channels, *size), to be fitted; UsageError for an unknown name."""
        return cls(names, channels, size)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """The chain that `config()` described, its buffers to be filled by `load_state_dict`."""
        if not isinstance(config, Mapping) or set(config) != {"steps", "channels", "size"}:
            raise UsageError("A preprocessing is described by its steps, channels and size, and nothing else.")
        steps, size = config["steps"], config["size"]
        if not isinstance(steps, (list, tuple)) or not isinstance(size, (list, tuple)) or len(size) != 2:
            raise UsageError("A preprocessing's steps are a list of names, and its size is two numbers.")
        return cls(steps, config["channels"], (size[0], size[1]))

    def config(self) -> dict[str, Any]:
        """JSON-able; `from_config` is its inverse."""
        return {"steps": list(self.names), "channels": self.channels, "size": list(self.size)}

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
        x = images.float() / 255
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


def _moments(chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of each channel in float64, in two passes."""
    count, total = 0, torch.zeros((), dtype=torch.float64)
    for chunk in chunks():
        total = total + chunk.double().sum(dim=(0, 2, 3)).cpu()
        count += chunk.numel() // chunk.shape[1]
    mean = total / count
    square = torch.zeros_like(mean)
    for chunk in chunks():
        square += (chunk.double() - mean.to(chunk.device).view(-1, 1, 1)).square().sum(dim=(0, 2, 3)).cpu()
    return mean, square / count


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


def _times(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)
