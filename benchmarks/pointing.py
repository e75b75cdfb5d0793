"""Measure where class maps point: images of four known parts, exact maps against Grad-CAM (captum).

    python benchmarks/pointing.py [--data FOLDER] [--mosaics 100]

Each mosaic has four images of different classes in its quarters. For each of these classes, the largest value of its
map should lie in the quarter of its image (25 % by chance). Networks: both shipped backbones with a classifier fitted
on the colour folder of benchmarks/folders.py, on mosaics of 1,000 other images of its classes; and the paper's network
trained on 40,000 images of CIFAR-10, on mosaics of the other 10,000.

Compared: the exact maps (`network.category_maps`), Grad-CAM on the feature maps before the classifier, and Grad-CAM on
an earlier layer. The seconds are CPU seconds on one thread, from preprocessed pixels to the maps of the four classes,
one image at a time. The interval is that of the mean over mosaics. Writes benchmarks/results/pointing.json and
docs/images/pointing.png.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradCam
from common import RESULTS, write_result
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from small_folders import write_images
from torch import Tensor, nn

import mlpconv
from mlpconv.data.as_trained import open_as_trained
from mlpconv.maps import find_peak
from mlpconv.models.base import Network
from mlpconv.plots.maps import HEAT, spread
from mlpconv.plots.style import INK, bare, faded, new_figure, picture, save_figure, styled
from mlpconv.receptive_field.map_grid import MapGrid, trace_grid
from mlpconv.transfer import linear_probe
from mlpconv.transfer.source import BACKBONES

SIDE = 256  # pixels of a mosaic for the backbones, and of the images that their classifiers are fitted on
DPI, BANDS = 100, 12
"""Of the picture: resolution and shades of a map, since photographs make a large PNG."""
EARLIER = {"efficientnet_lite0": "blocks.5", "squeezenet": "features.10", "nin_cifar10": "blocks.2.activations.0"}
"""The layer of the second Grad-CAM, whose cells lie where those of the class maps do."""
Maps = Callable[[Tensor, list[int]], Tensor]
"""From a preprocessed mosaic (1, C, H, W) and classes to their maps (classes, h, w)."""


@dataclass(frozen=True)
class Mosaics:
    """Images of four parts: (M, C, H, W) uint8, and the classes (M, 4) of their quarters, row by row."""

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]


class Split(nn.Module):
    """A network as feature maps and the rest, so that Grad-CAM finds the layer between them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.features = network, Features(network)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        return self.network.forward_head(self.features(x))


class Features(nn.Module):
    """The feature maps of a network: (N, C, H, W) -> (N, D, h, w)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, h, w)."""
        return self.network.forward_features(x)


def make_mosaics(images: NDArray[np.uint8], labels: NDArray[np.int64], side: int, count: int, seed: int) -> Mosaics:
    """Return `count` mosaics of `side` pixels, each of four images (N, C, H, W) of different classes."""
    rng, half = np.random.default_rng(seed), side // 2
    canvas, classes = np.empty((count, images.shape[1], side, side), np.uint8), np.empty((count, 4), np.int64)
    for number in range(count):
        classes[number] = rng.permutation(np.unique(labels))[:4]
        for quarter, label in enumerate(classes[number]):
            image = Image.fromarray(images[rng.choice(np.flatnonzero(labels == label))].transpose(1, 2, 0))
            tile = np.asarray(image.resize((half, half), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
            row, column = divmod(quarter, 2)
            canvas[number, :, row * half : (row + 1) * half, column * half : (column + 1) * half] = tile
    return Mosaics(canvas, classes)


def quarter_of(values: NDArray[np.float32], grid: MapGrid, side: int) -> int | None:
    """Return the quarter in which an (h, w) map is largest; None for a constant map."""
    peak, _ = find_peak(values, grid, (side, side))
    return None if peak is None else 2 * (peak.y >= (side - 1) / 2) + (peak.x >= (side - 1) / 2)


def methods_of(network: Network, earlier: str) -> dict[str, Maps]:
    """Return the functions that are compared."""

    def exact(x: Tensor, classes: list[int]) -> Tensor:
        with torch.inference_mode():
            return network.category_maps(x)[0, classes]

    def grad_cam(layer: nn.Module) -> Maps:
        explained = LayerGradCam(split, layer)

        def maps(x: Tensor, classes: list[int]) -> Tensor:
            found = [explained.attribute(x, target=label, relu_attributions=True) for label in classes]
            return torch.cat(found)[:, 0].detach()

        return maps

    split = Split(network).eval()
    return {
        "exact maps": exact,
        "Grad-CAM, same layer": grad_cam(split.features),
        "Grad-CAM, earlier layer": grad_cam(network.get_submodule(earlier)),
    }


def measure(classifier: mlpconv.Classifier, earlier: str, mosaics: Mosaics) -> dict[str, Any]:
    """Return the pointing accuracy and the seconds per image of each method."""
    side = mosaics.images.shape[2]
    network, grid = classifier.model, trace_grid(classifier.model, mosaics.images.shape[1:])
    result: dict[str, Any] = {"mosaics": len(mosaics.images), "side": side, "map": None, "methods": {}}
    for name, maps in methods_of(network, earlier).items():
        shares, seconds = [], []
        for image, classes in zip(mosaics.images, mosaics.classes, strict=True):
            x = classifier.preprocessing(torch.from_numpy(image[None])).contiguous(memory_format=torch.channels_last)
            start = time.process_time()
            values = maps(x, classes.tolist()).numpy()
            seconds.append(time.process_time() - start)
            shares.append(fmean(quarter_of(values[k], grid, side) == k for k in range(4)))
        half = 1.96 * stdev(shares) / len(shares) ** 0.5
        row = {"accuracy": fmean(shares), "low": fmean(shares) - half, "high": fmean(shares) + half}
        result["methods"][name] = row | {"cpu_ms": 1000 * float(np.median(seconds))}
        result["map"] = result["map"] or list(values.shape[1:])
        print(f"  {name}: {row['accuracy']:.1%} ± {half:.1%}, {1000 * np.median(seconds):.1f} ms", flush=True)
    return result


def fitted(folder: Path, source: str) -> mlpconv.Classifier:
    """Return a backbone with a classifier of the folder's classes."""
    return linear_probe(folder, source, size=SIDE, val_fraction=0, precision="auto")


def subjects(data: Path | None, count: int, top: Path) -> Iterator[tuple[str, mlpconv.Classifier, Mosaics]]:
    """Yield each network with its mosaics."""
    cifar = mlpconv.open_data("cifar100", root=data, val_fraction=0)
    folder, others = (write_images(cifar, "colour", part, top) for part in ("folder", "test"))
    test = mlpconv.open_data(others, val_fraction=0).split("train")
    mosaics = make_mosaics(test.images, test.labels, SIDE, count, seed=0)
    for source in reversed(BACKBONES):
        yield source, fitted(folder, source), mosaics
    paper = mlpconv.load(RESULTS / "nin_cifar10-40000.safetensors")
    validation = open_as_trained("cifar10", data, paper).split("val")
    yield "nin_cifar10", paper, make_mosaics(validation.images, validation.labels, 64, count, seed=0)


@styled
def drawn(rows: list[tuple[str, mlpconv.Classifier, Mosaics]]) -> Figure:
    """Draw a mosaic for each network, with the exact maps of its four classes, each on its own scale."""
    figure = new_figure(9, 2.05 * len(rows))
    grid = figure.subplots(len(rows), 5)
    for axes, (name, classifier, mosaics) in zip(grid, rows, strict=True):
        image, classes = mosaics.images[0], mosaics.classes[0]
        side, places = image.shape[1], trace_grid(classifier.model, image.shape)
        extent = (-0.5, side - 0.5, side - 0.5, -0.5)
        with torch.inference_mode():
            maps = classifier.model.category_maps(classifier.preprocessing(torch.from_numpy(image[None])))[0, classes]
        bare(axes[0]).imshow(picture(image), extent=extent)
        axes[0].set_title(name, fontsize=10)
        for axis, label, values in zip(axes[1:], classes, maps.numpy(), strict=True):
            bare(axis).imshow(faded(picture(image)), extent=extent)
            heat = spread(values, places, (side, side), (192, 192))
            shades = np.round(np.clip(heat / max(heat.max(), 1e-9), 0, 1) * BANDS) / BANDS
            axis.imshow(shades, cmap=HEAT, vmin=0, vmax=1, extent=extent, interpolation="nearest")
            peak, _ = find_peak(values, places, (side, side))
            if peak is not None:
                axis.plot(*peak, "o", markersize=7, markerfacecolor="none", markeredgecolor=INK, clip_on=False)
            axis.set_title(classifier.classes[label].replace("_", " "), fontsize=10, fontweight="normal")
    return figure


def main() -> None:
    """Measure every network, write the results and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the files of CIFAR-10 and CIFAR-100; default: the cache")
    parser.add_argument("--mosaics", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result, rows = {}, []
    with tempfile.TemporaryDirectory() as top:
        for name, classifier, mosaics in subjects(args.data, args.mosaics, Path(top)):
            print(name, flush=True)
            result[name] = measure(classifier, EARLIER[name], mosaics)
            rows.append((name, classifier, mosaics))
    write_result("pointing", result)
    save_figure(drawn(rows), RESULTS.parents[1] / "docs" / "images" / "pointing.png", dpi=DPI)


if __name__ == "__main__":
    main()
