"""How training went: loss, the task's metric, rate; of a probe what each penalty came to."""

from __future__ import annotations

from typing import Any

from vidi import tasks
from vidi.report import pictures, probe_pictures
from vidi.report.html import Html
from vidi.report.run_report.drawing import chart, drawing, figure
from vidi.report.run_report.page import paragraph, section
from vidi.report.run_report.subject import Subject


def shown(subject: Subject) -> Html:
    """The section."""
    rows = subject.records.rows
    title = "Learning curves"
    if subject.made_of:
        names = ", ".join(dict.fromkeys(f"`{one['run']}`" for one in subject.made_of))
        words = f"An ensemble was not trained as it is; its members have curves: {names}."
        return section("curves", title, paragraph(words))
    if any(row["event"] == "probe" for row in rows):
        drawn = drawing(
            lambda path: probe_pictures.by_weight(rows, path),
            "What each weight of the penalty came to on validation",
        )
        words = "The last layer was fitted in closed form: one pass, without steps and rates."
        wide = Html(f'<div class="wide" style="--least: 480px">{drawn}</div>')
        return section("curves", "The fit", paragraph(words), figure(wide))
    if not any(row["event"] in ("train", "evaluation") for row in rows):
        return section("curves", title, paragraph("Nothing was written down of its training yet."))
    return section("curves", title, charts(rows, subject.task))


def charts(rows: list[dict[str, Any]], task: str) -> Html:
    """Three small charts, beside each other where there is room. ``rows``: of metrics.jsonl."""
    kind: Any = tasks.find(task).Task
    headline, lower = str(kind.headline), bool(getattr(kind, "lower_is_better", False))
    losses = [row["train_loss"] for row in rows if row["event"] == "evaluation"]
    losses = [value for value in losses if value is not None]
    went = f", from {losses[0]:.3g} to {losses[-1]:.3g}" if losses else ""
    parts = [
        chart(lambda axes: pictures.losses(axes, rows), f"The loss over the epochs{went}"),
        chart(
            lambda axes: pictures.headlines(axes, rows, headline, lower_is_better=lower),
            f"{headline} of validation over the epochs",
        ),
    ]
    if any(row["event"] == "train" for row in rows):
        parts.append(
            chart(lambda axes: pictures.rates(axes, rows), "The learning rate over the epochs")
        )
    return Html(f'<div class="charts">{"".join(figure(one) for one in parts)}</div>')
