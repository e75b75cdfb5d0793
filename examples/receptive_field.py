"""Draw the receptive field of one cell over an image: `python examples/receptive_field.py [OUT.png]`.

This script draws the figure in docs/profile.md. The image is a synthetic landscape: hills under an evening sky.
"""

from __future__ import annotations

import sys

import numpy as np

import mlpconv

SIDE = 672  # three times the network's 224 pixels


def landscape(side: int = SIDE) -> np.ndarray:
    """Return a uint8 image (3, side, side) of hills with the sun behind them."""
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    dusk, dawn = np.array([[46, 74, 120], [252, 190, 120]], dtype=float)
    image = dusk + (dawn - dusk) * np.clip(y / 0.6, 0, 1)[..., None]
    image[(x - 0.68) ** 2 + (y - 0.36) ** 2 < 0.007] = (255, 236, 190)
    for index, (height, size, waves) in enumerate(((0.52, 0.07, 9), (0.64, 0.09, 6), (0.8, 0.08, 4))):
        ridge = height + size * np.sin(waves * x + 2 * index) * np.cos(2.3 * waves * x + index)
        shade = np.array([58, 104, 92]) * (1.15 - 0.3 * index)
        image[y > ridge] = shade
    for left in (0.12, 0.2, 0.33, 0.41, 0.56, 0.83):  # firs
        foot = 0.86 + 0.1 * np.sin(9 * left)
        tree = (np.abs(x - left) < 0.3 * (y - foot + 0.22)) & (y < foot) & (y > foot - 0.22)
        image[tree] = (24, 48, 44)
    pixels: np.ndarray = image.round().astype(np.uint8).transpose(2, 0, 1)
    return pixels


def main(out: str = "field.png") -> None:
    """Draw the field of a cell near the border, which extends into padding."""
    model = mlpconv.create_model("nin_imagenet")
    profile = mlpconv.analysis.profile(model, (3, 224, 224))
    figure = mlpconv.plots.receptive_field(profile, "blocks.2.convs.0", landscape(), cell=(7, 10))
    print(mlpconv.plots.save_figure(figure, out))


if __name__ == "__main__":
    main(*sys.argv[1:2])
