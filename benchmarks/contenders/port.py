"""The network as most ports run it: NCHW, fp32, eager, images transformed singly in a DataLoader, default settings."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image, ImageOps
from plain import network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from contenders import Settings
from contenders.images import images
from contenders.rounds import Rounds

__all__ = ["network", "train"]

MEAN, DEVIATION = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])
STORED, WORKERS, PAD = 10_000, 2, 4


class Transformed(Dataset[tuple[Tensor, int]]):
    """Images transformed one at a time: random crop, random horizontal flip, to tensor, normalise."""

    def __init__(self, side: int) -> None:
        pixels, labels = images(STORED, side)
        self.pixels, self.labels = pixels.transpose(0, 2, 3, 1).copy(), labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.pixels[index]), PAD)
        left, top = random.randint(0, 2 * PAD), random.randint(0, 2 * PAD)
        image = image.crop((left, top, image.width - 2 * PAD + left, image.height - 2 * PAD + top))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(MEAN[:, None, None]).div_(DEVIATION[:, None, None]), self.labels[index]


def train(rounds: Rounds, settings: Settings, *, memory: bool = False, compiled: bool = False) -> None:
    """Train as the ports do; `memory` applies our malloc settings, `compiled` uses torch.compile."""
    if memory:
        from mlpconv.training.memory import keep_freed_memory

        rounds.facts["memory"] = keep_freed_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rounds.facts["threads"] = torch.get_num_threads()
    data = Transformed(settings.side)
    endless = RandomSampler(data, replacement=True, num_samples=1 << 40)  # no epoch ends, which would favour the others
    loader = DataLoader(data, settings.batch, sampler=endless, num_workers=WORKERS)
    model = network().train()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(model) if compiled else model
    batches, running = iter(loader), 0.0
    while True:
        with rounds.input():
            pixels, labels = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(pixels), labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
        rounds.lap(len(labels))
