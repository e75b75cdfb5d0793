"""The picture of what one cell sees: colours exactly there, and the layer found by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from torch import nn

from mlpconv import plots
from mlpconv.analysis import Profile, profile
from mlpconv.cli import main
from mlpconv.errors import UsageError

ROWS, COLUMNS = 37, 53


def network() -> Profile:
    """Fields of 7x5, 2 and 3 apart, over padding on the rows only."""
    layers = nn.Sequential()
    layers.add_module("first", nn.Conv2d(3, 4, (3, 5), (2, 3), (3, 0)))
    layers.add_module("second", nn.Conv2d(4, 5, (3, 1)))
    layers.add_module("head", nn.AdaptiveAvgPool2d(1))
    return profile(layers, (3, ROWS, COLUMNS))


def red() -> np.ndarray:
    image = np.zeros((3, ROWS, COLUMNS), np.uint8)
    image[0] = 200
    return image


def is_red(figure: Figure) -> np.ndarray:
    """(ROWS, COLUMNS): whether each pixel of the image is drawn in its own colour, looked at beside its middle."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)
    axes = figure.axes[0]
    x, y = np.meshgrid(np.arange(COLUMNS) + 0.3, np.arange(ROWS) - 0.25)
    places = axes.transData.transform(np.stack([x.ravel(), y.ravel()], 1)).astype(int)
    colours = drawn[places[:, 1], places[:, 0]].reshape(ROWS, COLUMNS, 3)
    return colours[..., 0] - colours[..., 1] > 120


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def boxes(figure: Figure) -> list[tuple[float, float, float, float]]:
    return [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in figure.axes[0].patches
            if isinstance(patch, Rectangle)]  # fmt: skip


@pytest.mark.parametrize("cell", [None, (0, 0), (5, 11), (18, 16)])
def test_the_colours_are_those_of_the_pixels_that_are_seen(cell: tuple[int, int] | None) -> None:
    result = network()
    assert result["second"].shape == (5, 19, 17)
    rows, columns = result["second"].field or ()
    figure = plots.receptive_field(result, "second", red(), cell)
    row, column = cell or (9, 8)
    expected = np.zeros((ROWS, COLUMNS), bool)
    (top, bottom), (left, right) = rows.spans[row], columns.spans[column]
    expected[top : bottom + 1, left : right + 1] = True
    assert (is_red(figure) != expected).sum() <= 12  # under dots and lines
    assert f"cell {row},{column}: rows {top} to {bottom}, columns {left} to {right}" in texts(figure)


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_any_resolution_lies_in_the_same_place(times: int, channels: int) -> None:
    """Its left half is light, its right half dark: the edge is between columns 26 and 27 however fine it is."""
    image = np.zeros((channels, ROWS * times, (COLUMNS + 1) * times), np.uint8)
    image[:, :, : 27 * times] = 255
    whole = profile(nn.Conv2d(channels, 2, (2 * ROWS + 1, 2 * COLUMNS + 3), 1, (ROWS, COLUMNS + 1)),
                    (channels, ROWS, COLUMNS + 1))  # fmt: skip
    figure = plots.receptive_field(whole, "Conv2d", image)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)
    across, down = figure.axes[0].transData.transform(np.array([[x, 9.5] for x in (25.8, 26.2, 26.8, 27.2)])).T
    assert (drawn[down.astype(int), across.astype(int)].mean(1) > 128).tolist() == [True, True, False, False]


def test_a_field_far_larger_than_the_image_is_drawn_half_an_image_beyond_it() -> None:
    layer = nn.Conv2d(3, 2, (20 * ROWS + 1, 1), 1, (10 * ROWS, 0))
    axes = plots.receptive_field(profile(layer, (3, ROWS, COLUMNS)), "Conv2d", red()).axes[0]
    room = 0.012 * COLUMNS
    assert axes.get_ylim() == pytest.approx((1.5 * ROWS - 0.5 + room, -0.5 * ROWS - 0.5 - room))
    assert axes.get_xlim() == pytest.approx((-0.5 - room, COLUMNS - 0.5 + room))


def test_the_dashed_field_reaches_over_the_border_where_the_padding_is() -> None:
    figure = plots.receptive_field(network(), "second", red(), (0, 0))
    dashed, solid = boxes(figure)
    assert dashed == (-0.5, -3.5, 5, 7)
    assert solid == (-0.5, -0.5, 5, 4)
    assert figure.axes[0].get_ylim()[1] < -3.5
    assert "19×17 cells, 2×3 apart, see 7×5 pixels" in texts(figure)
    assert f"{4 / 19:.0%} of the cells reach over a border, into padding" in texts(figure)


def test_of_many_cells_every_other_one_has_a_dot_and_the_chosen_one_always() -> None:
    figure = plots.receptive_field(profile(nn.Conv2d(3, 2, 1), (3, 41, 23)), "Conv2d", cell=(7, 4))
    every, chosen = (np.asarray(dots.get_offsets()) for dots in figure.axes[0].collections)
    assert chosen.tolist() == [[4, 7]]
    assert {(x, y) for x, y in every.tolist()} == {(x, y) for x in range(0, 23, 2) for y in range(1, 41, 3)}


def test_cells_of_different_fields_have_no_dashed_one() -> None:
    enlarged = nn.Sequential(nn.Conv2d(3, 2, 3, 2), nn.Upsample(scale_factor=2, mode="bilinear"))
    figure = plots.receptive_field(profile(enlarged, (3, 17, 19)), "1")
    assert len(set(boxes(figure))) == 1
    assert any("see up to 5×5 pixels" in text for text in texts(figure))


def test_all_words_fit(tmp_path: Path) -> None:
    tall = nn.Sequential()
    tall.add_module("a" * 90, nn.Conv2d(3, 2, (101, 7), 1, (50, 3)))
    figure = plots.receptive_field(profile(tall, (3, 97, 11)), "a" * 90)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width
        assert figure.axes[0].get_window_extent().y1 < box.y0 < box.y1 <= height
    plots.save_figure(figure, tmp_path / "f.png")


class Apart(nn.Module):
    """A layer that sees no image, and one that sees a part of it without rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.embed = nn.Parameter(torch.zeros(3, 5)), nn.Linear(5, 7)
        self.conv, self.fc = nn.Conv2d(3, 2, 3), nn.Linear(11, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(self.table).sum() + self.fc(self.conv(x).flatten(1)[:, :11])


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("embed", "embed does not depend on the image: choose another layer"),
        ("fc", "fc has no cells in rows and columns: choose a layer before it"),
    ],
)
def test_a_layer_without_places_is_refused_with_the_reason(layer: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plots.receptive_field(profile(Apart(), (3, ROWS, COLUMNS)), layer, red())


@pytest.mark.parametrize(
    ("layer", "cell", "says"),
    [
        ("head", None, "head sees all of the image: choose a layer before it"),
        ("secnd", None, "no layer 'secnd'; did you mean 'second'"),
        ("second", (19, 0), "19,0 is outside second, which has 19x17; 0,0 to 18,16"),
        ("second", (0, -1), "0,-1 is outside"),
    ],
)
def test_what_cannot_be_drawn_is_refused(layer: str, cell: tuple[int, int] | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plots.receptive_field(network(), layer, red(), cell)


def test_a_layer_is_found_by_the_end_of_its_name_where_that_is_one() -> None:
    result = profile(nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1)), nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())),
                     (3, 5, 7))  # fmt: skip
    assert result.row("1.0").name == "1.0"
    assert result.row("1") is result["1.1"]
    with pytest.raises(UsageError, match=r"several layers that end in '0': 0\.0, 1\.0; name one"):
        result.row("0")


def test_of_very_many_layers_with_one_ending_some_are_named() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(1, 1, 1)) for _ in range(70)))
    with pytest.raises(UsageError, match=r"end in '0': 0\.0, 1\.0, 2\.0, 3\.0, 4\.0 and 65 more; name one"):
        profile(layers, (1, 2, 3)).row("0")


# --- from the command line


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.ascontiguousarray(red().transpose(1, 2, 0))).resize((3 * COLUMNS, 3 * ROWS)).save("photo.png")
    return tmp_path


def test_profile_draws_a_layer(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--field", "blocks.1.convs.0", "--image", "photo.png", "--cell", "2,3", "--out", "field.png"]
    assert main(["profile", "nin_tiny", "--input", "3x37x53", *words]) == 2  # it takes grey images
    assert main(["profile", "nin_photo", "--input", "3x37x53", *words]) == 0
    assert "Written: field.png" in capsys.readouterr().out
    colours = np.asarray(Image.open("field.png").convert("RGB")).astype(int)
    assert (colours[..., 0] - colours[..., 1] > 120).mean() > 0.02


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--field", "head"], "--field needs --out FILE.png"),
        (["--cell", "1,2"], "--cell is for --field LAYER"),
        (["--image", "photo.png"], "--image is for --field LAYER"),
        (["--out", "f.png"], "--out is for --field LAYER"),
        (["--field", "head", "--out", "f.png"], "sees all of the image"),
        (["--field", "blocks.0.convs.0", "--out", "f.png", "--cell", "3"], "--cell is '3'; a row and a column"),
        (["--field", "blocks.0.convs.0", "--out", "f.png", "--cell", "99,3"], "cell 99,3 is outside"),
        (["--field", "blocks.0.convs.0", "--out", "absent/f.png"], "--out is 'absent/f.png'; a file in a folder"),
        (["--field", "convs.0", "--out", "f.png"], "several layers that end in 'convs.0': blocks.0.convs.0, "),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(
    photo: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["profile", "nin_tiny", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (photo / "f.png").exists()


@pytest.mark.parametrize("name", ["absent.png", "text.png"])
def test_an_image_that_cannot_be_read_is_named(photo: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (photo / "text.png").write_text("no image")
    words = ["--field", "blocks.0.convs.0", "--image", name, "--out", "f.png"]
    assert main(["profile", "nin_tiny", *words]) == 1
    said = capsys.readouterr().err
    assert name in said
    assert said.count("\n") == 1
    assert not (photo / "f.png").exists()
