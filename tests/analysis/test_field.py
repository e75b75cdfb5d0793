"""Receptive fields of layers, compared with gradients from an independent pass."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.wrapped import Lambda
from support.zoo import GRAPHS, Oracle, Squeeze, conv, resnet
from torch import Tensor, nn

import mlpconv
from mlpconv.analysis import AxisField, Profile, profile
from mlpconv.analysis.result import axis_field
from mlpconv.receptive_field import field_of


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def last_map(result: Profile) -> tuple[AxisField, AxisField]:
    """Return the field of the last row with a grid along both axes."""
    row = [row for row in result.rows if row.field and all(axis.jump is not None for axis in row.field)][-1]
    assert row.field is not None
    return row.field


def agree(model: nn.Module, shape: tuple[int, int, int], cells: int = 25) -> tuple[AxisField, AxisField]:
    """Corner cells and evenly spaced cells of the last layer see exactly the pixels with a gradient."""
    seen_by_all = profile(model, shape).field
    assert seen_by_all is not None
    rows, columns = seen_by_all
    oracle = Oracle(model, shape)
    height, width = oracle.output.shape[2:]
    assert (len(rows.spans), len(columns.spans)) == (height, width)
    every = list(itertools.product(range(height), range(width)))
    for row, column in {*every[:: max(1, len(every) // cells)], every[-1], (0, width - 1), (height - 1, 0)}:
        seen = oracle.spans(row, column)
        if (0, -1) in seen or rows.spans[row] == (0, -1) or columns.spans[column] == (0, -1):
            assert (0, -1) in seen
            assert (0, -1) in (rows.spans[row], columns.spans[column])
        else:
            assert (rows.spans[row], columns.spans[column]) == seen, (row, column)
    return rows, columns


def textbook(axis: AxisField, pixels: int) -> None:
    """Every cell whose field lies inside the image agrees with size, jump and start."""
    assert axis.jump is not None
    assert axis.start is not None
    for cell, (first, last) in enumerate(axis.spans):
        if last - first + 1 == axis.size and axis.outside is not None:
            middle = axis.start + cell * axis.jump
            assert (first, last) == (middle - (axis.size - 1) / 2, middle + (axis.size - 1) / 2)
        assert 0 <= first <= pixels
        assert last < pixels


# ---- the published networks

NINS = {
    "nin_cifar10": (27, 4),
    "nin_cifar100": (27, 4),
    "nin_svhn": (35, 4),
    "nin_mnist": (35, 4),
    "nin_imagenet": (195, 32),
}


@pytest.mark.parametrize("name", NINS)
def test_networks_of_the_paper_have_the_known_fields(name: str) -> None:
    model = mlpconv.create_model(name)
    for axis in last_map(profile(model, model.input_size)):
        assert (axis.size, axis.jump) == NINS[name]


@pytest.mark.parametrize("name", ["nin_cifar10", "nin_mnist", "nin_imagenet", "googlenet"])
def test_networks_of_the_paper_agree_with_gradients(name: str) -> None:
    options = {"width": 0.125, "num_classes": 3}
    model = mlpconv.create_model(name, **options)
    maps = _Maps(model)
    rows, columns = agree(maps, model.input_size, cells=5)
    textbook(rows, model.input_size[1])
    textbook(columns, model.input_size[2])


class _Maps(nn.Module):
    """A network up to its category maps, without local response norms, whose gradients underflow."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.LocalResponseNorm):
                parent, _, key = name.rpartition(".")
                setattr(model.get_submodule(parent), key, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.model.category_maps(x)


def test_googlenet_sees_715_pixels_at_stride_32() -> None:
    model = mlpconv.create_model("googlenet")
    for axis in last_map(profile(model, model.input_size)):
        assert (axis.size, axis.jump, axis.start) == (715, 32, 30)


def test_resnet_50_sees_427_pixels_at_stride_32() -> None:
    """427 is the published value for the version with the stride in the 3x3 convolution."""
    for axis in last_map(profile(resnet(), (3, 224, 224))):
        assert (axis.size, axis.jump, axis.start) == (427, 32, 0)


# ---- one network per kind of graph


@pytest.mark.parametrize("name", GRAPHS)
def test_fields_of_graphs_agree_with_gradients(name: str) -> None:
    result = profile(GRAPHS[name], (3, 24, 18))
    assert result.field is not None
    if all(axis.jump is not None for axis in result.field):
        agree(GRAPHS[name], (3, 24, 18))
        return
    oracle = Oracle(GRAPHS[name], (3, 24, 18))  # no grid: the largest field of all elements
    height, width = oracle.output.shape[2:]
    seen = [oracle.spans(i, j) for i in range(height) for j in range(width)]
    for axis, k in zip(result.field, (0, 1), strict=True):
        longest = max(span[k][1] - span[k][0] + 1 for span in seen)
        assert axis.size == longest
        hull = min(span[k][0] for span in seen), max(span[k][1] for span in seen)
        assert axis.spans == (hull,) or axis.jump is not None


@pytest.mark.parametrize("name", GRAPHS)
def test_real_and_meta_tensors_give_the_same_fields(name: str) -> None:
    model = GRAPHS[name].eval()
    seen, result = field_of(torch.rand(1, 3, 24, 18), model), profile(model, (3, 24, 18))
    assert seen is not None
    with torch.no_grad():
        shape = tuple(model(torch.rand(1, 3, 24, 18)).shape)
    assert result.field == (axis_field(seen[0], shape, 24), axis_field(seen[1], shape, 18))


def test_a_channels_last_linear_layer_keeps_rows_and_columns() -> None:
    result = profile(GRAPHS["linear at each place"], (3, 24, 18))
    assert result["b"].shape == (11, 8, 5)
    assert result["b"].field is not None
    for found, cells in zip(result["b"].field, (11, 8), strict=True):
        assert (found.size, found.jump, found.start, len(found.spans)) == (3, 2, 1, cells)
    assert [(axis.size, axis.jump, axis.start) for axis in last_map(result)] == [(3, 2, 1), (7, 2, 3)]


def test_as_strided_is_exact_if_the_whole_storage_is_known() -> None:
    assert profile(GRAPHS["cut by strides"], (3, 24, 18)).notes == ()
    part = Lambda(lambda m, x: m.a(x)[:, :2].as_strided((1, 2, 3, 4), (1, 1, 1, 1)), a=conv(3, 4, 3))
    result = profile(part, (3, 24, 18))
    assert result.notes == ("Receptive fields after these operations are upper bounds: as_strided.",)
    assert result.field is not None
    assert result.field[0].whole


def test_different_strides_on_the_two_axes() -> None:
    rows, columns = last_map(profile(GRAPHS["asymmetric"], (3, 41, 43)))
    assert (rows.size, rows.jump, rows.start) == (5, 2, 1)
    assert (columns.size, columns.jump, columns.start) == (5, 1, 0)
    rows, columns = last_map(profile(conv(3, 4, (5, 1), (1, 3)), (3, 41, 43)))
    assert (rows.size, rows.jump, rows.start, columns.size, columns.jump) == (5, 1, 2, 1, 3)


def test_a_global_layer_sees_everything_and_a_gate_keeps_the_grid() -> None:
    result = profile(Squeeze(4), (3, 24, 18))
    pooled, gated = result["mean"], result.rows[-1]
    assert pooled.field is not None
    assert gated.field is not None
    assert [(axis.size, axis.jump, axis.whole) for axis in pooled.field] == [(24, None, True), (18, None, True)]
    assert [(axis.size, axis.jump, axis.start, axis.whole) for axis in gated.field] == [
        (24, 2, 0, True),
        (18, 2, 0, True),
    ]
    assert gated.padded is None


def test_padded_is_the_fraction_of_cells_beyond_the_border() -> None:
    row = profile(conv(1, 1, 3, padding=1), (1, 10, 5)).rows[0]
    assert row.padded == pytest.approx(1 - 8 / 10 * 3 / 5)
    assert profile(conv(1, 1, 3), (1, 10, 5)).rows[0].padded == 0


def test_an_unknown_operation_is_reported_as_an_upper_bound() -> None:
    model = Lambda(lambda m, x: F.unfold(m.a(x), 3), a=conv(3, 4, 3))
    result = profile(model, (3, 9, 9))
    assert any("im2col" in note for note in result.notes)
    assert all(axis.whole for axis in result.rows[-1].field or ())
    assert not profile(GRAPHS["residual"], (3, 24, 18)).notes
    chosen = Lambda(lambda m, x: m.a(x)[:, x.mean((0, 2, 3)).argsort()], a=conv(3, 4, 3))
    assert any("index" in note for note in profile(chosen, (3, 9, 9)).notes)


def test_the_oracle_rejects_a_wrong_field() -> None:
    """The comparison rejects the field of another network."""
    oracle = Oracle(conv(3, 4, 5, 1, 2), (3, 12, 12))
    wrong, _ = last_map(profile(conv(3, 4, 3, 1, 1), (3, 12, 12)))
    assert wrong.spans[6] != oracle.spans(6, 6)[0]


# ---- random graphs


@st.composite
def layers(draw: Any, channels: int, depth: int) -> tuple[nn.Module, int]:
    """Draw a random chain of layers and branches; return it with its output channels."""
    made: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        branches = ["sum", "cat", "gate"] if depth else []
        kind = draw(st.sampled_from(["conv", "depthwise", "pool", "shuffle", "norm", *branches, "enlarge", "cut"]))
        if kind == "conv":
            groups, out = draw(st.sampled_from([1, 2])), draw(st.sampled_from([2, 4, 6]))
            made.append(conv(channels, out, *_geometry(draw), groups=groups))
            channels = out
        elif kind == "depthwise":
            made.append(conv(channels, channels, *_geometry(draw), groups=channels))
        elif kind == "pool":
            stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1))
            made.append(nn.MaxPool2d(3, stride, padding, ceil_mode=draw(st.booleans())))
        elif kind == "shuffle":
            made.append(nn.ChannelShuffle(2))
        elif kind == "norm":
            made.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
        elif kind == "cut":
            part = slice(draw(st.integers(0, 1)), None, draw(st.integers(1, 2)))
            made.append(Lambda(lambda _, x, part=part: x[:, :, part]))
        elif kind == "enlarge":
            made.append(nn.Upsample(scale_factor=2, mode=draw(st.sampled_from(["nearest", "bilinear"]))))
        else:
            left, right = _same_size(draw, channels), _same_size(draw, channels)
            made.append(Lambda(JOINS[kind], left=left, right=right))
            channels *= 2 if kind == "cat" else 1
    return nn.Sequential(*made), channels


JOINS = {
    "sum": lambda m, x: m.left(x) + m.right(x),
    "cat": lambda m, x: torch.cat([m.right(x), m.left(x)], 1),
    "gate": lambda m, x: m.left(x) * m.right(x).mean((2, 3), keepdim=True),
}


def _geometry(draw: Any) -> tuple[Any, Any, Any, Any]:
    """Draw kernel, stride, padding and dilation per axis; the kernel may be even."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    return kernel, stride, padding, draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))


def _same_size(draw: Any, channels: int) -> nn.Module:
    """Draw a branch that keeps the size: an odd kernel with same padding, or the identity."""
    if draw(st.booleans()):
        return nn.Identity()
    radius, dilation = draw(st.tuples(st.integers(0, 2), st.integers(0, 2))), draw(st.integers(1, 2))
    kernel, padding = tuple(2 * r + 1 for r in radius), tuple(r * dilation for r in radius)
    groups = draw(st.sampled_from([1, 2]))
    return conv(channels, channels, kernel, 1, padding, dilation, groups=groups)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(layers(2, depth=1), st.sampled_from([(23, 17), (29, 31), (13, 37)]))
def test_fields_of_random_graphs_agree_with_gradients(made: tuple[nn.Module, int], size: tuple[int, int]) -> None:
    model = nn.Sequential(conv(2, 2, 1), made[0])
    try:
        out = model(torch.zeros(1, 2, *size))
    except RuntimeError:
        return  # the kernels do not fit into the image
    if not out.numel() or not out.shape[2] * out.shape[3]:
        return
    rows, columns = agree(model, (2, *size), cells=6)
    textbook(rows, size[0])
    textbook(columns, size[1])
