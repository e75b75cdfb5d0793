"""Learning-rate schedules against torch's schedulers, with bounds, peak and drops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlpconv.training import Recipe
from mlpconv.training.schedule import lr_factor

SCHEDULES = ("constant", "linear", "cosine", "onecycle", "steps")


def course(recipe: Recipe, steps: int, steps_per_epoch: int = 7) -> list[float]:
    return [lr_factor(recipe, step, steps, steps_per_epoch) for step in range(steps)]


def recipe_for(schedule: str, warmup: float = 0.0, milestones: tuple[int, ...] = (2, 5)) -> Recipe:
    return Recipe(schedule=schedule, warmup=warmup, milestones=milestones if schedule == "steps" else ())


def torchs(name: str, steps: int, **options: object) -> list[float]:
    """Return the factors of a torch scheduler for a learning rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.floats(0, 0.9),
    epochs=st.integers(1, 97),
    steps_per_epoch=st.integers(1, 211),
    where=st.floats(0, 1, exclude_max=True),
)
def test_factors_are_in_0_to_1(schedule: str, warmup: float, epochs: int, steps_per_epoch: int, where: float):
    steps = epochs * steps_per_epoch
    factor = lr_factor(recipe_for(schedule, warmup), int(where * steps), steps, steps_per_epoch)
    assert 0 < factor <= 1


@pytest.mark.parametrize("steps", [1, 2, 3, 997])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_first_and_last_factor_are_in_bounds_in_a_run_of_one_step(schedule: str, steps: int):
    for warmup in (0.0, 0.9):
        factors = course(recipe_for(schedule, warmup), steps)
        assert all(0 < factor <= 1 for factor in factors)


def test_constant_stays_at_the_peak_after_warm_up():
    assert course(recipe_for("constant"), 13) == [1.0] * 13
    factors = course(recipe_for("constant", warmup=0.3), 100)
    assert factors[30:] == [1.0] * 70
    assert factors[:30] == pytest.approx([(step + 1) / 31 for step in range(30)])


def test_onecycle_rises_in_the_first_quarter_then_falls():
    steps = 1009
    factors = course(recipe_for("onecycle"), steps)
    peak = factors.index(max(factors))
    assert abs(peak - steps / 4) <= 1
    assert max(factors) > 0.99
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] < 1e-5
    late = course(recipe_for("onecycle", warmup=0.5), steps)
    assert abs(late.index(max(late)) - steps / 2) <= 1


def test_steps_drop_at_the_milestones_like_torch():
    steps_per_epoch, steps = 7, 7 * 8
    factors = course(recipe_for("steps"), steps, steps_per_epoch)
    assert factors == pytest.approx(torchs("MultiStepLR", steps, milestones=[14, 35], gamma=0.1), rel=1e-12)
    assert (factors[13], factors[14]) == (1.0, pytest.approx(0.1))
    assert (factors[34], factors[35]) == (pytest.approx(0.1), pytest.approx(0.01))


def test_steps_do_not_drop_before_the_milestones():
    assert course(recipe_for("steps", milestones=(200, 230)), 21) == [1.0] * 21


def test_cosine_equals_torch_half_a_step_later():
    steps = 101
    ours, theirs = course(recipe_for("cosine"), steps), torchs("CosineAnnealingLR", 2 * steps, T_max=2 * steps)
    assert ours == pytest.approx(theirs[1::2], abs=1e-12)  # of a course twice as fine, every second point


def test_linear_equals_torch_half_a_step_later():
    steps = 101
    theirs = torchs("LinearLR", 2 * steps, start_factor=1.0, end_factor=0.0, total_iters=2 * steps)
    assert course(recipe_for("linear"), steps) == pytest.approx(theirs[1::2], abs=1e-9)


def test_the_mean_factor_is_that_of_the_curve():
    for schedule in ("linear", "cosine"):
        factors = course(recipe_for(schedule), 1013)
        assert math.fsum(factors) / len(factors) == pytest.approx(0.5, abs=1e-6)
