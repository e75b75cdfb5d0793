"""Tests of the surgery survey: it detects wrong results independently, and knows where an operation applies."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.wrapped import chaotic
from survey.flow import record
from survey.judge import LIMITS, gap, images_of, judge, rounds
from survey.networks import _Unfilled, calibrated, randomised, sizes
from survey.page import page, reason, totals
from survey.pairs import OPERATIONS, Case, attempt, fitting, thinned
from survey.rules import dense_share, head_of, multiply_adds, norms_behind_layers, places_to_deepen
from survey.store import Store
from torch import Tensor, nn

from mlpconv import surgery
from mlpconv.errors import SurgeryError
from mlpconv.surgery.tracing.rewritten import Rewritten

SHAPE = (3, 13, 11)
CLASSES = 5


class Net(nn.Module):
    """Two convolutions with norms, a pool and a head."""

    def __init__(self, *head: nn.Module, pool: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.conv1, self.norm1, self.relu = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
        self.conv2, self.norm2 = nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24)
        self.head = nn.Sequential(*(head or (nn.Dropout(0.2), nn.Linear(24, CLASSES))))
        self.pool = pool or (lambda x: x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        return self.head(self.pool(self.norm2(self.conv2(x)).relu()))


class Tokens(nn.Module):
    """Patches as tokens, and the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mix(self.conv(x).flatten(2).transpose(1, 2)).mean(1))


class Rounds(nn.Module):
    """A network that computes in float32, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * 1.1).flatten(1)[:, :CLASSES].to(x.dtype)


def case(model: nn.Module | None = None) -> Case:
    return fitting(randomised(model or Net()).eval(), SHAPE)


def test_every_operation_is_exact_on_a_small_network() -> None:
    for name, operation in OPERATIONS.items():
        found = attempt(operation, case())
        assert found["word"] == "exact", f"{name}: {found}"
        assert found["float64"] < 1e-12


def broken(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(iter(network.parameters())).flatten()[0] += 1e-4
    return network


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_a_small_error_in_the_result_is_detected(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = getattr(surgery, operation)

    def damaged(*args: Any, **kwargs: Any) -> Any:
        result = true(*args, **kwargs)
        broken(result.model)
        return result

    monkeypatch.setattr(surgery, operation, damaged)
    found = attempt(OPERATIONS[operation], case())
    assert found["word"] == "wrong"
    assert "float64" in found["why"]


def test_class_maps_with_a_different_mean_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Rewritten.category_maps
    monkeypatch.setattr(Rewritten, "category_maps", lambda self, x: true(self, x) + 1e-6)
    assert attempt(OPERATIONS["pool_head"], case())["word"] == "wrong"


def test_a_fold_without_a_folded_norm_counts_as_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept:
        def __init__(self, model: nn.Module) -> None:
            self.model, self.report = model, type("Report", (), {"details": {"kept": {"norm1": "too proud"}}})

    monkeypatch.setattr(surgery, "fold", lambda model, _: Kept(copy.deepcopy(model)))
    found = attempt(OPERATIONS["fold"], case())
    assert (found["word"], found["why"]) == ("refused", "no batch norm was folded: too proud")


def test_refusals_and_crashes_are_distinguished() -> None:
    def refuses(_: Case) -> Any:
        raise SurgeryError("fc1 is odd")

    def crashes(_: Case) -> Any:
        raise ZeroDivisionError("oh")

    assert attempt(refuses, case())["word"] == "refused"
    found = attempt(crashes, case())
    assert found["word"] == "crashed"
    assert found["why"].startswith("ZeroDivisionError: oh")


def test_constant_outputs_are_undecided() -> None:
    blind = Net()
    nn.init.zeros_(blind.head[1].weight)
    blind.eval()
    assert judge({"float32": (blind, copy.deepcopy(blind))}, SHAPE).word == "undecided"


def test_a_float64_network_that_computes_in_float32_is_detected() -> None:
    image = images_of(SHAPE, torch.float64)
    assert rounds(Rounds(), image)
    assert not rounds(case().double, image)


class Amplified(nn.Module):
    """A network whose output is what rounding left of small numbers beside a large one."""

    def __init__(self, gain: float = 1.0, large: float = 12345.6) -> None:
        super().__init__()
        self.gain, self.large = gain, large

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1)[:, :CLASSES] + self.large) * self.gain) / self.gain - self.large


def test_float32_tolerance_scales_with_the_networks_own_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Amplified(), Amplified(0.7)
    monkeypatch.setitem(LIMITS, "float32", 1e-5)
    found = judge({"float32": (one, other), "float64": (one, other)}, SHAPE)
    assert found.float32 > 1e-4
    assert found.word == "exact"
    off = judge({"float32": (one, OffBy(other)), "float64": (one, other)}, SHAPE)
    assert (off.word, off.why) == ("wrong", "differs in float32")
    one, other = Amplified(large=1e7), Amplified(0.7, large=1e7)
    blurred = judge({"float32": (one, OffBy(other)), "float64": (one, other)}, SHAPE)
    assert blurred.word == "undecided"
    assert blurred.why.startswith("rounding alone changes")


class Chaos(nn.Module):
    """A weight, and then chaos."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.weight = nn.Parameter(torch.full((CLASSES,), 0.37, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return chaotic((x.flatten(1)[:, :CLASSES] * self.weight).sigmoid(), self.times)


@pytest.mark.parametrize(("times", "word"), [(31, "exact"), (70, "undecided")])
def test_float64_tolerance_scales_with_the_networks_own_rounding(times: int, word: str) -> None:
    one, other = Chaos(times), Chaos(times)
    with torch.no_grad():
        other.weight.mul_(3.0).div_(3.0).mul_(0.1).div_(0.1)
        other.weight[:3] = torch.nextafter(other.weight[:3], torch.ones(3, dtype=torch.float64))
    found = judge({"float64": (one, other)}, SHAPE)
    assert found.word == word
    assert found.float64 > 1e-9
    assert "rounding alone changes" in found.why
    if word == "exact":
        assert judge({"float64": (one, OffBy(other))}, SHAPE).word == "wrong"


class OffBy(nn.Module):
    """Another network, and a tenth more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * 1.1


def test_skipped_initialisation_ends_rejection_sampling() -> None:
    weight, bias = torch.full((5, 7), 9.0), torch.full((7,), 9.0)
    with _Unfilled():
        nn.init.trunc_normal_(weight, std=0.02)
        nn.init.normal_(bias)
    assert not weight.any()
    assert not bias.any()


def test_different_shapes_and_nan_have_an_infinite_gap() -> None:
    one = torch.ones(2, 3)
    assert gap([one], [one + 0.25]) == 0.25
    assert gap([one], [torch.ones(2, 4)]) == float("inf")
    assert gap([one], [one * float("nan")]) == float("inf")
    assert gap([one], [one, one]) == float("inf")


@pytest.mark.parametrize(
    ("model", "begins", "how", "averaged"),
    [
        (Net(), "maps", "average", True),
        (Net(nn.Linear(24, 7), nn.BatchNorm1d(7), nn.Linear(7, CLASSES)), "maps", "average", True),
        (Net(nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, CLASSES)), "maps", "average", False),
        (Net(nn.LayerNorm(24), nn.Linear(24, CLASSES)), "maps", "average", False),
        (Net(nn.Linear(24 * 42, CLASSES), pool=lambda x: x.flatten(1)), "maps", "flatten", False),
        (Net(pool=lambda x: x.amax((2, 3))), "maps", "other pool", False),
        (Net(pool=lambda x: x.permute(0, 2, 3, 1).mean((1, 2))), "maps", "average", True),
        (Net(pool=lambda x: x.flatten(2).mean(-1)), "maps", "average", True),
        (Tokens(), "tokens", "", False),
    ],
)
def test_the_head_is_derived_from_the_forward_pass(model: nn.Module, begins: str, how: str, averaged: bool) -> None:
    head = head_of(record(model.eval(), images_of(SHAPE, torch.float32)))
    assert (head.begins, head.how, head.averaged) == (begins, how, averaged)


def test_norms_and_places_are_found_in_the_forward_pass() -> None:
    model = case().model
    flow = record(model, images_of(SHAPE, torch.float32))
    assert norms_behind_layers(flow) == (2, 2)
    assert places_to_deepen(model, flow.image) == ["conv2", "relu"]
    assert dense_share(model, flow.image) == pytest.approx(1.0)
    grouped = Net()
    grouped.conv1 = nn.Conv2d(3, 15, 3, 2, 1, groups=3)
    grouped.norm1, grouped.conv2 = nn.BatchNorm2d(15), nn.Conv2d(15, 24, 1)
    flow = record(grouped.eval(), flow.image)
    first, second, last = 15 * 9 * 42, 15 * 24 * 42, 24 * CLASSES
    assert dense_share(grouped, flow.image) == pytest.approx((second + last) / (first + second + last))


def test_counting_multiply_adds_keeps_requires_grad() -> None:
    model = case().model
    model.conv1.weight.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    assert multiply_adds(model, images_of(SHAPE, torch.float32)[:1]) == 42 * (27 * 16 + 16 * 24) + 24 * CLASSES
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted


def test_a_norm_after_a_shared_layer_is_not_counted() -> None:
    class Forked(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x)
            return self.head(self.pool(self.norm2(self.conv2(self.norm1(x) + x))))

    assert norms_behind_layers(record(Forked().eval(), images_of(SHAPE, torch.float32))) == (2, 1)


def test_weight_standardisation_is_not_a_norm() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = nn.functional.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
            return nn.functional.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)

    model = Net()
    model.conv1 = Standardised(3, 16, 3, 2, 1)
    assert norms_behind_layers(record(model.eval(), images_of(SHAPE, torch.float32))) == (2, 2)


def test_layers_get_an_eighth_of_their_rank() -> None:
    model = thinned(copy.deepcopy(case().model).double())
    ranks = [int(torch.linalg.matrix_rank(each.weight.flatten(1))) for each in (model.conv1, model.conv2)]
    assert ranks == [1, 2]


def test_norms_get_perturbed_statistics_of_images() -> None:
    model, images = case().model, images_of(SHAPE, torch.float32)
    calibrated(model, images)
    true = model.conv1(images).transpose(0, 1).flatten(1)
    ratio = model.norm1.running_var / true.var(1, correction=0)
    assert 0.5 <= ratio.min() < 0.8
    assert 1.2 < ratio.max() <= 1.5
    shift = (model.norm1.running_mean - true.mean(1)) / true.std(1)
    assert 0.2 < shift.abs().max() <= 0.5
    given = model.relu(model.norm1(model.conv1(images)))
    later = model.norm2.running_var / model.conv2(given).transpose(0, 1).flatten(1).var(1, correction=0)
    assert 0.5 <= later.min() < later.max() <= 1.5
    assert not model.norm1._forward_pre_hooks


def test_sizes_go_from_small_to_the_networks_own() -> None:
    assert [shape[1] for shape in sizes((3, 150, 150))] == [64, 96, 128, 150]
    assert list(sizes((1, 8, 8))) == [(1, 8, 8)]


def test_reasons_are_counted_without_names() -> None:
    one = reason("ResNet: layer4.1.fc (Linear) works on 3 dimensions; 1 is accepted.")
    assert one == reason("VGG: fc (Linear) works on 2 dimensions; 1 is accepted.")
    assert one != reason("VGG: fc (ReLU) works on 2 dimensions; 1 is accepted.")


def result(word: str, *, sense: bool = True, why: str = "") -> dict[str, Any]:
    judged = {"word": word, "float32": 1e-7, "float64": 2e-16, "why": why, "cpu_s": 0.1}
    return {
        "family": "timm resnet",
        "shape": [3, 64, 64],
        "norms": [7, 3],
        "sense": dict.fromkeys(OPERATIONS, sense),
        "profile": {"macs": 100, "torch": 100, "field": True},
        "operations": {name: dict(judged) for name in OPERATIONS},
    }


def test_the_page_counts_results_and_names_wrong_ones() -> None:
    networks = {
        "timm:a": result("exact", why="3 of 7 batch norms folded"),
        "timm:b": result("refused", why="B: fc (Linear) is odd."),
        "timm:c": result("wrong", why="differs in float64"),
        "timm:d": result("refused", sense=False, why="D: it has no maps."),
    }
    assert "| **all** | 15 | 5 (33.3%) | 5 | 0 | 5 | 1e-07 / 2e-16 | 5 refused |" in totals(networks)
    unclear = networks | {"timm:b": result("undecided", why="rounding alone changes it by 3e-01 in float32")}
    assert "| **all** | 15 | 5 (33.3%) | 0 | 5 | 5 | 1e-07 / 2e-16 | 5 refused |" in totals(unclear)
    assert "3 batch norms were folded; 12 directly follow a layer" in totals(networks)
    text = page(networks | {"timm:e": {"family": "timm vit", "not run": "9 parameters"}}, {"versions": {"timm": "1.2"}})
    assert "| timm:c | 64 | **wrong** |" in text
    assert "timm:b: B: fc (Linear) is odd." in text
    assert "Not run: timm:e (9 parameters)" in text


def test_results_are_kept_between_runs(tmp_path: Path) -> None:
    path = tmp_path / "coverage.json"
    Store.read(path).put("timm:a", result("exact"))
    Store.read(path).put("timm:b", result("refused"))
    later = Store.read(path)
    assert "timm:a" in later
    assert len([line for line in path.read_text().splitlines() if line.startswith('"timm:')]) == 2
    again = result("wrong")
    again["operations"] = {"fold": again["operations"]["fold"]}
    later.put("timm:a", again, whole=False)
    words = {
        name: each["word"] for name, each in json.loads(path.read_text())["networks"]["timm:a"]["operations"].items()
    }
    assert words == dict.fromkeys(OPERATIONS, "exact") | {"fold": "wrong"}
