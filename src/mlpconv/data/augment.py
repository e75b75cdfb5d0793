"""Random crops, flips, cutout and mixup of a batch, on the device of the images.

Random numbers come from a generator keyed by (seed, purpose, step), so a batch does not depend on earlier batches. They
are copied to the device without blocking: a blocking copy would make the CPU wait for all queued work.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation", "augment", "flips", "generator", "mixup", "resize"]


@dataclass(frozen=True)
class Augmentation:
    """How to augment the images of a training batch; lengths in pixels."""

    crop: int = 0
    crop_mode: str = "reflect"  # or "zero"
    flip: str = "none"  # or "random", "alternate"
    cutout: int = 0


def generator(seed: int, purpose: str, number: int) -> torch.Generator:
    """Return a random generator that depends only on the three arguments."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def augment(images: Tensor, settings: Augmentation, *, seed: int, step: int, epoch: int, index: Tensor) -> Tensor:
    """Crop, flip and cut out (N, C, H, W) float images; `index` (N,) holds their positions in the data set."""
    rng = generator(seed, "augment", step)
    n, width = len(images), images.shape[3]
    columns = torch.arange(width).expand(n, width)
    if settings.flip != "none":
        mask = flip_mask(settings.flip, rng, seed, epoch, index.cpu())  # first: `flips` draws the same numbers
        columns = torch.where(mask[:, None], width - 1 - columns, columns)
    if settings.crop or settings.flip != "none":
        images = crop(images, settings, columns, rng)
    if settings.cutout:
        images = cutout(images, settings.cutout, rng)
    return images


def flips(settings: Augmentation, *, seed: int, step: int, epoch: int, index: Tensor) -> Tensor:
    """Return a mask (N,) of the images that `augment` flips horizontally with the same arguments."""
    return flip_mask(settings.flip, generator(seed, "augment", step), seed, epoch, index.cpu())


def flip_mask(mode: str, rng: torch.Generator, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Return a mask (N,) of the images to flip; "alternate" flips every image in every second epoch."""
    if mode == "none":
        return torch.zeros(len(index), dtype=torch.bool)
    if mode == "random":
        return torch.rand(len(index), generator=rng) < 0.5
    return (random_bits(index, seed) + epoch) % 2 == 1


def random_bits(index: Tensor, seed: int) -> Tensor:
    """Return a pseudorandom bit for each image number (N,): one bit of the splitmix64 hash of (seed, number)."""
    word = index * -0x61C8864680B583EB + seed * 0x5851F42D4C957F2D % 2**63  # products wrap at 64 bits
    word = (word ^ (word >> 30)) * -0x40A7B892E31B1A47
    word = (word ^ (word >> 27)) * -0x6B2FB644ECCEEE15
    return (word >> 31) % 2


def crop(images: Tensor, settings: Augmentation, columns: Tensor, rng: torch.Generator) -> Tensor:
    """Crop each image at a random position after padding; `columns` (N, W) is the order of the columns to read."""
    n, _, height, width = images.shape
    pad = settings.crop
    if pad:
        # Reflection padding must be smaller than the image.
        reflect = settings.crop_mode == "reflect" and pad < min(height, width)
        images = F.pad(images, (pad,) * 4, mode="reflect" if reflect else "constant")
    offsets = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=rng)
    rows = (offsets[0] + torch.arange(height)).to(images.device, non_blocking=True)
    columns = (offsets[1] + columns).to(images.device, non_blocking=True)
    first = torch.arange(n, device=images.device)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)  # (N, H, W, C): one gather copies all channels; the result is channels-last
    return pixels[first, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Set a square of each image to zero, centred at a random pixel (DeVries and Taylor 2017)."""
    n, _, height, width = images.shape
    centres = torch.rand(2, n, 1, generator=rng) * torch.tensor([height, width])[:, None, None]
    inside_rows = (torch.arange(height) - centres[0].floor() + side // 2).div(side, rounding_mode="floor") == 0
    inside_columns = (torch.arange(width) - centres[1].floor() + side // 2).div(side, rounding_mode="floor") == 0
    hole = (inside_rows[:, :, None] & inside_columns[:, None, :]).to(images.device, non_blocking=True)
    return images.masked_fill(hole[:, None], 0.0).contiguous(memory_format=torch.channels_last)


def mixup(images: Tensor, targets: Tensor, alpha: float, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Mix each image and its (N, K) target with another's, with weight ~ Beta(alpha, alpha) (Zhang et al. 2017)."""
    rng = generator(seed, "mixup", step)
    weight = float(np.random.default_rng([seed, step]).beta(alpha, alpha))
    partner = torch.randperm(len(images), generator=rng).to(images.device, non_blocking=True)
    return torch.lerp(images[partner], images, weight), torch.lerp(targets[partner], targets, weight)


def resize(images: Tensor, side: int) -> Tensor:
    """Resize (N, C, H, W) float images to side x side, antialiased."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
