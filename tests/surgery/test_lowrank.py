"""Full rank changes nothing, lower ranks lose what linear algebra predicts, and the allocation is near optimal."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import unfold

from mlpconv.surgery.lowrank.allocate import Choice, Option, choose, hull, path
from mlpconv.surgery.lowrank.factors import basis_by_activations, basis_by_weights, factorize_layer, reconstruct
from mlpconv.surgery.lowrank.moments import Moments, as_rows


def moments(rows: torch.Tensor, others: torch.Tensor | None = None) -> Moments:
    """Return the moments of rows (P, C), added in two unequal batches."""
    found = Moments(rows.shape[1], None if others is None else others.shape[1])
    cut = len(rows) // 3
    for part in (slice(0, cut), slice(cut, None)):
        found.add(rows[part], None if others is None else others[part])
    return found


def maps(channels: int, count: int = 5, seed: int = 1) -> torch.Tensor:
    """Return images with correlated channels of different means and variances."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -2, channels, dtype=torch.float64)
    x = torch.randn(count, channels, 13, 11, generator=generator, dtype=torch.float64) * scale[:, None, None]
    return torch.einsum("nchw,dc->ndhw", x, mix) + 1


def layer(kind: str) -> nn.Module:
    torch.manual_seed(3)
    made = {
        "3x3": nn.Conv2d(5, 7, 3, padding=1),
        "5x3 of a stride": nn.Conv2d(5, 7, (5, 3), (2, 1), (0, 1), dilation=(1, 2)),
        "1x1": nn.Conv2d(5, 7, 1, stride=2),
        "reflected, no bias": nn.Conv2d(5, 7, 3, padding=1, padding_mode="reflect", bias=False),
        "linear": nn.Linear(5, 7),
    }[kind]
    return made.double()


def given_to(made: nn.Module, seed: int = 1) -> torch.Tensor:
    x = maps(5, seed=seed)
    return as_rows(x) if isinstance(made, nn.Linear) else x


def seen_by(made: nn.Module, x: torch.Tensor) -> object:
    """Return the basis by activations, from all positions."""
    with torch.no_grad():
        return basis_by_activations(made, moments(as_rows(x)), moments(as_rows(made(x))))


KINDS = ("3x3", "5x3 of a stride", "1x1", "reflected, no bias", "linear")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["weights", "activations"])
def test_full_rank_changes_nothing(kind: str, way: str) -> None:
    made = layer(kind)
    x = given_to(made)
    basis = basis_by_weights(made) if way == "weights" else seen_by(made, x)
    sides = [(None, 7)] if kind in ("1x1", "linear") else [(None, 7), (5, None), (5, 7)]
    for rank_in, rank_out in sides:
        parts = factorize_layer(made, basis, rank_in, rank_out)
        torch.testing.assert_close(parts(x), made(x), rtol=1e-8, atol=1e-8)
        assert len(parts) == 1 + (rank_in is not None) + (rank_out is not None)
        assert all(part.bias is None for part in list(parts)[:-1])


def test_by_weights_the_loss_is_that_of_the_singular_values() -> None:
    made = layer("3x3")
    basis = basis_by_weights(made)
    values = np.linalg.svd(made.weight.detach().numpy().reshape(7, -1), compute_uv=False)
    parts = factorize_layer(made, basis, None, 3)
    weight = torch.einsum("or,rikl->oikl", parts[1].weight[:, :, 0, 0], parts[0].weight)
    lost = float(((weight - made.weight).square().sum() / made.weight.square().sum()).detach())
    assert lost == pytest.approx((values[3:] ** 2).sum() / (values**2).sum(), rel=1e-9)
    assert float(basis.out.lost[3]) == pytest.approx(lost, rel=1e-9)
    flat = made.weight.detach().movedim(1, 0).flatten(1).numpy()
    values = np.linalg.svd(flat, compute_uv=False)
    assert float(basis.into.lost[2]) == pytest.approx((values[2:] ** 2).sum() / (values**2).sum(), rel=1e-9)


def response_loss(made: nn.Module, parts: nn.Module, x: torch.Tensor) -> float:
    """Return the fraction of the output variance lost."""
    with torch.no_grad():
        wanted, given = as_rows(made(x)), as_rows(parts(x))
    return float((wanted - given).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.parametrize("kind", KINDS)
def test_by_activations_the_loss_is_the_minimum_given_by_principal_components(kind: str) -> None:
    made = layer(kind)
    x = given_to(made)
    basis = seen_by(made, x)
    lost = response_loss(made, factorize_layer(made, basis, None, 3), x)
    assert lost == pytest.approx(float(basis.out.lost[3]), rel=1e-6)
    rows = as_rows(made(x)).detach().numpy()
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    assert lost == pytest.approx((values[3:] ** 2).sum() / (values**2).sum(), rel=1e-6)
    assert lost < 0.5 * response_loss(made, factorize_layer(made, basis_by_weights(made), None, 3), x)


def test_on_the_input_side_activations_lose_the_predicted_variance_and_less_than_weights() -> None:
    torch.manual_seed(5)
    point = nn.Conv2d(5, 7, (2, 1)).double()
    # Rows that are not correlated: then the loss is exactly what the basis says.
    x = maps(5).repeat_interleave(1, 2)
    taps = as_rows(x)
    generator = torch.Generator().manual_seed(2)
    x = torch.stack([taps[torch.randperm(len(taps), generator=generator)] for _ in range(2)], 2)[..., None]
    basis = basis_by_activations(point, moments(as_rows(x)), moments(as_rows(point(x).detach())))
    for rank in (1, 3):
        lost = response_loss(point, factorize_layer(point, basis, rank, None), x)
        assert lost == pytest.approx(float(basis.into.lost[rank]), rel=0.1)
        assert lost < 0.5 * response_loss(point, factorize_layer(point, basis_by_weights(point), rank, None), x)


def test_reconstruction_is_the_reduced_rank_regression() -> None:
    """Compare with the closed form from the singular values of the fitted outputs, in NumPy."""
    made = layer("3x3")
    x, seen = maps(5, count=40), maps(5, count=40) + 0.05 * torch.randn(40, 5, 13, 11, dtype=torch.float64)
    with torch.no_grad():
        target, given = as_rows(made(x)), as_rows(made(seen))
    for rank in (2, None):
        parts = reconstruct(nn.Sequential(made), moments(given, target), rank)
        got = as_rows(parts(seen)).detach().numpy()
        z, y = (each.numpy() - each.numpy().mean(0) for each in (given, target))
        fitted = z @ np.linalg.lstsq(z, y, rcond=None)[0]
        if rank:
            _, _, right = np.linalg.svd(fitted, full_matrices=False)
            fitted = fitted @ right[:rank].T @ right[:rank]
        wanted = fitted + target.numpy().mean(0)
        assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()
        loss = [np.square(each - target.numpy()).sum() for each in (got, wanted)]
        assert loss[0] == pytest.approx(loss[1], rel=1e-3)
        assert len(parts) == (2 if rank else 1)


def test_reconstruction_of_an_exact_layer_changes_nothing() -> None:
    made = layer("reflected, no bias")
    x = maps(5)
    rows = as_rows(made(x)).detach()
    parts = reconstruct(nn.Sequential(made), moments(rows, rows), None)
    torch.testing.assert_close(parts(x), made(x), rtol=1e-8, atol=1e-8)


def test_moments_are_those_of_numpy() -> None:
    x = as_rows(maps(5)) + 1e6
    y = as_rows(maps(3, seed=2))
    found = moments(x, y)
    np.testing.assert_allclose(found.mean, x.mean(0))
    np.testing.assert_allclose(found.other_mean, y.mean(0))
    both = np.cov(np.concatenate([y, x], 1).T, bias=True)
    np.testing.assert_allclose(found.covariance, both[3:, 3:], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.crossed, both[:3, 3:], rtol=1e-6, atol=1e-8)


def test_rows_keep_their_channels() -> None:
    x = torch.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    assert torch.equal(as_rows(x)[35 + 9], x[1, :, 1, 2])
    assert torch.equal(as_rows(x, torch.tensor([9, 0]))[2], x[1, :, 1, 2])
    assert torch.equal(as_rows(x.movedim(1, 3).flatten(1, 2))[9], x[0, :, 1, 2])


def test_dead_channels_are_accepted() -> None:
    made = layer("3x3")
    x = maps(5)
    x[:, 2] = 4.0
    x[:, 4] = x[:, 0]
    parts = factorize_layer(made, seen_by(made, x), 3, 4)
    assert all(bool(p.isfinite().all()) for p in parts.parameters())
    assert float(seen_by(made, x).into.lost[4]) < 1e-9
    assert response_loss(made, factorize_layer(made, seen_by(made, x), 4, None), x) < 1e-9


def test_patches_agree_with_unfold() -> None:
    """Compare the factorized layer with a product of matrices on unfolded patches."""
    made = layer("3x3")
    x = maps(5, count=2)
    basis = basis_by_weights(made)
    parts = factorize_layer(made, basis, 2, 4)
    into, out = basis.into.up[:, :2] @ basis.into.down[:2], basis.out.up[:, :4] @ basis.out.down[:4]
    weight = torch.einsum("po,oikl,ij->pjkl", out, made.weight, into).flatten(1)
    wanted = (weight @ unfold(x, 3, padding=1)).reshape(2, 7, 13, 11) + made.bias[:, None, None]
    torch.testing.assert_close(parts(x), wanted, rtol=1e-9, atol=1e-9)


OPTIONS = st.lists(
    st.tuples(st.integers(1, 30), st.floats(0.001, 1)).map(lambda pair: Option(*pair)), min_size=0, max_size=6
)
LAYERS = st.lists(OPTIONS.map(lambda found: [Option(31, 0.0), *found]), min_size=1, max_size=4)


def best(layers: list[list[Option]], budget: int) -> float:
    """Return the optimum by exhaustive search."""
    errors = [sum(o.error for o in pick) for pick in product(*layers) if sum(o.cost for o in pick) <= budget]
    return min(errors, default=float("inf"))


@settings(max_examples=150, deadline=None)
@given(layers=LAYERS)
def test_costs_fall_along_the_path_and_each_choice_is_optimal_for_its_cost(layers: list[list[Option]]) -> None:
    choices = path(layers)
    assert choices[0].error == 0
    for one, other in pairwise(choices):
        assert other.cost < one.cost
        assert other.error > one.error
    for choice in choices:
        assert choice.error == pytest.approx(best(layers, choice.cost), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(layers=LAYERS, budget=st.integers(1, 130))
def test_a_choice_is_within_budget_and_near_the_optimum(layers: list[list[Option]], budget: int) -> None:
    choice = choose(layers, budget)
    least = sum(min(o.cost for o in hull(options)) for options in layers)
    if choice is None:
        assert budget < least
        return
    assert choice.cost <= budget
    above = [each.error for each in path(layers) if each.cost <= budget]
    assert best(layers, budget) - 1e-12 <= choice.error <= min(above) + 1e-12


def test_the_rest_of_the_budget_is_spent() -> None:
    layers = [[Option(10, 0.0), Option(1, 0.5)], [Option(10, 0.0), Option(8, 0.3), Option(1, 0.4)]]
    assert choose(layers, 9) == Choice((Option(1, 0.5), Option(8, 0.3)))
    assert choose(layers, 1) is None
