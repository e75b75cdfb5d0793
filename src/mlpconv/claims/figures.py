"""The figures of a claim: construction, networks, paired differences; filters and costs where they are measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from mlpconv.claims.budget import BUDGET
from mlpconv.claims.first_layer import filter_indices, read_filters
from mlpconv.claims.results import Finding, Judged
from mlpconv.claims.schema import TITLES
from mlpconv.claims.timing import KINDS, read_times
from mlpconv.plots.constructions import CONSTRUCTION_CAPTIONS, CONSTRUCTIONS, construction
from mlpconv.plots.error_cost import error_cost
from mlpconv.plots.networks import networks
from mlpconv.plots.orientation import orientation
from mlpconv.plots.paired import paired
from mlpconv.plots.style import save_figure

__all__ = ["UNITS", "caption", "cost_panels", "figures_of", "filter_panels", "network_panels", "panels_of"]

UNITS = {"error": "points of error", "gap": "points of test minus training error", "train_error": "points of error",
         "pointing": "points of pointing accuracy", "orientation": "orientation index"}  # fmt: skip
CAPTIONS = {
    "networks": "Each small dot is a run; the large dot and the number are the mean.",
    "filters": "The first eight filters of the first run, before training and after it. Under each is its index: 1 for "
    "a filter that answers to one orientation only, 0 for one that answers to all alike.",
    "cost": "Test error (mean and standard deviation) against multiply-adds per image, and against measured time "
    "(median and quartiles, one thread).",
    "paired": "Each small dot is a pair of runs with the same seed and data; the large dot is the mean with its 95 % "
    "interval. The grey band holds differences smaller than the smallest effect of interest.",
}
LABELS = {
    "error": "test error, %",
    "train_error": "training error, %",
    "gap": "test minus training error, points",
    "pointing": "peaks in the right quarter, %",
    "grad_cam": "Grad-CAM",
    "orientation": "orientation index of the first layer, mean over its filters",
}
COUNTED = re.compile(r"(\d+) .+")
"""Names of arms that differ in a number only: they are points of a curve."""


def caption(judged: Judged, kind: str) -> str:
    """Return what a figure of a claim shows, in a sentence."""
    return CONSTRUCTION_CAPTIONS[judged.file.claim.name] if kind == "construction" else CAPTIONS[kind.partition("-")[0]]


def figures_of(judged: Judged, folder: Path) -> dict[str, Path]:
    """Draw the figures of a claim to a folder, and return their files by kind."""
    name = judged.file.claim.name
    return {
        kind: save_figure(drawing, folder / (f"{name}.png" if kind == "construction" else f"{name}-{kind}.png"))
        for kind, drawing in _drawings(judged)
    }


def _drawings(judged: Judged) -> Iterator[tuple[str, Figure]]:
    name = judged.file.claim.name
    if name in CONSTRUCTIONS:
        yield "construction", construction(name)
    if judged.results:
        metrics = dict.fromkeys(comparison.metric for comparison in judged.file.claim.comparisons)
        for number, metric in enumerate(metrics):
            yield f"networks-{metric}" if number else "networks", networks(*network_panels(judged, metric))
    if filters := filter_panels(judged):
        yield "filters", orientation(filters)
    if costs := cost_panels(judged):
        yield "cost", error_cost(costs)
    if judged.findings:
        yield "paired", paired(panels_of(judged))


def panels_of(judged: Judged) -> dict[str, list[dict[str, Any]]]:
    """Return the comparisons of a claim by data set, as `plots.paired` takes them."""
    return {TITLES[data]: [_row(finding) for finding in findings] for data, findings in judged.findings.items()}


def _row(finding: Finding) -> dict[str, Any]:
    comparison, evidence = finding.comparison, finding.evidence
    return {
        "name": comparison.name, "differences": finding.differences, "mean": evidence.mean, "low": evidence.low,
        "high": evidence.high, "margin": comparison.margin[finding.data], "expect": comparison.expect,
        "unit": UNITS.get(comparison.metric, comparison.metric), "verdict": finding.verdict,
    }  # fmt: skip


def network_panels(judged: Judged, metric: str) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """Return the runs of every arm by data set as `plots.networks` takes them, and what the values are."""
    claim = judged.file.claim
    others = ((c.control, c.control_metric) for c in claim.comparisons if c.metric == metric and c.control_metric)
    sources = dict.fromkeys([*((arm, metric) for arm in claim.arms), *others])
    treatments = {comparison.treatment for comparison in claim.comparisons}
    places = {arm: int(match[1]) for arm in claim.arms if (match := COUNTED.fullmatch(arm))}
    curve = len(places) == len(claim.arms)
    panels = {
        TITLES[data]: [
            {"name": arm if source == metric else f"{arm}, {LABELS.get(source, source)}",
             "values": result["arms"][arm]["values"][source],
             "treatment": arm in treatments, "at": places[arm] if curve else None}
            for arm, source in sources
        ]
        for data, result in judged.results.items()
    }  # fmt: skip
    return panels, LABELS.get(metric, metric)


def filter_panels(judged: Judged) -> dict[str, list[dict[str, Any]]]:
    """Return the stored first-layer filters by data set, as `plots.orientation` takes them: the control first."""
    panels = {}
    for data, result in judged.results.items():
        weights = read_filters(judged.file, data, judged.folder, result)
        order = [judged.file.claim.comparisons[0].control, judged.file.claim.comparisons[0].treatment]
        rows = [
            {"name": a, "weights": weights[a], "indices": filter_indices(weights[a])} for a in order if a in weights
        ]
        if rows:
            panels[TITLES[data]] = rows
    return panels


def cost_panels(judged: Judged) -> dict[str, list[dict[str, Any]]]:
    """Return error, multiply-adds and times of the arms by data set, as `plots.error_cost` takes them.

    Only data sets on which the arms have been timed are in it.
    """
    panels = {}
    for data, result in judged.results.items():
        times = read_times(judged.file, data, judged.folder)
        if times is not None:
            arms = {name: (result["arms"][name], times["arms"][name]) for name in judged.file.claim.arms}
            panels[TITLES[data]] = [_point(name, *both, BUDGET[data].batch) for name, both in arms.items()]
    return panels


def _point(name: str, arm: dict[str, Any], times: dict[str, Any], batch: int) -> dict[str, Any]:
    errors = arm["values"]["error"]
    costs: dict[str, Any] = {"multiply-adds, millions": arm["macs"] / 1e6}
    for kind in KINDS:
        costs[f"{kind}, µs per image"] = {key: 1000 * value / batch for key, value in times[kind].items()}
    return {"name": name, "error": fmean(errors), "deviation": stdev(errors), "costs": costs}
