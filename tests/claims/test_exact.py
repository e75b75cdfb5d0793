"""Every exact claim holds on random cases, and a statement that does not hold is not called proved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mlpconv.claims.cases import apart, draw, image, pointwise
from mlpconv.claims.claim_files import ClaimFile, list_claims
from mlpconv.claims.report import verdict_of
from mlpconv.claims.results import judge_all
from mlpconv.claims.runner import RunSettings, run_claims
from mlpconv.claims.schema import Check

EXACT = [file for file in list_claims() if file.claim.checks]
CHECKS = [(file.claim.name, index, check) for file in EXACT for index, check in enumerate(file.claim.checks)]
IDS = [f"{name}-{index}" for name, index, _ in CHECKS]


def worst(check: Check, cases: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    return max(float(check.deviation(rng)) for _ in range(cases))


@pytest.mark.parametrize(("name", "index", "check"), CHECKS, ids=IDS)
def test_each_statement_holds_on_a_few_cases(name: str, index: int, check: Check) -> None:
    assert worst(check, min(check.cases, 12), 99) <= check.bound


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index", "check"), CHECKS, ids=IDS)
def test_each_statement_holds_on_all_cases(name: str, index: int, check: Check) -> None:
    assert worst(check, check.cases, 7) <= check.bound


def break_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: forward(self, x) + 1e-9 * x.flatten()[0])


def break_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: forward(self, x + 1e-6 * x.roll(1, 3)))


def break_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: forward(self, torch.cat([0 * x[:, :1], x[:, 1:]], 1)))


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "linear-map": break_pixels,
    "neighbours": break_pixels,
    "one-channel": break_pixels,
    "dimensions": break_channels,
    "fully-connected": break_linear,
    "stride": break_linear,
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_convolution_that_errs_is_not_proved(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [check for claim, _, check in CHECKS if claim == name]
    BREAKS[name](monkeypatch)
    assert any(worst(check, min(check.cases, 12), 99) > check.bound for check in checks)


def test_the_measure_of_deviation() -> None:
    x = draw(np.random.default_rng(0), 3, 5)
    assert apart(x, x) == 0
    assert apart(x, x + 1e-3) == pytest.approx(1e-3 / max(1.0, float((x + 1e-3).abs().max()), float(x.abs().max())))
    assert apart(x, x[:2]) == float("inf")
    assert (
        image(np.random.default_rng(0)).dtype == pointwise(np.random.default_rng(0), 2, 3).weight.dtype == torch.float64
    )


def one_claim(bound: float) -> ClaimFile:
    file = EXACT[1]
    check = Check("half is a half", lambda rng: abs(float(rng.random()) - 0.5), bound=bound, cases=31)
    return replace(file, claim=replace(file.claim, checks=(check,), comparisons=(), arms={}))


def test_the_runner_writes_the_largest_deviation_and_the_verdict_follows(tmp_path: Path) -> None:
    for bound, verdict in ((0.5, "proved"), (0.1, "not proved")):
        file = one_claim(bound)
        steps: list[int] = []
        run_claims([file], RunSettings(tmp_path, ()), steps.append, steps.append)  # type: ignore[arg-type]
        stored = json.loads((tmp_path / "exact" / "linear-map.json").read_text())
        assert 0.4 < stored["checks"][0]["worst"] < 0.5
        assert stored["hypothesis"] == file.hypothesis
        assert steps == [1]
        assert verdict_of(judge_all([file], tmp_path)[0], "exact") == verdict
