"""Counts compared with the paper, other counters and hand counts; and how a profile is formatted."""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.zoo import Shuffle, Squeeze, WindowAttention, resnet
from torch import Tensor, nn

import mlpconv
from mlpconv.analysis import Profile, profile
from mlpconv.analysis.html import as_page

# Name -> parameters, multiply-adds forward of one image.
PUBLISHED = {
    "nin_cifar10": (966_986, 222_486_528),
    "nin_cifar100": (984_356, 223_592_448),
    "nin_svhn": (1_986_026, 274_235_392),
    "nin_mnist": (349_674, 50_699_712),
    "nin_imagenet": (7_595_176, 1_100_188_800),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_of_the_paper_have_the_known_cost(name: str) -> None:
    model = mlpconv.create_model(name)
    totals = profile(model, model.input_size).totals
    assert (totals.params, totals.macs) == PUBLISHED[name]
    assert totals.unused_params == 0


def others_count(model: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return the multiply-adds of fvcore (convolutions, linear layers, products) and of torchinfo."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    image = torch.zeros(1, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both use deprecated PyTorch functions
        from fvcore.nn import FlopCountAnalysis
        from torchinfo import summary

        counted = FlopCountAnalysis(model.eval(), image)
        kinds = counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
        told = summary(model, input_data=image, verbose=0)
    return int(sum(kinds[key] for key in ("conv", "linear", "addmm", "matmul", "bmm"))), int(told.total_mult_adds)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlpconv.create_model("nin_cifar10", width=0.25), (3, 32, 32)),
        (mlpconv.create_model("googlenet", width=0.25), (3, 65, 67)),
        (resnet((1, 2, 1), 8, 11), (3, 65, 67)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), Shuffle(8), nn.Conv2d(8, 8, (1, 3), groups=4, bias=False)), (3, 31, 29)),
    ],
    ids=["nin", "googlenet", "resnet", "groups"],
)
def test_counts_agree_with_fvcore_and_torchinfo(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """torchinfo also counts one per bias addition and the parameters of norms, as docs/profile.md says."""
    totals = profile(model, shape).totals
    fvcore, torchinfo = others_count(model, shape)
    assert fvcore == totals.macs
    norms = sum(p.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    linear = sum(m.out_features for m in model.modules() if isinstance(m, nn.Linear))
    convolutions = totals.bias_adds - linear
    assert torchinfo == totals.macs + convolutions + linear + norms


def test_resnet_50_has_the_published_cost() -> None:
    result = profile(resnet(), (3, 224, 224))
    assert (result.totals.params, result.totals.macs) == (25_557_032, 4_089_184_256)
    ones = [m for m in resnet().modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert result.totals.by_kind["1x1"]["layers"] == len(ones)
    assert result.totals.params_share_1x1 == sum(m.weight.numel() for m in ones) / 25_557_032


@settings(max_examples=40)
@given(st.data())
def test_a_convolution_costs_what_its_definition_says(data: Any) -> None:
    groups, stride, dilation = (data.draw(st.integers(1, 3)) for _ in range(3))
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    bias, transposed = data.draw(st.booleans()), data.draw(st.booleans())
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = make(2 * groups, 5 * groups, kernel, stride, 1, groups=groups, bias=bias, dilation=dilation)
    shape = (2 * groups, 13, 11)
    row = profile(layer, shape).rows[0]
    with torch.no_grad():
        inside = torch.ones(1, *shape)
        out = layer(inside)
    per_output = 2 * kernel[0] * kernel[1]
    macs = 5 * kernel[0] * kernel[1] * inside.numel() if transposed else out.numel() * per_output
    assert row.macs == macs
    assert row.bias_adds == (out.numel() if bias else 0)
    assert row.params == sum(p.numel() for p in layer.parameters())
    assert row.activation_bytes == 4 * out.numel()
    assert row.intensity == pytest.approx(macs / (4 * (inside.numel() + out.numel() + row.params)))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(4, 8, 3), "kxk"),
        (nn.Conv2d(4, 8, (1, 3)), "kxk"),
        (nn.Conv2d(4, 8, 1, 2), "1x1"),
        (nn.Conv2d(4, 8, 1, groups=2), "1x1"),
        (nn.Conv2d(4, 8, 3, groups=4), "depthwise"),
        (nn.Linear(9, 5), "linear"),
        (nn.BatchNorm2d(4), "norm"),
        (nn.GroupNorm(2, 4), "norm"),
        (nn.LocalResponseNorm(3), "norm"),
        (nn.MaxPool2d(2), "pool"),
        (nn.AdaptiveAvgPool2d(1), "pool"),
        (mlpconv.GlobalAveragePool(), "pool"),
        (nn.GELU(), "activation"),
        (nn.Hardswish(), "activation"),
        (nn.PReLU(), "activation"),
        (mlpconv.Maxout(2), "activation"),
        (nn.Softmax(1), "activation"),
        (nn.ZeroPad2d(1), "other"),
    ],
)
def test_kinds(layer: nn.Module, kind: str) -> None:
    (row,) = profile(layer, (4, 9, 9)).rows
    assert row.kind == kind


def test_other_operations_are_counted_separately() -> None:
    assert profile(nn.Linear(9, 5, bias=False), (2, 9, 9)).totals.bias_adds == 0
    assert profile(nn.Linear(9, 5), (2, 9, 9)).totals.bias_adds == 2 * 9 * 5
    pool = profile(nn.MaxPool2d(3, 2), (2, 9, 9)).totals
    assert (pool.macs, pool.pool_ops, pool.other_ops) == (0, 2 * 16 * 9, 0)
    norm = profile(nn.BatchNorm2d(2), (2, 9, 9)).totals
    assert (norm.macs, norm.pool_ops, norm.other_ops) == (0, 0, 2 * 2 * 81)
    assert profile(nn.AdaptiveAvgPool2d(1), (2, 9, 9)).totals.pool_ops == 2 * 81


def test_functions_branches_and_repeated_layers_have_rows() -> None:
    result = profile(Squeeze(4), (3, 24, 18))
    assert [row.name for row in result.rows] == ["conv", "mean", "mul", "mean (2)", "gate", "add", "sigmoid", "mul (2)"]
    assert result["gate"].kind == "1x1"
    assert result["mul (2)"].kind == "merge"
    shared = nn.Conv2d(3, 3, 3)
    twice = profile(nn.Sequential(shared, nn.ReLU(), shared), (3, 9, 9))
    assert [(row.name, row.params) for row in twice.rows] == [("0", 84), ("1", 0), ("0 (2)", 0)]
    assert twice.totals.params == 84
    with pytest.raises(KeyError):
        result["absent"]


def test_attention_is_counted() -> None:
    """By hand: 36 windows of 4 tokens with 8 channels, each with 2 products of 4 x 4 x 8."""
    totals = profile(WindowAttention(), (3, 36, 36)).totals
    assert totals.by_kind["matmul"]["macs"] == 36 * 2 * 4 * 4 * 8
    assert totals.by_kind["linear"]["macs"] == 144 * 8 * 24


def test_auxiliary_heads_are_counted_and_named_unused() -> None:
    result = profile(mlpconv.create_model("googlenet", aux_heads=True), (3, 224, 224))
    assert (result.totals.params, result.totals.unused_params) == (13_378_280, 13_378_280 - 6_998_552)
    assert "6,379,728" in result.notes[0]


def test_batch_size_scales_operations_and_bytes_but_not_weights() -> None:
    one, eight = (profile(nn.Conv2d(3, 7, 3), (3, 11, 13), batch=n) for n in (1, 8))
    assert eight.totals.macs == 8 * one.totals.macs
    assert eight.totals.peak_activation_bytes == 8 * one.totals.peak_activation_bytes
    moved = [row.macs / (row.intensity or 0) for row in (one.rows[0], eight.rows[0])]
    assert moved[1] - 8 * moved[0] == pytest.approx(-7 * 4 * one.totals.params)


def test_half_precision_takes_half_the_bytes() -> None:
    model = nn.Conv2d(3, 7, 3)
    assert 2 * profile(model.bfloat16(), (3, 11, 13)).totals.activation_bytes == 4 * 7 * 9 * 11


def test_peak_memory_is_the_most_that_is_live_at_once() -> None:
    """By hand: live channels, of 10 x 10 elements each."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu_()  # 3 + 8
            z = self.b(y)  # 3 + 8 + 16
            y = y.mean((2, 3))
            return z.sum(1) + F.relu(z).sum(1)  # 3 + 16 + 1, then 16 and 1 more: the peak

    cells = 10 * 10 * 4
    peak = profile(Branches(), (3, 10, 10)).totals.peak_activation_bytes
    assert peak == (3 + 16 + 1 + 16 + 1) * cells + 8 * 4
    assert profile(Branches(), (3, 10, 10))["relu"].activation_bytes == 0


# ---- formatting


@pytest.fixture(scope="module")
def small() -> Profile:
    return profile(mlpconv.create_model("nin_cifar10"), (3, 32, 32))


def test_the_dict_is_json_and_adds_up(small: Profile) -> None:
    data = json.loads(json.dumps(small.to_dict(), allow_nan=False))
    assert data["model"] == "nin_cifar10"
    assert sum(row["macs"] for row in data["rows"]) == data["totals"]["macs"] == 222_486_528
    assert sum(row["params"] for row in data["rows"]) == data["totals"]["params"]
    assert data["rows"][0]["field"]["rows"] | {"outside": None} == {
        "size": 5, "jump": 1.0, "start": 0.0, "whole": False, "outside": None,
    }  # fmt: skip
    assert data["field"]["columns"]["whole"] is True
    assert "multiply-add" in data["convention"]


def test_the_table_has_equal_lines_totals_and_the_convention(small: Profile) -> None:
    lines = small.table().splitlines()
    assert lines[0] == "nin_cifar10, images of 3×32×32, batch 1"
    table = lines[1 : lines.index("")]
    assert len({len(line) for line in table}) == 1
    assert "966,986" in table[-1]
    assert "222,486,528" in table[-1]
    assert f"  {small.totals.intensity:.1f}  " in table[-1]
    assert "1 MAC = 1 multiply-add" in small.table()


def three_kinds() -> Profile:
    """Small enough to compute every share by hand."""
    layers = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.MaxPool2d(5))
    return profile(layers, (2, 7, 7))


def test_shares_of_each_kind() -> None:
    totals = three_kinds().totals
    assert totals.by_kind["kxk"] == {"layers": 1, "params": 54, "macs": 54 * 25, "activation_bytes": 300}
    assert totals.by_kind["1x1"] == {"layers": 1, "params": 16, "macs": 12 * 25, "activation_bytes": 400}
    assert (totals.params_share_1x1, totals.macs_share_1x1) == (16 / 70, 12 / 66)
    assert totals.activation_share_1x1 == 400 / 716
    lines = three_kinds().table().split("\n\n")[1].splitlines()
    assert [line.split() for line in lines] == [
        ["kind", "layers", "params", "share", "MACs", "share", "activation", "share"],
        ["kxk", "1", "54", "77.1%", "1,350", "81.8%", "300", "B", "41.9%"],
        ["1x1", "1", "16", "22.9%", "300", "18.2%", "400", "B", "55.9%"],
        ["pool", "1", "-", "-", "-", "-", "16", "B", "2.2%"],
        ["activation", "1", "-", "-", "-", "-", "-", "-"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert "22.9% of the parameters, 18.2% of the MACs, 55.9% of the activations" in three_kinds().table()
    assert "<td>1x1</td><td>1</td><td>16</td><td>22.9%</td>" in as_page(three_kinds())


def test_total_intensity_counts_all_bytes_read_and_written() -> None:
    """The total counts image, weights and output of both convolutions, and excludes the pool, which has no MACs."""
    moved = 4 * ((2 * 49 + 54 + 3 * 25) + (3 * 25 + 16 + 4 * 25))
    assert three_kinds().totals.intensity == pytest.approx(54 * 25 / moved + 12 * 25 / moved)
    assert profile(nn.ReLU(), (2, 7, 7)).totals.intensity is None
    assert profile(nn.ReLU(inplace=True), (2, 7, 7)).totals.activation_share_1x1 == 0.0


def test_the_page_makes_no_requests_and_escapes_names() -> None:
    model = nn.Sequential()
    model.add_module("<script>alert(1)</script>", nn.Conv2d(3, 4, 3))
    page = as_page(profile(model, (3, 9, 9)))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http:" not in page
    assert "https:" not in page
    assert "src=" not in page.replace("default-src", "")
    assert page.count("<rect") == 2
