"""Build HTML that is safe against injection: all text is escaped unless it is of the class Html."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from typing import TypeAlias

from mlpconv.text import printable

__all__ = ["NOTHING", "Child", "Html", "document", "element", "figure", "section", "table"]

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #ffffff; --ink: #1f2933; --quiet: #5d6b7a;
  --rule: #e2e6ea; --accent: #0067a3; --warm: #b84f00; --tint: #eef4f9; --frame: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --card: #1b2027; --ink: #e4e8ec; --quiet: #9aa7b4;
  --rule: #2e363f; --accent: #6cb6e8; --warm: #f0a35e; --tint: #1f2a35; --frame: #ffffff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 3rem 0 0.9rem; padding-top: 1.1rem; border-top: 1px solid var(--rule); }
p { margin: 0 0 0.8rem; max-width: 44rem; }
.quiet, figcaption, th { color: var(--quiet); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.9rem; margin: 1.8rem 0 0; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 0.9rem 1.1rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.tile b.long { font-size: 1.15rem; line-height: 1.65; }
.tile.main b { color: var(--accent); font-size: 2rem; }
.tile span { color: var(--quiet); font-size: 0.85rem; display: block; overflow-wrap: anywhere; }
pre { background: var(--tint); border-radius: 8px; padding: 0.9rem 1.1rem; overflow-x: auto; font-size: 0.86rem;
  line-height: 1.7; margin: 0 0 0.8rem; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
figure { margin: 0 0 1rem; }
figure img { display: block; max-width: 100%; height: auto; background: var(--frame); border: 1px solid var(--rule);
  border-radius: 10px; padding: 0.8rem; }
figcaption { font-size: 0.88rem; margin-top: 0.5rem; max-width: 44rem; }
.narrow img { max-width: min(100%, 36rem); }
.scroll { overflow-x: auto; margin-bottom: 1.4rem; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th { font-weight: 500; text-align: left; font-size: 0.82rem; }
th, td { padding: 0.32rem 1.4rem 0.32rem 0; border-bottom: 1px solid var(--rule); vertical-align: baseline; }
td:first-child { overflow-wrap: anywhere; max-width: 22rem; }
.numbers th:not(:first-child), .numbers td:not(:first-child) { text-align: right; }
.bar { display: inline-block; width: 7rem; height: 0.5rem; border-radius: 3px; background: var(--tint);
  text-align: left; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
.changed td { color: var(--ink); } .changed td:nth-child(2) { color: var(--warm); font-weight: 600; }
details { margin: 0.8rem 0; } summary { cursor: pointer; color: var(--accent); margin-bottom: 0.5rem; }
ul { margin: 0 0 0.8rem; padding-left: 1.2rem; max-width: 44rem; } li { margin: 0.2rem 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { main { padding: 2rem 1rem 3rem; } h1 { font-size: 1.6rem; } .bar { display: none; } }
@media print { :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --quiet: #444; --rule: #ccc;
  --accent: #004f80; --warm: #8a3b00; --tint: #f4f4f4; --frame: #fff; } body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; } h2 { break-after: avoid; margin-top: 1.6rem; }
  figure, .tile, tr, pre { break-inside: avoid; } pre { white-space: pre-wrap; } figure img { max-height: 20cm; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Html(str):
    """Text that is already HTML."""

    __slots__ = ()


NOTHING = Html("")
Child: TypeAlias = str | Html | None


def element(tag: str, *children: Child, **attributes: str) -> Html:
    """Return an element; attributes and children that are not Html are escaped, None is skipped."""
    attribute_text = "".join(f' {name.rstrip("_")}="{_escape(value)}"' for name, value in attributes.items())
    inner = "".join(child if isinstance(child, Html) else _escape(child) for child in children if child is not None)
    return Html(f"<{tag}{attribute_text}>{inner}</{tag}>")


def _escape(text: str) -> str:
    """Escape text for HTML, with control and direction characters made visible."""
    return html.escape("\n".join(printable(line) for line in text.split("\n")), quote=True)


def section(title: str, *children: Child) -> Html:
    """Return a section with a heading."""
    return element("section", element("h2", title), *children)


def figure(png: bytes, alternative: str, caption: str, **attributes: str) -> Html:
    """Return a figure with an embedded PNG; `alternative` is its alt text."""
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    image = Html(f'<img src="{source}" alt="{_escape(alternative)}">')
    return element("figure", image, element("figcaption", caption), **attributes)


def table(columns: Iterable[str], rows: Iterable[Iterable[Child]], kind: str = "") -> Html:
    """Return a table that scrolls horizontally if it is too wide."""
    head = element("tr", *(element("th", name, scope="col") for name in columns))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    return element(
        "div", element("table", element("thead", head), element("tbody", *body), class_=kind), class_="scroll"
    )


def document(title: str, *body: Child) -> str:
    """Return a complete HTML page."""
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="referrer" content="no-referrer">'),
        element("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    return f'<!doctype html>\n<html lang="en">{head}{element("body", element("main", *body))}</html>\n'
