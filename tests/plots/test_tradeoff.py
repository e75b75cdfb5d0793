"""The picture of error against multiply-adds says what the report says, as a PNG and as an SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpconv import plots
from mlpconv.errors import UsageError


def report(*, labels: bool = True, by: str = "activations", low: float = 0.05) -> dict[str, Any]:
    """What factorize reports, as far as it is drawn."""

    def errors(value: float) -> dict[str, float]:
        return {"output": value / 3} | ({"classes": value} if labels else {})

    points = [
        {
            "share": share,
            **({} if by == "weights" else {"activations": errors(low / share)}),
            "weights": errors(0.4 / share),
        }
        for share in (0.85, 0.5, 0.4)
    ]
    error = {"before": errors(0.04), "before_tuning": errors(0.09), "after": errors(0.06)}
    return {
        "model": "nin_tiny",
        "before": {"macs": 2000},
        "after": {"macs": 980},
        "details": {"error": error, "curve": points},
    }


def lines(given: dict[str, Any]) -> dict[str, Any]:
    axes = plots.tradeoff(given).axes[0]
    return {line.get_label(): line for line in axes.lines} | {"axes": axes}


def test_the_curves_are_those_of_the_report() -> None:
    found = lines(report())
    np.testing.assert_allclose(found["by activations, not fitted"].get_xdata(), [85, 50, 40])
    np.testing.assert_allclose(found["by activations, not fitted"].get_ydata(), [5 / 0.85, 10, 12.5])
    np.testing.assert_allclose(found["by weights"].get_ydata(), [40 / 0.85, 80, 100])
    assert found["this network, fitted"].get_xydata().tolist() == [[49.0, 6.0]]
    assert found["the original"].get_ydata()[0] == pytest.approx(4)
    assert found["axes"].get_title(loc="left") == "nin_tiny computed at lower ranks"
    assert "classification error" in found["axes"].get_ylabel()


def test_without_labels_it_is_the_variance_that_is_lost() -> None:
    found = lines(report(labels=False))
    assert found["this network, fitted"].get_ydata()[0] == pytest.approx(2)
    assert "the original" not in found
    assert "variance" in found["axes"].get_ylabel()


def test_the_scale_is_logarithmic_where_a_line_would_hide_the_low_end() -> None:
    assert lines(report())["axes"].get_yscale() == "log"
    assert lines(report(low=0.0))["axes"].get_yscale() == "linear"
    few = lines(report(by="weights", labels=False))
    assert "by activations, not fitted" not in few


def test_no_curve_is_no_picture() -> None:
    with pytest.raises(UsageError, match="curve=True"):
        plots.tradeoff(report() | {"details": {"error": {}, "curve": []}})
    with pytest.raises(UsageError, match="no curve"):
        plots.tradeoff({})


def test_an_svg_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    one, other = (plots.save_figure(plots.tradeoff(report()), tmp_path / name) for name in ("a.svg", "b.SVG"))
    assert one.read_bytes() == other.read_bytes()
    assert b"<svg" in one.read_bytes() and b"<dc:date>" not in one.read_bytes()
