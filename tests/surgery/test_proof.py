"""Proofs: errors are detected, rounding is accepted, and the caller's state does not change."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.graphs import randomised
from support.wrapped import Lambda, chaotic
from torch import Tensor, nn

from mlpconv.errors import SurgeryError, UsageError
from mlpconv.surgery.proof import compare as comparison
from mlpconv.surgery.proof.compare import compare, flat_tensors
from mlpconv.surgery.proof.prove import prove


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 35, 7))
    randomised(model)
    return model


SHAPE = (3, 9, 7)


def test_a_copy_has_no_difference() -> None:
    model = network()
    proof = prove(model, copy.deepcopy(model), SHAPE)
    assert {(each.dtype, each.absolute) for each in proof.differences} == {("float32", 0.0), ("float64", 0.0)}
    assert proof.notes == ()


def test_the_originals_own_rounding_is_accepted() -> None:
    """Add and subtract 50,000, which loses precision in float32."""
    torch.manual_seed(3)
    far = nn.Conv2d(3, 5, 3)
    model = nn.Sequential(far, nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 35, 7)).eval()
    with torch.no_grad():
        far.bias += 5e4
        model[1].running_mean += far.bias
        same = copy.deepcopy(model)
        same[0].bias -= same[1].running_mean
        same[1].running_mean.zero_()
    proof = prove(model, same, SHAPE)
    assert proof.worst("float32").relative > 1e-3
    assert proof.worst("float64").relative < 1e-9
    assert any("Rounding in float32 alone" in note for note in proof.notes)
    with pytest.raises(SurgeryError, match="float32"):
        prove(model, same, SHAPE, tolerance=1e-3)
    with torch.no_grad():
        same[4].bias += 0.5
    with pytest.raises(SurgeryError, match="float32"):
        prove(model, same, SHAPE)


def folded_by_hand(times: int) -> tuple[nn.Module, nn.Module]:
    """Return a network that amplifies rounding, and the same network with its norm folded by hand."""
    torch.manual_seed(3)
    chaos = Lambda(lambda _, x: chaotic(x.sigmoid(), times))
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), chaos, nn.Flatten(), nn.Linear(5 * 35, 7))
    randomised(model)
    model.double().eval()
    same = copy.deepcopy(model)
    with torch.no_grad():
        conv, norm = same[0], same[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        conv.weight *= scale[:, None, None, None]
        conv.bias.copy_((conv.bias - norm.running_mean) * scale + norm.bias)
    same[1] = nn.Identity()
    return model, same


def test_amplified_rounding_is_compared_with_the_originals_own() -> None:
    model, same = folded_by_hand(28)
    proof = prove(model, same, SHAPE)
    assert 1e-9 < proof.worst("float64").relative < 1e-5
    assert any("Rounding in float64 alone moves" in note for note in proof.notes)
    with torch.no_grad():
        same[4].bias[2] += 1e-4
    with pytest.raises(SurgeryError, match="This is a bug"):
        prove(model, same, SHAPE)


def test_rounding_on_one_image_does_not_excuse_errors_on_others() -> None:
    """Bright images go through a chaotic map, all others through a contracting one."""
    torch.manual_seed(3)

    def moody(m: Any, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3), keepdim=True) > 1
        x = m.conv(x).sigmoid()
        return m.linear(torch.where(bright, chaotic(x, 28), chaotic(x, 28, 1.5)).flatten(1))

    model = Lambda(moody, conv=nn.Conv2d(3, 5, 3), linear=nn.Linear(5 * 35, 7)).double().eval()
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted.conv.weight *= 1 + 1e-15
    bright = 2 + 0.1 * torch.randn(2, *SHAPE)
    assert prove(model, shifted, SHAPE, images=bright).worst("float64").relative > 1e-9
    with torch.no_grad():
        shifted.linear.bias += 3e-9
    with pytest.raises(SurgeryError, match=r"random.*This is a bug"):
        prove(model, shifted, SHAPE, images=bright)


def test_dominant_rounding_is_reported_as_unverifiable() -> None:
    model, same = folded_by_hand(60)
    with pytest.raises(SurgeryError, match="cannot be shown that the changed Sequential") as found:
        prove(model, same, SHAPE)
    assert "bug" not in str(found.value)


@pytest.mark.parametrize("size", [1e-7, 1e-3])
def test_a_small_weight_error_is_detected(size: float) -> None:
    """1e-7 is below the rounding error of float32 and far above that of float64."""
    model, wrong = network(), network()
    with torch.no_grad():
        wrong = wrong.double()
        wrong[0].weight[2, 1, 1, 1] += size
    with pytest.raises(SurgeryError, match="float64.*is not returned"):
        prove(model, wrong, SHAPE, precise=wrong)


def test_the_reported_difference_is_correct() -> None:
    model, wrong = network(), network()
    with torch.no_grad():
        wrong[4].bias[3] += 0.25
    for difference in compare(model, wrong, SHAPE).differences:
        assert difference.absolute == pytest.approx(0.25, rel=1e-5)
        assert difference.relative == pytest.approx(0.25 / difference.scale)
    assert compare(model, wrong, SHAPE).worst("float16") is None


def test_errors_in_float32_alone_are_detected() -> None:
    model, wrong = network(), network()
    with torch.no_grad():
        wrong[4].bias[3] += 1
    with pytest.raises(SurgeryError, match="float32"):
        prove(model, wrong, SHAPE, precise=model)
    assert prove(model, wrong, SHAPE, precise=model, tolerance=1.0).worst("float32")


def test_user_images_are_compared() -> None:
    """Standard normal images do not show this difference: a clamp at a large value."""
    model = network()
    wrong = nn.Sequential(nn.Hardtanh(-50, 50), *model)
    assert prove(model, wrong, SHAPE)
    with pytest.raises(SurgeryError, match="3 given"):
        prove(model, wrong, SHAPE, images=torch.full((3, *SHAPE), 60.0))


@pytest.mark.parametrize("images", [torch.zeros(2, 5, 9, 7), torch.zeros(3, 9, 7), "photos", torch.zeros(0, 3, 9, 7)])
def test_invalid_images_are_rejected_by_prove(images: Any) -> None:
    with pytest.raises(UsageError, match="N, 3, H, W"):
        compare(network(), network(), SHAPE, images)
    with pytest.raises(UsageError, match="preprocessing"):
        compare(network(), network(), SHAPE, torch.zeros(2, 3, 9, 7, dtype=torch.uint8))


@dataclass
class Outputs:
    logits: Tensor
    others: Any


class Several(nn.Module):
    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.conv, self.wrong = nn.Conv2d(3, 5, 3), wrong
        randomised(self)

    def forward(self, x: Tensor) -> Outputs:
        x = self.conv(x)
        return Outputs(x, {"a": (x.mean(1), None), "b": [x[:, 0] + self.wrong]})


def test_nested_outputs_are_compared() -> None:
    names = [name for name, _ in flat_tensors(Several()(torch.zeros(1, *SHAPE)))]
    assert names == ["logits", "others.a.0", "others.b.0"]
    assert prove(Several(), Several(), SHAPE)
    with pytest.raises(SurgeryError, match="is not equivalent to the original"):
        prove(Several(), Several(0.5), SHAPE)
    with pytest.raises(SurgeryError, match="set"):
        list(flat_tensors({1, 2}))


def test_other_shapes_and_nan_are_rejected() -> None:
    model = network()
    with pytest.raises(SurgeryError, match="returns"):
        prove(model, nn.Sequential(*model, nn.Unflatten(1, (7, 1))), SHAPE)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[4].weight[0, 0] = torch.nan
    for pair, which in (((broken, model), "original"), ((model, broken), "changed")):
        with pytest.raises(SurgeryError, match=f"{which} network returns NaN"):
            prove(*pair, SHAPE)


def test_outputs_independent_of_the_image_are_noted() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.zero_()
    (note,) = prove(model, copy.deepcopy(model), SHAPE).notes
    assert "nearly the same for all" in note


class Single(nn.Module):
    """Compute in float32 for any input dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mul(1 / 3).to(x.dtype)


class Fused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul(1 / 3)


def test_a_network_that_downcasts_is_compared_in_float32() -> None:
    model = network()
    proof = prove(nn.Sequential(model, Single()), nn.Sequential(model, Fused()), SHAPE)
    assert any("lower precision than float64" in note for note in proof.notes)
    worst = proof.worst("float64")
    assert worst is not None
    assert 1e-9 < worst.relative < 1e-6


def test_random_state_and_modes_do_not_change() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(1)

    model = nn.Sequential(network(), Noisy()).train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    assert prove(model, copy.deepcopy(model), SHAPE).differences[0].absolute == 0  # both draw the same random numbers
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_networks_of_other_dtypes() -> None:
    double = network().double()
    assert {each.dtype for each in prove(double, copy.deepcopy(double), SHAPE).differences} == {"float64"}
    half = network().bfloat16()
    assert {each.dtype for each in prove(half, copy.deepcopy(half), SHAPE).differences} == {"bfloat16", "float64"}


def test_two_networks_are_compared_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float64 copy takes twice the memory of the network, so there must be only one at a time."""
    copies: list[weakref.ref[nn.Module]] = []
    most = []

    def watched(model: nn.Module) -> nn.Module:
        made = copy.deepcopy(model)
        copies.append(weakref.ref(made))
        most.append(sum(each() is not None for each in copies))
        return made

    monkeypatch.setattr(comparison, "deep_copy", watched)
    proof = compare(network(), network(), SHAPE)
    assert {each.dtype for each in proof.differences} == {"float32", "float64"}
    assert most == [1, 1]
