"""Random crops, flips, cutout and mixup for a whole batch at once, on the device of the images.

Every draw comes from a generator keyed by (seed, what it is for, step), so a batch depends on nothing before it. What
was drawn goes to the device without waiting for it: a copy that blocks makes the processor wait for all work before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation", "augment", "generator", "mixup", "resize"]


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images of a training batch; lengths in pixels."""

    crop: int = 0
    crop_mode: str = "reflect"  # or "zero"
    flip: str = "none"  # or "random", "alternate"
    cutout: int = 0


def generator(seed: int, purpose: str, number: int) -> torch.Generator:
    """A random generator that depends on its three arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def augment(images: Tensor, kinds: Augmentation, *, seed: int, step: int, epoch: int, index: Tensor) -> Tensor:
    """Crop, flip and cut out (N, C, H, W) float images; `index` (N,) says which images of the set they are."""
    draw = generator(seed, "augment", step)
    n, width = len(images), images.shape[3]
    columns = torch.arange(width).expand(n, width)
    if kinds.flip != "none":
        mirrored = flips(kinds.flip, draw, seed, epoch, index.cpu())
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    if kinds.crop or kinds.flip != "none":
        images = crop(images, kinds, columns, draw)
    if kinds.cutout:
        images = cut_out(images, kinds.cutout, draw)
    return images


def flips(kind: str, draw: torch.Generator, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Which of the images to mirror, (N,) bool; alternate: by a coin of the image's own, turned over each epoch."""
    if kind == "random":
        return torch.rand(len(index), generator=draw) < 0.5
    return (coins(index, seed) + epoch) % 2 == 1


def coins(index: Tensor, seed: int) -> Tensor:
    """0 or 1 for each image number (N,), as good as random: a bit of the splitmix64 hash of (seed, number)."""
    word = index * -0x61C8864680B583EB + seed * 0x5851F42D4C957F2D % 2**63  # products wrap at 64 bits
    word = (word ^ (word >> 30)) * -0x40A7B892E31B1A47
    word = (word ^ (word >> 27)) * -0x6B2FB644ECCEEE15
    return (word >> 31) % 2


def crop(images: Tensor, kinds: Augmentation, columns: Tensor, draw: torch.Generator) -> Tensor:
    """Take a window at a random place of each padded image; `columns` (N, W) is the order in which they are read."""
    n, _, height, width = images.shape
    pad = kinds.crop
    if pad:
        # Reflection mirrors what there is: it cannot reach further than the image is wide.
        reflect = kinds.crop_mode == "reflect" and pad < min(height, width)
        images = F.pad(images, (pad,) * 4, mode="reflect" if reflect else "constant")
    offsets = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=draw)
    rows = (offsets[0] + torch.arange(height)).to(images.device, non_blocking=True)
    columns = (offsets[1] + columns).to(images.device, non_blocking=True)
    first = torch.arange(n, device=images.device)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)  # (N, H, W, C): one gather moves whole pixels, and the result is channels-last
    return pixels[first, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """Set a square of each image to zero, its centre anywhere (DeVries and Taylor 2017)."""
    n, _, height, width = images.shape
    centres = torch.rand(2, n, 1, generator=draw) * torch.tensor([height, width])[:, None, None]
    inside_rows = (torch.arange(height) - centres[0].floor() + side // 2).div(side, rounding_mode="floor") == 0
    inside_columns = (torch.arange(width) - centres[1].floor() + side // 2).div(side, rounding_mode="floor") == 0
    hole = (inside_rows[:, :, None] & inside_columns[:, None, :]).to(images.device, non_blocking=True)
    return images.masked_fill(hole[:, None], 0.0).contiguous(memory_format=torch.channels_last)


def mixup(images: Tensor, targets: Tensor, alpha: float, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Blend each image and its (N, K) target with another's, by a share ~ Beta(alpha, alpha) (Zhang et al. 2017)."""
    draw = generator(seed, "mixup", step)
    share = float(np.random.default_rng([seed, step]).beta(alpha, alpha))
    other = torch.randperm(len(images), generator=draw).to(images.device, non_blocking=True)
    return torch.lerp(images[other], images, share), torch.lerp(targets[other], targets, share)


def resize(images: Tensor, side: int) -> Tensor:
    """Scale (N, C, H, W) float images to side x side, antialiased."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
