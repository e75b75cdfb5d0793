"""The report is self-contained, shows the content of the run folder, and is safe against injection."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlpconv import modelfile, plots
from mlpconv.errors import RunFolderError
from mlpconv.models.registry import create_model
from mlpconv.preprocessing import Preprocessing
from mlpconv.report import write_report
from mlpconv.report.page import element
from mlpconv.training.recipe import Recipe

EVIL = "<script>alert(1)</script>\"'&\x1b[2J\u202e"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page taken apart: tags with their attributes, the text of each kind, and whether every tag is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def values(self, tag: str, attribute: str) -> list[str | None]:
        return [attributes.get(attribute) for name, attributes in self.tags if name == tag]


DATA = {
    "name": "cifar10",
    "classes": ["cat", "dog", EVIL],
    "notes": ["No test split is here.", f"Skipped: {EVIL}"],
    "fingerprint": "ab" * 32,
    "channels": 3,
    "size": [13, 17],
    "counts": {"test": 360, "train": 1149, "val": 288},
}
EVALUATION = {
    "split": "val",
    "n": 288,
    "error": 0.025,
    "error_interval": [0.0123, 0.0501],
    "log_loss": 0.1234,
    "top5_error": None,
    "calibration_error": 0.0456,
    "per_class": [
        {"class": name, "precision": 0.911, "recall": 0.822, "f1": 0.733, "support": 96}
        for name in ("cat", "dog", EVIL)
    ],
}
METRICS = "epoch,images_per_second,seconds\n1,900.0,50.5\n2,1100.0,99.0\n3,1000.0,150.0\n"
FIGURES = ("curves", "confusion", "mistakes", "maps", "filters")


@pytest.fixture(scope="module")
def dot() -> bytes:
    """The smallest PNG there is."""
    return base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )


@pytest.fixture
def run(tmp_path: Path, dot: bytes) -> Path:
    folder = tmp_path / "digits 001"
    (folder / "figures").mkdir(parents=True)
    for name in FIGURES:
        (folder / "figures" / f"{name}.png").write_bytes(dot)
    recipe = Recipe().with_settings(model="nin_tiny", lr=0.0321, preprocessing=("gcn", "zca")).to_dict()
    contents = {"data": DATA, "evaluation": EVALUATION, "recipe": recipe, "environment": {"cpu": EVIL, "gpu": None}}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "metrics.csv").write_text(METRICS)
    model = create_model("nin_tiny", num_classes=3, in_channels=3)
    chain = Preprocessing.create(("scale",), 3, (13, 17))
    classes = ("cat", "dog", "emu")
    modelfile.save(folder / "model.safetensors", model, chain, classes=classes, input_size=(3, 13, 17), info={})
    return folder


def test_the_report_shows_the_important_results(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    parameters = sum(
        parameter.numel() for parameter in create_model("nin_tiny", num_classes=3, in_channels=3).parameters()
    )
    for said in (
        "nin_tiny on cifar10",
        "1,149 training, 288 validation and 360 test images",
        "97.50%",
        "95 % interval 95.0% to 98.8%",
        f"{parameters:,} parameters",
        "2.5 min",
        "3 epochs, 1,000 images/s",
        "3 classes",
        "RGB images, 13 × 17 pixels",
        "No test split is here.",
        f"mlpconv predict '{run}/model.safetensors' IMAGE...",
        f"mlpconv evaluate '{run}/model.safetensors' cifar10",
        "Evaluation on validation images",
        "ab" * 32,
    ):
        assert said in page.text, said
    assert ["dog", "0.911", "0.822", "0.733", "", "96"] in page.rows
    assert ["log loss", "0.1234"] in page.rows
    assert not any("top-5" in row[0] for row in page.rows if row)


def test_changed_settings_stand_out_and_the_others_are_folded_away(run: Path) -> None:
    page = Page(write_report(run))
    assert ["lr", "0.0321", "0.05"] in page.rows
    assert ["preprocessing", "gcn, zca", "standardize"] in page.rows
    assert ["momentum", "0.9"] in page.rows
    folded = page.text[page.text.index("settings at their defaults") :]
    assert "momentum" in folded
    assert "0.0321" not in folded


def test_the_report_asks_for_nothing_and_runs_nothing(run: Path, dot: bytes) -> None:
    path = write_report(run)
    page = Page(path)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "a", "form", "base"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    sources = page.values("img", "src")
    assert sources == ["data:image/png;base64," + base64.b64encode(dot).decode()] * 5
    assert all(page.values("img", "alt"))
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert {"default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"} <= set(policy.split("; "))
    style = "".join(page.words[i] for i, word in enumerate(page.words) if ":root" in word)
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    assert "://" not in path.read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_names_from_outside_are_text(run: Path) -> None:
    raw = write_report(run).read_text()
    assert "<script" not in raw
    assert "\x1b" not in raw
    assert "\u202e" not in raw
    shown = "<script>alert(1)</script>\"'&\\x1b[2J\\u202e"
    page = Page(run / "report.html")
    assert [row[0] for row in page.rows].count(shown) == 1  # a class
    assert ["cpu", shown] in page.rows
    assert f"Skipped: {shown}" in page.text


def test_attributes_are_escaped_too() -> None:
    assert element("p", "a<b", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;">a&lt;b</p>'


PARTS = {
    "data.json": "About the data",
    "recipe.json": "Recipe",
    "evaluation.json": "97.50%",
    "environment.json": "cpu",
    "metrics.csv": "2.5 min",
    "model.safetensors": "mlpconv predict",
    "figures/curves.png": "Loss and error by epoch.",
    "figures/mistakes.png": "Worst mistakes",
    "figures/maps.png": "Class activation maps",
    "figures/filters.png": "First-layer filters",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["absent", "empty", "garbage", "a folder"])
def test_a_part_that_is_missing_or_damaged_is_left_out(run: Path, part: str, damage: str) -> None:
    path = run / part
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "absent":
        path.write_bytes(b"" if damage == "empty" else b"\x89\xff[{\0" * 99)
    page = Page(write_report(run))
    if part != "model.safetensors" or damage in ("absent", "a folder"):
        assert PARTS[part] not in page.text
    for other, said in PARTS.items():
        if other != part:
            assert said in page.text, other


def test_an_empty_folder_gives_a_page_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    page = Page(write_report(tmp_path / "mine"))
    assert "mine" in page.text
    assert page.open == []
    assert "section" not in {tag for tag, _ in page.tags}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)
KEYS = sorted({*DATA, *EVALUATION, "lr", "cpu", "versions"})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.dictionaries(st.sampled_from(KEYS), JSON), metrics=st.text(max_size=40))
def test_whatever_stands_in_the_files_gives_a_page(tmp_path: Path, value: dict[str, Any], metrics: str) -> None:
    for name in ("data", "evaluation", "recipe", "environment"):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "metrics.csv").write_text(f"epoch,seconds,images_per_second\n{metrics}", errors="backslashreplace")
    assert Page(write_report(tmp_path)).open == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1e999", True, [0.5], None])
def test_a_measure_that_is_no_number_is_left_out(run: Path, value: Any) -> None:
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"error": value, "log_loss": value}))
    page = Page(write_report(run))
    assert "validation accuracy" not in page.text
    assert not [row for row in page.rows if row[0] in ("error", "log loss")]
    assert ["calibration error (15 bins)", "0.0456"] in page.rows


def test_many_classes_are_folded_away(run: Path) -> None:
    rows = [EVALUATION["per_class"][0] | {"class": f"class {k}"} for k in range(100)]
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"per_class": rows}))
    assert "All 100 classes" in Page(write_report(run)).text


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a folder"):
        write_report(tmp_path / "nowhere")


def test_the_old_report_stays_where_the_new_one_cannot_be_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "report.html").write_text("old")
    before = sorted(path.name for path in run.iterdir())
    monkeypatch.setattr("mlpconv.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        write_report(run)
    assert (run / "report.html").read_text() == "old"
    assert sorted(path.name for path in run.iterdir()) == before


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    plots.save_figure(plots.filters(np.ones((2, 3, 3, 3))), run / "figures" / "filters.png", dpi=40)
    assert write_report(run).read_bytes() != first
