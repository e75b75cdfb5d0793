"""Receptive field plots: colour exactly inside the field, and layers found by name."""

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
    """Receptive field 7x5, stride 2x3, with padding along the rows only."""
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
    """Return (ROWS, COLUMNS) bools: whether each pixel is drawn in colour, sampled next to its centre."""
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
def test_only_the_receptive_field_is_in_colour(cell: tuple[int, int] | None) -> None:
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
def test_image_position_does_not_depend_on_its_resolution(times: int, channels: int) -> None:
    """The left half is light, the right half dark: the edge is between columns 26 and 27 at any resolution."""
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


def test_a_large_field_is_drawn_up_to_half_an_image_beyond_the_border() -> None:
    layer = nn.Conv2d(3, 2, (20 * ROWS + 1, 1), 1, (10 * ROWS, 0))
    axes = plots.receptive_field(profile(layer, (3, ROWS, COLUMNS)), "Conv2d", red()).axes[0]
    room = 0.012 * COLUMNS
    assert axes.get_ylim() == pytest.approx((1.5 * ROWS - 0.5 + room, -0.5 * ROWS - 0.5 - room))
    assert axes.get_xlim() == pytest.approx((-0.5 - room, COLUMNS - 0.5 + room))


def test_the_dashed_field_extends_into_padding() -> None:
    figure = plots.receptive_field(network(), "second", red(), (0, 0))
    dashed, solid = boxes(figure)
    assert dashed == (-0.5, -3.5, 5, 7)
    assert solid == (-0.5, -0.5, 5, 4)
    assert figure.axes[0].get_ylim()[1] < -3.5
    assert "19×17 cells, stride 2×3, receptive field 7×5" in texts(figure)
    assert f"{4 / 19:.0%} of the cells' fields extend into padding" in texts(figure)


def test_many_cells_are_thinned_out_and_the_chosen_cell_is_kept() -> None:
    figure = plots.receptive_field(profile(nn.Conv2d(3, 2, 1), (3, 41, 23)), "Conv2d", cell=(7, 4))
    every, chosen = (np.asarray(dots.get_offsets()) for dots in figure.axes[0].collections)
    assert chosen.tolist() == [[4, 7]]
    assert {(x, y) for x, y in every.tolist()} == {(x, y) for x in range(0, 23, 2) for y in range(1, 41, 3)}


def test_cells_with_different_fields_have_no_dashed_outline() -> None:
    enlarged = nn.Sequential(nn.Conv2d(3, 2, 3, 2), nn.Upsample(scale_factor=2, mode="bilinear"))
    figure = plots.receptive_field(profile(enlarged, (3, 17, 19)), "1")
    assert len(set(boxes(figure))) == 1
    assert any("receptive field up to 5×5" in text for text in texts(figure))


def test_the_caption_fits_the_figure(tmp_path: Path) -> None:
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
    """A layer that does not depend on the image, and one without rows and columns."""

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
        ("fc", "fc has no cells in rows and columns: choose an earlier layer"),
    ],
)
def test_a_layer_without_a_grid_is_rejected(layer: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plots.receptive_field(profile(Apart(), (3, ROWS, COLUMNS)), layer, red())


@pytest.mark.parametrize(
    ("layer", "cell", "says"),
    [
        ("head", None, "head sees the whole image: choose an earlier layer"),
        ("secnd", None, "no layer 'secnd'; did you mean 'second'"),
        ("second", (19, 0), "19,0 is outside second, which has 19x17; pass 0,0 to 18,16"),
        ("second", (0, -1), "0,-1 is outside"),
    ],
)
def test_invalid_layers_and_cells_are_rejected(layer: str, cell: tuple[int, int] | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plots.receptive_field(network(), layer, red(), cell)


def test_a_layer_is_found_by_a_unique_suffix() -> None:
    result = profile(nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1)), nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())),
                     (3, 5, 7))  # fmt: skip
    assert result.row("1.0").name == "1.0"
    assert result.row("1") is result["1.1"]
    with pytest.raises(UsageError, match=r"several layers that end in '0': 0\.0, 1\.0; pass the full name"):
        result.row("0")


def test_an_ambiguous_suffix_lists_some_layers() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(1, 1, 1)) for _ in range(70)))
    with pytest.raises(UsageError, match=r"end in '0': 0\.0, 1\.0, 2\.0, 3\.0, 4\.0 and 65 more; pass the full name"):
        profile(layers, (1, 2, 3)).row("0")


# --- from the command line


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.ascontiguousarray(red().transpose(1, 2, 0))).resize((3 * COLUMNS, 3 * ROWS)).save("photo.png")
    return tmp_path


def test_profile_draws_the_field_of_a_layer(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--field", "blocks.1.convs.0", "--image", "photo.png", "--cell", "2,3", "--out", "field.png"]
    assert main(["profile", "nin_tiny", "--input", "3x37x53", *words]) == 2  # it takes grayscale images
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
        (["--field", "head", "--out", "f.png"], "sees the whole image"),
        (["--field", "blocks.0.convs.0", "--out", "f.png", "--cell", "3"], "--cell is '3'; pass a row and a column"),
        (["--field", "blocks.0.convs.0", "--out", "f.png", "--cell", "99,3"], "cell 99,3 is outside"),
        (
            ["--field", "blocks.0.convs.0", "--out", "absent/f.png"],
            "--out is 'absent/f.png'; expected a file",
        ),
        (["--field", "convs.0", "--out", "f.png"], "several layers that end in 'convs.0': blocks.0.convs.0, "),
    ],
)
def test_invalid_options_print_one_line(
    photo: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["profile", "nin_tiny", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (photo / "f.png").exists()


@pytest.mark.parametrize("name", ["absent.png", "text.png"])
def test_an_unreadable_image_is_named(photo: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (photo / "text.png").write_text("no image")
    words = ["--field", "blocks.0.convs.0", "--image", name, "--out", "f.png"]
    assert main(["profile", "nin_tiny", *words]) == 1
    said = capsys.readouterr().err
    assert name in said
    assert said.count("\n") == 1
    assert not (photo / "f.png").exists()
