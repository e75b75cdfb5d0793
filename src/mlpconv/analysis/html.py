"""Render a profile as one self-contained HTML page: bar charts of multiply-adds and parameters, and the table."""

from __future__ import annotations

from html import escape

from mlpconv.analysis.result import LayerProfile, Profile
from mlpconv.analysis.table import COLUMNS, KIND_COLUMNS, cells, heading, kind_cells, summary, totals_cells

__all__ = ["as_page"]

COLOURS = {
    "kxk": "#3566a8",
    "1x1": "#d1762b",
    "depthwise": "#2f8f6b",
    "linear": "#8a4f9e",
    "matmul": "#b0413e",
    "norm": "#8d8d3a",
    "pool": "#5f8fa8",
    "activation": "#a08060",
    "merge": "#707880",
    "other": "#9a9a9a",
}
"""Colour of each kind of layer."""
HEIGHT, GAP, NAME, BAR = 15, 3, 250, 330
"""Pixels: height of a bar, gap between bars, width of the names, length of the longest bar."""

STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.15rem .5rem;text-align:right;white-space:nowrap}th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}
thead th{border-bottom:2px solid #888;position:sticky;top:0;background:#fff}
tbody tr:nth-child(even){background:#f4f5f7}tfoot td{border-top:2px solid #888;font-weight:600}
svg{display:block;max-width:100%;height:auto}svg text{font-size:11px;fill:#222}
.key span{display:inline-block;margin-right:1rem}.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
.wide{overflow-x:auto}.kinds{width:auto}.kinds :is(th,td):nth-child(2){text-align:right}
"""


def as_page(profile: Profile) -> str:
    """Return the page as HTML, without scripts or requests, with every name escaped."""
    title = escape(heading(profile))
    notes = "".join(f"<p>{escape(line)}</p>" for line in summary(profile))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"{_bars(profile)}<div class=wide>{_kinds(profile)}</div>{notes}"
        f"<div class=wide>{_table(profile)}</div></body></html>\n"
    )


def _table(profile: Profile) -> str:
    body = "".join(f"<tr>{_cells(cells(row))}</tr>" for row in profile.rows)
    last = f"<tr>{_cells(totals_cells(profile))}</tr>"
    return f"<table>{_head(COLUMNS)}<tbody>{body}</tbody><tfoot>{last}</tfoot></table>"


def _kinds(profile: Profile) -> str:
    body = "".join(f"<tr>{_cells(texts)}</tr>" for texts in kind_cells(profile))
    return f"<table class=kinds>{_head(KIND_COLUMNS)}<tbody>{body}</tbody></table>"


def _head(columns: tuple[str, ...]) -> str:
    return f"<thead><tr>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr></thead>"


def _cells(texts: tuple[str, ...]) -> str:
    return "".join(f"<td>{escape(text)}</td>" for text in texts)


def _bars(profile: Profile) -> str:
    """Return a chart with two bars per layer: multiply-adds and parameters."""
    rows = [row for row in profile.rows if row.macs or row.params]
    if not rows:
        return ""
    macs, params = max(row.macs for row in rows) or 1, max(row.params for row in rows) or 1
    step, width = HEIGHT + GAP, NAME + 2 * (BAR + GAP)
    parts = [
        f'<text x="{left}" y="{HEIGHT - 3}">{text}</text>'
        for left, text in ((NAME, "multiply-adds"), (NAME + BAR + GAP, "parameters"))
    ]
    for index, row in enumerate(rows, start=1):
        parts.append(f'<text x="0" y="{index * step + HEIGHT - 4}">{escape(_short(row.name))}</text>')
        parts.append(_bar(row, NAME, index * step, row.macs / macs, f"{row.macs:,} multiply-adds"))
        parts.append(_bar(row, NAME + BAR + GAP, index * step, row.params / params, f"{row.params:,} parameters"))
    kinds = [kind for kind in COLOURS if any(row.kind == kind for row in rows)]
    key = "".join(f'<span><i style="background:{COLOURS[kind]}"></i>{kind}</span>' for kind in kinds)
    height = (len(rows) + 1) * step
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="multiply-adds and parameters of each layer">{"".join(parts)}</svg><p class=key>{key}</p>'
    )


def _bar(row: LayerProfile, left: int, top: int, share: float, label: str) -> str:
    return (
        f'<rect x="{left}" y="{top}" width="{share * BAR:.1f}" height="{HEIGHT}" fill="{COLOURS[row.kind]}">'
        f"<title>{escape(row.name)}: {label}</title></rect>"
    )


def _short(name: str, limit: int = 40) -> str:
    """Return the end of a long name."""
    return name if len(name) <= limit else "…" + name[1 - limit :]
