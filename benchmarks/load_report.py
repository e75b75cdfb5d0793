"""Write the table of results/load.json into docs/serve.md: `python benchmarks/load_report.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import RESULTS

__all__ = ["load_table", "write_table"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "serve.md"
START, END = "<!-- load: written by benchmarks/load.py -->", "<!-- load: end -->"
HEAD = (
    "network", "workers", "connections", "classified/s", "of the bare engine", "p50", "p99", "refused/s",
    "p99 of a refusal",
)  # fmt: skip


def load_table(content: dict[str, Any]) -> str:
    """Return the tables of throughput, of overload, and of everything that is one number."""
    result = content["result"]
    text = f"{content['date']}, {content['machine']['cpu']}, {content['machine']['cores']} cores, PNG files:\n\n"
    text += f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|\n"
    text += "".join(_row("nin_cifar10", 1, row) for row in result["rows"])
    text += "".join(_row("nin_cifar10", content["machine"]["cores"], row) for row in result["workers"])
    text += "".join(_row(network, 1, row) for network, row in result["networks"].items())
    text += "\nUnder four times the capacity of `nin_cifar10`:\n\n"
    text += "| `--latency` | classified/s | p50 | p99 | p99 unloaded | refused/s | "
    text += "p99 of a refusal |\n|---|---|---|---|---|---|---|\n"
    text += "".join(_overload_row(row) for row in result["overload"])
    return text + _facts(result)


def _row(network: str, workers: int, row: dict[str, Any]) -> str:
    share = row["accepted_per_second"] / row["bare_engine_per_second"]
    cells = (
        f"`{network}`",
        workers,
        row["connections"],
        f"{row['accepted_per_second']:,.0f}",
        f"{share:.0%}",
        *_latencies(row),
    )
    return f"| {' | '.join(map(str, cells))} |\n"


def _latencies(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return p50 and p99 of what was accepted, and the rate and p99 of what was refused."""
    accepted, refused = row["accepted_ms"], row["refused_ms"]
    slowest = f"{refused['p99']:.1f} ms" if refused else ""
    return f"{accepted['p50']:.1f} ms", f"{accepted['p99']:.1f} ms", f"{row['refused_per_second']:,.0f}", slowest


def _overload_row(row: dict[str, Any]) -> str:
    p50, p99, refused, slowest = _latencies(row)
    unloaded = f"{row['unloaded_ms']['p99']:.1f} ms"
    cells = (f"{row['latency']:g} s", f"{row['accepted_per_second']:,.0f}", p50, p99, unloaded, refused, slowest)
    return f"| {' | '.join(cells)} |\n"


def _facts(result: dict[str, Any]) -> str:
    crowd, end, soak = result["crowd"], result["sigterm"], result["soak"]
    answers = ", ".join(f"{count:,} x {name}" for name, count in crowd["answers"].items())
    most, after, kept = crowd["most_files_of_the_server"], crowd["status_afterwards"], soak["answers"]
    soaked = ", ".join(f"{count:,} x {code}" for code, count in sorted(kept.items()))
    return (
        f"\n- {crowd['opened']:,} idle connections at once: {answers}; at most {most:,} files open in the server; an\n"
        f"  ordinary request afterwards got {after}.\n"
        f"- SIGTERM under load: {end['answered']:,} requests answered, {end['lost']} lost after they were sent.\n"
        f"- Memory of server and worker in {soak['seconds']:,.0f} s of load ({soaked}): {min(soak['mb']):.0f} to\n"
        f"  {max(soak['mb']):.0f} MB.\n"
    )


def write_table(content: dict[str, Any]) -> None:
    """Replace the marked block of the page."""
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    PAGE.write_text(f"{before}{START}\n\n{load_table(content)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    write_table(json.loads((RESULTS / "load.json").read_text()))
