"""The plot of error against multiply-adds shows the values of the report, as PNG and as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpconv import plots
from mlpconv.errors import UsageError


def report(*, labels: bool = True, by: str = "activations", low: float = 0.05) -> dict[str, Any]:
    """Return the plotted part of a factorize report."""

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


def lines(details: dict[str, Any]) -> dict[str, Any]:
    axes = plots.tradeoff(details).axes[0]
    return {line.get_label(): line for line in axes.lines} | {"axes": axes}


def test_the_curves_show_the_values_of_the_report() -> None:
    curves = lines(report())
    np.testing.assert_allclose(curves["by activations, not fitted"].get_xdata(), [85, 50, 40])
    np.testing.assert_allclose(curves["by activations, not fitted"].get_ydata(), [5 / 0.85, 10, 12.5])
    np.testing.assert_allclose(curves["by weights"].get_ydata(), [40 / 0.85, 80, 100])
    assert curves["this network, fitted"].get_xydata().tolist() == [[49.0, 6.0]]
    assert curves["the original"].get_ydata()[0] == pytest.approx(4)
    assert curves["axes"].get_title(loc="left") == "nin_tiny, factorized"
    assert "classification error" in curves["axes"].get_ylabel()


def test_without_labels_the_error_is_lost_variance() -> None:
    curves = lines(report(labels=False))
    assert curves["this network, fitted"].get_ydata()[0] == pytest.approx(2)
    assert "the original" not in curves
    assert "variance" in curves["axes"].get_ylabel()


def test_the_error_axis_is_logarithmic_for_errors_of_very_different_size() -> None:
    assert lines(report())["axes"].get_yscale() == "log"
    assert lines(report(low=0.0))["axes"].get_yscale() == "linear"
    few = lines(report(by="weights", labels=False))
    assert "by activations, not fitted" not in few


def test_a_report_without_a_curve_is_refused() -> None:
    with pytest.raises(UsageError, match="curve=True"):
        plots.tradeoff(report() | {"details": {"error": {}, "curve": []}})
    with pytest.raises(UsageError, match="no curve"):
        plots.tradeoff({})


def test_an_svg_is_reproducible_byte_for_byte(tmp_path: Path) -> None:
    first, second = (plots.save_figure(plots.tradeoff(report()), tmp_path / name) for name in ("a.svg", "b.SVG"))
    assert first.read_bytes() == second.read_bytes()
    assert b"<svg" in first.read_bytes() and b"<dc:date>" not in first.read_bytes()
