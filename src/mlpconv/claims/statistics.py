"""Paired statistics: exact sign-flip test, t interval, equivalence by two one-sided tests, Holm's correction, verdicts.

All functions work on differences (treatment minus control) of paired runs: both arms of a pair share the seed and the
data. References: Fisher (1935) for the sign-flip test, Schuirmann (1987) for the two one-sided tests, Holm (1979).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = [
    "ALPHA",
    "LEAST_PAIRS",
    "Evidence",
    "Expectation",
    "Outcome",
    "holm",
    "paired_interval",
    "pairs_needed",
    "sign_flip",
    "summarize",
    "two_one_sided",
    "verdict",
]

Floats = npt.NDArray[np.float64]
Expectation = Literal["lower", "higher", "same"]
Outcome = Literal["supported", "refuted", "equivalent", "indicated", "undecided"]

ALPHA = 0.05
POWER = 0.8
LEAST_PAIRS = 10
"""With n pairs the exact test cannot go below p = 2 / 2**n: with fewer than 10, no verdict survives 23 tests."""
MOST_EXACT = 16
"""Up to this many pairs all 2**n sign flips are tried; beyond, 99,999 random ones with a fixed seed."""
RANDOM_FLIPS = 99_999
FLIPS_AT_A_TIME = 10_000
ROUNDING = 1e-9
"""Relative tolerance within which two sums of flipped differences are equal."""


def sign_flip(differences: npt.ArrayLike) -> Floats:
    """Return the two-sided p-value of the sign-flip test along the last axis: (..., n) -> (...).

    Under the null hypothesis each difference is symmetric around zero, so that every pattern of signs is equally
    likely. The p-value is the fraction of patterns whose |sum| reaches the observed one.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.shape[-1] > MOST_EXACT:
        return _random_sign_flip(values)
    observed = np.abs(values.sum(-1))[..., None]
    flipped = np.abs(values @ _signs(values.shape[-1]).T)
    slack = ROUNDING * np.abs(values).sum(-1)[..., None]
    return np.asarray((flipped >= observed - slack).mean(-1))


@functools.cache
def _signs(n: int) -> Floats:
    """Return the 2**(n - 1) sign patterns (patterns, n) that start with +; the others mirror them."""
    bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n - 1) & 1
    return np.hstack([np.ones((len(bits), 1)), 1.0 - 2.0 * bits])


def _random_sign_flip(values: Floats) -> Floats:
    p_values = [
        stats.permutation_test(
            (row,), np.sum, permutation_type="samples", n_resamples=RANDOM_FLIPS, batch=FLIPS_AT_A_TIME,
            vectorized=True, rng=np.random.default_rng(0),
        ).pvalue
        for row in values.reshape(-1, values.shape[-1])
    ]  # fmt: skip
    return np.asarray(p_values).reshape(values.shape[:-1])


def paired_interval(differences: npt.ArrayLike, level: float = 1 - ALPHA) -> tuple[Floats, Floats]:
    """Return the bounds of Student's interval for the mean difference along the last axis: (..., n) -> (...), (...)."""
    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(-1, ddof=1) / math.sqrt(n)
    mean = values.mean(-1)
    return np.asarray(mean - half), np.asarray(mean + half)


def two_one_sided(differences: npt.ArrayLike, margin: npt.ArrayLike) -> Floats:
    """Return the p-value of "the mean difference lies within -margin..margin": the larger of two one-sided t-tests."""
    values, bound = np.asarray(differences, dtype=np.float64), np.asarray(margin, dtype=np.float64)
    n = values.shape[-1]
    distance = bound - np.abs(values.mean(-1))
    error = values.std(-1, ddof=1) / math.sqrt(n)
    # Identical differences have no spread: the mean is then either within the margin or not.
    certain = np.asarray(np.copysign(np.inf, distance))
    t = np.divide(distance, error, out=certain, where=error > 0)
    return np.asarray(stats.t.sf(t, n - 1))


def holm(p_values: npt.ArrayLike) -> Floats:
    """Return p-values adjusted for the number of tests by Holm's step-down method: (m,) -> (m,)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def pairs_needed(deviation: float, margin: float, tests: int) -> int:
    """Return the number of pairs that tells means apart by this margin, with a power of 80 %.

    `deviation` is the standard deviation of the differences, `tests` the number that Holm's correction is for. Normal
    approximation, plus the pairs by which a test with an unknown deviation differs from it (half the squared quantile).
    """
    level = ALPHA / max(tests, 1)
    quantile = float(stats.norm.ppf(1 - level / 2))
    quantiles = quantile + float(stats.norm.ppf(POWER))
    exact = math.ceil(math.log2(2 / level))  # fewer pairs cannot reach the level by sign flips
    return max(LEAST_PAIRS, exact, math.ceil((quantiles * deviation / margin) ** 2 + quantile**2 / 2) + 1)


@dataclass(frozen=True)
class Evidence:
    """What n paired differences say, before the correction for several tests."""

    n: int
    mean: float
    low: float
    """Lower bound of the 95 % interval."""
    high: float
    deviation: float
    """Standard deviation of the differences."""
    p_difference: float
    p_equivalence: float


def summarize(differences: Sequence[float], margin: float) -> Evidence:
    """Return the statistics of paired differences (n,), with the smallest effect of interest as margin."""
    values = np.asarray(differences, dtype=np.float64)
    low, high = paired_interval(values)
    return Evidence(
        n=len(values),
        mean=float(values.mean()),
        low=float(low),
        high=float(high),
        deviation=float(values.std(ddof=1)),
        p_difference=float(sign_flip(values)),
        p_equivalence=float(two_one_sided(values, margin)),
    )


def verdict(evidence: Evidence, expect: Expectation, difference: float, equivalence: float) -> Outcome:
    """Return the verdict on one comparison, from its evidence and its two p-values after Holm's correction.

    Equivalence comes first: a difference that is real but smaller than the smallest effect of interest is none.
    With fewer than 10 pairs the only verdicts are "indicated" (the interval excludes zero) and "undecided".
    """
    if evidence.n < LEAST_PAIRS:
        return "indicated" if evidence.low > 0 or evidence.high < 0 else "undecided"
    if equivalence <= ALPHA:
        return "equivalent"
    if difference > ALPHA:
        return "undecided"
    return "supported" if expect == ("lower" if evidence.mean < 0 else "higher") else "refuted"
