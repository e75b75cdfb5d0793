"""Growing kernels: the middle stands for the whole while the rim is zero, and afterwards every kernel is whole."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mlpconv
from mlpconv.errors import UsageError
from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.training import Recipe, health
from mlpconv.training.kernels import growing, limit, remarks
from mlpconv.training.progress import Progress


def network(name: str = "nin_cifar10") -> Network:
    torch.manual_seed(0)
    return create_model(name, num_classes=7, norm="batch", width=0.125, dropout=0.0).train()


def rims(model: Network, side: int) -> list[Tensor]:
    """All weights around the middle of each kernel that grows."""
    found = []
    for conv in growing(model, side):
        outside = torch.ones(conv.kernel_size, dtype=torch.bool)
        margin = (conv.kernel_size[0] - side) // 2
        outside[margin:-margin, margin:-margin] = False
        found.append(conv.weight.detach()[:, :, outside])
    return found


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("nin_cifar10", 3, {"blocks.1.convs.0"}),
        ("nin_cifar10", 1, {"blocks.1.convs.0", "blocks.2.convs.0"}),
        ("nin_cifar10", 5, set()),
        ("nin_tiny", 1, {"blocks.1.convs.0", "blocks.2.convs.0"}),
        ("nin_imagenet", 3, {"blocks.1.convs.0"}),
    ],
)
def test_the_padded_kernels_behind_the_first_layer_grow(name: str, side: int, expected: set[str]):
    model = network(name)
    chosen = set(growing(model, side))
    assert {name for name, module in model.named_modules() if module in chosen} == expected


@pytest.mark.parametrize("side", [1, 3])
def test_the_middle_computes_and_learns_what_the_whole_would(side: int):
    images = torch.randn(11, 3, 17, 19, generator=torch.Generator().manual_seed(1))
    model = network()
    limit(model, side)
    whole = copy.deepcopy(model)
    limit(whole, None)
    outputs, expected = model(images), whole(images)
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    gradients = dict(whole.named_parameters())
    limited = {f"{name}.weight" for name, module in model.named_modules() if module in set(growing(model, side))}
    for name, parameter in model.named_parameters():
        gradient = gradients[name].grad
        if name in limited:
            margin = (parameter.shape[-1] - side) // 2
            inside = (..., slice(margin, -margin), slice(margin, -margin))
            assert parameter.grad.count_nonzero() == parameter.grad[inside].count_nonzero() > 0
            torch.testing.assert_close(parameter.grad[inside], gradient[inside], rtol=1e-3, atol=1e-4)
        else:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


def test_less_is_computed_while_kernels_are_small():
    model, sizes = network(), []
    (conv,) = growing(model, 3)
    original = nn.functional.conv2d

    def watched(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        sizes.append(tuple(weight.shape[2:]))
        return original(x, weight, *rest)

    limit(model, 3)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nn.functional, "conv2d", watched)
        conv(torch.randn(2, conv.in_channels, 7, 11))
        limit(model, None)
        conv(torch.randn(2, conv.in_channels, 7, 11))
    assert sizes == [(3, 3), (5, 5)]


def test_a_copy_computes_with_its_own_weights():
    model = network()
    limit(model, 3)
    other = copy.deepcopy(model)
    (conv,), (copied,) = growing(model, 3), growing(other, 3)
    nn.init.zeros_(copied.weight)
    nn.init.zeros_(copied.bias)
    x = torch.randn(2, conv.in_channels, 7, 11)
    assert copied(x).abs().max() == 0 < conv(x).abs().max()


@pytest.mark.parametrize(("sides", "learns"), [((1,), False), ((1, 3), True)])
def test_a_run_leaves_the_rim_at_zero_until_it_may_learn(tmp_path: Path, sides: tuple[int, ...], learns: bool):
    run = mlpconv.fit(
        "digits", "fast", out=tmp_path / "run", epochs=2, min_steps=0, width=0.25, precision="fp32", kernels=sides
    )
    model = run.classifier.model
    assert all(bool(rim.any()) == learns for rim in rims(model, 1))
    assert len(rims(model, 1)) == 2


def test_the_network_that_was_trained_is_whole_again_also_after_an_interruption(tmp_path: Path):
    seen: list[nn.Module] = []

    class Stopped(Progress):
        def step(self, *_: object) -> None:
            raise KeyboardInterrupt

    def remember(model: Network, side: int | None) -> None:
        limit(model, side)
        seen.append(model)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mlpconv.training.loop.limit", remember)
        with pytest.raises(KeyboardInterrupt):
            mlpconv.fit("digits", out=tmp_path / "run", kernels=(1,), precision="fp32", progress=Stopped())
    assert len(seen) == 2
    assert not any("forward" in module.__dict__ for module in seen[0].modules())


def test_a_revived_channel_has_no_rim_before_its_time():
    images = torch.randn(11, 3, 17, 19, generator=torch.Generator().manual_seed(1))
    model = network()
    limit(model, 3)
    health.repair(model, images, seed=0, step=1, anew=True)
    assert all(bool(rim.any()) for rim in rims(model, 3))  # so the loop limits again
    limit(model, 3)
    assert not any(bool(rim.any()) for rim in rims(model, 3))


def test_kernels_that_change_nothing_are_told():
    assert list(remarks(network(), (3, 5))) == []
    assert list(remarks(network(), ())) == []
    (sentence,) = remarks(network(), (5,))
    assert "kernels=5 changes nothing for nin_cifar10" in sentence


@pytest.mark.parametrize("sides", [(5, 3), (2,), (0,), (-1,), (101,)])
def test_impossible_sides_are_refused(sides: tuple[int, ...]):
    with pytest.raises(UsageError, match="each is an odd side from 1 to 99, rising"):
        Recipe(kernels=sides)
