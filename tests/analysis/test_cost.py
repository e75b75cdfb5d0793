"""Multiply-adds of single operations, compared with hand counts; unknown costs are reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from mlpconv.analysis import Profile, profile

C, H, W = 3, 7, 5
IMAGE = (C, H, W)


class Step(nn.Module):
    """A function of the image and of parameters with these shapes."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.held = function, nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.held)


class Wrapped(nn.Module):
    """A module applied to a slice of the image."""

    def __init__(self, module: nn.Module, part: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.part = module, part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.module, x)


def rows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (C, H * W)."""
    return x.flatten(2)[0]


BY_HAND = {
    "bilinear layer": (Wrapped(nn.Bilinear(C, W, 2), lambda m, x: m(x.mean((2, 3)), x[:, 0, 0])), C * W * 2),
    "bilinear": (Step(lambda x, w: F.bilinear(x, x, w), (2, W, W)), C * H * W * W * 2),
    "baddbmm": (Step(lambda x: torch.baddbmm(x[0, :, :, :1], x[0], x[0].mT)), C * H * H * W),
    "addbmm": (Step(lambda x, b: torch.addbmm(b, x[0], x[0].mT), (H, H)), C * H * H * W),
    "addmm": (Step(lambda x, b, w: torch.addmm(b, rows(x), w), (2,), (H * W, 2)), C * H * W * 2),
    "addmv": (Step(lambda x, b, w: torch.addmv(b, rows(x), w), (C,), (H * W,)), C * H * W),
    "addr": (Step(lambda x, b: torch.addr(b, x[0, 0, 0], x[0, 0, 1]), (W, W)), W * W),
    "vdot": (Step(lambda x: torch.vdot(x.flatten(), x.flatten())[None]), C * H * W),
    "inner": (Step(torch.inner, (2, W)), C * H * W * 2),
    "tensordot": (Step(lambda x, w: torch.tensordot(x, w, ([1], [0])), (C, 2)), C * H * W * 2),
    "einsum": (Step(lambda x, w: torch.einsum("nchw,kc->nkhw", x, w), (2, C)), C * H * W * 2),
    "matmul": (Step(lambda x: x @ x.mT), C * H * H * W),
    "a vector from the left": (Step(lambda x, w: w @ x, (H,)), C * H * W),
    "matrix_power": (Step(lambda x: torch.matrix_power(x[..., :W, :], 3)), 2 * C * W**3),
    "attention": (Step(lambda x: F.scaled_dot_product_attention(x, x, x)), 2 * C * H * H * W),
    "affine_grid": (
        Step(lambda x, w: F.affine_grid(w, [1, C, H, W], False) + x[0, 0, :, :, None], (1, 2, 3)), H * W * 2 * 3
    ),
    "multi-head attention": (
        Wrapped(nn.MultiheadAttention(6, 2, batch_first=True), lambda m, x: m(*[_six(x)] * 3)[0]),
        4 * H * 6 * 6 + 2 * H * H * 6,
    ),
    "lstm": (Wrapped(nn.LSTM(W, 4, batch_first=True), lambda m, x: m(x[:, 0])[0]), H * 4 * 4 * (W + 4)),
    "gru": (Wrapped(nn.GRU(W, 4, batch_first=True), lambda m, x: m(x[:, 0])[0]), H * 3 * 4 * (W + 4)),
    "two directions": (
        Wrapped(nn.LSTM(W, 4, 2, batch_first=True, bidirectional=True), lambda m, x: m(x[:, 0])[0]),
        2 * H * 4 * 4 * (W + 4 + 8 + 4),
    ),
    "transposed, groups": (nn.ConvTranspose2d(C, 2 * C, 3, 2, groups=C), C * H * W * 2 * 9),
}  # fmt: skip


def _six(x: Tensor) -> Tensor:
    """(N, H, 6)."""
    return torch.cat([x[:, 0], x[:, 1, :, :1]], -1)


@pytest.mark.parametrize(("model", "macs"), BY_HAND.values(), ids=BY_HAND.keys())
def test_every_form_of_matrix_product_is_counted(model: nn.Module, macs: int) -> None:
    found = profile(model, IMAGE)
    assert found.totals.macs == macs
    assert not any("Not counted" in note for note in found.notes)


@pytest.mark.parametrize("name", ["baddbmm", "addmm", "inner", "tensordot", "einsum", "matmul", "matrix_power"])
def test_counts_agree_with_the_flop_counter_of_torch(name: str) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        BY_HAND[name][0](torch.randn(1, *IMAGE))
    assert counter.get_total_flops() == 2 * BY_HAND[name][1]


UNKNOWN = {
    "_cdist_forward": Step(lambda x: torch.cdist(x, x)),
    "_fft_r2c": Step(lambda x: torch.fft.rfft2(x).abs()),
    "linalg_inv_ex": Step(lambda x: torch.linalg.inv(x[..., :W, :])),
}


@pytest.mark.parametrize(("name", "model"), UNKNOWN.items(), ids=UNKNOWN.keys())
def test_an_operation_of_unknown_cost_is_named(name: str, model: nn.Module) -> None:
    found = profile(nn.Sequential(nn.Conv2d(C, 2, 1), model), IMAGE)
    assert any(note.startswith(f"Not counted: {name}.") for note in found.notes)
    (row,) = (row for row in found.rows if row.uncounted)
    assert row.uncounted == (name,)
    assert "  ?  " in next(line for line in found.table().splitlines() if line.startswith(row.name))
    assert found.totals.macs == C * H * W * 2
    assert [row["uncounted"] for row in found.to_dict()["rows"] if row["uncounted"]] == [(name,)]


class Distances(nn.Module):
    """A matrix product and an operation of unknown cost in one layer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x @ x.mT, x.flip(-1).mT)


def test_a_layer_with_known_and_unknown_cost_shows_both() -> None:
    lines = profile(nn.Sequential(Distances()), (C, H, H)).table().splitlines()
    assert all(
        f"  {C * H * H * H:,} + ?  " in next(line for line in lines if line.startswith(n)) for n in ("0", "total")
    )


@torch.library.custom_op("mlpconv_tests::relu", mutates_args=())
def foreign(x: Tensor) -> Tensor:
    """An operation of another library whose name PyTorch also uses."""
    return x.clone()


@foreign.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def counted(model: nn.Module) -> Profile:
    return profile(model, IMAGE)


def test_an_operation_of_another_library_needs_a_registered_formula() -> None:
    model = Step(lambda x: foreign(x))  # noqa: PLW0108  (the operation itself cannot be copied)
    assert counted(model).rows[0].uncounted == ("relu",)
    packet = torch.ops.mlpconv_tests.relu
    try:
        register_flop_formula(packet)(lambda shape, **_: 2 * 11 * shape[1])
        assert counted(model).totals.macs == 11 * C
        assert not counted(model).rows[0].uncounted
    finally:
        del flop_registry[packet]


@torch.library.custom_op("mlpconv_tests::deform_conv2d", mutates_args=())
def deformed(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """A deformable convolution with the relevant arguments of torchvision's."""
    return F.conv2d(x, weight, bias, groups=groups)


@deformed.register_fake
def _(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    return F.conv2d(x, weight, bias, groups=groups)


def test_a_deformable_convolution_costs_as_much_as_a_convolution() -> None:
    found = counted(Step(lambda x, w: deformed(x, w, x[:, :2], None, 1), (2, C, 3, 3)))
    assert (found.totals.macs, found.rows[-1].kind) == ((H - 2) * (W - 2) * C * 9 * 2, "kxk")
