"""What the doctor finds in the run: sentences, the numbers they go by, and what to do."""

from __future__ import annotations

from html import escape

from vidi.doctor.finding import Finding
from vidi.report import doctor
from vidi.report.html import Html, inline
from vidi.report.run_report.drawing import drawing, figure
from vidi.report.run_report.page import command, paragraph, section
from vidi.report.run_report.subject import Subject


def shown(subject: Subject) -> Html:
    """The section."""
    if not subject.records.rows:
        words = "Nothing was written down of its training, so there is nothing to look into."
        return section("doctor", "What the doctor finds", paragraph(words))
    looked = "its records, its data and its network" if subject.opened else "its records alone"
    words = f"`vidi doctor` looked at {looked}."
    if not subject.findings:
        words += " It found nothing."
    return section(
        "doctor", "What the doctor finds", paragraph(words), *map(_finding, subject.findings)
    )


def _finding(finding: Finding) -> Html:
    evidence = "".join(f"<li>{inline(one)}</li>" for one in finding.evidence)
    series = finding.series
    drawn = ""
    if series is not None:
        alt = f"{', '.join(series.ys)}: {series.ylabel} by {series.xlabel}"
        svg = drawing(lambda path: doctor.draw(finding, path), alt)
        drawn = figure(Html(f'<div class="wide" style="--least: 400px">{svg}</div>'))
    return Html(
        f'<div class="finding"><h3><span class="tag {finding.severity}">{finding.severity}</span>'
        f"<code>{escape(finding.code)}</code></h3>"
        f"<p>{inline(finding.what.rstrip('.'))}.</p><ul>{evidence}</ul>"
        f"<p><b>Do:</b> {inline(finding.remedy)}</p>"
        + (command(finding.command) if finding.command else "")
        + drawn
        + "</div>"
    )
