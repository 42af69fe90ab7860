"""What a run took and needs: time, arithmetic, memory."""

from __future__ import annotations

from torch import nn

from vidi.doctor.records import Records
from vidi.errors import InputError
from vidi.models import count
from vidi.models.members import members_of
from vidi.models.profile import profile
from vidi.report.html import Html
from vidi.report.run_report.looked import Looked
from vidi.report.run_report.page import amount, duration, facts, section
from vidi.report.run_report.subject import Subject


def shown(subject: Subject, looked: Looked | None) -> Html:
    """The section. ``looked``: what was predicted for the report, whose pace is told."""
    run = subject.run
    best = run.path / "best.safetensors"
    seconds = training_seconds(subject.records)
    rows = [
        ("training", "" if not seconds else f"{duration(seconds)}, without evaluation"),
        (
            "pace of training",
            ""
            if not run.images_per_second
            else f"{_paced(run.images_per_second)} {subject.samples} a second",
        ),
        ("pace of prediction", _prediction(looked, subject.samples)),
        ("parameters", "" if run.parameters is None else f"{run.parameters:,}"),
        ("weights", f"{amount(best.stat().st_size, 'B')} on disk" if best.is_file() else ""),
    ]
    if subject.network is not None:
        rows += _costs(subject, subject.network)
    return section("cost", "Time and memory", facts(rows))


def training_seconds(records: Records) -> float:
    """Seconds of training alone, as far as it was written down; 0 where nothing was.

    The clock is a process's own: after each resume it begins anew, and once more after the first
    steps, which are slow.
    """
    total = last = 0.0
    for row in records.rows:
        if row["event"] == "probe":
            return float(row["seconds"])
        anew = row["event"] == "resume" or (row["event"] == "epoch" and row["seconds"] < last)
        if anew:
            total, last = total + last, 0.0
        if row["event"] == "epoch":
            last = float(row["seconds"])
    if total + last:
        return total + last
    # Ended within its first epoch.
    pace = next((r["images_per_second"] for r in reversed(records.of("train"))), None)
    batch = records.recipe.batch_size
    return records.steps * int(batch) / pace if pace and batch != "auto" else 0.0


def _prediction(looked: Looked | None, samples: str) -> str:
    if looked is None or not looked.seconds:
        return ""
    return (
        f"{_paced(looked.samples / looked.seconds)} {samples} a second on {looked.device} as this "
        "report was made, with reading and scoring"
    )


def _paced(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _costs(subject: Subject, network: nn.Module) -> list[tuple[str, str]]:
    """What predicting an image computes, and what training keeps of a batch."""
    recipe = subject.recipe
    assert recipe.image_size != "auto" and recipe.batch_size != "auto"
    size, batch = recipe.image_size, recipe.batch_size
    proposed = recipe.task == "detection" and not getattr(network, "proposes", False)
    regions = recipe.data.proposal_count if proposed else None
    members = [member for _, member in members_of(network)]
    try:
        macs = sum(count.macs(one, size, regions=regions) for one in members)
    except InputError:  # it takes images of other sizes only
        return []
    rows = [("multiply-adds", f"{amount(macs)} to predict {size} × {size} pixels")]
    # Of regions training looks at a few, and of anchors too: their memory is another.
    if recipe.task != "detection" and not recipe.probe:
        kept = sum(profile(one, size, batch=batch, timed=False).memory for one in members)
        words = f"{amount(kept, 'B')} kept of a batch of {batch} for the backward pass"
        rows.append(("memory of training", words))
    return rows
