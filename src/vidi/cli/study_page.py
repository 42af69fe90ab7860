"""All studies on one HTML page that needs nothing beside it: pictures and style are within."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vidi.report.html import Html, frame, inline, joined, picture, table
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
h2 { padding-right: 150px; }
nav ol { list-style: none; margin: 0; padding: 0; }
nav li { display: grid; grid-template-columns: 34px 1fr auto; gap: 8px; padding: 5px 0;
         border-bottom: 1px solid var(--line); align-items: baseline; }
nav li:last-child { border-bottom: 0; }
.number { color: var(--soft); font-variant-numeric: tabular-nums; }
.verdict { font-size: 13px; font-weight: 600; white-space: nowrap; padding: 2px 10px;
           border-radius: 99px; }
.yes { color: var(--green); background: var(--pale-green); }
.no { color: #fff; background: #c8322b; }
section > .verdict { position: absolute; top: 26px; right: 28px; }
.measured td:nth-child(2) { font-weight: 600; min-width: 8em; }
@media (max-width: 640px) { h2 { padding-right: 0; } section > .verdict { position: static;
  display: inline-block; margin-bottom: 8px; } }
"""
"""Beside the style of all our pages."""


def page(found: Sequence[Done]) -> str:
    """The page: contents with a verdict each, then claim, measurements and pictures of each."""
    holding = sum(done.study.holds for done in found)
    seconds = sum(done.seconds for done in found)
    title = "The lecture on training, as claims that run"
    return frame(
        title,
        [
            Html(f"<h1>{title}</h1>"),
            Html(
                f'<p class="lead">Each claim was run, measured and judged under a stated '
                f"tolerance: {holding} of {len(found)} hold. It took {_time(seconds)}.</p>"
            ),
            Html("<nav><ol>"),
            *map(_line, found),
            Html("</ol></nav>"),
            *map(_section, found),
        ],
        style=STYLE,
        maker="vidi study",
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


def _line(done: Done) -> Html:
    return Html(
        f'<li><span class="number">{done.claim}</span>'
        f'<a href="#{escape(done.name)}">{inline(done.title)}</a>{_verdict(done)}</li>'
    )


def _section(done: Done) -> Html:
    rows = [
        (inline(one.what), written(one.value), inline(one.expected), _judged(one.holds))
        for one in done.study.measured
    ]
    pictures = [
        Html(f"<figure>{picture(png, caption)}<figcaption>{inline(caption)}</figcaption></figure>")
        for (caption, _), png in zip(done.study.pictures, done.pictures, strict=True)
    ]
    return joined(
        [
            Html(f'<section id="{escape(done.name)}">'),
            Html(f'<h2><span class="number">{done.claim}.</span> {inline(done.title)}</h2>'),
            _verdict(done),
            _prose(done.text),
            *pictures,
            Html("<h3>What was measured</h3>"),
            table(("what", "measured", "expected", ""), rows, kind="measured"),
            *map(_table, done.study.tables),
            *(Html(f"<p>{inline(note)}</p>") for note in done.study.notes),
            Html(
                f'<p class="small"><code>{escape(done.command)}</code> · {_time(done.seconds)}</p>'
            ),
            Html("</section>"),
        ]
    )


def _table(shown: Table) -> Html:
    heads = [inline(head) for head in shown.heads]
    rows = [[written(value) for value in row] for row in shown.rows]
    return Html(f"<h3>{inline(shown.title)}</h3>\n{table(heads, rows, kind='numbers')}")


def _prose(words: str) -> Html:
    """Paragraphs; an indented one is a formula or a program and stays as it is."""
    return joined(
        Html(f"<pre>{escape(part)}</pre>" if part.startswith(" ") else f"<p>{inline(part)}</p>")
        for part in words.split("\n\n")
        if part.strip()
    )


def _verdict(done: Done) -> Html:
    return _judged(done.study.holds)


def _judged(holds: bool) -> Html:
    word = "holds" if holds else "does not hold"
    return Html(f'<span class="verdict {"yes" if holds else "no"}">{word}</span>')


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} minutes"
