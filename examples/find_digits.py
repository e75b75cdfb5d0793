"""Detect digits in a large image with a classifier of single digits: `python examples/find_digits.py [OUT.png]`.

Trains an ordinary PyTorch network with a flatten layer and linear layers on 8x8 images of a centred digit or of
background. `convolutionalize` replaces its head by convolutions; one pass over a large image then gives the logits of
every 8x8 window. Draws the figure in docs/surgery.md.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

import mlpconv
from mlpconv.plots import save_figure
from mlpconv.plots.style import ACCENT, bare, new_figure, styled

SIDE, BACKGROUND = 8, 10
HEIGHT, WIDTH = 44, 88


def classifier() -> nn.Sequential:
    """Return a network (N, 1, 8, 8) -> logits of ten digits and background, without padding."""
    trunk = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()]
    return nn.Sequential(*trunk, nn.Flatten(), nn.Linear(64 * 4 * 4, 96), nn.ReLU(), nn.Linear(96, 11))


def background_windows(images: Tensor) -> Tensor:
    """Place digits side by side and crop windows at least two pixels off the centre of both."""
    pairs = torch.cat([images, torch.zeros_like(images), images.roll(1, 0)], dim=3)
    pairs = F.pad(pairs, (0, 0, 6, 6))
    down, right = torch.randint(0, 13, (len(images),)), torch.randint(2, 15, (len(images),))
    right = torch.where((down - 6).abs() >= 2, torch.randint(0, 17, (len(images),)), right)
    corners = zip(pairs, down.tolist(), right.tolist(), strict=True)
    windows = [pair[:, y : y + SIDE, x : x + SIDE] for pair, y, x in corners]
    return torch.stack(windows)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 12) -> None:
    """Train on centred digits and as many background windows."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            x = torch.cat([images[batch], background_windows(images[batch])])
            y = torch.cat([labels[batch], torch.full((len(batch),), BACKGROUND)])
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def scene(images: Tensor) -> Tensor:
    """Return an image (1, 1, 44, 88) with digits at random places, without overlap."""
    picture = torch.zeros(1, 1, HEIGHT, WIDTH)
    cells = [(y, x) for y in range(2, HEIGHT - 12, 14) for x in range(2, WIDTH - 12, 14)]
    for image, cell in zip(images, np.random.default_rng(5).permutation(cells)[:11], strict=False):
        y, x = cell + np.random.default_rng(int(cell.sum())).integers(0, 5, 2)
        picture[0, :, y : y + SIDE, x : x + SIDE] = image
    return picture


def one_by_one(model: nn.Module, picture: Tensor) -> Tensor:
    """Run the network on every window separately: logits (1, 11, H, W)."""
    windows = picture[0, 0].unfold(0, SIDE, 1).unfold(1, SIDE, 1)
    logits: Tensor = model(windows.reshape(-1, 1, SIDE, SIDE))
    return logits.T.reshape(1, -1, *windows.shape[:2])


def detections(logits: Tensor) -> list[tuple[int, int, int]]:
    """Return (row, column, digit) where a digit scores above background and is the local maximum."""
    digit, label = logits[0, :BACKGROUND].max(0)
    margin = digit - logits[0, BACKGROUND]
    peak = margin == F.max_pool2d(margin[None], 2 * SIDE - 3, 1, SIDE - 2)[0]
    places = (peak & (margin > 0)).nonzero().tolist()
    return [(row, column, int(label[row, column])) for row, column in places]


@styled
def draw(picture: Tensor, logits: Tensor, out: str) -> Figure:
    """Draw the image with the detected digits, and the map of the digit probability."""
    figure = new_figure(10, 3)
    left, right = figure.subplots(1, 2)
    left.set_title("Detected digits")
    right.set_title("Probability of a centred digit")
    left.imshow(picture[0, 0].numpy(), cmap="Greys_r")
    for row, column, digit in detections(logits):
        left.add_patch(Rectangle((column - 0.5, row - 0.5), SIDE, SIDE, fill=False, color=ACCENT))
        left.text(column + SIDE, row + 1, str(digit), color=ACCENT, fontweight="bold", va="center")
    probability = np.zeros((HEIGHT, WIDTH))
    probability[SIDE // 2 : 1 - SIDE // 2, SIDE // 2 : 1 - SIDE // 2] = 1 - logits.softmax(1)[0, BACKGROUND].numpy()
    right.imshow(probability, cmap="magma", vmin=0, vmax=1)
    for axes in (left, right):
        bare(axes)
    print(save_figure(figure, out))
    return figure


def main(out: str = "found.png") -> None:
    """Train, convolutionalize, and compare one pass over the image with one window at a time."""
    torch.manual_seed(0)
    digits = mlpconv.open_data("digits")
    train_split, test_split = digits.split("train"), digits.split("test")
    model = classifier()
    train(model, torch.from_numpy(train_split.images) / 255, torch.from_numpy(train_split.labels).long())
    model.eval()
    result = mlpconv.surgery.convolutionalize(model, (1, SIDE, SIDE))
    picture = scene(torch.from_numpy(test_split.images) / 255)
    with torch.inference_mode():
        start = time.perf_counter()
        separate = one_by_one(model, picture)
        middle = time.perf_counter()
        dense = result.model(picture)
        end = time.perf_counter()
    print(result.report)
    print(f"largest difference between one pass and separate windows: {float((dense - separate).abs().max()):.1e}")
    print(f"{1000 * (middle - start):.1f} ms for separate windows, {1000 * (end - middle):.1f} ms for one pass")
    draw(picture, dense, out)


if __name__ == "__main__":
    main(*sys.argv[1:2])
