"""The searched settings: `width=0.25..2` is an interval, `kernel=3,5` a list of choices."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpconv.errors import UsageError, did_you_mean
from mlpconv.training import Recipe
from mlpconv.training.recipe import from_text, shorten

__all__ = ["SETTINGS", "Range", "parse_space", "settings_of"]

# These change how a run is measured, how long it trains or where it runs: pass them with --set.
FIXED = (
    "epochs min_steps val_fraction seed precision device workers eval_every checkpoint_minutes on_collapse engine "
    "virtual_shards gradient_sum shuffle_window calibrate"
).split()
OF_A_SOURCE = ("source", "weights", "tune", "add_classes")
SETTINGS = [
    item.name
    for item in dataclasses.fields(Recipe)
    if item.name not in (*FIXED, *OF_A_SOURCE)
    and typing.get_origin(typing.get_type_hints(Recipe)[item.name]) is not tuple
]
"""The settings of a recipe that can be searched: all single values that affect the network or its training."""
OF_A_TEACHER = ("teacher_weight", "teacher_temperature")
"""Settings that need a teacher, which --set names."""
LOG_FROM = 10  # ratio of the ends from which an interval is sampled on a logarithmic scale
DIGITS = 4  # significant digits of a sampled number


@dataclass(frozen=True)
class Range:
    """The accepted values of one setting: an interval from `low` to `high`, or a list of `choices`."""

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0

    @property
    def integer(self) -> bool:
        """Whether an interval holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def log(self) -> bool:
        """Whether an interval is sampled on a logarithmic scale: from a ratio of its ends of ten."""
        return self.low > 0 and self.high >= LOG_FROM * self.low

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name}={','.join(map(written, self.choices))}"
        return f"{self.name}={self.low}..{self.high}"


def parse_space(texts: Sequence[str]) -> tuple[Range, ...]:
    """Parse `--over`: one NAME=LOW..HIGH or NAME=VALUE,VALUE per searched setting.

    Raises UsageError for an unknown name, a value that the setting does not accept, and a setting given twice.
    """
    ranges = tuple(parse_range(text) for text in texts)
    names = [item.name for item in ranges]
    if not names:
        raise UsageError("nothing to search: give ranges, like --over width=0.25..2 depth=1..3 kernel=3,5.")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} has two ranges: give one.")
    return ranges


def parse_range(text: str) -> Range:
    """Parse one range; raises UsageError."""
    key, equals, value = text.partition("=")
    name = key.strip().replace("-", "_")
    if not equals or not value.strip():
        raise UsageError(f"the range {shorten(text)} is not accepted: give NAME=LOW..HIGH or NAME=VALUE,VALUE.")
    check_name(name)
    if ".." in value:
        return interval(name, *(from_text(end.strip()) for end in value.split("..", 1)))
    values = tuple(checked(name, word.strip()) for word in value.split(","))
    if len(set(values)) < 2:
        raise UsageError(f"{name} has a single value, {written(values[0])}: fix it with --set, or give two or more.")
    return Range(name, tuple(dict.fromkeys(values)))


def check_name(name: str) -> None:
    """Raise UsageError for a setting that cannot be searched, with the closest name or the reason."""
    if name in SETTINGS:
        return
    known = {item.name for item in dataclasses.fields(Recipe)}
    if name in OF_A_SOURCE:
        raise UsageError(f"{name} is about pretrained weights, and a search trains from random ones: leave it out.")
    if name in FIXED and name in known:
        raise UsageError(f"{name} cannot be searched, as all trials share it: fix it with --set {name}=VALUE.")
    if name in known:
        raise UsageError(f"{name} is a list, and lists cannot be searched: fix it with --set {name}=VALUE.")
    raise UsageError(f"there is no recipe setting {shorten(name)} to search: {did_you_mean(name[:80], SETTINGS)}")


def interval(name: str, low: Any, high: Any) -> Range:
    """Return an interval of numbers; raises UsageError if the ends are out of order or not accepted."""
    hint = str(typing.get_type_hints(Recipe)[name])
    if "int" not in hint and "float" not in hint:
        raise UsageError(f"{name} is not a number: give its values, like {name}=VALUE,VALUE.")
    low, high = checked(name, low), checked(name, high)
    if low is None or high is None or not low < high:
        raise UsageError(f"{name}={low}..{high} is not accepted: the first end must be below the second.")
    return Range(name, low=low, high=high)


def checked(name: str, value: Any) -> Any:
    """Return a value as the recipe stores it; raises UsageError if the recipe does not accept it."""
    literal = value == "none" and name in ("norm", "flip")
    base = Recipe(teacher="any") if name in OF_A_TEACHER else Recipe()
    return getattr(base.with_settings(**{name: value if literal else from_text(value)}), name)


def settings_of(ranges: Sequence[Range], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of sampled values, in the order of the ranges, rounded to four significant digits."""
    return {item.name: rounded(item, values[item.name]) for item in ranges}


def rounded(item: Range, value: Any) -> Any:
    if item.choices or item.integer:
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), item.low), item.high)


def written(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
