"""The report: every claim, its verdict and figures, in one page that makes no request."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from support.claim_results import write_result

from mlpconv.claims.claim_files import find_claim, list_claims
from mlpconv.claims.figures import figures_of, network_panels, panels_of
from mlpconv.claims.report import SIGNS, html_report, sentence, verdict_of
from mlpconv.claims.results import judge_all, result_path
from mlpconv.claims.statistics import Outcome
from mlpconv.errors import DataError, UsageError
from mlpconv.plots.constructions import CONSTRUCTIONS, construction
from mlpconv.plots.networks import networks
from mlpconv.plots.paired import paired


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), []),
        (("hypothesis",), 3),
        (("budget",), None),
        (("cpu_seconds",), "1"),
        (("arms", "mlpconv"), {}),
        (("arms", "mlpconv", "words"), []),
        (("arms", "mlpconv", "macs"), None),
        (("arms", "mlpconv", "values"), []),
        (("arms", "mlpconv", "values", "error"), ["low"] * 12),
        (("arms", "mlpconv", "values", "error"), [1.0, 2.0]),
        (("arms", "mlpconv", "values", "error"), [float("nan")] * 12),
    ],
)
def test_a_result_that_is_damaged_anywhere_is_named(place: tuple[str, ...], value: object, tmp_path: Path) -> None:
    file = find_claim("mlpconv")
    write_result(tmp_path, file, "digits", -1.0)
    path = result_path(tmp_path, "digits", "mlpconv")
    content = json.loads(path.read_text())
    part = content
    for key in place[:-1]:
        part = part[key]
    if place:
        part[place[-1]] = value
    path.write_text(json.dumps(content if place else value))
    with pytest.raises(DataError, match=rf"mlpconv claims run mlpconv --data digits --out {tmp_path}` writes it again"):
        html_report(judge_all([file], tmp_path))


@pytest.mark.parametrize("check", [{}, {"statement": "x", "cases": None, "worst": 0, "bound": 0}, 3])
def test_a_proof_that_is_damaged_is_named(check: object, tmp_path: Path) -> None:
    file = find_claim("one-channel")
    path = result_path(tmp_path, "exact", "one-channel")
    path.parent.mkdir()
    path.write_text(json.dumps({"hypothesis": file.hypothesis, "checks": [check]}))
    with pytest.raises(DataError, match=f"mlpconv claims run one-channel --out {tmp_path}` writes it again"):
        html_report(judge_all([file], tmp_path))


@pytest.mark.parametrize(
    ("effect", "spread", "verdict"),
    [(-5.0, 0.2, "supported"), (5.0, 0.2, "refuted"), (0.0, 0.2, "equivalent"), (-1.0, 2.0, "undecided")],
)
def test_a_planted_effect_and_none_flip_the_verdict_of_a_real_claim(
    effect: float, spread: float, verdict: str, tmp_path: Path
) -> None:
    file = find_claim("mlpconv")
    write_result(tmp_path, file, "digits", effect, spread=spread)
    (judged,) = (judged for judged in judge_all(list_claims(), tmp_path) if judged.file == file)
    assert verdict_of(judged, "digits") == verdict
    assert verdict_of(judged, "mnist") == "not run"
    assert verdict_of(judged, "exact") == ""
    text = sentence(judged.findings["digits"][0])
    assert text.startswith(verdict)
    assert ("pairs would decide" in text) == (verdict == "undecided")


def test_few_seeds_only_indicate(tmp_path: Path) -> None:
    file = find_claim("mlpconv")
    write_result(tmp_path, file, "digits", -5.0, seeds=9)
    assert verdict_of(judge_all([file], tmp_path)[0], "digits") == "indicated"


def test_a_claim_of_no_difference_is_met_by_equivalence_and_refuted_by_a_difference(tmp_path: Path) -> None:
    file = find_claim("strided")
    for effect, verdict in ((0.0, "equivalent"), (4.0, "refuted"), (-4.0, "refuted")):
        write_result(tmp_path, file, "digits", effect)
        assert verdict_of(judge_all([file], tmp_path)[0], "digits") == verdict


def test_a_claim_with_both_kinds_is_supported_only_if_each_comparison_agrees(tmp_path: Path) -> None:
    file = find_claim("two")  # two beat one, three are like two
    write_result(tmp_path, file, "digits", 0.0)
    path = result_path(tmp_path, "digits", "two")
    stored = json.loads(path.read_text())
    stored["arms"]["one"]["values"]["error"] = [value + 4 for value in stored["arms"]["two"]["values"]["error"]]
    path.write_text(json.dumps(stored))
    judged = judge_all([file], tmp_path)[0]
    assert [finding.verdict for finding in judged.findings["digits"]] == ["supported", "equivalent"]
    assert verdict_of(judged, "digits") == "supported"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("results")
    for name in ("mlpconv", "dropout", "neighbours"):
        write_result(folder, find_claim(name), "digits", -3.0)
    exact = {"claim": "cost", "hypothesis": "another", "data": "exact",
             "checks": [{"statement": "one <is> one", "cases": 1000, "bound": 0, "worst": 0.0}]}  # fmt: skip
    (folder / "exact").mkdir()
    (folder / "exact" / "cost.json").write_text(json.dumps(exact))
    chosen = [find_claim(name) for name in ("cost", "neighbours", "mlpconv", "dropout", "pointing")]
    return html_report(judge_all(chosen, folder))


def test_the_page_has_every_claim_with_words_source_verdict_and_command(page: str) -> None:
    for name in ("cost", "neighbours", "mlpconv", "dropout", "pointing"):
        claim = find_claim(name).claim
        assert f'href="#{name}"' in page
        assert f'id="{name}"' in page
        assert f"mlpconv claims run {name}" in page
        assert claim.title in page
        assert claim.overturn.split("'")[0] in page
    assert page.count('class="verdict supported"') == 3  # two claims, and the legend
    assert "one &lt;is&gt; one" in page
    assert "The hypothesis has changed since this result" in page
    assert "No result on CIFAR-10." in page


def test_a_verdict_that_differs_between_data_sets_says_so(tmp_path: Path) -> None:
    file = find_claim("mlpconv")
    for data, effect in (("digits", -5.0), ("mnist", -5.0)):
        write_result(tmp_path, file, data, effect)
    assert "differs between data sets" not in html_report(judge_all([file], tmp_path))
    write_result(tmp_path, file, "cifar10", 5.0)
    page = html_report(judge_all([file], tmp_path))
    assert "differs between data sets: </b>supported on digits, supported on MNIST, refuted on CIFAR-10." in page


def test_every_verdict_has_a_sign_for_narrow_screens_and_a_meaning(page: str) -> None:
    for verdict in (*get_args(Outcome), "proved"):
        assert f'<span class="verdict {verdict}" data-sign="{SIGNS[verdict]}">{verdict}</span></td><td>' in page


def test_the_page_is_self_contained(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,|#)", page)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert page.count("data:image/png") == 8  # two constructions; three of networks, three of paired differences


def test_figures_are_drawn_for_every_kind(tmp_path: Path) -> None:
    write_result(tmp_path, find_claim("neighbours"), "digits", -3.0)
    judged = judge_all([find_claim("neighbours")], tmp_path)[0]
    drawn = figures_of(judged, tmp_path)
    assert set(drawn) == {"construction", "networks", "paired"}
    for path in drawn.values():
        with Image.open(path) as picture:
            assert picture.width > 600
        assert path.stat().st_size < 200_000


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_every_exact_claim_has_a_construction_with_room_for_its_texts(name: str) -> None:
    assert find_claim(name).claim.exact
    figure = construction(name)
    figure.draw_without_rendering()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.x1, text.get_text()


def test_a_figure_shows_each_pair(tmp_path: Path) -> None:
    file = find_claim("mlpconv")
    write_result(tmp_path, file, "digits", -3.0)
    write_result(tmp_path, file, "mnist", 1.0)
    panels = panels_of(judge_all([file], tmp_path)[0])
    figure = paired(panels)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["digits", "MNIST"]
    dots = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 12]
    assert len(dots) == 2
    assert dots[0].get_xdata() == pytest.approx(panels["digits"][0]["differences"])


def test_unknown_drawings_and_empty_panels_are_explained() -> None:
    with pytest.raises(UsageError, match="did you mean 'stride'"):
        construction("strides")
    with pytest.raises(UsageError, match="no comparisons"):
        paired({"digits": []})


def test_networks_that_differ_in_a_number_are_a_curve(tmp_path: Path) -> None:
    for name in ("filters", "pointing"):
        for data in ("digits", "mnist"):
            write_result(tmp_path, find_claim(name), data, -3.0)
    curve, lines = (
        network_panels(judge_all([find_claim(name)], tmp_path)[0], metric)
        for name, metric in (("filters", "error"), ("pointing", "pointing"))
    )
    assert [row["at"] for row in curve[0]["MNIST"]] == [4, 8, 16, 32]
    assert [(row["name"], row["at"]) for row in lines[0]["digits"]] == [
        ("average pooling", None),
        ("fully connected", None),
        ("fully connected, Grad-CAM", None),
    ]
    drawn = networks(*curve)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["digits", "MNIST"]
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == ["4", "8", "16", "32"]
    drawn = networks(*lines)
    means = [f"{np.mean(row['values']):.1f}" for row in lines[0]["MNIST"]]
    assert [text.get_text() for text in drawn.axes[1].texts] == means
    with pytest.raises(UsageError, match="no networks to plot"):
        networks({}, "error")
