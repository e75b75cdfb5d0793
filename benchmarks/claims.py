"""Register the hypotheses of the claims, before their results: `python benchmarks/claims.py register`.

`benchmarks/results/claims/hypotheses.json` holds the SHA-256 of the file of every claim and when it was registered. The
results beside it come from `mlpconv claims run --out benchmarks/results/claims`; tests/claims/test_committed.py fails
where a result has another hypothesis than its claim's file, or is older than it.

Instead of `register`, `figures` draws the figures of docs/why-1x1.md from the results, and `page` writes their numbers
into it, with the CPU hours that they took.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from mlpconv.claims.claim_files import list_claims
from mlpconv.claims.figures import UNITS, figures_of
from mlpconv.claims.report import verdict_of
from mlpconv.claims.results import Finding, Judged, judge_all
from mlpconv.claims.schema import BUDGETS, TITLES
from mlpconv.files import json_bytes, write_atomic
from mlpconv.text import counted

TOP = Path(__file__).resolve().parents[1]
FOLDER = TOP / "benchmarks" / "results" / "claims"
REGISTER = FOLDER / "hypotheses.json"
PAGE = TOP / "docs" / "why-1x1.md"
IMAGES = TOP / "docs" / "images" / "claims"


def register() -> None:
    """Add the hypotheses that are new or changed, with the time; keep the others as they are."""
    known = json.loads(REGISTER.read_bytes()) if REGISTER.is_file() else {}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    entries = {}
    for file in list_claims():
        old = known.get(file.claim.name)
        same = old is not None and old["sha256"] == file.hypothesis
        entries[file.claim.name] = old if same else {"sha256": file.hypothesis, "registered_at": now}
        if not same:
            print(f"registered {file.claim.name}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_atomic(REGISTER, json_bytes(entries))


def figures() -> None:
    """Draw the figures that docs/why-1x1.md shows, and delete others."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    shown = set(re.findall(r"images/claims/([a-z0-9-]+\.png)", PAGE.read_text(encoding="utf-8")))
    for path in IMAGES.glob("*.png"):
        path.unlink()
    with tempfile.TemporaryDirectory() as folder:
        for judged in judge_all(list_claims(), FOLDER):
            for path in figures_of(judged, Path(folder)).values():
                if path.name in shown:
                    shutil.copy(path, IMAGES)
                    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def page() -> None:
    """Write the verdicts and numbers of the results into docs/why-1x1.md."""
    text = PAGE.read_text(encoding="utf-8")
    write_atomic(PAGE, filled(text, judge_all(list_claims(), FOLDER)).encode())


def filled(text: str, claims: list[Judged]) -> str:
    """Return the page with the blocks after `<!-- result: NAME -->`, `<!-- table -->` and `<!-- hours -->` replaced."""
    by_name = {judged.file.claim.name: judged for judged in claims}
    text = re.sub(
        r"(<!-- result: ([a-z0-9-]+) -->\n)(?:.+\n)*", lambda m: m[1] + "".join(comparisons(by_name[m[2]])), text
    )
    for name, lines in (("table", rows), ("hours", hours)):
        text = replaced(text, name, "".join(lines(claims)))
    return text


def replaced(text: str, name: str, block: str) -> str:
    """Return the page with another block after the comment of this name."""
    return re.sub(rf"(<!-- {name} -->\n)(?:.+\n)*", lambda m: m[1] + block, text)


def comparisons(judged: Judged) -> Iterator[str]:
    """Yield a table of the comparisons of a claim: verdict, mean difference and interval on each data set."""
    sets = judged.file.claim.data
    unit = UNITS.get(judged.file.claim.comparisons[0].metric, judged.file.claim.comparisons[0].metric)
    yield f"| {unit} | {' | '.join(TITLES[data] for data in sets)} |\n"
    yield "|---" * (1 + len(sets)) + "|\n"
    for position, comparison in enumerate(judged.file.claim.comparisons):
        cells = [cell(judged.findings[data][position]) if data in judged.findings else "no result" for data in sets]
        yield f"| {comparison.name} | {' | '.join(cells)} |\n"


def cell(finding: Finding) -> str:
    """Return the verdict with mean difference and interval, and how many pairs would decide an open one."""
    evidence = finding.evidence
    numbers = f"**{finding.verdict}**: {evidence.mean:+.2f} [{evidence.low:+.2f}, {evidence.high:+.2f}]"
    return numbers + (f"; {finding.needed} pairs would decide" if finding.verdict == "undecided" else "")


def rows(claims: list[Judged]) -> Iterator[str]:
    """Yield the verdict table."""
    yield f"| | claim | {' | '.join(TITLES.values())} |\n|---|---|---|---|---|---|\n"
    for judged in claims:
        claim = judged.file.claim
        link = f"[{claim.title}](../{judged.file.path.relative_to(TOP)})"
        cells = " | ".join(verdict_of(judged, data) for data in TITLES)
        yield f"| {claim.number} | {link} | {cells} |\n"


def hours(claims: list[Judged]) -> Iterator[str]:
    """Yield the lines of a sentence: the CPU hours of the results by data set."""
    parts = []
    for data in BUDGETS:
        seconds = [judged.results[data]["cpu_seconds"] for judged in claims if data in judged.results]
        if seconds:
            parts.append(f"{sum(seconds) / 3600:.2f} CPU hours on {TITLES[data]} ({counted(len(seconds), 'claim')})")
    yield f"Training took {', '.join(parts)},\n"
    yield "as measured on a busy two-core machine; networks that claims share count in each.\n"


if __name__ == "__main__":
    {"register": register, "figures": figures, "page": page}[sys.argv[1]]()
