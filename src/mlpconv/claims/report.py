"""The report of the claims: one HTML page with a verdict table, then each claim with its figure."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlpconv.claims.figures import UNITS, caption, figures_of
from mlpconv.claims.results import Finding, Judged, overall
from mlpconv.claims.schema import BUDGETS, TITLES
from mlpconv.claims.statistics import LEAST_PAIRS
from mlpconv.report.page import Child, Html, document, element, figure, section, table
from mlpconv.text import counted

__all__ = ["SIGNS", "html_report", "sentence", "verdict_of"]

NOT_RUN = "not run"
SIGNS = {"proved": "✓", "supported": "✓", "refuted": "✗", "not proved": "✗", "equivalent": "=", "undecided": "?",
         "indicated": "~", NOT_RUN: "–"}  # fmt: skip
"""What stands for a verdict on a narrow screen."""
STYLE = """<style>
.verdict { display: inline-block; border-radius: 6px; padding: 0 0.45rem; font-size: 0.85rem; white-space: nowrap;
  border: 1px solid var(--rule); color: var(--quiet); }
.proved, .supported { color: #00795a; border-color: #00795a; }
.refuted, .not-proved { color: var(--warm); border-color: var(--warm); }
.equivalent { color: var(--accent); border-color: var(--accent); }
@media (prefers-color-scheme: dark) { .proved, .supported { color: #4fc9a4; border-color: #4fc9a4; } }
.verdicts td, .verdicts th { padding: 0.13rem 0.9rem 0.13rem 0; } .verdicts { font-size: 0.88rem; }
.verdicts a { color: inherit; text-decoration-color: var(--rule); } blockquote { margin: 0 0 0.8rem; padding-left: 1rem;
  border-left: 3px solid var(--accent); max-width: 44rem; font-size: 1.05rem; }
.legend td { border: 0; padding-block: 0.15rem; } .legend { margin-bottom: 0.8rem; }
.legend .verdict::before { content: attr(data-sign) " "; }
@media (max-width: 34rem) {
  .verdicts { table-layout: fixed; width: 100%; }
  .verdicts td, .verdicts th { padding: 0.06rem 0; } .verdicts td:nth-child(2) { max-width: none; font-size: 0.8rem; }
  .verdicts th:first-child { width: 1.6rem; } .verdicts td:first-child { font-size: 0.76rem; }
  .verdicts a { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
  .verdicts th:nth-child(n+3) { width: 2.35rem; font-size: 0.62rem; text-align: center; }
  .verdicts td:nth-child(n+3) { text-align: center; }
  .verdicts .verdict { font-size: 0; padding: 0; min-width: 1.45rem; }
  .verdicts .verdict::before { content: attr(data-sign); font-size: 0.82rem; }
  .verdicts .not-run { border-color: transparent; }
  .legend td { font-size: 0.85rem; padding-right: 0.7rem; }
  figure { margin-inline: -0.75rem; } figure img { padding: 0.2rem; } figcaption { margin-inline: 0.75rem; } }
</style>"""
MEANINGS = {
    "proved": "exact: tried in float64, mostly on 1,000 random cases.",
    "supported": "a difference in the claimed direction, significant at 5 % by the exact sign-flip test with Holm's "
    "correction over all comparisons of the data set.",
    "refuted": "significant in the other direction, or where no difference is claimed.",
    "equivalent": "smaller than the smallest effect of interest, by two one-sided tests.",
    "undecided": "neither. The page names the number of pairs of runs that would decide.",
    "indicated": f"fewer than {LEAST_PAIRS} pairs, and the interval excludes zero.",
}


def verdict_of(judged: Judged, data: str) -> str:
    """Return the verdict of a claim on a data set, or on its checks for "exact"; empty if it is not about that."""
    claim = judged.file.claim
    if data == "exact":
        if not claim.checks:
            return ""
        return {True: "proved", False: "not proved", None: NOT_RUN}[judged.proved]
    if not claim.comparisons or data not in claim.data:
        return ""
    return overall(judged.findings[data]) if data in judged.findings else NOT_RUN


def sentence(finding: Finding) -> str:
    """Return what a comparison found, in one sentence."""
    evidence, unit = finding.evidence, UNITS.get(finding.comparison.metric, finding.comparison.metric)
    numbers = f"{evidence.mean:+.2f} [{evidence.low:+.2f}, {evidence.high:+.2f}] {unit}, n = {evidence.n}"
    tests = f"p = {finding.p_difference:.2g} for a difference, {finding.p_equivalence:.2g} for equivalence"
    more = f"; about {finding.needed} pairs would decide" if finding.verdict in ("undecided", "indicated") else ""
    return f"{finding.verdict}: {numbers} ({tests}{more})"


def html_report(claims: Sequence[Judged]) -> str:
    """Return the page: it makes no request, and follows the reader's choice of light or dark."""
    hours = sum(result["cpu_seconds"] for judged in claims for result in judged.results.values()) / 3600
    comparisons = sum(len(findings) for judged in claims for findings in judged.findings.values())
    size = f"{counted(len(claims), 'claim')}, {counted(comparisons, 'comparison')} with a result"
    return document(
        "Claims about 1x1 convolutions",
        Html(STYLE),
        element("h1", "Claims about 1x1 convolutions"),
        element("p", f"{size}, {hours:.1f} CPU hours of training.", class_="quiet"),
        _verdict_table(claims),
        table(["", ""], ([_badge(verdict), meaning] for verdict, meaning in MEANINGS.items()), "legend"),
        element("p", "Each hypothesis was fixed, and its hash published, before its runs.", class_="quiet"),
        *(_claim(judged) for judged in claims),
    )


def _verdict_table(claims: Sequence[Judged]) -> Html:
    rows = []
    for judged in claims:
        claim = judged.file.claim
        title = element("a", claim.title, href=f"#{claim.name}")
        cells: list[Child] = [str(claim.number or ""), title]
        rows.append([*cells, *(_badge(verdict_of(judged, data)) for data in ("exact", *BUDGETS))])
    return table(["", "claim", *TITLES.values()], rows, "verdicts")


def _badge(verdict: str) -> Child:
    if not verdict:
        return ""
    return element("span", verdict, class_=f"verdict {verdict.replace(' ', '-')}", **{"data-sign": SIGNS[verdict]})


def _claim(judged: Judged) -> Html:
    claim = judged.file.claim
    title = f"{claim.number}. {claim.title}" if claim.number else claim.title
    return element(
        "div",
        section(
            title,
            element("blockquote", claim.words),
            element("p", f"Source: {claim.source}", class_="quiet"),
            element("p", claim.method),
            *_pictures(judged),
            *_checks(judged),
            *_measurements(judged),
            element("p", element("b", "What would change the verdict: "), claim.overturn),
            element("pre", f"mlpconv claims run {judged.file.argument}"),
        ),
        id=claim.name,
    )


def _pictures(judged: Judged) -> Iterator[Html]:
    with tempfile.TemporaryDirectory() as folder:
        for kind, path in figures_of(judged, Path(folder)).items():
            yield figure(
                path.read_bytes(), f"{judged.file.claim.title}, {kind}", caption(judged, kind), class_="narrow"
            )


def _checks(judged: Judged) -> Iterator[Html]:
    if judged.exact is None:
        return
    rows = [
        (check["statement"], f"{check['cases']:,}", f"{check['worst']:.1e}", f"{check['bound']:.0e}")
        for check in judged.exact["checks"]
    ]
    yield table(["statement", "cases", "largest deviation", "bound"], rows, "numbers")
    yield from _stale(judged, judged.exact)


def _measurements(judged: Judged) -> Iterator[Html]:
    verdicts = {data: overall(findings) for data, findings in judged.findings.items()}
    if len(set(verdicts.values())) > 1:
        listed = ", ".join(f"{verdict} on {TITLES[data]}" for data, verdict in verdicts.items())
        yield element("p", element("b", "The verdict differs between data sets: "), f"{listed}.")
    for data in judged.file.claim.data if judged.file.claim.comparisons else ():
        if data not in judged.results:
            yield element("p", f"No result on {TITLES[data]}.", class_="quiet")
            continue
        result = judged.results[data]
        lines = [
            element("li", element("b", f"{finding.comparison.name}: "), sentence(finding))
            for finding in judged.findings[data]
        ]
        yield element("p", element("b", TITLES[data]), f": {result['budget']}.")
        yield element("ul", *lines)
        yield element("details", element("summary", "The networks"), _arms(result))
        yield from _stale(judged, result)


def _stale(judged: Judged, result: dict[str, Any]) -> Iterator[Html]:
    if judged.is_stale(result):
        yield element(
            "p", "The hypothesis has changed since this result: run the claim again.", class_="verdict refuted"
        )


def _arms(result: dict[str, Any]) -> Html:
    rows = []
    for name, arm in result["arms"].items():
        errors = arm["values"]["error"]
        rows.append(
            (name, arm["words"], f"{arm['parameters']:,}", f"{arm['macs'] / 1e6:.2f} M", f"{arm['learning_rate']:g}",
             f"{sum(errors) / len(errors):.2f} %")
        )  # fmt: skip
    return table(["arm", "layers", "parameters", "multiply-adds", "learning rate", "mean error"], rows, "numbers")
