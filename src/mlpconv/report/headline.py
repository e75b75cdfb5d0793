"""The title of the report and the cards with its most important metrics."""

from __future__ import annotations

from mlpconv.files import MODEL_FILE
from mlpconv.report.page import NOTHING, Html, element
from mlpconv.report.run_contents import RunParts, number
from mlpconv.text import counted

__all__ = ["SPLITS", "headline"]

LONG_NAME = 14  # characters that fit a card in the usual size
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def headline(run: RunParts) -> Html:
    """Return the title and the most important metrics."""
    tiles = [tile for tile in (_accuracy(run), _model(run), _data(run), _time(run)) if tile]
    counts = run.data.get("counts")
    counts = counts if isinstance(counts, dict) else {}
    order = [*SPLITS, *(name for name in counts if name not in SPLITS)]
    sizes = [f"{value:,.0f} {SPLITS.get(name, name)}" for name in order if (value := number(counts, name)) is not None]
    line = f"A run of mlpconv on {_enumerate(sizes)} images." if sizes else "A run of mlpconv."
    return element(
        "header", element("h1", run.title), element("p", line, class_="quiet"), element("div", *tiles, class_="tiles")
    )


def _enumerate(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _tile(value: str, label: str, kind: str = "tile") -> Html:
    size = {"class_": "long"} if len(value) > LONG_NAME else {}
    return element("div", element("b", value, **size), element("span", label), class_=kind)


def _accuracy(run: RunParts) -> Html:
    error, n = number(run.evaluation, "error"), number(run.evaluation, "n")
    if error is None:
        return NOTHING
    split = SPLITS.get(str(run.evaluation.get("split")), "")
    label = f"{split} accuracy".strip()
    interval = run.evaluation.get("error_interval")
    if isinstance(interval, list) and len(interval) == 2 and all(isinstance(end, int | float) for end in interval):
        label += f", 95 % interval {1 - interval[1]:.1%} to {1 - interval[0]:.1%}"
    if n is not None:
        label += f", {n:,.0f} images"
    return _tile(f"{1 - error:.2%}", label, "tile main")


def _model(run: RunParts) -> Html:
    if run.model_name is None:
        return NOTHING
    if run.classifier is None:
        return _tile(run.model_name, "network")
    parameters = sum(parameter.numel() for parameter in run.classifier.model.parameters())
    size = (run.path / MODEL_FILE).stat().st_size
    return _tile(run.model_name, f"{parameters:,} parameters, model file {size / 1e6:.1f} MB")


def _data(run: RunParts) -> Html:
    classes, size, channels = run.data.get("classes"), run.data.get("size"), run.data.get("channels")
    if not isinstance(classes, list):
        return NOTHING
    label = "grey" if channels == 1 else "RGB" if channels == 3 else ""
    if isinstance(size, list) and len(size) == 2:
        label = f"{label} images, {size[0]} × {size[1]} pixels".strip()
    return _tile(f"{len(classes)} classes", label or "data")


def _time(run: RunParts) -> Html:
    last = run.history[-1] if run.history else {}
    seconds = number(last, "seconds")
    if seconds is None:
        return NOTHING
    trained = [row for row in run.history if number(row, "epoch") != 0]
    speeds = sorted(speed for row in trained if (speed := number(row, "images_per_second")) is not None)
    epochs = counted(len(trained), "epoch") if trained else "a fitted classifier"
    label = f"{epochs}, {speeds[len(speeds) // 2]:,.0f} images/s" if speeds else epochs
    return _tile(_duration(seconds), label)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
