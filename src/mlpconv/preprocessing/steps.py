"""The preprocessing steps: modules whose buffers hold the statistics of the training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from mlpconv.errors import UsageError

__all__ = ["STEPS", "Step"]

Chunks = Callable[[], Iterator[Tensor]]  # iterates once over the training images, after the earlier steps

ZCA_LIMIT = 8192  # values per image; the covariance has the square of that, 8 bytes each


class Step(nn.Module):
    """A step maps (N, C, H, W) float to the same shape; this base class is the identity. `fitted` steps need `fit`."""

    fitted = False

    def fit(self, chunks: Chunks) -> None:
        """Fit the step to the training images."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Standardize(Step):
    """Subtract each channel's mean and, if `divide`, divide by its standard deviation unless it is constant."""

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
        return (x - self.mean).div_(self.deviation)


class GCN(Step):
    """Subtract each image's mean over all values and scale it to norm 55; a constant image becomes 0."""

    scale = 55.0
    floor = 1e-8

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        flat = flat - flat.mean(1, keepdim=True)  # again: scaling must not amplify the rounding error of the first mean
        divisor = torch.linalg.vector_norm(flat, dim=1, keepdim=True) / self.scale
        return (flat / torch.where(divisor < self.floor, 1.0, divisor)).view_as(x)


class ZCA(Step):
    """Whiten by the symmetric root: (x - mean) @ (covariance + 0.1 I)^(-1/2), only for images of the fitted size."""

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
                f"zca got images of {_format_shape(self.shape)} = {values:,} values; accepted: at most {ZCA_LIMIT:,}, "
                "as its matrix has the square of that. Use smaller images, or gcn, lcn or standardize."
            )
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("matrix", torch.eye(values))

    def fit(self, chunks: Chunks) -> None:
        """Compute the mean image and the covariance (divided by the number of images) in float64."""
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
        """Raise UsageError for images of another size."""
        if tuple(x.shape[1:]) != self.shape:
            raise UsageError(
                f"zca got images of {_format_shape(x.shape[1:])}; it is fitted to {_format_shape(self.shape)} and "
                "accepts no other. Resize the images, or preprocess without zca."
            )

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        with torch.autocast(x.device.type, enabled=False):  # 16 bits are too few for these sums
            return ((x.flatten(1) - self.mean) @ self.matrix).view_as(x)


class LCN(Step):
    """Local contrast normalisation (Jarrett et al., ICCV 2009) of each channel.

    Subtract the Gaussian mean of the neighbourhood, then divide by the larger of the neighbourhood's deviation and the
    image's mean deviation. The 9x9 window (sigma 2 pixels) is clipped at the border and renormalised.
    """

    floor = 1e-4
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.exp(-((torch.arange(9.0) - 4) ** 2) / (2 * 2.0**2))
        self.register_buffer("window", row / row.sum(), persistent=False)

    def blur(self, x: Tensor) -> Tensor:
        """Return the weighted mean of each neighbourhood of (M, 1, H, W), in the same shape."""
        column, row = self.window.view(1, 1, 9, 1), self.window.view(1, 1, 1, 9)
        cover = conv2d(conv2d(torch.ones_like(x[:1]), column, padding=(4, 0)), row, padding=(0, 4))
        return conv2d(conv2d(x, column, padding=(4, 0)), row, padding=(0, 4)) / cover

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, *x.shape[2:])
        flat = flat - flat.mean(dim=(2, 3), keepdim=True)  # only affects the rounding of nearly constant images
        with torch.autocast(x.device.type, enabled=False):
            centred = flat - self.blur(flat)
            deviation = self.blur(centred**2).clamp_min(0).sqrt()
        typical = deviation.mean(dim=(2, 3), keepdim=True)
        return (centred / torch.maximum(deviation, typical).clamp_min(self.floor)).view_as(x)


def _moments(chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Return the mean and variance (C,) of each channel in float64, in two passes."""
    count, total = 0, torch.zeros((), dtype=torch.float64)
    for chunk in chunks():
        total = total + chunk.double().sum(dim=(0, 2, 3)).cpu()
        count += chunk.numel() // chunk.shape[1]
    mean = total / count
    square = torch.zeros_like(mean)
    for chunk in chunks():
        square += (chunk.double() - mean.to(chunk.device).view(-1, 1, 1)).square().sum(dim=(0, 2, 3)).cpu()
    return mean, square / count


def _format_shape(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)


STEPS: dict[str, Callable[[int, tuple[int, int]], Step]] = {
    "scale": lambda _channels, _size: Step(),
    "mean": lambda channels, _size: Standardize(channels, divide=False),
    "standardize": lambda channels, _size: Standardize(channels),
    "gcn": lambda _channels, _size: GCN(),
    "zca": ZCA,
    "lcn": lambda _channels, _size: LCN(),
}
