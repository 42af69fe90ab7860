"""The frame of a report, its style, and the small forms that all sections share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from vidi.report import progress
from vidi.report.html import Html, frame, inline, joined, table, text

MAKER = "vidi report"
"""By this a report is known again, and may be written over."""

STYLE = """
header.run { margin-top: 40px; }
main > header.run, article:first-child > header.run { margin-top: 0; }
.verdict { font-size: 19px; line-height: 1.5; margin: 14px 0 0; max-width: 64ch; }
.verdict + .verdict { font-size: 16px; color: var(--soft); margin-top: 6px; }
.contents { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 18px; font-size: 14px; }
.keys { display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: 1px;
        margin: 22px 0 0; border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
        background: var(--paper); }
.keys div { padding: 12px 14px; box-shadow: 1px 1px 0 0 var(--line); }
.keys dt { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.keys dd { margin: 2px 0 0; font-size: 22px; line-height: 1.25;
           font-variant-numeric: tabular-nums; }
.facts th { width: 12em; border-bottom-width: 1px; font-weight: 400; }
.facts td { overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 270px), 1fr));
          gap: 20px 28px; margin-top: 8px; }
.charts figure, .tiles figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg.white { background: #fff; color: #1d2733; border-radius: 6px; padding: 6px; }
.wide { overflow-x: auto; }
.wide > svg { min-width: var(--least, 560px); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(100px, 1fr));
         gap: 16px 12px; }
.tiles img { border-radius: 4px; }
.tiles figcaption { font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: repeat(var(--across, 4), 1fr); gap: 8px; }
.row figcaption { font-size: 12.5px; margin: 3px 0 0; }
.row figure { margin: 0; min-width: 0; }
.sample { margin-top: 20px; }
.sample > p { font-size: 14px; margin: 0 0 4px; overflow-wrap: anywhere; }
img.tiny { image-rendering: pixelated; }
.wrong { color: var(--red); }
.chips { display: flex; flex-wrap: wrap; gap: 3px 16px; font-size: 13px; color: var(--soft);
         margin: 10px 0 0; padding: 0; list-style: none; }
.chips i { display: inline-block; width: 11px; height: 11px; border-radius: 2px;
           margin-right: 6px; outline: 1px solid var(--soft); }
.bar { display: block; height: 9px; min-width: 1px; background: var(--blue); border-radius: 2px; }
.bars td:nth-child(2) { width: 40%; min-width: 90px; vertical-align: middle; }
.last-words td:last-child, .last-words th:last-child { text-align: left !important;
  color: var(--soft); padding-left: 16px; min-width: 15em; }
.settings { columns: 2 340px; column-gap: 40px; margin: 6px 0 0; font-size: 14.5px; }
.settings div { display: flex; gap: 12px; justify-content: space-between; break-inside: avoid;
                border-bottom: 1px solid var(--line); padding: 5px 0; }
.settings dt { color: var(--soft); } .settings dd { margin: 0; text-align: right;
               overflow-wrap: anywhere; }
details { margin: 10px 0 0; }
summary { cursor: pointer; color: var(--blue); font-size: 14.5px; }
.finding { border-top: 1px solid var(--line); padding-top: 16px; margin-top: 16px; }
.finding h3 { margin: 0 0 6px; font-size: 16px; }
.finding ul { margin: 0 0 10px; padding-left: 20px; }
.tag { font-size: 12.5px; font-weight: 600; padding: 2px 9px; border-radius: 99px;
       margin-right: 8px; white-space: nowrap; }
.problem { color: var(--red); background: var(--pale-red); }
.warning { color: var(--amber); background: var(--pale-amber); }
.note { color: var(--blue); background: var(--pale-blue); }
.narrow img { width: auto; max-width: 100%; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 140px), 1fr));
        gap: 18px 24px; }
.maps figure { margin: 0; }
article ~ article { border-top: 1px solid var(--line); margin-top: 72px; }
@media (max-width: 640px) { .row { grid-template-columns: repeat(2, 1fr); }
  .row.pair { grid-template-columns: 1fr; }
  .verdict { font-size: 17px; } .facts th { width: 8.5em; } .keys dd { font-size: 19px; } }
@media print { .wide, .scroll { overflow: visible; } .wide > svg { min-width: 0; }
  .contents { display: none; } section { break-inside: auto; } .sample, .finding, figure, h2, h3 {
  break-inside: avoid; } h2, h3 { break-after: avoid; } pre { white-space: pre-wrap; } }
"""
"""Beside the style of all our pages."""
MANY = 24
"""Rows of a table that are shown at once; longer ones are folded."""


def written(title: str, body: Iterable[str]) -> str:
    """The whole page."""
    return frame(title, body, style=STYLE, maker=MAKER)


def section(name: str, title: str, *parts: str) -> Html:
    """A part of the report; nothing where it has nothing to say."""
    inside = joined(parts)
    if not inside:
        return Html("")
    return Html(f'<section id="{escape(name)}">\n<h2>{inline(title)}</h2>\n{inside}\n</section>')


def contents(links: Iterable[tuple[str, str]]) -> Html:
    """A line of links to parts of the page: (name, title) each."""
    inside = "".join(f'<a href="#{escape(name)}">{text(title)}</a>' for name, title in links)
    return Html(f'<div class="contents">{inside}</div>')


def paragraph(words: str, kind: str = "") -> Html:
    """A sentence or several, with `code` in it."""
    return Html(f'<p class="{kind}">{inline(words)}</p>' if kind else f"<p>{inline(words)}</p>")


def heading(words: str) -> Html:
    return Html(f"<h3>{inline(words)}</h3>")


def command(words: str) -> Html:
    """What is typed, in a box that scrolls."""
    return Html(f'<pre tabindex="0"><code>{escape(words)}</code></pre>')


def facts(rows: Iterable[tuple[str, str]]) -> Html:
    """Names and what they are; a row whose value is empty is left out."""
    body = "\n".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>'
        for name, value in rows
        if value
    )
    return Html(f'<div class="scroll"><table class="facts"><tbody>{body}</tbody></table></div>')


def folding(what: str, rows: Sequence[Sequence[str]], heads: Sequence[str], kind: str = "") -> Html:
    """A table; a long one is folded away under ``what``, which says what it holds."""
    shown = table(heads, rows, kind=kind, caption=what)
    return shown if len(rows) <= MANY else folded(what, shown)


def folded(what: str, inside: str) -> Html:
    return Html(f"<details><summary>{text(what)}</summary>\n{inside}\n</details>")


def number(value: float) -> str:
    """Four digits behind the point, as everywhere in vidi; a dash for what is not there."""
    return "–" if math.isnan(value) else f"{value:.4f}"


def cell(value: object) -> str:
    """A value of a table per class."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float) -> str:
    """As everywhere in vidi; of a short time tenths, too."""
    return progress.duration(seconds) if seconds >= 10 else f"{seconds:.1f} s"


def amount(count: float, unit: str = "") -> str:
    """Three digits and a thousand's sign: 11.7 M."""
    for sign, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            value = count / size
            digits = 0 if value >= 100 else 1 if value >= 10 else 2
            return f"{value:.{digits}f} {sign}{unit}"
    return f"{count:.0f} {unit}".strip()


def plural(count: int, one: str, many: str = "") -> str:
    """The count with its word."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def split_name(split: str) -> str:
    """As one says it: validation, test, training."""
    return {"val": "validation", "train": "training"}.get(split, split)
