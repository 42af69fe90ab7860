"""All studies on one HTML page that needs nothing beside it: pictures and style are within."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vidi.studies import Study, Table, Value


@dataclass(frozen=True)
class Done:
    """A study that was run."""

    name: str
    command: str
    claim: int
    title: str
    text: str
    """The claim, in words."""
    study: Study
    seconds: float
    pictures: tuple[bytes, ...]
    """PNG, as many as the study has; none where they are drawn elsewhere."""


STYLE = """
:root { --ink: #1d2733; --soft: #5c6773; --line: #e3e7ec; --blue: #1f6fb4; --green: #2c8a4b;
        --red: #c8322b; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #f5f7f9;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 21px; line-height: 1.3; margin: 0 0 10px; padding-right: 150px; }
h3 { font-size: 15px; margin: 26px 0 6px; }
p { margin: 0 0 10px; max-width: 78ch; }
pre { margin: 0 0 10px; padding: 10px 14px; background: #f5f7f9; border-radius: 6px;
      overflow-x: auto; font-size: 14px; }
code { font: 0.92em ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
a { color: var(--blue); text-decoration: none; }
a:hover { text-decoration: underline; }
.lead, .small, figcaption { color: var(--soft); }
.small { font-size: 14px; }
nav, section { position: relative; background: #fff; border: 1px solid var(--line);
               border-radius: 10px; padding: 24px 28px; margin-top: 24px; }
nav ol { list-style: none; margin: 0; padding: 0; }
nav li { display: grid; grid-template-columns: 34px 1fr auto; gap: 8px; padding: 5px 0;
         border-bottom: 1px solid var(--line); align-items: baseline; }
nav li:last-child { border-bottom: 0; }
.number { color: var(--soft); font-variant-numeric: tabular-nums; }
.verdict { font-size: 13px; font-weight: 600; white-space: nowrap; padding: 2px 10px;
           border-radius: 99px; }
.yes { color: var(--green); background: #e7f4ec; }
.no { color: #fff; background: var(--red); }
section > .verdict { position: absolute; top: 26px; right: 28px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; margin: 6px 0 4px; }
th, td { text-align: left; vertical-align: top; padding: 7px 12px 7px 0;
         border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; }
.measured td:nth-child(2) { font-weight: 600; min-width: 8em; }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right; }
.numbers td { font-variant-numeric: tabular-nums; }
figure { margin: 20px 0 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: 14px; margin-top: 6px; }
@media (max-width: 640px) { h2 { padding-right: 0; } section > .verdict { position: static;
  display: inline-block; margin-bottom: 8px; } nav, section { padding: 18px 16px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def page(found: Sequence[Done]) -> str:
    """The page: contents with a verdict each, then claim, measurements and pictures of each."""
    holding = sum(done.study.holds for done in found)
    seconds = sum(done.seconds for done in found)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            "<title>The lecture on training, as claims that run</title>",
            f"<style>{STYLE}</style></head>",
            "<body><main>",
            "<h1>The lecture on training, as claims that run</h1>",
            f'<p class="lead">Each claim was run, measured and judged under a stated tolerance: '
            f"{holding} of {len(found)} hold. It took {_time(seconds)}.</p>",
            "<nav><ol>",
            *map(_line, found),
            "</ol></nav>",
            *map(_section, found),
            "</main></body></html>",
            "",
        ]
    )


def written(value: Value) -> str:
    """A value as one reads it: five digits at most where it is a fraction."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return value


def _line(done: Done) -> str:
    return (
        f'<li><span class="number">{done.claim}</span>'
        f'<a href="#{escape(done.name)}">{_inline(done.title)}</a>{_verdict(done)}</li>'
    )


def _section(done: Done) -> str:
    rows = [
        f"<tr><td>{_inline(one.what)}</td><td>{escape(written(one.value))}</td>"
        f'<td>{_inline(one.expected)}</td><td><span class="verdict {_class(one.holds)}">'
        f"{_word(one.holds)}</span></td></tr>"
        for one in done.study.measured
    ]
    pictures = [
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode("ascii")}"><figcaption>{_inline(caption)}</figcaption>'
        "</figure>"
        for (caption, _), png in zip(done.study.pictures, done.pictures, strict=True)
    ]
    return "\n".join(
        [
            f'<section id="{escape(done.name)}">',
            f'<h2><span class="number">{done.claim}.</span> {_inline(done.title)}</h2>',
            _verdict(done),
            _prose(done.text),
            *pictures,
            "<h3>What was measured</h3>",
            '<div class="scroll"><table class="measured">',
            "<tr><th>what</th><th>measured</th><th>expected</th><th></th></tr>",
            *rows,
            "</table></div>",
            *map(_table, done.study.tables),
            *(f"<p>{_inline(note)}</p>" for note in done.study.notes),
            f'<p class="small"><code>{escape(done.command)}</code> · {_time(done.seconds)}</p>',
            "</section>",
        ]
    )


def _table(table: Table) -> str:
    heads = "".join(f"<th>{_inline(head)}</th>" for head in table.heads)
    rows = [
        "<tr>" + "".join(f"<td>{escape(written(value))}</td>" for value in row) + "</tr>"
        for row in table.rows
    ]
    return "\n".join(
        [
            f"<h3>{_inline(table.title)}</h3>",
            f'<div class="scroll"><table class="numbers"><tr>{heads}</tr>',
            *rows,
            "</table></div>",
        ]
    )


def _prose(text: str) -> str:
    """Paragraphs; an indented one is a formula or a program and stays as it is."""
    return "\n".join(
        f"<pre>{escape(part)}</pre>" if part.startswith(" ") else f"<p>{_inline(part)}</p>"
        for part in text.split("\n\n")
        if part.strip()
    )


def _inline(text: str) -> str:
    """``code`` and *emphasis* as our docstrings write them."""
    text = re.sub(r"``(.+?)``", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"(?<![\w*])\*(\w[^*]*?\w|\w)\*(?![\w*])", r"<em>\1</em>", text)


def _verdict(done: Done) -> str:
    holds = done.study.holds
    return f'<span class="verdict {_class(holds)}">{_word(holds)}</span>'


def _class(holds: bool) -> str:
    return "yes" if holds else "no"


def _word(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} minutes"
