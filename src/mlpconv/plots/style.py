"""The common style of all figures: light, few colours, safe for colour blindness; user settings stay unchanged."""

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
BASE, ACCENT, GOOD = "#0072b2", "#d55e00", "#00795a"  # from Okabe and Ito's palette, the green darkened for text

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
# DejaVu comes with matplotlib; the others have the glyphs it lacks, if they are installed.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Hiragino Sans", "PingFang SC", "Microsoft YaHei")
NOTEBOOK_DPI = 100
DPI = 160
MAX_PNG = 200_000  # bytes
COARSER = 0.7

P = ParamSpec("P")


@functools.cache
def _style() -> dict[Any, Any]:
    """Return the style with the installed fonts."""
    installed = {font.name for font in fontManager.ttflist}
    return {**STYLE, "font.family": [name for name in FONTS if name in installed]}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a plotting function to use the common style without changing the user's settings."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_style()):
            return draw(*args, **kwargs)

    return drawn


class _NotebookFigure(Figure):
    """A figure that a notebook displays."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return a PNG and its display size in pixels, which is smaller, for high-resolution screens."""
        width, height = (round(side * NOTEBOOK_DPI) for side in self.get_size_inches())
        return _drawn(self, DPI), {"width": width, "height": height}


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """Return an empty figure of a size in inches, without a window; "compressed" suits images of a fixed aspect."""
    figure = _NotebookFigure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, *, dpi: float = DPI) -> Path:
    """Write a figure as PNG, or as SVG for the extension .svg, atomically; raise OSError.

    A PNG that is too large is drawn again at a lower resolution.
    """
    if Path(path).suffix.lower() == ".svg":
        drawn = _as_svg(figure)
    else:
        png = _drawn(figure, dpi)
        drawn = png if len(png) <= MAX_PNG else _drawn(figure, dpi * COARSER)
    write_atomic(Path(path), drawn)
    return Path(path)


def _as_svg(figure: Figure) -> bytes:
    """Return a reproducible SVG, without a date and with text as outlines."""
    buffer = io.BytesIO()
    with mpl.rc_context({**_style(), "svg.hashsalt": "mlpconv", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _drawn(figure: Figure, dpi: float) -> bytes:
    """Return a PNG without an alpha channel."""
    buffer, own = io.BytesIO(), figure.dpi
    canvas = FigureCanvasAgg(figure)
    with mpl.rc_context(_style()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is drawn; the tables have the full name
        figure.set_dpi(dpi)
        try:
            canvas.draw()  # type: ignore[no-untyped-call]
        finally:
            figure.set_dpi(own)
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).save(buffer, format="png", dpi=(dpi, dpi))
    return buffer.getvalue()


def bare(axes: Axes) -> Axes:
    """Remove ticks and frame from axes that show an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def picture(image: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return a uint8 image (C, H, W) with C of 1, 3 or 4 as (H, W, 3); raise UsageError for another shape."""
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[0] not in (1, 3, 4) or array.dtype != np.uint8:
        raise UsageError(
            f"Expected a uint8 image (C, H, W) with 1, 3 or 4 channels, got {array.dtype} of shape {array.shape}."
        )
    return np.repeat(array, 3, axis=0).transpose(1, 2, 0) if len(array) == 1 else array[:3].transpose(1, 2, 0)


def faded(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return an image (H, W, 3) in light grey, as a background for colours."""
    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    return np.repeat((94 + 8 * np.round(0.0775 * grey))[:, :, None], 3, axis=2).astype(np.uint8)


def short(name: object, length: int = 18) -> str:
    """Shorten a name in the middle, with control characters made visible."""
    text = printable(str(name))
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def share(probability: float) -> str:
    """Format a probability in whole percent, never rounded to 0 or 100 %."""
    if 0 < probability < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= probability < 1 else f"{probability:.0%}"
