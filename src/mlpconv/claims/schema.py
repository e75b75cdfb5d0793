"""The form of a claim: what people say, the source, and the hypothesis that is fixed before any run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from mlpconv.claims.statistics import Expectation
from mlpconv.errors import UsageError, did_you_mean

__all__ = ["BUDGETS", "TITLES", "Arm", "Check", "Claim", "Comparison", "Measurement", "check_claim"]

BUDGETS = ("digits", "mnist", "cifar10")
"""Data sets on which claims are measured; `claims.budget` has the size and length of training on each."""
TITLES = {"exact": "exact", "digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
"""What the results on a data set are called in tables and figures."""
METRICS = ("error", "train_error", "gap")
EXPECTATIONS = ("lower", "higher", "same")
COSTS = ("parameters", "macs")

Measurement: TypeAlias = Callable[..., dict[str, float]]
"""A function of (network, trial) that returns further metrics of a trained network by name."""


@dataclass(frozen=True)
class Check:
    """A statement that holds exactly, tried on random cases in float64."""

    statement: str
    deviation: Callable[[np.random.Generator], float]
    """Draws one case and returns how far it is from the statement, relative to the size of the values."""
    bound: float = 1e-12
    """Largest deviation that rounding explains; 0 for counts and statements of yes or no."""
    cases: int = 1000


@dataclass(frozen=True)
class Arm:
    """One of the networks that are compared: its layers as words (see `claims.networks`), and how it is trained."""

    words: str
    match: str | None = None
    """Scale all widths until the cost equals that of this arm."""
    by: str = "parameters"
    """What `match` makes equal: "parameters" or "macs"."""
    epochs: float = 1.0
    """Fraction of the budget's epochs: 0 for a network that is not trained."""
    train_images: int | None = None
    """Number of training images; None for all of the budget."""
    deepen: bool = False
    """Whether identity-initialised 1x1s are inserted after half of the training."""


@dataclass(frozen=True)
class Comparison:
    """The difference between two arms in one metric, and the smallest difference of interest, fixed before the run."""

    name: str
    treatment: str
    control: str
    expect: Expectation
    """What the claim says of treatment minus control: "lower", "higher" or "same" (within the margin)."""
    margin: Mapping[str, float]
    """Smallest effect of interest by data set, in units of the metric (error and gap: percentage points)."""
    metric: str = "error"
    control_metric: str = ""
    """The metric of the control; empty for the same."""
    factor: float = 1.0
    """Multiplies the control: 0.8 tests a reduction by more than 20 %."""


@dataclass(frozen=True)
class Claim:
    """A claim about 1x1 convolutions with the hypothesis that decides it."""

    name: str
    title: str
    words: str
    """The claim as people say it."""
    source: str
    method: str
    """What is done, for a reader: two or three sentences."""
    overturn: str
    """What would change the verdict."""
    number: int | None = None
    checks: tuple[Check, ...] = ()
    arms: Mapping[str, Arm] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    measure: Measurement | None = None
    data: tuple[str, ...] = BUDGETS
    """Data sets on which the claim is measured."""
    canvas: bool = False
    """Whether each image stands in a random quarter of an otherwise empty image of twice its size."""

    @property
    def exact(self) -> bool:
        """Whether the claim is proved rather than measured."""
        return bool(self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the texts of the claim as JSON-serializable data."""
        texts = ("name", "number", "title", "words", "source", "method", "overturn")
        return {key: getattr(self, key) for key in texts} | {"kind": "exact" if self.exact else "measured"}


def check_claim(claim: object, where: str) -> Claim:
    """Return a claim whose every field is valid; raise UsageError that names the first field that is not."""
    if not isinstance(claim, Claim):
        raise UsageError(f"{where}: CLAIM is {type(claim).__name__}; a mlpconv.claims.Claim is accepted.")
    for key in ("title", "words", "source", "method", "overturn"):
        if not isinstance(getattr(claim, key), str) or not getattr(claim, key).strip():
            raise UsageError(f"{where}: {key} is {getattr(claim, key)!r}; a sentence is accepted.")
    if not isinstance(claim.name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", claim.name):
        raise UsageError(
            f"{where}: name is {claim.name!r}; up to 40 lower-case letters, digits and dashes are accepted."
        )
    if not claim.checks and not claim.comparisons:
        raise UsageError(f"{where}: checks and comparisons are empty; give checks (exact) or comparisons (measured).")
    _check_types(claim, where)
    for name in claim.data:
        _one_of(f"{where}: data", name, BUDGETS)
    for name, arm in claim.arms.items():
        _check_arm(claim, name, arm, f"{where}: arms[{name!r}]")
    for comparison in claim.comparisons:
        _check_comparison(claim, comparison, f"{where}: comparisons, {comparison.name!r}")
    return claim


def _check_types(claim: Claim, where: str) -> None:
    for key, kind in (("checks", Check), ("comparisons", Comparison)):
        if not isinstance(getattr(claim, key), tuple) or not all(
            isinstance(item, kind) for item in getattr(claim, key)
        ):
            raise UsageError(f"{where}: {key} must be a tuple of {kind.__name__}s.")
    if not isinstance(claim.arms, Mapping) or not all(isinstance(arm, Arm) for arm in claim.arms.values()):
        raise UsageError(f"{where}: arms must be a dictionary of Arms by name.")
    for check in claim.checks:
        if not callable(check.deviation) or not check.bound >= 0 or check.cases < 1:
            raise UsageError(f"{where}: checks, {check.statement!r}: deviation must be a function, bound at least 0.")


def _check_arm(claim: Claim, name: str, arm: Arm, where: str) -> None:
    if arm.match is not None and (arm.match not in claim.arms or arm.match == name or claim.arms[arm.match].match):
        raise UsageError(f"{where}: match is {arm.match!r}; another arm that matches none itself is accepted.")
    _one_of(f"{where}: by", arm.by, COSTS)
    if not 0 <= arm.epochs <= 1:
        raise UsageError(f"{where}: epochs is {arm.epochs}; a fraction of the budget from 0 to 1 is accepted.")
    if arm.train_images is not None and arm.train_images < 1:
        raise UsageError(f"{where}: train_images is {arm.train_images}; at least 1 is accepted.")


def _check_comparison(claim: Claim, comparison: Comparison, where: str) -> None:
    for key in ("treatment", "control"):
        _one_of(f"{where}: {key}", getattr(comparison, key), claim.arms)
    _one_of(f"{where}: expect", comparison.expect, EXPECTATIONS)
    if claim.measure is None:
        _one_of(f"{where}: metric", comparison.metric, METRICS)
    for name in claim.data:
        margin = comparison.margin.get(name)
        if not isinstance(margin, int | float) or not math.isfinite(margin) or margin <= 0:
            raise UsageError(f"{where}: margin[{name!r}] is {margin!r}; a number above 0 is accepted.")


def _one_of(what: str, value: object, accepted: Any) -> None:
    if value not in accepted:
        raise UsageError(f"{what} is {value!r}; {did_you_mean(str(value), accepted)}")
