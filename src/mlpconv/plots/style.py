"""One look for every figure: light, few colours, told apart by any eye, and never a change to the user's settings."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

from mlpconv.errors import UsageError
from mlpconv.files import write_atomic
from mlpconv.text import printable

__all__ = [
    "ACCENT",
    "BASE",
    "GOOD",
    "INK",
    "QUIET",
    "RULE",
    "bare",
    "faded",
    "new_figure",
    "picture",
    "save_figure",
    "short",
    "styled",
]

INK, QUIET, RULE = "#1f2933", "#697586", "#e3e7ec"
BASE, ACCENT, GOOD = "#0072b2", "#d55e00", "#00795a"  # of Okabe and Ito's palette, the green darkened for text

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.facecolor": "white",
    "axes.grid": False,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.07,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.bbox": None,
    "savefig.facecolor": "white",
    "text.color": INK,
    "text.parse_math": False,  # a class called "$x" is a name, not a formula
    "text.usetex": False,
    "xtick.color": QUIET,
    "xtick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.color": QUIET,
    "ytick.labelsize": 9,
    "ytick.major.size": 3,
}
# DejaVu comes with matplotlib; the others draw what it lacks, where they are installed.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Hiragino Sans", "PingFang SC", "Microsoft YaHei")
SHOWN = 100  # pixels an inch in a notebook
DPI = 160
LARGE = 200_000  # bytes of a PNG
COARSER = 0.7

P = ParamSpec("P")


@functools.cache
def _house() -> dict[Any, Any]:
    """The style, with the fonts that are installed."""
    installed = {font.name for font in fontManager.ttflist}
    return {**STYLE, "font.family": [name for name in FONTS if name in installed]}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the house style, whatever the user's settings are, and leave those as they were."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_house()):
            return draw(*args, **kwargs)

    return drawn


class _Shown(Figure):
    """A figure that a notebook shows by itself."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """A PNG, and the size in pixels at which it is shown: finer than those, sharp on any screen."""
        width, height = (round(side * SHOWN) for side in self.get_size_inches())
        return _drawn(self, DPI), {"width": width, "height": height}


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """An empty figure of so many inches that belongs to no window; "compressed" suits pictures of a fixed shape."""
    figure = _Shown(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, *, dpi: float = DPI) -> Path:
    """Write a figure as a PNG, or as an SVG where the name ends so, whole or not at all; raises OSError.

    At the usual `dpi` text is sharp on any screen; where that makes a large file, it is drawn coarser.
    """
    if Path(path).suffix.lower() == ".svg":
        drawn = _as_svg(figure)
    else:
        png = _drawn(figure, dpi)
        drawn = png if len(png) <= LARGE else _drawn(figure, dpi * COARSER)
    write_atomic(Path(path), drawn)
    return Path(path)


def _as_svg(figure: Figure) -> bytes:
    """The bytes of an SVG that says nothing of when it was made; letters are outlines, which every viewer has."""
    packed = io.BytesIO()
    with mpl.rc_context({**_house(), "svg.hashsalt": "mlpconv", "svg.fonttype": "path"}):
        figure.savefig(packed, format="svg", metadata={"Date": None})
    return packed.getvalue()


def _drawn(figure: Figure, dpi: float) -> bytes:
    """The bytes of a PNG, without an alpha channel that says nothing."""
    packed, own = io.BytesIO(), figure.dpi
    canvas = FigureCanvasAgg(figure)
    with mpl.rc_context(_house()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it; the name is whole in the tables
        figure.set_dpi(dpi)
        try:
            canvas.draw()  # type: ignore[no-untyped-call]
        finally:
            figure.set_dpi(own)
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).save(packed, format="png", dpi=(dpi, dpi))
    return packed.getvalue()


def bare(axes: Axes) -> Axes:
    """Axes for a picture: no ticks and no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def picture(image: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """A uint8 image (C, H, W) with C of 1, 3 or 4 as (H, W, 3) for drawing; UsageError for another shape."""
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[0] not in (1, 3, 4) or array.dtype != np.uint8:
        raise UsageError(
            f"An array of shape {array.shape} and type {array.dtype} is no picture; "
            "uint8 (C, H, W) with 1, 3 or 4 channels is accepted."
        )
    return np.repeat(array, 3, axis=0).transpose(1, 2, 0) if len(array) == 1 else array[:3].transpose(1, 2, 0)


def faded(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A picture (H, W, 3) in light greys, so that what is drawn over it is the only colour."""
    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    return np.repeat((94 + 8 * np.round(0.0775 * grey))[:, :, None], 3, axis=2).astype(np.uint8)


def short(name: object, length: int = 18) -> str:
    """A name that fits: control characters made visible, the middle left out of a long one."""
    text = printable(str(name))
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def share(probability: float) -> str:
    """A probability in whole per cents, and never rounded to certainty."""
    if 0 < probability < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= probability < 1 else f"{probability:.0%}"
