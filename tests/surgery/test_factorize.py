"""Factorized networks are within the budget, better by activations than by weights, and the original is unchanged."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpconv.analysis import profile
from mlpconv.errors import SurgeryError, UsageError
from mlpconv.models import build, create_model
from mlpconv.surgery import factorize

SIZE = (3, 13, 17)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 29, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(29, 31, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(31, 7, 1),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def images(count: int = 64, seed: int = 1) -> Tensor:
    """Return smooth images, like natural ones, for which activations vary in few directions."""
    draw = torch.Generator().manual_seed(seed)
    return nn.functional.interpolate(torch.randn(count, 3, 3, 5, generator=draw), SIZE[1:], mode="bilinear")


def labelled(count: int = 64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return images with the network's classes for shifted images as labels, so that its accuracy is below 1."""
    x = images(count, seed)
    with torch.no_grad():
        return x, network()(x.roll(2, 3)).argmax(1)


def macs(model: nn.Module) -> int:
    """Return the multiply-adds from the profile, which does not use ranks."""
    return profile(model, SIZE).totals.macs


def lost(original: nn.Module, changed: nn.Module, x: Tensor) -> float:
    """Compute the fraction of the outputs' variance lost, independently."""
    with torch.no_grad():
        wanted, given = original.eval()(x).double().numpy(), copy.deepcopy(changed).eval()(x).double().numpy()
    return float(np.square(given - wanted).sum() / np.square(wanted - wanted.mean(0)).sum())


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8, 400_000])
def test_the_budget_of_multiply_adds_is_kept(budget: float) -> None:
    model = network()
    result = factorize(model, images(), budget, curve=False)
    allowed = budget * macs(model) if budget < 1 else budget
    assert 0.8 * allowed < macs(result.model) <= allowed
    assert result.report.after.macs == macs(result.model)
    assert result.model(images(5)).shape == (5, 7)


def test_a_budget_of_1_changes_nothing() -> None:
    model = network()
    for whole in (1, 1.0, macs(model), 10 * macs(model)):
        result = factorize(model, images(), whole, curve=False)
        assert result.report.changed == ()
        torch.testing.assert_close(result.model(images(5)), model(images(5)), rtol=0, atol=0)


def test_activations_lose_less_than_weights() -> None:
    lost_by = {
        by: factorize(network(), images(), 0.4, by=by, curve=False).report.details["error"]
        for by in ("activations", "weights")
    }
    assert lost_by["activations"]["after"]["output"] < 0.5 * lost_by["weights"]["after"]["output"]


def test_by_weights_a_1x1_is_the_truncated_svd_of_numpy() -> None:
    model = network()
    result = factorize(model, images(), 0.99, by="weights", layers=["4"], curve=False)
    down, up = (part.weight.detach()[:, :, 0, 0].numpy() for part in result.model[4])
    left, values, right = np.linalg.svd(model[4].weight.detach()[:, :, 0, 0].numpy(), full_matrices=False)
    rank = len(down)
    assert result.report.details["layers"][0]["rank_out"] == rank < 7
    np.testing.assert_allclose(up @ down, left[:, :rank] * values[:rank] @ right[:rank], atol=1e-6)


def test_by_activations_a_layer_is_the_principal_components_of_numpy() -> None:
    """The input of the first layer is unchanged, so the fit is the projection of its outputs."""
    torch.manual_seed(3)
    layer = nn.Conv2d(3, 11, 3).double()
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten()).eval()
    fit, held = (images(40, seed)[:, :, :9, :10].double() for seed in (1, 2))  # 7 x 8 responses: all are looked at
    result = factorize(model, fit, 0.7, layers=["0"], held_out=held, curve=False)
    only = [option for option in result.report.details["layers"] if not option["rank_in"]]
    assert only, "the test is about the output side alone: choose another budget"
    with torch.no_grad():
        rows, made = (part(fit).movedim(1, 3).flatten(0, 2).numpy() for part in (layer, result.model[0]))
    mean = rows.mean(0)
    directions = np.linalg.svd(rows - mean, full_matrices=False)[2][: only[0]["rank_out"]]
    wanted = (rows - mean) @ directions.T @ directions + mean
    assert np.square(made - rows).sum() == pytest.approx(np.square(wanted - rows).sum(), rel=1e-2)
    assert np.abs(made - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("budget", [0.02, 0.2])
def test_the_budget_of_output_error_is_kept(budget: float) -> None:
    model, held = network(), images(24, seed=5)
    result = factorize(model, images(), budget, of="error", held_out=held, curve=False)
    assert 0 < lost(model, result.model, held) <= budget
    assert result.report.details["error"]["after"]["output"] == pytest.approx(lost(model, result.model, held), rel=1e-3)
    dearer = factorize(model, images(), budget / 3, of="error", held_out=held, curve=False)
    assert macs(result.model) < macs(dearer.model)


def test_an_error_budget_that_no_lower_rank_meets_changes_nothing() -> None:
    result = factorize(network(), images(), 1e-9, of="error", curve=False)
    assert result.report.changed == ()
    assert "No lower ranks are within this error budget" in str(result.report)


def test_the_budget_of_classification_error_is_kept() -> None:
    model, held = network(), labelled(80, seed=5)
    result = factorize(model, images(), 0.05, of="classes", held_out=held, curve=False)

    def wrong(other: nn.Module) -> float:
        return float((other(held[0]).argmax(1) != held[1]).double().mean())

    assert wrong(result.model) - wrong(model) <= 0.05 + 1e-9
    assert macs(result.model) < 0.6 * macs(model)
    error = result.report.details["error"]
    assert (error["before"]["classes"], error["after"]["classes"]) == (wrong(model), wrong(result.model))
    assert f"{wrong(model):.2%} before, {wrong(result.model):.2%} after" in str(result.report)
    with pytest.raises(UsageError, match="needs labels"):
        factorize(model, images(), 0.05, of="classes")


def test_every_fourth_image_is_held_out_by_default() -> None:
    x = images()
    result = factorize(network(), x, 0.4, curve=False)
    error = result.report.details["error"]["after"]["output"]
    assert error == pytest.approx(lost(network(), result.model, x[3::4]), rel=1e-3)
    alone = factorize(network(), x[torch.arange(64) % 4 != 3], 0.4, held_out=x[3::4], curve=False)
    torch.testing.assert_close(alone.model(x), result.model(x))


def test_tensors_pairs_and_loaders_are_accepted_as_data() -> None:
    x, y = labelled()
    pairs = [(x[:30], y[:30]), [x[30:], y[30:]]]
    made = [factorize(network(), data, 0.5, curve=False) for data in ((x, y), iter(pairs), x, [x[:5], x[5:]])]
    for other in made[1:]:
        torch.testing.assert_close(other.model(x), made[0].model(x))
    assert ["classes" in each.report.details["error"]["after"] for each in made] == [True, True, False, False]


class Tokens(nn.Module):
    """Linear layers on vectors, tokens and channels-last feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.tokens, self.head = nn.Linear(3, 13), nn.Linear(13, 17), nn.Linear(17, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x.movedim(1, 3)).relu()
        x = self.tokens(x.flatten(1, 2)).relu()
        return self.head(x.mean(1))


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 19, 1), nn.Conv2d(19, 19, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return (self.twice(self.twice(x).relu()) + x).mean((2, 3))


def around(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 13, 1), nn.ReLU(), layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


KINDS = {
    "3x3": lambda: around(nn.Conv2d(13, 17, 3, padding=1)),
    "5x3, stride, dilation": lambda: around(nn.Conv2d(13, 17, (5, 3), (2, 1), (0, 2), dilation=(1, 2))),
    "same": lambda: around(nn.Conv2d(13, 17, (5, 3), padding="same")),
    "reflected, without bias": lambda: around(nn.Conv2d(13, 17, 3, padding=1, padding_mode="reflect", bias=False)),
    "1x1 of a stride": lambda: around(nn.Conv2d(13, 17, 1, stride=2)),
    "linear": Tokens,
    "twice": Twice,
}


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_low_rank_are_detected_and_lose_nothing(kind: str, by: str) -> None:
    """With weights of rank 3 on both sides, half of the multiply-adds give the same outputs."""
    torch.manual_seed(2)
    model = KINDS[kind]().double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and min(module.weight.shape[:2]) > 3:
                flat = module.weight.flatten(2) if module.weight.dim() == 4 else module.weight[:, :, None]
                a, b = torch.randn(len(flat), 3).double(), torch.randn(3, flat.shape[1]).double()
                middle = torch.randn(3, 3, flat.shape[2]).double() / flat.shape[1]
                module.weight.copy_(torch.einsum("or,rst,si->oit", a, middle, b).reshape(module.weight.shape))
    x = images(48).double()
    result = factorize(model, x, 0.75, by=by, curve=False)
    assert macs(result.model) <= 0.75 * macs(model)
    assert result.report.changed
    assert lost(model, result.model, x) < (1e-12 if by == "weights" else 1e-4)


def test_a_layer_that_is_called_twice_is_fitted_to_both_calls() -> None:
    """Fitted to one call only, it would lose several times as much."""
    torch.manual_seed(2)
    model, x = Twice().eval(), images(48)
    with torch.no_grad():
        model.twice.weight.mul_(3)
    result = factorize(model, x, 0.6, layers=["twice"], curve=False)
    own = result.model.twice
    with torch.no_grad():
        seen = model.first(x).relu()
        calls = [seen, model.twice(seen).relu()]
        made = torch.cat([own(each) for each in (seen, own(seen).relu())]).movedim(1, 3).flatten(0, 2)
        wanted = torch.cat([model.twice(each) for each in calls]).movedim(1, 3).flatten(0, 2)
    assert float((made - wanted).mean(0).abs().max()) < 0.05 * float(wanted.std(0).max())


class Doubled(nn.Conv2d):
    """Computes twice the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Scaled(nn.Conv2d):
    """Has another parameter."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))


class Noisy(nn.Conv2d):
    """A convolution in eval mode; in training it drops weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.dropout(self.weight, 0.5, self.training)
        return nn.functional.conv2d(x, weight, self.bias)


class Careful(nn.Linear):
    """Computes a linear layer, as the subclass in timm does."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, bias=self.bias if self.bias is not None else None)


class Odd(nn.Module):
    """Layers that must be left alone for different reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3)
        self.grouped, self.depthwise = nn.Conv2d(24, 24, 3, groups=3), nn.Conv2d(24, 24, 3, groups=24)
        self.one, self.other = nn.Conv2d(24, 24, 1), nn.Conv2d(24, 24, 1)
        self.other.weight = self.one.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(24, 24, 1))
        self.own, self.more, self.noisy = Doubled(24, 24, 1), Scaled(24, 24, 1), Noisy(24, 24, 1)
        self.idle = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.grouped(self.first(x)))
        return self.noisy(self.more(self.own(self.normed(self.other(self.one(x).relu()))))).mean((2, 3))


def test_layers_left_alone_have_a_reason() -> None:
    torch.manual_seed(0)
    model = Odd()
    result = factorize(model, images(), 0.9, curve=False)
    left = result.report.details["left_alone"]
    assert result.report.changed == ("first",)
    reasons = {
        "grouped": "has 3 groups",
        "depthwise": "is depthwise",
        "one": "shares its weights with other.weight",
        "other": "shares its weights with one.weight",
        "normed": "has a parametrized weight",
        "own": "is a Doubled, which computes something else",
        "more": "is a Scaled, which has more than a weight",
        "noisy": "is a Noisy, which computes something else",
        "idle": "is not called",
    }
    assert left.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert left[name].startswith(reason)
    with pytest.raises(SurgeryError, match=r"grouped has 3 groups and cannot be factorized"):
        factorize(model, images(), 0.9, layers=["first", "grouped"])


def test_a_subclass_that_computes_the_same_is_factorized() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Careful(24, 17))
    with torch.no_grad():
        model[4].weight.copy_(torch.outer(torch.randn(17), torch.randn(24)))
    result = factorize(model, images(), 0.998, layers=["4"], curve=False)
    assert result.report.changed == ("4",)
    assert result.report.details["error"]["after"]["output"] < 1e-9


def test_only_the_named_layers_change() -> None:
    result = factorize(network(), images(), 0.7, layers=["2"], curve=False)
    assert result.report.changed == ("2",)
    assert result.report.details["left_alone"] == {
        "0": "is not one of the named layers",
        "4": "is not one of the named layers",
    }


def test_the_original_and_the_random_state_are_unchanged() -> None:
    model = network().train()
    model[1].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    result = factorize(model, images(), 0.4, fine_tune=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, False, *[True] * 5]
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert [module.training for module in result.model] == [True, False, *[True] * 5]
    assert all(part.training for part in result.model[2].modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype_memory_format_and_requires_grad_are_kept(dtype: torch.dtype) -> None:
    model = network().to(dtype, memory_format=torch.channels_last)
    model[2].requires_grad_(False)
    result = factorize(model, images(), 0.4, curve=False)
    assert set(result.report.changed) >= {"0", "2"}
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in result.model[2].parameters())
    assert all(parameter.requires_grad for parameter in result.model[0].parameters())
    core = next(part for part in result.model[2] if part.kernel_size == (3, 3))
    assert core.weight.is_contiguous(memory_format=torch.channels_last) and not core.weight.is_contiguous()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_network_stays_on_its_device() -> None:
    result = factorize(network().cuda(), labelled(), 0.4, fine_tune=3)
    assert {parameter.device.type for parameter in result.model.parameters()} == {"cuda"}


X = images(16)
LABELS = torch.arange(16) % 7


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.empty(0, 3, 13, 17), "data has 0 images; 8 or more"),
        ([], "data has 0 images"),
        (X[:7], "data has 7 images"),
        (X[0], r"data contains \(3, 13, 17\)"),
        (3, "data is a int"),
        ("images", "data is a str"),
        ({"x": X}, "data contains str"),
        (X.mul(9).to(torch.uint8), "apply the preprocessing first"),
        (X.where(X < 1, torch.nan), "NaN or infinite pixels"),
        (X.where(X < 1, torch.inf), "NaN or infinite pixels"),
        ([X, X[:, :, 1:]], "several image sizes"),
        ([X, (X, LABELS)], "several image sizes, or some without labels"),
        ((X, LABELS[:5]), "5 labels"),
        ((X, LABELS.float()), "an integer class for each"),
        ((X, LABELS + 1), "labels from 1 to 7; 0 to 6"),
        ((X, LABELS - 1), "labels from -1 to 5"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_invalid_data_are_refused(data: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        factorize(network(), data, 0.5)


def test_images_of_the_wrong_size_and_useless_outputs_are_refused() -> None:
    with pytest.raises(SurgeryError, match="fails on images of 2x13x17: .*channels"):
        factorize(network(), X[:, :2], 0.5)
    with pytest.raises(UsageError, match="held_out has images of 3x12x17, data of 3x13x17"):
        factorize(network(), X, 0.5, held_out=X[:, :, 1:])
    with pytest.raises(SurgeryError, match="the same for all images"):
        factorize(network(), torch.zeros(16, *SIZE), 0.5)
    broken = network()
    with torch.no_grad():
        broken[2].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(SurgeryError, match="NaN or infinite for some images"):
        factorize(broken, X, 0.5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"budget": 0}, "budget is 0; a fraction"),
        ({"budget": True}, "budget is True"),
        ({"budget": -0.5}, "budget is -0.5"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"budget": 1.0, "of": "error"}, "a fraction between 0 and 1 is accepted"),
        ({"of": "mac"}, "did you mean 'macs'"),
        ({"by": "weight"}, "did you mean 'weights'"),
        ({"fine_tune": -1}, "fine_tune is -1"),
        ({"layers": ["3"]}, "no layer is named '3'"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        factorize(network(), images(16), **wrong)


def test_an_impossible_budget_names_the_smallest_possible_one() -> None:
    grouped = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 3, 3, groups=3), *network())
    with pytest.raises(SurgeryError, match=r"\(most in 1, which is depthwise\)\. Use 0\.\d+ or more") as caught:
        factorize(grouped, X, 0.01)
    least = float(str(caught.value).split("Use ")[1].split()[0])
    factorize(grouped, X, least, curve=False)
    with pytest.raises(SurgeryError, match=r"0 of them in layers that stay\. Use 0\.\d+ or more"):
        factorize(network(), X, 0.01)
    with pytest.raises(SurgeryError, match="no convolution or linear layer"):
        factorize(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten()), X)


def test_fine_tuning_reduces_the_error() -> None:
    result = factorize(network(), images(), 0.2, fine_tune=40, curve=False)
    error = result.report.details["error"]
    assert error["after"]["output"] < 0.9 * error["before_tuning"]["output"]
    assert error["after"]["output"] == pytest.approx(lost(network(), result.model, images()[3::4]), rel=1e-3)
    with pytest.raises(SurgeryError, match="nothing to train"):
        factorize(network().requires_grad_(False), images(), 0.4, fine_tune=1)


def test_fine_tuning_may_be_a_function_of_the_network() -> None:
    seen: list[nn.Module] = []

    def train(model: nn.Module) -> None:
        model.train()
        seen.append(model)
        with torch.no_grad():
            model[4].bias += 1

    model = network()
    result = factorize(model, images(), 0.9, layers=["0"], fine_tune=train, curve=False)
    assert seen == [result.model]
    assert not any(module.training for module in result.model.modules())
    torch.testing.assert_close(result.model[4].bias, model[4].bias + 1)


def test_the_curve_compares_activations_and_weights_at_each_budget() -> None:
    curve = factorize(network(), labelled(96), 0.5).report.details["curve"]
    shares = [point["share"] for point in curve]
    assert len(shares) >= 4 and shares == sorted(shares, reverse=True) and shares[0] <= 0.85
    by = {way: [point[way]["output"] for point in curve] for way in ("activations", "weights")}
    assert by["activations"][0] < 0.2 * by["activations"][-1]
    assert sum(a < w for a, w in zip(by["activations"], by["weights"], strict=True)) >= len(curve) - 1
    assert all(0 <= point["weights"]["classes"] <= 1 for point in curve)


def test_too_few_images_are_reported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(663, 40), nn.ReLU(), nn.Linear(40, 9))
    said = "Too few images for reliable activation statistics of 1 layers (1 first)"
    assert said in str(factorize(model, images(200), 0.6, layers=["1"], curve=False).report)
    assert said not in str(factorize(model, images(224), 0.6, layers=["1"], curve=False).report)


def test_batch_norms_are_reported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
    assert "fold it first" in str(factorize(model, images(), 0.8, curve=False).report)
    assert "fold it first" not in str(factorize(network(), images(), 0.8, curve=False).report)


@pytest.mark.parametrize("head", ["gap", "fc"])
def test_a_nin_keeps_its_class_and_configuration(head: str) -> None:
    torch.manual_seed(0)
    model = create_model("nin_tiny", in_channels=3, size=SIZE[1:], num_classes=7, head=head, init="he", norm=None)
    result = factorize(model, images(), 0.4, curve=False)
    assert result.report.changed and all(name.startswith("blocks.") for name in result.report.changed)
    ranks = {f"blocks.{b}.convs.{c}": pair for b, block in enumerate(result.model.config.blocks)
             for c, pair in enumerate(block.ranks) if any(pair)}  # fmt: skip
    described = {
        each["name"]: (each["rank_in"] or 0, each["rank_out"] or 0) for each in result.report.details["layers"]
    }
    assert ranks == described
    again = build(json.loads(json.dumps(result.model.config.to_dict()))).eval()
    again.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(again(images(5)), result.model.eval()(images(5)))
    assert model.config.blocks[0].ranks == ()
    reason = result.report.details["left_alone"].get("head.1", "")
    assert reason == ("is the fully connected head, for which the configuration has no rank" if head == "fc" else "")


def test_a_layer_whose_weight_the_forward_pass_reads_is_left_alone() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 29, 3), nn.Conv2d(29, 31, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.second(x) if self.second.weight.dtype == x.dtype else x

    torch.manual_seed(1)
    model = Reads()
    result = factorize(model, torch.randn(40, 3, 11, 13), 0.9, curve=False)
    assert "reads its weight" in result.report.details["left_alone"]["second"]
    assert [layer["name"] for layer in result.report.details["layers"]] == ["first"]
