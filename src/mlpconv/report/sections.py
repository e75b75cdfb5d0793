"""The sections of the report; a section whose parts are missing is empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlpconv.data.catalog import CATALOG
from mlpconv.files import MODEL_FILE
from mlpconv.report.choice import COLUMNS, candidate_rows, depth_reason
from mlpconv.report.headline import SPLITS
from mlpconv.report.page import NOTHING, Html, element, figure, section, table
from mlpconv.report.run_contents import RunParts, number
from mlpconv.temperature_scaling import KEY, TemperatureFit
from mlpconv.text import shell_path
from mlpconv.training.recipe import Recipe

__all__ = ["sections"]

NARROW_TO = 12  # classes; up to here the confusion matrix is small
OPEN_TO = 30  # classes; up to here their table is expanded
MEASURES = (
    ("error", "error", "{:.2%}"),
    ("top5_error", "top-5 error", "{:.2%}"),
    ("log_loss", "log loss", "{:.4f}"),
    ("calibration_error", "calibration error (15 bins)", "{:.4f}"),
)
CURVES = (
    "Loss and error by epoch. The dot is the kept epoch: the newest one that is at most one standard error worse than "
    "the best, whose lead may be luck. If the validation curve rises while the training curve falls, the network "
    "overfits."
)
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


def sections(run: RunParts) -> Html:
    """Return all sections below the headline."""
    all_sections = (
        notes(run),
        choice(run),
        teacher(run),
        usage(run),
        picture(run, "curves", "Training", "Loss and error by epoch", CURVES),
        evaluation(run),
        picture(run, "mistakes", "Worst mistakes", "Wrongly classified images", MISTAKES),
        picture(run, "maps", "Class activation maps", "Images and their category maps", MAPS),
        picture(run, "filters", "First-layer filters", "Weights of the first layer as images", FILTERS),
        recipe(run),
        environment(run),
    )
    return Html("".join(all_sections))


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


def teacher(run: RunParts) -> Html:
    """Return the teacher of a run and its accuracy, beside that of the network that learned from it."""
    name, network = run.teacher.get("name"), run.teacher.get("network")
    if not isinstance(name, str) or not isinstance(network, str):
        return NOTHING
    source, images = run.teacher.get("source"), run.teacher.get("pretrained_on")
    origin = f", which was trained from {source}" if isinstance(source, str) and source != "scratch" else ""
    seen = f" Its teacher saw {images}, and so, through it, did this network." if isinstance(images, str) else ""
    shares = [number(run.recipe, key) for key in ("teacher_weight", "teacher_temperature")]
    how = "" if None in shares else f" (weight {shares[0]:g}, temperature {shares[1]:g})"
    text = f"This network learned from the labels and from the probabilities{how} of {name} ({network}){origin}.{seen}"
    rows = [("teacher", *_scores(run.teacher, number(run.teacher, "parameters")))]
    if run.classifier is not None:
        own = run.classifier.info.get("metrics")
        parameters = sum(parameter.numel() for parameter in run.classifier.model.parameters())
        rows.append(("this network", *_scores(own if isinstance(own, dict) else {}, parameters)))
    columns = ("", "parameters", "validation accuracy", "training accuracy")
    return section("Teacher", element("p", text), table(columns, rows, "numbers"))


def _scores(metrics: Mapping[str, Any], parameters: float | None) -> tuple[str, ...]:
    accuracies = (number(metrics, key) for key in ("val_accuracy", "train_accuracy"))
    cells = ("–" if value is None else f"{value:.2%}" for value in accuracies)
    return ("–" if parameters is None else f"{parameters:,.0f}", *cells)


def usage(run: RunParts) -> Html:
    """Return commands for this model."""
    file = run.path / MODEL_FILE
    if not file.is_file():
        return NOTHING
    model, name = shell_path(file), str(run.data.get("name", ""))
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
