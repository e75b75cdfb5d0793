"""The statistics against SciPy and statsmodels, and the verdicts against planted effects."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired
from support.claim_results import write_result

from mlpconv.claims.claim_files import list_claims
from mlpconv.claims.results import judge_all
from mlpconv.claims.statistics import (
    ALPHA,
    Evidence,
    holm,
    paired_interval,
    pairs_needed,
    sign_flip,
    summarize,
    two_one_sided,
    verdict,
)

EXPERIMENTS = 10_000
PAIRS, TESTS = 12, 34
STATED_EFFECT = 1.7
"""In standard deviations of the differences: what 12 pairs tell with a power of 80 % in the worst place of 34 tests."""


def differences(effect: float, count: int = EXPERIMENTS, pairs: int = PAIRS) -> np.ndarray:
    return np.random.default_rng(20131216).normal(effect, 1, (count, pairs))


@pytest.mark.parametrize("n", [3, 7, 11])
def test_sign_flips_agree_with_scipy(n: int) -> None:
    for values in differences(0.5, 5, n):
        expected = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
        assert sign_flip(values) == pytest.approx(expected.pvalue, abs=1e-12)


def test_ties_and_zeros_count_as_at_least_as_extreme() -> None:
    assert sign_flip([0.0, 0.0, 0.0]) == 1
    assert sign_flip([0.1, 0.2, 0.3]) == 0.25  # 0.1 + 0.2 is not 0.3 in floating point
    assert sign_flip([0.1, 0.2, -0.3]) == 1


def test_the_smallest_p_value_is_2_to_the_minus_n_times_two() -> None:
    assert sign_flip(np.arange(1, 11)) == 2 / 2**10
    assert sign_flip(np.ones(3)) == 0.25


def test_many_pairs_are_sampled_with_a_fixed_seed() -> None:
    values = differences(0.4, 1, 20)[0]
    assert sign_flip(values) == sign_flip(values)
    assert sign_flip(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)


@pytest.mark.parametrize("n", [3, 7, 12])
def test_the_interval_agrees_with_statsmodels(n: int) -> None:
    for values in differences(1.0, 5, n):
        low, high = paired_interval(values)
        assert (low, high) == pytest.approx(DescrStatsW(values).tconfint_mean(0.05))


@pytest.mark.parametrize("margin", [0.3, 1.0, 2.9])
def test_equivalence_agrees_with_statsmodels(margin: float) -> None:
    for values in differences(0.7, 5):
        expected = ttost_paired(values, np.zeros_like(values), -margin, margin)[0]
        assert two_one_sided(values, margin) == pytest.approx(expected, abs=1e-12)


def test_identical_differences_are_within_the_margin_or_not() -> None:
    assert two_one_sided([0.25, 0.25, 0.25], 0.5) == 0
    assert two_one_sided([0.75, 0.75, 0.75], 0.5) == 1


def test_holm_agrees_with_statsmodels() -> None:
    p_values = np.random.default_rng(1).random(23) ** 3
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]).shape == (0,)


def outcomes(effect: float, margin: float, tests: int = 1) -> Counter[str]:
    """The verdicts on planted effects; with `tests` the p-values are corrected as the smallest of that many."""
    drawn = differences(effect)
    low, high = paired_interval(drawn)
    p, q = np.minimum(tests * sign_flip(drawn), 1), np.minimum(tests * two_one_sided(drawn, margin), 1)
    evidence = [Evidence(PAIRS, m, a, b, 1, 0, 0) for m, a, b in zip(drawn.mean(1), low, high, strict=True)]
    verdicts = [verdict(e, "lower", float(a), float(b)) for e, a, b in zip(evidence, p, q, strict=True)]
    return Counter(verdicts)


def slack(rate: float) -> float:
    """Three standard errors of a rate in 10,000 simulations."""
    return rate + 3 * (rate * (1 - rate) / EXPERIMENTS) ** 0.5


def test_without_an_effect_at_most_5_percent_are_supported_or_refuted() -> None:
    counts = outcomes(0.0, margin=1e-9)  # no margin: every experiment is one of a difference
    assert counts["supported"] + counts["refuted"] <= slack(ALPHA) * EXPERIMENTS
    assert counts["supported"] > 0.01 * EXPERIMENTS  # the test is exact, not merely cautious


@pytest.mark.parametrize("effect", [-1.0, 1.0])
def test_an_effect_of_the_size_of_the_margin_is_called_equivalent_at_most_5_percent(effect: float) -> None:
    assert outcomes(effect, margin=1.0)["equivalent"] <= slack(ALPHA) * EXPERIMENTS


@pytest.mark.parametrize("tests", [1, TESTS])
def test_the_stated_effect_is_found_with_a_power_of_80_percent(tests: int) -> None:
    assert outcomes(-STATED_EFFECT, margin=1e-9, tests=tests)["supported"] >= 0.8 * EXPERIMENTS
    assert outcomes(STATED_EFFECT, margin=1e-9, tests=tests)["refuted"] >= 0.8 * EXPERIMENTS
    assert outcomes(0.0, margin=STATED_EFFECT, tests=tests)["equivalent"] >= 0.8 * EXPERIMENTS


@pytest.mark.parametrize("margin", [1.4, 2.0])
def test_the_named_number_of_pairs_decides(margin: float) -> None:
    pairs = pairs_needed(1.0, margin, TESTS)
    drawn = differences(margin, 1000, pairs)
    assert (TESTS * sign_flip(drawn) <= ALPHA).mean() >= 0.76
    assert pairs_needed(1.0, margin / 2, TESTS) > 2 * pairs_needed(1.0, margin, TESTS) - 12


def test_few_pairs_only_indicate() -> None:
    clear = summarize([-1.0, -1.1, -0.9, -1.0, -1.05], margin=0.1)
    assert verdict(clear, "lower", clear.p_difference, clear.p_equivalence) == "indicated"
    unclear = summarize([-1.0, 1.1, -0.9, 1.0, 0.05], margin=0.1)
    assert verdict(unclear, "lower", unclear.p_difference, unclear.p_equivalence) == "undecided"


@pytest.mark.parametrize(
    ("mean", "expect", "outcome"),
    [(-3.0, "lower", "supported"), (3.0, "lower", "refuted"), (3.0, "higher", "supported"), (3.0, "same", "refuted"),
     (0.01, "lower", "equivalent"), (0.01, "same", "equivalent")],
)  # fmt: skip
def test_verdicts(mean: float, expect: str, outcome: str) -> None:
    values = mean + 0.1 * differences(0.0, 1)[0]
    evidence = summarize(values.tolist(), margin=1.0)
    assert verdict(evidence, expect, evidence.p_difference, evidence.p_equivalence) == outcome  # type: ignore[arg-type]
    assert verdict(replace(evidence, n=9), expect, 1.0, 1.0) in ("indicated", "undecided")  # type: ignore[arg-type]


def test_holm_counts_comparisons_that_have_not_been_measured(tmp_path: Path) -> None:
    file = next(file for file in list_claims() if file.claim.name == "mlpconv")
    write_result(tmp_path, file, "digits", effect=-3.0)
    (judged,) = (judged for judged in judge_all(list_claims(), tmp_path) if judged.file is file)
    alone = judge_all([file], tmp_path)[0].findings["digits"][0]
    among_all = judged.findings["digits"][0]
    assert alone.evidence == among_all.evidence
    assert among_all.p_difference > 10 * alone.p_difference
