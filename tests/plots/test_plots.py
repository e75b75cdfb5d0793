"""The figures say what they should, whole and in one style, and change nothing of the user's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from mlpconv import plots
from mlpconv.errors import UsageError
from mlpconv.maps import MapResult
from mlpconv.plots.maps import spread
from mlpconv.plots.style import MAX_PNG, new_figure, picture, share, short
from mlpconv.receptive_field.map_grid import MapAxis, MapGrid

RNG = np.random.default_rng(11)


def history(epochs: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": e,
            "train_loss": 2.0 / e,
            "val_loss": 2.1 / e,
            "train_accuracy": 1 - 0.5 / e,
            "val_accuracy": 1 - 0.7 / e,
            "lr": 0.1 / e,
        }
        for e in range(1, epochs + 1)
    ]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def is_whole(figure: Figure) -> bool:
    """Whether everything that is drawn lies inside the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())  # in inches
    width, height = figure.get_size_inches()
    return box.x0 >= -0.02 and box.y0 >= -0.02 and box.x1 <= width + 0.02 and box.y1 <= height + 0.02


def result(maps: np.ndarray, channels: int = 3, size: tuple[int, int] = (29, 31)) -> MapResult:
    N, K = maps.shape[:2]
    logits = maps.mean((2, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    pixels = RNG.integers(0, 256, (N, channels, *size), dtype=np.uint8)
    names = tuple(f"class {k}" for k in range(K))
    grid = MapGrid(MapAxis(3, 4, 27), MapAxis(3, 4, 27))
    return MapResult(names, probabilities.astype(np.float32), maps.astype(np.float32), pixels, (None,) * N, grid)


# curves


def test_curves_show_the_history() -> None:
    figure = plots.curves(history(7))
    loss, error, rate = figure.axes
    for axes, key, scale in ((loss, "loss", 1.0), (error, "accuracy", 100.0)):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        for name, part in (("training", "train"), ("validation", "val")):
            expected = np.array([row[f"{part}_{key}"] for row in history(7)])
            np.testing.assert_allclose(lines[name], scale * (1 - expected if key == "accuracy" else expected))
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [row["lr"] for row in history(7)])
    assert any("lowest validation error 10%, epoch 7" in text for text in texts(figure))
    assert is_whole(figure)


def test_the_curves_mark_the_kept_epoch() -> None:
    rows = history(7)
    rows[4]["val_accuracy"] = None
    figure = plots.curves(rows, kept=6)
    assert any("kept: validation error 11.7%, epoch 6" in text for text in texts(figure))
    (marked,) = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 1]
    assert (marked.get_xdata()[0], marked.get_ydata()[0]) == pytest.approx((6, 70 / 6))
    assert any("lowest validation error" in text for text in texts(plots.curves(rows, kept=5)))  # never validated


def test_curves_accept_rows_of_a_csv_file() -> None:
    rows = [{key: str(value) for key, value in row.items()} for row in history(5)]
    for row in rows[:4]:
        row["val_loss"] = row["val_accuracy"] = ""
    loss, error, _ = plots.curves(rows).axes
    assert [len(line.get_xdata()) for line in loss.lines] == [5, 1]
    assert list(error.lines[1].get_xdata()) == [5]


def test_curves_without_validation_and_learning_rate() -> None:
    rows = [{"epoch": e, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": None} for e in range(3)]
    figure = plots.curves(rows)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    assert not any("best" in text for text in texts(figure))


def test_an_error_of_zero_leaves_no_gap() -> None:
    rows = history(40)
    rows[-3]["train_accuracy"] = 1.0
    axes = plots.curves(rows).axes[1]
    zero = axes.transData.transform((1, 0.0))[1]
    assert np.isfinite(zero)
    assert zero < axes.transData.transform((1, axes.get_ylim()[0]))[1]


def test_curves_are_logarithmic_for_a_large_range_only() -> None:
    assert [axes.get_yscale() for axes in plots.curves(history(40)).axes[:2]] == ["log", "log"]
    assert [axes.get_yscale() for axes in plots.curves(history(3)).axes[:2]] == ["linear", "linear"]


@pytest.mark.parametrize("rows", [history(1), history(2), [{"train_loss": 0.0, "train_accuracy": 1.0}], [{"epoch": 3}]])
def test_curves_of_short_histories_can_be_drawn(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    plots.save_figure(plots.curves(rows), tmp_path / "curves.png", dpi=40)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_curves_refuse_an_empty_history() -> None:
    with pytest.raises(UsageError, match="history is empty"):
        plots.curves([])


# confusion and mistakes


def matrix(K: int) -> np.ndarray:
    return RNG.integers(0, 3, (K, K)) + 29 * np.eye(K, dtype=int)


@pytest.mark.parametrize("K", [2, 3, 10, 20, 23, 41, 100])
def test_confusion_fits_its_labels_and_counts(K: int) -> None:
    counts = matrix(K)
    figure = plots.confusion(counts, [f"some class {k}" for k in range(K)])
    axes = figure.axes[0]
    written = sorted(int(text.get_text()) for text in axes.texts)
    assert written == (sorted(counts[counts > 0].tolist()) if K <= 20 else [])
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == (K if K <= 40 else -(-K // -(-K // 40)))
    assert is_whole(figure)


def test_confusion_is_coloured_by_the_fraction_of_the_true_class() -> None:
    counts = np.array([[8, 2], [0, 0]])
    shown = plots.confusion(counts, ["cat", "dog"]).axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(shown), [[0.8, 0.2], [0, 0]])


def test_confusion_refuses_a_matrix_of_another_shape() -> None:
    with pytest.raises(UsageError, match=r"shape \(3, 3\) for 3 classes, got \(2, 3\)"):
        plots.confusion(np.ones((2, 3)), ["a", "b", "c"])


NAMES = ["$\\frac{$", "a_b^c$x$", "<script>", "日本語", "line\nbreak", "x" * 300, "\udcff"]


def test_class_names_are_text_whatever_is_in_them(tmp_path: Path) -> None:
    figure = plots.confusion(np.eye(7, dtype=int), NAMES)
    plots.save_figure(figure, tmp_path / "odd.png", dpi=40)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:5] == ["$\\frac{$", "a_b^c$x$", "<script>", "日本語", "line\\nbreak"]
    assert len(labels[5]) == 16
    assert "…" in labels[5]
    with mpl.rc_context({"text.parse_math": True}):  # also where the user draws the figure
        FigureCanvasAgg(plots.mistakes([np.zeros((1, 3, 3), np.uint8)], [NAMES[0]], [NAMES[1]], [0.5])).draw()


@pytest.mark.parametrize("channels", [1, 3])
def test_mistakes_show_the_predicted_and_the_true_class(channels: int) -> None:
    images = RNG.integers(0, 256, (8, channels, 13, 11), dtype=np.uint8)
    figure = plots.mistakes(images, [0] * 8, [1] * 8, [0.973] * 7 + [1 - 1e-9], None, ["cat", "dog"])
    assert texts(figure).count("dog, 97%") == 7
    assert "dog, >99%" in texts(figure)
    assert texts(figure).count("true: cat") == 8
    drawn = figure.axes[3].images[0].get_array()
    np.testing.assert_array_equal(drawn, np.broadcast_to(images[3].transpose(1, 2, 0), (13, 11, 3)))
    assert is_whole(figure)


def test_mistakes_take_names_and_files() -> None:
    images = [np.zeros((3, 5, 5), np.uint8)] * 2
    figure = plots.mistakes(images, ["cat", "dog"], ["dog", "emu"], [0.6, 0.5], ["a/b.png", None])
    assert {"dog, 60%", "true: cat", "emu, 50%", "true: dog", "a/b.png"} <= set(texts(figure))


def test_mistakes_refuse_lists_of_different_lengths() -> None:
    with pytest.raises(UsageError, match="differ in length"):
        plots.mistakes([np.zeros((3, 5, 5), np.uint8)], ["a"], ["b"], [0.5, 0.4])


def test_without_mistakes_the_figure_says_so() -> None:
    assert texts(plots.mistakes([], [], [], [])) == ["No mistakes."]


# filters


def test_filters_put_zero_in_the_middle_and_keep_their_order() -> None:
    weights = np.zeros((7, 3, 5, 5))
    weights[0, 0] = 2.0
    weights[1, 2] = -0.1
    sheet = np.asarray(plots.filters(torch.tensor(weights)).axes[0].images[0].get_array())
    side = next(i for i in range(1, sheet.shape[1]) if (sheet[0, i] == 1).all())  # the first white column
    np.testing.assert_allclose(sheet[:side, :side], np.broadcast_to([1, 0.5, 0.5], (side, side, 3)))
    second = next(i for i in range(side, sheet.shape[1]) if not (sheet[0, i] == 1).all())
    np.testing.assert_allclose(sheet[0, second], [0.5, 0.5, 0])


def test_filters_of_one_channel_are_grey_and_bad_weights_are_drawn_as_zero() -> None:
    weights = np.ones((2, 1, 3, 3))
    weights[1] = np.nan
    sheet = np.asarray(plots.filters(weights).axes[0].images[0].get_array())
    assert np.ptp(sheet, axis=2).max() == 0
    assert {float(value) for value in np.unique(sheet)} == {0.5, 1.0}


def test_only_the_first_filters_are_shown() -> None:
    assert any("first 256 of 300" in text for text in texts(plots.filters(np.ones((300, 1, 1, 1)))))
    with pytest.raises(UsageError, match="Expected weights of shape"):
        plots.filters(np.ones((3, 3)))


# maps


def test_a_map_is_spread_over_the_image_cell_by_cell() -> None:
    values = RNG.normal(size=(7, 5)).astype(np.float32)
    grid = MapGrid(MapAxis(3, 4, 27), MapAxis(1.5, 6, 9))
    drawn = spread(values, grid, (29, 31), (29 * 3, 31 * 3))
    rows, columns = np.meshgrid((np.arange(87) + 0.5) / 3 - 0.5, (np.arange(93) + 0.5) / 3 - 0.5, indexing="ij")
    centres = (3 + 4.0 * np.arange(7), 1.5 + 6.0 * np.arange(5))
    held = np.stack([rows.clip(centres[0][0], centres[0][-1]), columns.clip(centres[1][0], centres[1][-1])], -1)
    np.testing.assert_allclose(drawn, RegularGridInterpolator(centres, values)(held), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_has_a_row_an_image_and_a_column_a_class(channels: int) -> None:
    seen = result(RNG.normal(size=(2, 5, 7, 8)), channels)
    figure = plots.map_sheet(seen, top=3)
    assert len(figure.axes) == 2 * 4
    for image in range(2):
        expected = [f"{one.label}, {share(one.probability)}" for one in seen.top(image, 3)]
        assert [axes.get_title() for axes in figure.axes[4 * image + 1 : 4 * image + 4]] == expected
        for axes, one in zip(figure.axes[4 * image + 1 :], seen.top(image, 3), strict=False):
            assert axes.lines[0].get_xydata()[0].tolist() == list(one.peak)
            assert axes.images[1].get_extent() == pytest.approx((-0.5, 30.5, 28.5, -0.5))
    assert is_whole(figure)


def test_maps_of_one_image_share_their_scale() -> None:
    maps = np.zeros((1, 3, 7, 8))
    maps[0, 0], maps[0, 1] = 4.0, 2.0
    drawn = plots.overlay(result(maps), 0, 2).axes
    assert drawn[1].images[1].get_array().max() == pytest.approx(1.0)
    assert drawn[2].images[1].get_array().max() == pytest.approx(0.5)


def test_evidence_against_a_class_is_not_drawn_as_heat() -> None:
    figure = plots.overlay(result(-1 - RNG.random((1, 3, 7, 8))), 0, 9)
    assert len(figure.axes) == 4
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 1]


def test_a_finer_picture_is_laid_under_in_the_same_place() -> None:
    seen = result(RNG.normal(size=(1, 3, 7, 8)))
    fine = RNG.integers(0, 256, (3, 29 * 9, 31 * 9), dtype=np.uint8)
    image = plots.overlay(seen, on=fine).axes[0].images[0]
    assert image.get_array().shape == (29 * 9, 31 * 9, 3)
    assert image.get_extent() == pytest.approx((-0.5, 30.5, 28.5, -0.5))


# style and files


def test_drawing_changes_no_setting_and_heeds_none(tmp_path: Path) -> None:
    plots.save_figure(plots.curves(history(3)), tmp_path / "a.png", dpi=50)
    with mpl.rc_context({"font.size": 31, "axes.facecolor": "black", "lines.linewidth": 9, "axes.grid": True}):
        before = dict(mpl.rcParams)
        plots.save_figure(plots.curves(history(3)), tmp_path / "b.png", dpi=50)
        assert dict(mpl.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pyplot_is_never_imported() -> None:
    sources = sorted(Path(plots.__file__).parent.glob("*.py"))
    assert len(sources) > 4
    assert [file.name for file in sources if "pyplot" in file.read_text() or "pylab" in file.read_text()] == []


def test_a_figure_replaces_the_old_file_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(b"old")
    monkeypatch.setattr("mlpconv.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        plots.save_figure(plots.filters(np.ones((1, 1, 3, 3))), path)
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    assert plots.save_figure(plots.filters(np.ones((1, 1, 3, 3))), path) == path
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
    assert [file.name for file in tmp_path.iterdir()] == ["one.png"]


def test_a_large_figure_is_drawn_coarser(tmp_path: Path) -> None:
    figure = plots.overlay(result(RNG.normal(size=(1, 3, 7, 8)), size=(290, 310)))
    with Image.open(plots.save_figure(figure, tmp_path / "large.png", dpi=200)) as image:
        assert image.width == pytest.approx(200 * 0.7 * figure.get_figwidth(), abs=1)
    with Image.open(plots.save_figure(figure, tmp_path / "small.png", dpi=30)) as image:
        assert image.width == pytest.approx(30 * figure.get_figwidth(), abs=1)
    assert (tmp_path / "small.png").stat().st_size < MAX_PNG


@pytest.mark.parametrize(
    ("probability", "said"), [(0, "0%"), (0.001, "<1%"), (0.005, "0%"), (0.5, "50%"), (0.9951, ">99%"), (1, "100%")]
)
def test_a_share_is_never_rounded_to_certainty(probability: float, said: str) -> None:
    assert share(probability) == said


def test_long_names_lose_their_middle() -> None:
    assert short("abcdefghij", 10) == "abcdefghij"
    assert short("abcdefghijk", 10) == "abcdef…ijk"
    assert short("tab\there") == "tab\\there"


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (1, 3, 5, 7)])
def test_picture_refuses_other_shapes_and_dtypes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="Expected a uint8 image"):
        picture(np.zeros(shape, np.uint8))
    with pytest.raises(UsageError, match="Expected a uint8 image"):
        picture(np.zeros((3, 5, 7)))


def test_a_notebook_displays_a_figure() -> None:
    figure = new_figure(3, 2)
    figure.subplots().plot([1, 2, 3])
    content, shown = figure._repr_png_()
    assert shown == {"width": 300, "height": 200}
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        assert image.width / image.height == pytest.approx(1.5, rel=0.01)
        assert image.width > shown["width"]
    assert isinstance(figure, Figure)
