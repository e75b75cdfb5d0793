"""Networks from words: costs against the package's networks, reductions against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import mlpconv
from mlpconv.claims.networks import Shape, build, cost_of_words, scale_words
from mlpconv.claims.reductions import GroupReduction, PCAReduction, RandomProjection
from mlpconv.errors import UsageError

DIGITS = Shape(1, 8, 10)
TINY = "3x3:32 1x1:32 1x1:32 max 3x3:48 1x1:48 1x1:48 max 3x3:64 1x1:64 1x1:K gap"


def test_words_describe_the_networks_of_the_package() -> None:
    model = mlpconv.create_model("nin_tiny")
    ours = build(TINY, DIGITS)
    shapes = [tuple(p.shape) for p in ours.parameters()]
    assert sorted(shapes) == sorted(tuple(p.shape) for p in model.parameters())
    assert ours(torch.rand(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        ("3x3:7/2 1x1:K gap", (2, 10)),
        ("3x3:7 max2 1x1:5- fc:K", (2, 10)),
        ("3x3:7 avg fc:11 fc:K", (2, 10)),
        ("3x3:7 [ 1x1:2 | 1x1:3 3x3:4 | same 1x1:5 ] relu", (2, 11, 8, 8)),
        ("3x3:7 [1x1:2|[1x1:3|1x1:4] 3x3:4] drop", (2, 6, 8, 8)),
    ],
)
def test_words_give_shapes(words: str, shape: tuple[int, ...]) -> None:
    assert build(words, DIGITS)(torch.rand(2, 1, 8, 8)).shape == shape


@pytest.mark.parametrize("words", ["3x3:16", "5x5:7 1x1:11 max 1x1:K gap", "3x3:7 [ 1x1:2 | 3x3:4 ] fc:K"])
def test_costs_are_those_of_the_built_network(words: str) -> None:
    network = build(words, DIGITS)
    cost = cost_of_words(words, DIGITS)
    assert cost["parameters"] == sum(weights.numel() for weights in network.parameters())
    assert cost["macs"] == mlpconv.analysis.profile(network, (1, 8, 8)).totals.macs


@pytest.mark.parametrize("by", ["parameters", "macs"])
def test_widths_are_scaled_to_a_cost(by: str) -> None:
    target = cost_of_words(TINY, DIGITS)[by]
    scaled = scale_words("3x3:16 max 3x3:24 max 3x3:32 1x1:K gap", DIGITS, target, by)
    assert cost_of_words(scaled, DIGITS)[by] == pytest.approx(target, rel=0.03)
    assert scaled.count("1x1:K") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("3x3:16 mx gap", "no layer 'mx'; did you mean 'max'"),
        ("3x5:16", "no layer '3x5:16'"),
        ("[ 1x1:2 | 1x1:3", r"\[ without \]"),
        ("1x1:2 ]", "outside of"),
        ("[ 1x1:2 | max ]", "different sizes"),
        ("max max max max 3x3:2", "does not fit"),
        ("fc:x", "no layer 'fc:x'; did you mean 'fc:K'"),
        ("3x3:0 gap", "no layer '3x3:0'"),
        ("pca:0", "no layer 'pca:0'"),
    ],
)
def test_wrong_words_are_explained(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(words, DIGITS)


def test_pca_finds_the_subspace_of_scikit_learn() -> None:
    torch.manual_seed(3)
    mixing = torch.randn(11, 11)
    layer = PCAReduction(11, 4).train()
    for _ in range(101):
        pixels = torch.einsum("dc,nchw->ndhw", mixing, torch.randn(8, 11, 13, 13)) + 1
        layer(pixels)
    flat = pixels.permute(0, 2, 3, 1).reshape(-1, 11).numpy()
    expected = PCA(4).fit(flat).components_
    overlap = np.linalg.svd(layer.components.numpy() @ expected.T)[1]  # cosines of the principal angles
    assert overlap.min() > 0.99
    assert layer.components @ layer.components.T == pytest.approx(np.eye(4), abs=1e-4)
    assert layer.eval()(pixels).mean((0, 2, 3)) == pytest.approx(np.zeros(4), abs=0.6)


def test_groups_are_summed_or_their_maximum_taken() -> None:
    x = torch.rand(2, 7, 3, 3)
    summed, largest = GroupReduction(7, 3, maximum=False)(x), GroupReduction(7, 3, maximum=True)(x)
    assert torch.allclose(summed[:, 0], x[:, :3].sum(1) / 3**0.5)
    assert torch.equal(largest[:, 2], x[:, 6])  # the last group has one channel, and two of zeros
    assert RandomProjection(7, 3)(x).shape == (2, 3, 3, 3)
    assert not list(RandomProjection(7, 3).parameters())
