"""`vidi doctor RUN`: why a training run went as it did, and what to do."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vidi.cli.outputs import writing_to
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.cli.doctor import Doctor, OfRun
    from vidi.doctor import Finding, Records
    from vidi.engine.prepare import Prepared

WIDE = 96


class Result(Protocol):
    """What is measured anew."""

    def as_json(self) -> dict[str, Any]: ...

    def lines(self) -> list[str]: ...


Draw = Callable[[Any, Path], None]


def run_of(subject: str) -> Path | None:
    """The run that is meant: its folder, or a file of weights in it; None where it is something
    else."""
    path = Path(subject).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        path = path.parent
        if not (path / "recipe.json").is_file():
            raise InputError(
                f"{subject} lies in no run's folder: beside the weights, recipe.json and what "
                "training wrote down are needed. `vidi eval` takes the weights alone."
            )
    return path if (path / "recipe.json").is_file() else None


def main(told: Doctor, run: Path | None) -> int:
    """``run`` is None for a network that is only to be checked by differences."""
    records: Records | None = None
    findings: tuple[Finding, ...] = ()
    notes: list[str] = []
    folder = None if told.out is None else Path(told.out).expanduser()
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --out names a folder for the pictures.")
    # What a user's own network prints must not end up in the JSON.
    with contextlib.redirect_stdout(sys.stderr):
        if run is None:
            results = _network(told.subject)
        else:
            records, findings, notes, results = _look(run, told.run)
        pictures = [] if folder is None else _draw(findings, results, folder)
        body = _object(told, records, findings, notes, results, pictures)
        if folder is not None:
            with writing_to(folder):
                (folder / "doctor.json").write_text(json.dumps(body, indent=1), "utf-8")
    if told.json:
        print(json.dumps(body))
    else:
        _print(records, findings, notes, results, pictures)
    return 0


def _look(
    run: Path, told: OfRun
) -> tuple[Records, tuple[Finding, ...], list[str], dict[str, tuple[Result, Draw | None]]]:
    """(what it wrote down, what was found, what should be known of that, what was measured)."""
    asked = [name for name in ACTIONS if getattr(told, name)]
    if told.records_only and asked:
        raise InputError(
            f"--records-only opens no data, which --{asked[0].replace('_', '-')} needs. Leave out "
            "one of the two."
        )
    from vidi import api
    from vidi.doctor import examine, examine_on_data, read_records
    from vidi.engine.run import BEST

    records = read_records(run)
    notes = []
    if records.recipe.probe:
        if told.lr_range:
            raise InputError(
                f"{run} was fitted in closed form (--probe), with no rate that --lr-range could "
                "look for. Leave it out."
            )
        notes.append(
            "The run was fitted in closed form (--probe), without steps: there are no curves and "
            "no layers in training that could be looked at."
        )
    elif not records.vitals:
        notes.append(
            "The run wrote down nothing of its layers (--logging.no-vitals, or an earlier "
            "version trained it): only its curves and settings could be looked at."
        )
    if told.records_only:
        return records, examine(records), notes, {}
    try:
        findings = examine_on_data(records, api.reopen(run))
    except InputError as error:
        notes.append(f"Data and weights could not be looked at. {error}")
        findings = examine(records)
    # Each looks at the run as training left it, whatever one before it did to the network; a run
    # that came to nothing can still be begun.
    begun = not (run / BEST).is_file()
    results = {
        name: ACTIONS[name](api.reopen(run, weights="first" if begun and name in ANEW else "best"))
        for name in asked
    }
    return records, findings, notes, results


def _overfit_one_batch(made: Prepared) -> tuple[Result, Draw | None]:
    from vidi.doctor.overfit import overfit_one_batch
    from vidi.report import overfit

    return overfit_one_batch(made), overfit.draw


def _lr_range(made: Prepared) -> tuple[Result, Draw | None]:
    from vidi.doctor.lr_range import lr_range
    from vidi.report import lr_range as picture

    return lr_range(made), picture.draw


def _gradcheck(made: Prepared) -> tuple[Result, Draw | None]:
    from vidi.doctor.gradcheck import gradcheck

    return gradcheck(made), None


def _hardest(made: Prepared) -> tuple[Result, Draw | None]:
    from vidi.doctor.hardest import hardest
    from vidi.report import hardest as picture

    return hardest(made), picture.draw


def _slices(made: Prepared) -> tuple[Result, Draw | None]:
    from vidi.doctor.slices import slices
    from vidi.report import slices as picture

    return slices(made), picture.draw


ACTIONS: dict[str, Callable[[Prepared], tuple[Result, Draw | None]]] = {
    "overfit_one_batch": _overfit_one_batch,
    "lr_range": _lr_range,
    "gradcheck": _gradcheck,
    "hardest": _hardest,
    "slices": _slices,
}
"""What is measured anew, each with the function that draws it, where there is one."""

ANEW = {"overfit_one_batch", "lr_range", "gradcheck"}
"""They ask nothing of what was learned."""


def _network(name: str) -> dict[str, tuple[Result, Draw | None]]:
    from vidi.doctor.gradcheck import gradcheck_named

    return {"gradcheck": (gradcheck_named(name), None)}


def _draw(
    findings: tuple[Finding, ...], results: dict[str, tuple[Result, Draw | None]], folder: Path
) -> list[Path]:
    """A picture of each finding that has numbers to show, and of what was measured."""
    from vidi.report import doctor

    pictures: list[Path] = []
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for finding in findings:
            if finding.series is not None:
                pictures.append(folder / f"{finding.severity}-{finding.code}.png")
                doctor.draw(finding, pictures[-1])
        for name, (result, draw) in results.items():
            if draw is not None:
                path = folder / f"{name.replace('_', '-')}.png"
                draw(result, path)
                pictures += [path] if path.is_file() else []
    return pictures


def _object(
    told: Doctor,
    records: Records | None,
    findings: tuple[Finding, ...],
    notes: list[str],
    results: dict[str, tuple[Result, Draw | None]],
    pictures: list[Path],
) -> dict[str, Any]:
    from vidi.engine.run import plain

    body: dict[str, Any] = {"subject": told.subject}
    if records is not None:
        body |= {
            "run": str(records.path),
            "task": records.task,
            "model": records.recipe.model,
            "steps": records.steps,
            "counts": _counts(findings),
            "findings": [finding.as_json() for finding in findings],
            "notes": notes,
        }
    body |= {name: result.as_json() for name, (result, _) in results.items()}
    found: dict[str, Any] = plain(body | {"pictures": [str(path) for path in pictures]})
    return found


def _counts(findings: tuple[Finding, ...]) -> dict[str, int]:
    from vidi.doctor import SEVERITIES

    return {s: sum(finding.severity == s for finding in findings) for s in SEVERITIES}


def _print(
    records: Records | None,
    findings: tuple[Finding, ...],
    notes: list[str],
    results: dict[str, tuple[Result, Draw | None]],
    pictures: list[Path],
) -> None:
    if records is not None:
        recipe = records.recipe
        print(f"{records.path}: {records.task}, {recipe.model}, {records.steps:,} steps")
        for note in notes:
            print(textwrap.fill(f"note: {note}", WIDE, break_long_words=False))
        for finding in findings:
            print()
            _finding(finding)
        print()
        if findings:
            print(", ".join(f"{name}: {n}" for name, n in _counts(findings).items()) + ".")
        else:
            print("Nothing was found.")
    for number, (result, _) in enumerate(results.values()):
        if number or records is not None:
            print()
        print("\n".join(result.lines()))
    for path in pictures:
        print(f"wrote {path}")


def _finding(finding: Finding) -> None:
    print(f"{finding.severity.upper()}  {finding.code}")
    _paragraph(finding.what.rstrip(".") + ".", "  ")
    for sentence in finding.evidence:
        _paragraph(sentence, "    ", first="  - ")
    _paragraph(f"do: {finding.remedy}", "  ")
    if finding.command is not None:
        print(f"    $ {finding.command}")


def _paragraph(text: str, indent: str, first: str | None = None) -> None:
    print(
        textwrap.fill(
            text,
            WIDE,
            initial_indent=indent if first is None else first,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
