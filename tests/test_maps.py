"""Category maps: exact shares of the logits, at exact places of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax
from torch import Tensor, nn

from mlpconv.bundle import Classifier
from mlpconv.data.decode import from_pil
from mlpconv.errors import ModelFileError, UsageError
from mlpconv.grid import Axis, Box, Grid, trace_grid
from mlpconv.maps import MapResult, Peak, category_maps, find_peak, in_file
from mlpconv.models.registry import create_model
from mlpconv.preprocessing import Preprocessing


class Chain(nn.Module):
    """Layers whose output is the category maps."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def category_maps(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Branches(nn.Module):
    """Two ways through, of different kernels, added and put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 2, 5, stride=2, padding=2)
        self.narrow = nn.Conv2d(1, 2, 3, stride=2, padding=1)

    def category_maps(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x), self.narrow(x) + torch.relu(self.wide(x))], 1)


def classifier(model: nn.Module, height: int, width: int, classes: str = "abcdefghij") -> Classifier:
    """A classifier whose preprocessing only divides by 255."""
    chain = Preprocessing.create(("scale",), model.in_channels, (height, width))
    return Classifier(model, chain, tuple(classes), (model.in_channels, height, width))


def influence(model: nn.Module, size: tuple[int, int, int], row: int, column: int) -> Box:
    """The pixels that move one cell, found by differentiating a network made linear and positive."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    image = torch.ones(1, *size, dtype=torch.float64, requires_grad=True)
    model.double().category_maps(image)[0, -1, row, column].backward()
    rows, columns = np.nonzero(image.grad.abs().sum(1)[0].numpy())
    return Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


WINDOW = st.tuples(
    st.sampled_from(["conv", "pool"]), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)
)


@settings(deadline=None, max_examples=60)
@given(layers=st.lists(WINDOW, min_size=1, max_size=4), height=st.integers(17, 31), width=st.integers(17, 31))
def test_the_grid_is_where_the_gradient_is(layers: list[tuple[Any, ...]], height: int, width: int) -> None:
    made: list[nn.Module] = []
    for kind, kernel, stride, padding, dilation in layers:
        if kind == "conv":
            made += [nn.Conv2d(1, 1, kernel, stride, padding, dilation), nn.BatchNorm2d(1), nn.ReLU(inplace=True)]
        else:
            made.append(nn.AvgPool2d(kernel, stride, min(padding, kernel // 2), ceil_mode=True))
    model = Chain(*made).eval()
    try:
        maps = model.category_maps(torch.zeros(1, 1, height, width))
    except RuntimeError:
        return  # the image is smaller than the kernel
    grid = trace_grid(model, (1, height, width))
    for row, column in ((0, 0), (maps.shape[2] - 1, maps.shape[3] - 1), (maps.shape[2] // 2, maps.shape[3] // 2)):
        try:
            expected = influence(model, (1, height, width), row, column)
        except ValueError:
            continue  # the cell lies in the padding
        box = grid.field_box(row, column, (height, width))
        if (box.right - box.left, box.bottom - box.top) == (grid.columns.field, grid.rows.field):
            assert box == expected
        else:  # at the border, strides and dilations may step over the first pixel
            assert box.left <= expected.left < expected.right <= box.right
            assert box.top <= expected.top < expected.bottom <= box.bottom


def test_the_grid_covers_every_branch() -> None:
    grid = trace_grid(Branches(), (1, 19, 23))
    assert grid == Grid(Axis(0, 2, 5), Axis(0, 2, 5))
    assert grid.field_box(3, 4, (19, 23)) == influence(Branches(), (1, 19, 23), 3, 4) == Box(6, 4, 11, 9)


@pytest.mark.parametrize(
    ("name", "size", "first", "stride", "field"),
    [
        ("nin_cifar10", 32, 3, 4, 27),
        ("nin_svhn", 32, 3, 4, 35),
        ("nin_mnist", 28, 3, 4, 35),
        ("nin_imagenet", 224, 33, 32, 195),
    ],
)
def test_fields_and_strides_are_the_papers(name: str, size: int, first: float, stride: float, field: float) -> None:
    model = create_model(name, width=0.05).eval()
    expected = Axis(first, stride, field)
    assert trace_grid(model, (model.in_channels, size, size)) == Grid(expected, expected)
    with torch.inference_mode():
        assert trace_grid(model, (model.in_channels, size, size)) == Grid(expected, expected)


def test_googlenet_is_followed_through_its_branches() -> None:
    grid = trace_grid(create_model("googlenet", width=0.1).eval(), (3, 224, 224))
    assert grid.rows == grid.columns
    assert (grid.rows.stride, grid.rows.first) == (32, 2 + 4 + 8 + 16)  # the four pools; the convolutions are centred


def test_a_resize_inside_falls_back_to_cells_that_divide_the_image() -> None:
    grid = trace_grid(Chain(nn.AdaptiveAvgPool2d((2, 5))), (1, 8, 20))
    assert grid == Grid(Axis(1.5, 4, 8), Axis(1.5, 4, 20))


def seeing_dots() -> nn.Module:
    """The CIFAR-10 network with every kernel a single 1 in its middle: it passes the brightest pixel on."""
    model = create_model("nin_cifar10", width=0.05, in_channels=1).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
            module.weight.data[:, :, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1 / module.in_channels
    return model


def dot_at(x: int, y: int) -> np.ndarray:
    image = np.zeros((1, 1, 31, 37), dtype=np.uint8)
    image[0, 0, y, x] = 255
    return image


def test_the_peak_follows_a_bright_dot() -> None:
    seeing = classifier(seeing_dots(), 31, 37)
    at_centres = [(x, y) for x in range(3, 37, 4) for y in range(3, 31, 4)]
    for x, y in at_centres:
        assert category_maps(seeing, dot_at(x, y)).top(0)[0].peak == Peak(x, y)
    for x, y in [(0, 0), (36, 30), (17, 5), (8, 29), (30, 13), (1, 22)]:
        peak = category_maps(seeing, dot_at(x, y)).top(0)[0].peak
        assert max(abs(peak.x - x), abs(peak.y - y)) <= 3  # the window of the two pools is 7 pixels wide


@pytest.fixture(scope="module")
def result() -> MapResult:
    torch.manual_seed(3)
    model = create_model("nin_cifar10", width=0.1, num_classes=7, last_relu=False, init="he")
    pixels = np.random.default_rng(5).integers(0, 256, (5, 3, 29, 31), dtype=np.uint8)
    return category_maps(classifier(model, 29, 31, "abcdefg"), pixels, batch_size=2)


def test_shares_of_evidence_sum_to_the_logits(result: MapResult) -> None:
    torch.manual_seed(3)
    model = create_model("nin_cifar10", width=0.1, num_classes=7, last_relu=False, init="he").eval()
    with torch.no_grad():
        logits = model(torch.as_tensor(result.pixels).float() / 255).numpy()
    assert np.abs(logits).max() > 0.01
    for k, label in enumerate("abcdefg"):
        np.testing.assert_allclose(result.evidence(label).sum((1, 2)), logits[:, k], rtol=1e-4, atol=1e-6)
    lead = result.evidence("b", against="f").sum((1, 2))
    np.testing.assert_allclose(lead, logits[:, 1] - logits[:, 5], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.logits, logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.probabilities, softmax(logits.astype(np.float64), 1), rtol=1e-4, atol=1e-6)


def test_the_top_classes_come_first(result: MapResult) -> None:
    for image in range(len(result)):
        seen = result.top(image, 99)
        assert [s.index for s in seen] == np.argsort(-result.probabilities[image], kind="stable").tolist()
        assert [s.label for s in seen] == ["abcdefg"[s.index] for s in seen]
        assert [s.probability for s in seen] == pytest.approx(result.probabilities[image][[s.index for s in seen]])
        assert [s.logit for s in seen] == pytest.approx(result.logits[image][[s.index for s in seen]])


def test_an_unknown_class_is_refused_with_the_nearest(result: MapResult) -> None:
    with pytest.raises(UsageError, match="no class 'aa'"):
        result.evidence("aa")


GRID = Grid(Axis(3, 4, 27), Axis(3, 4, 27))


def test_the_box_holds_the_cells_that_hang_together_with_the_peak() -> None:
    values = np.zeros((7, 8), dtype=np.float32)
    values[2, 3] = 9
    values[2, 4] = values[3, 4] = 5
    values[6, 7] = 8  # high, but apart
    peak, box = find_peak(values, GRID, (28, 32))
    assert peak == Peak(15, 11)
    assert box == Box(14, 10, 22, 18)
    lowered = find_peak(values - 20, GRID, (28, 32))
    assert lowered == (peak, box)  # softmax does not see a shift, so neither does the box


def test_a_peak_in_the_last_rounded_up_cell_stays_inside_the_image() -> None:
    values = np.zeros((8, 8), dtype=np.float32)
    values[7, 7] = 1
    peak, box = find_peak(values, GRID, (30, 31))
    assert peak == Peak(30, 29)
    assert box == Box(30, 29, 31, 30)


def test_a_flat_map_was_seen_nowhere() -> None:
    assert find_peak(np.full((3, 5), 2, dtype=np.float32), GRID, (12, 20)) == (None, None)


def test_a_fully_connected_head_has_no_maps() -> None:
    model = create_model("nin_cifar10", width=0.05, head="fc")
    with pytest.raises(UsageError, match="head"):
        category_maps(classifier(model, 32, 32), np.zeros((1, 3, 32, 32), dtype=np.uint8))


def test_a_path_is_remembered_as_the_source(tmp_path: Path) -> None:
    seeing = classifier(seeing_dots(), 31, 37)
    Image.fromarray(dot_at(7, 15)[0, 0]).save(tmp_path / "dot.png")
    result = category_maps(seeing, [tmp_path / "dot.png", dot_at(11, 3)[0, 0]])
    assert result.sources == (str(tmp_path / "dot.png"), None)
    assert [result.top(image)[0].peak for image in range(2)] == [Peak(7, 15), Peak(11, 3)]


def test_a_network_that_gives_nan_is_refused() -> None:
    model = seeing_dots()
    model.last_conv.bias.data[3] = float("nan")
    with pytest.raises(ModelFileError, match="NaN"):
        category_maps(classifier(model, 31, 37), dot_at(3, 3))


@pytest.mark.parametrize("original", [(310, 370), (93, 211), (400, 111), (31, 37), (17, 13)])
def test_a_place_is_given_in_pixels_of_the_file(original: tuple[int, int]) -> None:
    """A block of pixels is painted into a picture where the peak is said to be; decoding must bring it there."""
    for place in (Peak(3, 3), Peak(19, 11), Peak(35, 30)):
        x, y = in_file(place, (31, 37), original)
        ramp_x, ramp_y = (np.arange(side, dtype=np.float64) for side in (original[1], original[0]))
        for ramp, axis, at in ((ramp_x[None, :], 0, (x, place)), (ramp_y[:, None], 1, (y, place))):
            step = 255 / max(original)
            image = np.broadcast_to(ramp * step, original).round().astype(np.uint8)
            pixels = from_pil(Image.fromarray(image), channels=1, size=(31, 37))[0]
            seen = pixels[int(place.y), int(place.x)] / step
            assert abs(seen - at[0]) < 1.0 / step + 0.35 / min(31 / original[0], 1), axis


def test_a_box_is_given_in_pixels_of_the_file() -> None:
    assert in_file(Box(0, 0, 37, 31), (31, 37), (62, 74)) == Box(0, 0, 74, 62)
    assert in_file(Box(2, 3, 5, 7), (31, 37), (62, 100)) == Box(17, 6, 23, 14)
    tiny = in_file(Box(36, 30, 37, 31), (31, 37), (3, 4))
    assert tiny.left < tiny.right <= 4
    assert tiny.top < tiny.bottom <= 3
