"""Category maps: exact shares of the logits, at exact places of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from torch import nn

from mlpconv.data.decode import from_pil
from mlpconv.errors import ModelFileError, UsageError
from mlpconv.inference import Classifier
from mlpconv.maps import MapResult, Peak, category_maps, find_peak, in_file
from mlpconv.models.registry import create_model
from mlpconv.preprocessing import Preprocessing
from mlpconv.receptive_field.map_grid import Box, MapAxis, MapGrid


def classifier(model: nn.Module, height: int, width: int, classes: str = "abcdefghij") -> Classifier:
    """A classifier whose preprocessing only divides by 255."""
    chain = Preprocessing.create(("scale",), model.in_channels, (height, width))
    return Classifier(model, chain, tuple(classes), (model.in_channels, height, width))


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


GRID = MapGrid(MapAxis(3, 4, 27), MapAxis(3, 4, 27))


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


def test_maps_introduce_themselves_in_a_line(result: MapResult) -> None:
    shape = "x".join(map(str, result.maps.shape[1:]))
    assert repr(result) == f"<MapResult of {len(result)} images: maps {shape} of {len(result.classes)} classes>"
