"""With what the run was made: environment, recipe, and the command that makes it again."""

from __future__ import annotations

from html import escape
from typing import Any

from vidi.recipe import Recipe, flat
from vidi.report.compare import _word
from vidi.report.html import Html, table
from vidi.report.run_report.page import (
    command,
    facts,
    folded,
    heading,
    paragraph,
    section,
)
from vidi.report.run_report.subject import Subject

OF_TASKS = {
    "detection.": "detection",
    "data.proposal": "detection",
    "data.agree": "boundaries",
    "data.disagreement": "boundaries",
    "augmentation.pair_": "flow",
}
"""Settings, by the start of their names, that say something to one task alone."""


def environment(subject: Subject) -> Html:
    """The section of versions and arithmetic."""
    recipe = subject.recipe
    precision = {"fp32": "fp32", "bf16": "bf16, weights in fp32", "fp16": "fp16, weights in fp32"}
    rows = [
        (
            "device",
            "auto: the fastest that was there" if recipe.device == "auto" else recipe.device,
        ),
        ("precision", precision.get(recipe.precision, recipe.precision)),
        ("memory layout", "channels last" if recipe.channels_last is True else "channels first"),
        ("compiled", "with torch.compile" if recipe.compile is True else ""),
        *((name, str(value)) for name, value in (subject.description.versions or {}).items()),
    ]
    return section("environment", "Environment", facts(rows))


def recipe(subject: Subject) -> Html:
    """The section of the recipe and the commands."""
    usual = {name: value for name, value, _ in flat(Recipe())}
    fields = [(name, value) for name, value, _ in flat(subject.recipe)]
    own = [(name, value) for name, value in fields if _is_told(name, value, usual, subject)]
    told = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_word(value))}</dd></div>" for name, value in own
    )
    parts = [
        paragraph("What was asked for, and what vidi chose where it was left to it."),
        Html(f'<dl class="settings">{told}</dl>'),
        folded(
            f"All {len(fields)} settings",
            table((), [(name, _word(value)) for name, value in fields], caption="All settings"),
        ),
    ]
    return section("recipe", "Recipe", *parts, *_commands(subject))


def _is_told(name: str, value: Any, usual: dict[str, Any], subject: Subject) -> bool:
    """Not the defaults, nor what does nothing, nor what is of another task."""
    if value == usual[name] or not value or value in ("none", (1.0, 1.0)):
        return False
    length = subject.recipe.length
    if name == "epochs" and (length.steps is not None or length.minutes is not None):
        return False
    of = [task for start, task in OF_TASKS.items() if name.startswith(start)]
    return not of or subject.task in of


def _commands(subject: Subject) -> list[Html]:
    parts = []
    if subject.description.command:
        what = "The command that made it" if subject.made_of else "The command that trained it"
        parts += [heading(what), command(_typed(subject.description.command))]
    if subject.made_of or subject.description.data.get("svd"):
        return parts
    changes = f"--seed {subject.recipe.seed} --precision {subject.recipe.precision}"
    again = subject.records.again(changes)
    parts.append(heading("To train it again"))
    if again is None:
        words = "Its network or its data was given from Python, so no command trains it again."
        return [*parts, paragraph(words)]
    words = (
        "Into a new folder, with this arithmetic; the same data, versions and kind of device "
        "give the same run."
    )
    if subject.records.of("resume"):
        words = (
            "Into a new folder, with this arithmetic. This run was resumed, and where its length "
            "changed with that, so did its rates: one run of that command is not the same."
        )
    return [*parts, paragraph(words), command(again)]


def _typed(words: str) -> str:
    """As one types it, whatever the program was called then."""
    return words.replace("__main__.py", "vidi", 1) if words.startswith("__main__.py") else words
