"""The sections of the report; a section whose parts are missing is empty."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from mlpconv.data.catalog import CATALOG
from mlpconv.report.choice import COLUMNS, candidate_rows, depth_reason
from mlpconv.report.page import Html, element, figure, section, table
from mlpconv.report.run_contents import RunParts, number
from mlpconv.temperature import KEY, TemperatureFit
from mlpconv.training.recipe import Recipe

__all__ = ["headline", "sections"]

NOTHING = Html("")
NARROW_TO = 12  # classes; up to here the confusion matrix is small
LONG_NAME = 14  # characters that fit a card in the usual size
OPEN_TO = 30  # classes; up to here their table is expanded
MEASURES = (
    ("error", "error", "{:.2%}"),
    ("top5_error", "top-5 error", "{:.2%}"),
    ("log_loss", "log loss", "{:.4f}"),
    ("calibration_error", "calibration error (15 bins)", "{:.4f}"),
)
OVERFITTING = "If the validation curve rises while the training curve falls, the network overfits."
MISTAKES = (
    "The most confident mistakes: the predicted class in orange, the true class in green. Wrong labels in the data "
    "often show here first."
)
MAPS = (
    "Category maps (exact class activation maps, CAM) of the most probable classes over each image: warmer colours add "
    "more to the class's score. The mean of a map is the class's logit. The ring marks the peak."
)
FITTED_ON = "These are the images of the fit: on others, expect a slightly larger calibration error."
FILTERS = "The filters of the first layer. Filters that look like noise are barely trained."
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def sections(run: RunParts) -> Html:
    """Return all sections below the headline."""
    all_sections = (
        notes(run),
        choice(run),
        usage(run),
        picture(run, "curves", "Training", "Loss and error by epoch", "Loss and error by epoch. " + OVERFITTING),
        evaluation(run),
        picture(run, "mistakes", "Worst mistakes", "Wrongly classified images", MISTAKES),
        picture(run, "maps", "Class activation maps", "Images and their category maps", MAPS),
        picture(run, "filters", "First-layer filters", "Weights of the first layer as images", FILTERS),
        recipe(run),
        environment(run),
    )
    return Html("".join(all_sections))


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
    size = (run.path / "model.safetensors").stat().st_size
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
    epochs = f"{len(trained)} epoch{'s' if len(trained) > 1 else ''}" if trained else "a fitted classifier"
    label = f"{epochs}, {speeds[len(speeds) // 2]:,.0f} images/s" if speeds else epochs
    return _tile(_duration(seconds), label)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def notes(run: RunParts) -> Html:
    """Return the notes about the data."""
    sentences = run.data.get("notes")
    if not isinstance(sentences, list) or not sentences:
        return NOTHING
    return section("About the data", element("ul", *(element("li", str(sentence)) for sentence in sentences)))


def choice(run: RunParts) -> Html:
    """Return the candidates that were compared for the initial weights."""
    source, reason = run.choice.get("source"), run.choice.get("reason")
    if not isinstance(source, str) or not isinstance(reason, str):
        return NOTHING
    rows = candidate_rows(run.choice)
    text = f"This run starts from {source}: {reason}."
    if depth := depth_reason(run.choice):
        text += f" {depth[0].upper()}{depth[1:]}."
    return section("Initial weights", element("p", text), table(COLUMNS, rows, "numbers") if rows else None)


def usage(run: RunParts) -> Html:
    """Return commands for this model."""
    file = run.path / "model.safetensors"
    if not file.is_file():
        return NOTHING
    model, name = shlex.quote(str(file)), str(run.data.get("name", ""))
    data = name if name in CATALOG and run.data.get("published", True) is True else "FOLDER"
    lines = (
        ("predict", "IMAGE...", "classify images"),
        ("maps", "IMAGE...", "draw class activation maps"),
        ("evaluate", data, "measure the accuracy"),
    )
    described = [(f"mlpconv {verb} {model} {argument}", purpose) for verb, argument, purpose in lines]
    width = max(len(command) for command, _ in described)
    commands = "\n".join(f"{command:<{width}}  # {purpose}" for command, purpose in described)
    code = f'import mlpconv\n\nclassifier = mlpconv.load({str(file)!r})\nprint(classifier.predict("image.png"))'
    text = "The model file holds weights, class names and preprocessing. Copy it anywhere."
    return section("Use it", element("p", text), element("pre", commands), element("pre", code))


def picture(run: RunParts, name: str, title: str, alternative: str, caption: str) -> Html:
    """Return a section with one figure."""
    png = run.figures.get(name)
    return section(title, figure(png, alternative, caption)) if png is not None else NOTHING


def evaluation(run: RunParts) -> Html:
    """Return the confusion matrix, the metrics and the table of classes."""
    children: list[Html] = []
    if "confusion" in run.figures:
        caption = "Rows are true classes, columns predicted ones; the colour is the fraction of the row."
        children.append(figure(run.figures["confusion"], "Confusion matrix", caption, class_=_width(run)))
    metrics = [
        (label, form.format(value))
        for key, label, form in MEASURES
        if (value := number(run.evaluation, key)) is not None
    ]
    if metrics:
        children.append(table(("metric", "value"), metrics, "numbers"))
    children += [_calibration(run), _classes(run)]
    split = SPLITS.get(str(run.evaluation.get("split")), "held-out")
    return section(f"Evaluation on {split} images", *children) if any(children) else NOTHING


def _calibration(run: RunParts) -> Html:
    """Return a sentence about the temperature that was folded into the classifier layer."""
    fit = TemperatureFit.from_dict(run.classifier.info.get(KEY)) if run.classifier is not None else None
    return NOTHING if fit is None else element("p", f"Calibrated: {fit}. " + FITTED_ON)


def _width(run: RunParts) -> str:
    """Return the CSS class of the confusion matrix."""
    rows = run.evaluation.get("per_class")
    return "narrow" if isinstance(rows, list) and len(rows) <= NARROW_TO else "wide"


def _classes(run: RunParts) -> Html:
    rows = run.evaluation.get("per_class")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return NOTHING
    cells = [
        (
            str(row.get("class", "")),
            *(_metric(row, key) for key in ("precision", "recall", "f1")),
            _bar(row),
            _count(row),
        )
        for row in rows
    ]
    classes = table(("class", "precision", "recall", "F1", "", "images"), cells, "numbers")
    if len(rows) <= OPEN_TO:
        return classes
    return element("details", element("summary", f"All {len(rows)} classes"), classes)


def _metric(row: Mapping[str, Any], key: str) -> str:
    value = number(row, key)
    return "–" if value is None or number(row, "support") == 0 else f"{value:.3f}"


def _count(row: Mapping[str, Any]) -> str:
    value = number(row, "support")
    return "–" if value is None else f"{value:,.0f}"


def _bar(row: Mapping[str, Any]) -> Html:
    value = min(max(number(row, "f1") or 0.0, 0.0), 1.0)
    return element("span", element("i", style=f"width:{100 * value:.1f}%"), class_="bar")


def recipe(run: RunParts) -> Html:
    """Return the settings of the run: those that differ from the defaults, then the others, collapsed."""
    if not run.recipe:
        return NOTHING
    defaults = Recipe().to_dict()
    changed = {key: value for key, value in run.recipe.items() if key not in defaults or defaults[key] != value}
    same = {key: value for key, value in run.recipe.items() if key not in changed}
    children: list[Html] = []
    if changed:
        rows = [(key, _value(value), _value(defaults.get(key))) for key, value in changed.items()]
        children.append(table(("setting", "value", "default"), rows, "changed"))
    if same:
        rest = table(("setting", "value"), [(key, _value(value)) for key, value in same.items()])
        children.append(element("details", element("summary", f"{len(same)} settings at their defaults"), rest))
    return section("Recipe", *children)


def environment(run: RunParts) -> Html:
    """Return the versions and hardware of the run."""
    rows = [(key, _value(value)) for key, value in run.environment.items() if value not in (None, "", {})]
    if run.data.get("fingerprint"):
        rows.append(("data fingerprint", str(run.data["fingerprint"])))
    return section("Environment", table(("item", "value"), rows)) if rows else NOTHING


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value) or "none"
    if value is None:
        return "–"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
