"""Find digits in a larger picture with a classifier of single ones: `python examples/find_digits.py [OUT.png]`.

An ordinary PyTorch network, flatten and linear layers at its end, is trained on 8x8 images: a digit in the middle, or
nothing that is. `convolutionalize` turns its head into convolutions; run once over a large picture it then says for
every place what the network would have said of the 8x8 pixels there. The picture in docs/surgery.md is made by this.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

import mlpconv
from mlpconv.plots import save_figure
from mlpconv.plots.style import ACCENT, bare, new_figure, styled

SIDE, NOTHING = 8, 10
HEIGHT, WIDTH = 44, 88


def classifier() -> nn.Sequential:
    """(N, 1, 8, 8) -> logits of ten digits and of nothing; no padding, so that every place is treated alike."""
    trunk = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()]
    return nn.Sequential(*trunk, nn.Flatten(), nn.Linear(64 * 4 * 4, 96), nn.ReLU(), nn.Linear(96, 11))


def off_the_middle(images: Tensor) -> Tensor:
    """Beside each digit its neighbour, and a window that is two pixels or more away from the middle of both."""
    pairs = torch.cat([images, torch.zeros_like(images), images.roll(1, 0)], dim=3)
    pairs = F.pad(pairs, (0, 0, 6, 6))
    down, right = torch.randint(0, 13, (len(images),)), torch.randint(2, 15, (len(images),))
    right = torch.where((down - 6).abs() >= 2, torch.randint(0, 17, (len(images),)), right)
    windows = [each[:, y : y + SIDE, x : x + SIDE] for each, y, x in zip(pairs, down, right, strict=True)]
    return torch.stack(windows)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 12) -> None:
    """Digits in the middle, and as many windows with none there."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for some in torch.randperm(len(images)).split(64):
            x = torch.cat([images[some], off_the_middle(images[some])])
            y = torch.cat([labels[some], torch.full((len(some),), NOTHING)])
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def scene(images: Tensor) -> Tensor:
    """A picture (1, 1, 44, 88) with digits strewn over it, none on another."""
    picture = torch.zeros(1, 1, HEIGHT, WIDTH)
    cells = [(y, x) for y in range(2, HEIGHT - 12, 14) for x in range(2, WIDTH - 12, 14)]
    for image, cell in zip(images, np.random.default_rng(5).permutation(cells)[:11], strict=False):
        y, x = cell + np.random.default_rng(int(cell.sum())).integers(0, 5, 2)
        picture[0, :, y : y + SIDE, x : x + SIDE] = image
    return picture


def one_by_one(model: nn.Module, picture: Tensor) -> Tensor:
    """The network on the window at every place: logits (1, 11, H, W)."""
    windows = picture[0, 0].unfold(0, SIDE, 1).unfold(1, SIDE, 1)
    return model(windows.reshape(-1, 1, SIDE, SIDE)).T.reshape(1, -1, *windows.shape[:2])


def found_in(logits: Tensor) -> list[tuple[int, int, int]]:
    """Rows, columns and digits where one is likelier than nothing, and more so than at every place around."""
    digit, label = logits[0, :NOTHING].max(0)
    margin = digit - logits[0, NOTHING]
    peak = margin == F.max_pool2d(margin[None], 2 * SIDE - 3, 1, SIDE - 2)[0]
    places = (peak & (margin > 0)).nonzero().tolist()
    return [(row, column, int(label[row, column])) for row, column in places]


@styled
def draw(picture: Tensor, logits: Tensor, out: str) -> None:
    """The picture with what was found, and where the network sees a digit at all."""
    figure = new_figure(10, 3)
    left, right = figure.subplots(1, 2)
    left.set_title("Digits that were found")
    right.set_title("Where the network sees one in the middle")
    left.imshow(picture[0, 0].numpy(), cmap="Greys_r")
    for row, column, digit in found_in(logits):
        left.add_patch(Rectangle((column - 0.5, row - 0.5), SIDE, SIDE, fill=False, color=ACCENT))
        left.text(column + SIDE, row + 1, str(digit), color=ACCENT, fontweight="bold", va="center")
    seen = np.zeros((HEIGHT, WIDTH))
    seen[SIDE // 2 : 1 - SIDE // 2, SIDE // 2 : 1 - SIDE // 2] = 1 - logits.softmax(1)[0, NOTHING].numpy()
    right.imshow(seen, cmap="magma", vmin=0, vmax=1)
    for axes in (left, right):
        bare(axes)
    print(save_figure(figure, out))


def main(out: str = "found.png") -> None:
    """Train, rewrite, look at the whole picture at once, compare with window after window."""
    torch.manual_seed(0)
    digits = mlpconv.open_data("digits")
    known, unseen = digits.split("train"), digits.split("test")
    model = classifier()
    train(model, torch.from_numpy(known.images) / 255, torch.from_numpy(known.labels).long())
    model.eval()
    result = mlpconv.surgery.convolutionalize(model, (1, SIDE, SIDE))
    picture = scene(torch.from_numpy(unseen.images) / 255)
    with torch.inference_mode():
        began = time.perf_counter()
        slow = one_by_one(model, picture)
        between = time.perf_counter()
        fast = result.model(picture)
        ended = time.perf_counter()
    print(result.report)
    print(f"largest difference to window after window: {float((fast - slow).abs().max()):.1e}")
    print(f"{1000 * (between - began):.1f} ms window by window, {1000 * (ended - between):.1f} ms at once")
    draw(picture, fast, out)


if __name__ == "__main__":
    main(*sys.argv[1:2])
