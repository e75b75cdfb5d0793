"""Register the hypotheses of the claims, before their results: `python benchmarks/claims.py register`.

`benchmarks/results/claims/hypotheses.json` holds the SHA-256 of the file of every claim and when it was registered. The
results beside it come from `mlpconv claims run --out benchmarks/results/claims`; tests/claims/test_committed.py fails
where a result has another hypothesis than its claim's file, or is older than it.

`figures` instead of `register` draws the figures of docs/why-1x1.md from the results, `hours` adds up their CPU time.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from mlpconv.claims.claim_files import list_claims
from mlpconv.claims.report import figures_of
from mlpconv.claims.results import judge_all
from mlpconv.files import json_bytes, write_atomic

TOP = Path(__file__).resolve().parents[1]
FOLDER = TOP / "benchmarks" / "results" / "claims"
REGISTER = FOLDER / "hypotheses.json"
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
    """Draw the figures of docs/why-1x1.md."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for judged in judge_all(list_claims(), FOLDER):
        for path in figures_of(judged, IMAGES).values():
            print(f"{path.relative_to(TOP)}: {path.stat().st_size / 1000:.0f} kB")


def hours() -> None:
    """Print the CPU hours of the results by data set."""
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir() and path.name not in ("exact", "runs")):
        results = [json.loads(path.read_bytes()) for path in folder.glob("*.json")]
        spent = sum(result["cpu_seconds"] for result in results) / 3600
        print(f"{folder.name}: {len(results)} claims, {spent:.2f} CPU hours")


if __name__ == "__main__":
    {"register": register, "figures": figures, "hours": hours}[sys.argv[1]]()
