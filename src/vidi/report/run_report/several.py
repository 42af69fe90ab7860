"""Several runs side by side: figures with their differences, curves over one another."""

from __future__ import annotations

import math
from html import escape

from vidi.report import compare_pictures
from vidi.report.compare import Comparison, Spread, listed
from vidi.report.html import Html, inline, joined, table
from vidi.report.run_report.drawing import chart, figure
from vidi.report.run_report.page import command, heading, paragraph, section


def shown(found: Comparison, contents: Html) -> Html:
    """The head of a report of several runs. ``contents``: links to each of them."""
    names = [run.name for run in found.runs]
    said = found.sentences
    return joined(
        [
            Html('<header class="run">'),
            Html(f"<h1>{len(names)} runs side by side</h1>"),
            Html(f'<p class="lead">{escape(found.task)} · {escape(listed(names))}</p>'),
            *(Html(f'<p class="verdict">{inline(one)}</p>') for one in said[:3]),
            contents,
            Html("</header>"),
            section("runs", "Figures", _runs(found), *map(paragraph, said[3:]), *_notes(found)),
            section("differences", "What differs", _differences(found)),
            section("together", "Learning curves", _curves(found)),
        ]
    )


def _runs(found: Comparison) -> Html:
    """A row a metric, a column a run; and of two groups the difference of their means."""
    letters = {id(run): group.letter for group in found.groups for run in group.runs}
    names = list(
        dict.fromkeys((s, m) for run in found.runs for s in run.metrics for m in run.metrics[s])
    )
    pair = [group.letter for group in found.groups] if len(found.groups) == 2 else []
    heads = ["metric", *(f"{letters[id(run)]}: {run.name}" for run in found.runs)]
    heads += [f"{pair[1]} less {pair[0]}"] if pair else []
    rows = []
    for split, metric in names:
        values = [run.metrics.get(split, {}).get(metric, math.nan) for run in found.runs]
        row = [f"{split} {metric}", *("–" if math.isnan(v) else f"{v:.4f}" for v in values)]
        if pair:
            row.append(_less(found.spreads.get((split, metric), {}), pair[0], pair[1]))
        rows.append(row)
    rows += [
        ["seed", *(str(run.seed) for run in found.runs)],
        ["epochs", *(f"{run.epochs:g}" for run in found.runs)],
        [
            "images a second",
            *(
                "–" if (pace := run.images_per_second) is None else f"{pace:,.0f}"
                for run in found.runs
            ),
        ],
        [
            "parameters",
            *("–" if run.parameters is None else f"{run.parameters:,}" for run in found.runs),
        ],
    ]
    # What is no metric has no difference.
    rows = [row + [""] * (len(heads) - len(row)) for row in rows]
    return table(heads, rows, kind="numbers", caption="Figures of all runs")


def _less(spreads: dict[str, Spread], a: str, b: str) -> str:
    if a not in spreads or b not in spreads:
        return "–"
    return f"{spreads[b].mean - spreads[a].mean:+.4f}"


def _notes(found: Comparison) -> list[Html]:
    parts = [paragraph(note, "small") for note in found.notes]
    if found.commands:
        parts.append(heading("Another seed, by which the spread could be told"))
        parts += [command(one) for one in found.commands]
    return parts


def _differences(found: Comparison) -> Html:
    if not found.differences:
        same = len({run.seed for run in found.runs}) == 1
        return paragraph("They differ in nothing." if same else "Nothing but the seed.")
    letters = [group.letter for group in found.groups]
    rows = [[one.name, *(one.values[letter] for letter in letters)] for one in found.differences]
    return table(["", *letters], rows, caption="What differs")


def _curves(found: Comparison) -> Html:
    """One plot of the loss, one of the task's metric, a line for each run; what each came to."""
    if not any(row["event"] == "evaluation" for run in found.runs for row in run.rows):
        return paragraph("Nothing was written down of their training.")
    parts = [
        chart(
            lambda axes: compare_pictures.losses(axes, found),
            "Training loss of all runs over the epochs",
        ),
        chart(
            lambda axes: compare_pictures.headlines(axes, found),
            f"Validation {found.headline} of all runs over the epochs",
        ),
        chart(lambda axes: compare_pictures.ends(axes, found), "What each seed came to"),
    ]
    chips = "".join(
        f'<li><i style="background: {compare_pictures.colour(k)}"></i>'
        f"{escape(compare_pictures.label(group))}</li>"
        for k, group in enumerate(found.groups)
    )
    drawn = "".join(figure(one) for one in parts)
    return Html(f'<div class="charts">{drawn}</div><ul class="chips">{chips}</ul>')
