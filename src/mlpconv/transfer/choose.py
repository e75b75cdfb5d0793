"""Choose between pretrained features and training from random weights for a folder of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mlpconv.data import Dataset, Split
from mlpconv.data.catalog import is_published
from mlpconv.errors import UsageError
from mlpconv.text import option
from mlpconv.training.combinations import SCRATCH
from mlpconv.training.recipe import Recipe
from mlpconv.training.seeding import keeping_random_states
from mlpconv.transfer.cache import FeatureCache
from mlpconv.transfer.depth import DepthChoice, choose_depth
from mlpconv.transfer.source import BACKBONES, SIZE, open_source
from mlpconv.transfer.start import FeatureProgress, Started, TransferParts, start_from

__all__ = [
    "AUTO_SETTINGS",
    "HEAD_SETTINGS",
    "SourceCandidate",
    "SourceChoice",
    "choose",
    "is_automatic",
    "leave_unchosen",
    "size_for",
    "unchosen_note",
    "unlike_photographs",
]

AUTO = "auto"
AUTO_SETTINGS = ("fit", "val_fraction", "seed", "precision", "device", "tune", "balance", "calibrate")
"""The settings with which the source is still chosen automatically."""
HEAD_SETTINGS = (*AUTO_SETTINGS, "size", "flip", "add_classes", "weights")
"""The settings that affect a fitted classifier."""
CHANNELS = 3
FAST_SIZE = 128  # pixels, for the smaller network
SIZES = ((5_000, SIZE), (20_000, 160))  # up to so many images, this side; above
LARGE_SETS_SIZE = 128
MIN_SIDE = 16  # pixels; smaller images have too little detail for features of photographs
MAX_FLAT = 0.25  # photographs: 0.01 to 0.1, MNIST: 0.8
STATISTICS_IMAGES = 1000


@dataclass(frozen=True)
class SourceCandidate:
    """A way to train that was tried: correct predictions on the validation images, and wall-clock seconds."""

    source: str
    size: int
    correct: int
    images: int
    seconds: float
    pilot: bool = False
    """Whether this was a shorter run than the one that follows if it is chosen."""

    @property
    def accuracy(self) -> float:
        """The accuracy on the validation images."""
        return self.correct / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class SourceChoice:
    """The source to start from, why, and the candidates that were tried."""

    source: str
    settings: dict[str, Any]
    reason: str
    candidates: tuple[SourceCandidate, ...]
    dataset: Dataset | None
    """The data as the chosen network takes it; None if the run needs it in another size."""
    started: Started | None = None
    """The classifier of the chosen network, if it was fitted to compare it."""
    depth: DepthChoice | None = None
    """How many layers of the chosen network are trained; None if that was not to be chosen."""

    def settle(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], SourceChoice]:
        """Return the settings of the run for those of the user, and the choice with what the run can use of it."""
        rest = {key: value for key, value in settings.items() if key != "tune"}
        if self.source == SCRATCH:
            return rest, self
        if settings.get("tune", "head") == "head":
            return rest | self.settings, self
        tuned = {"tune": settings["tune"], "flip": self.settings["flip"]}
        return rest | tuned, replace(self, dataset=None, started=None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "source": self.source,
            "reason": self.reason,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            **({} if self.depth is None else {"depth": self.depth.to_dict()}),
        }


def is_automatic(
    data: str | Path | Dataset, recipe: object, source: str | Path | None, settings: Mapping[str, Any]
) -> bool:
    """Return whether the source is chosen by comparison: on request, or for a folder with no setting of training."""
    of_training = [key for key in settings if key not in AUTO_SETTINGS]
    if source is None:
        return not isinstance(data, Dataset) and not is_published(data) and recipe is None and not of_training
    if source != AUTO:
        return False
    if isinstance(data, Dataset):
        raise UsageError(f"{option('source', AUTO)} resizes images, and a Dataset has one size: give a folder or name.")
    if recipe is not None or of_training:
        name, value = ("recipe", recipe) if recipe is not None else (of_training[0], settings[of_training[0]])
        raise UsageError(
            f"{option(name, str(value))} has no effect with {option('source', AUTO)}: name the source, such as "
            f"{option('source', SCRATCH)}."
        )
    return True


def leave_unchosen(
    data: str | Path | Dataset,
    recipe: object,
    source: str | Path | None,
    settings: Mapping[str, Any],
    minutes: float | None,
    note: Callable[[str], None],
) -> None:
    """Raise UsageError for a limit of the time of a choice that is not made; note which setting prevents the choice."""
    if minutes is not None:
        raise UsageError(
            f"{option('minutes', minutes)} needs {option('source', AUTO)}: pass it too, or drop the limit."
        )
    if text := unchosen_note(data, recipe, source, settings):
        note(text)


def unchosen_note(
    data: str | Path | Dataset, recipe: object, source: str | Path | None, settings: Mapping[str, Any]
) -> str | None:
    """Return which setting makes a folder train from random weights; None if that was asked for."""
    given = {} if recipe is None else {"recipe": str(recipe)}
    given |= {key: settings[key] for key in settings if key not in AUTO_SETTINGS}
    if source is not None or isinstance(data, Dataset) or is_published(data) or "teacher" in given or not given:
        return None
    name, value = next(iter(given.items()))
    return (
        f"with {option(name, value)} the network is trained from random weights, and no pretrained one is tried: pass "
        f"{option('source', BACKBONES[-1])} to start from one."
    )


def unlike_photographs(split: Split) -> str | None:
    """Return why images (N, C, H, W) are unlike photographs; None if they may be some.

    Drawings, digits and text have areas of one colour; the noise and texture of a photograph differ from pixel to
    pixel.
    """
    height, width = split.images.shape[2:]
    if min(height, width) < MIN_SIDE:
        return f"they have {height}x{width} pixels"
    images = split.images[:: max(1, len(split) // STATISTICS_IMAGES)]
    flat = float((images[..., 1:] == images[..., :-1]).all(1).mean())
    return f"{flat:.0%} of their neighbouring pixels are equal" if flat > MAX_FLAT else None


def size_for(source: str, images: int) -> int:
    """Return the side of the images of a backbone: smaller for large data sets, to bound the time."""
    if source != BACKBONES[-1]:
        return FAST_SIZE
    return next((size for limit, size in SIZES if images <= limit), LARGE_SETS_SIZE)


def choose(
    open_at: Callable[[int | None, int | None], Dataset],
    pilot: Callable[[], SourceCandidate],
    recipe: Recipe,
    device: torch.device,
    cache: FeatureCache,
    progress: FeatureProgress,
    minutes: float | None = None,
) -> SourceChoice:
    """Try the pretrained networks, and training from random weights if the images are unlike photographs.

    `open_at` opens the data in a size and number of channels (None: inferred), `pilot` trains from random weights for
    a fraction of the steps. Of `recipe`, seed, precision and device are used. With `minutes`, more layers than the
    classifier are trained if that is estimated to take at most so long.
    """
    native = open_at(None, None)
    train = native.split("train")
    unlike = unlike_photographs(train)
    nature = f"the images are unlike photographs ({unlike})" if unlike else "the images look like photographs"
    flip = "none" if unlike else "random"
    if "val" not in native.splits:
        reason = f"{nature}, and without a validation split no candidates are compared"
        if unlike:
            return SourceChoice(SCRATCH, {}, reason, (), native)
        size = size_for(BACKBONES[-1], len(train))
        settings = {"tune": "head", "size": size, "flip": flip}
        return SourceChoice(BACKBONES[-1], settings, reason, (), open_at(size, CHANNELS))
    candidates, started = [], {}
    for name in BACKBONES:
        size = size_for(name, len(train))
        tried = recipe.with_settings(source=name, tune="head", size=size, flip=flip)
        candidate, started[name] = features_candidate(open_at(size, CHANNELS), tried, device, cache, progress)
        candidates.append(candidate)
    if unlike:
        candidates.append(pilot())
    best = max(reversed(candidates), key=lambda candidate: candidate.correct)
    reason = f"{nature}, and its validation accuracy is the highest"
    if best.source == SCRATCH:
        return SourceChoice(SCRATCH, {}, reason, tuple(candidates), native)
    dataset, depth = open_at(best.size, CHANNELS), None
    settings = {"tune": "head", "size": best.size, "flip": flip}
    if minutes:
        fitted = recipe.with_settings(source=best.source, **settings)
        depth = choose_depth(open_source(best.source), dataset, fitted, minutes, device)
        settings |= depth.settings
    return SourceChoice(best.source, settings, reason, tuple(candidates), dataset, started[best.source], depth)


def features_candidate(
    dataset: Dataset, recipe: Recipe, device: torch.device, cache: FeatureCache, progress: FeatureProgress
) -> tuple[SourceCandidate, Started]:
    """Fit a classifier on the features of the recipe's source, and evaluate it on the validation images."""
    start = time.perf_counter()
    source = open_source(recipe.source)
    with keeping_random_states(device):
        network = source.network(dataset, recipe).to(device)
    preprocessing = source.preprocessing(dataset).to(device)
    started = start_from(TransferParts(source, network, preprocessing, dataset, recipe, cache), progress)
    images = len(dataset.split("val"))
    correct, seconds = round(started.row["val_accuracy"] * images), round(time.perf_counter() - start, 1)
    return SourceCandidate(recipe.source, dataset.size[0], correct, images, seconds), started
