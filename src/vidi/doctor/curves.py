"""What the curve of the loss tells: rate, momentum, plateaus, noise, and how it began."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean, median

from vidi.doctor import measures
from vidi.doctor.finding import STUCK, Finding, Severity
from vidi.doctor.records import Records

STRONG = 0.98
"""Momentum from here on remembers fifty steps and more."""
LONGEST = 0.1
"""A step that changes a layer by more of itself than this, again and again, learns nothing new."""
USUAL = 3e-3
"""What a healthy step changes a layer by, relative to its norm: about a thousandth, and somewhat
more in short runs."""
FARTHEST = 100.0
"""A rate that is to be so many times higher is better found than guessed."""
STILL = 0.03
"""Weights that came no further than this, relative to themselves, are as they began."""


def initial_loss(records: Records) -> list[Finding]:
    """The first loss should be what equally likely answers cost: log K of K classes."""
    if not records.vitals or records.vitals[0]["step"] != 1 or records.recipe.weights is not None:
        return []
    row = records.vitals[0]
    for name, level in measures.balanced(records).items():
        found = (row.get("losses") or {}).get(name)
        if found is None or found <= 2 * level + 1:
            continue
        last = list(row["layers"])[-1] if row["layers"] else None
        evidence = [
            f"At step 1 the {name.replace('_', '-')} is {found:.3g}. Equally likely answers would "
            f"cost {level:.3g}."
        ]
        if last is not None:
            spread = row["layers"][last]["std"]
            evidence.append(
                f"The deviation of what the last layer, {last}, gives is {spread:.3g}; at the "
                "beginning about 1 or less is usual."
            )
        return [
            Finding(
                code="initial-loss",
                severity="problem" if found > 10 * level else "warning",
                what="The network began with answers that are wrong and sure: its first loss is "
                f"{found / level:.1f} times what a guess costs",
                evidence=tuple(evidence),
                remedy="Begin with a smaller last layer (its weights times 0.1, or zero), and see "
                "that what it is given has a deviation near 1.",
                layer=last,
                step=1,
                series=measures.learning(records),
            )
        ]
    return []


def diverged(records: Records) -> list[Finding]:
    """The loss ended far above where it began, or stopped being a number after it had grown."""
    start, found = measures.begin(records), measures.losses(records)
    if start is None or len(found) < 2:
        return []
    early = [loss for step, loss in found if step <= max(2, found[-1][0] / 4)]
    level = max(start, measures.reference(records) or start, median(early))
    moves = [m for row in records.vitals if (m := measures.motion(row)) is not None]
    # A small batch may be an easy one, and the next ones harder: that alone is no divergence.
    far = not moves or max(moves) > LONGEST
    highest_step, highest = max(found, key=lambda at: at[1])
    stopped = records.of("stopped")
    finish = measures.end(records)
    last = found[-1][1]
    grew = highest > 5 * level and highest_step > 1
    over = grew and (bool(stopped) or (far and last > 2 * level))
    risen = finish is not None and min(finish, last) > (1.5 if far else 5) * level
    if not over and not risen:
        return []
    return [
        _too_fast(
            records,
            "problem",
            f"The loss grew from {start:.3g} to {highest:.3g} (step {highest_step})"
            + (", and then was no number any more." if stopped else f"; it ended at {last:.3g}."),
            "It diverged",
        )
    ]


def ping_pong(records: Records) -> list[Finding]:
    """The steps are so long that they jump over the valley, from one side to the other."""
    finish, level = measures.end(records), measures.reference(records)
    if finish is None or level is None or diverged(records):
        return []
    rows = [row for row in measures.later(records) if measures.full_rate(records, row)]
    moves = [m for row in rows if (m := measures.motion(row)) is not None]
    if len(moves) < 3 or finish < 0.8 * level:
        return []
    if median(moves) > LONGEST or max(moves) > 10 * LONGEST:
        return [
            _too_fast(
                records,
                "problem",
                f"The loss went up and down and ended at {finish:.3g}, where equally likely "
                f"answers cost {level:.3g}.",
                "It jumped from side to side",
            )
        ]
    return []


def bouncing(records: Records) -> list[Finding]:
    """It learned, but the loss jumps by a good part of itself from step to step, and stays high."""
    start, found = measures.begin(records), measures.losses(records)
    if start is None or ping_pong(records) or diverged(records):
        return []
    rows = [row for row in measures.later(records) if measures.full_rate(records, row)]
    steps = [row["step"] for row in rows]
    values = [loss for step, loss in found if steps and steps[0] <= step <= steps[-1]]
    if len(values) < 8:
        return []
    late = values[len(values) // 2 :]
    jumps = [abs(b - a) for a, b in pairwise(late)]
    moves = [m for row in rows if (m := measures.motion(row)) is not None]
    rough = median(jumps) / max(1e-12, mean(late))
    if rough < 0.5 or not moves or median(moves) < LONGEST / 5 or mean(late) < 0.4 * start:
        return []
    return [
        _too_fast(
            records,
            "warning",
            f"In the second half of the steps at full rate the loss is {mean(late):.3g}, and jumps "
            f"by {median(jumps):.2g} from one that was written down to the next.",
            "It jumped from side to side",
        )
    ]


def slow_to_turn(records: Records) -> list[Finding]:
    """Momentum that remembers a good part of the whole run: steps add up long after the slope has
    turned."""
    momentum = float(records.recipe.optimiser.momentum)
    memory = 1 / max(1e-9, 1 - momentum)
    if momentum < STRONG or records.steps < 20 or memory < records.steps / 3:
        return []
    if diverged(records) or ping_pong(records) or bouncing(records):
        return []
    rows = [row for row in records.vitals if measures.weights(row) and row.get("lr")]
    if not rows:
        return []
    added = {
        row["step"]: median(
            found["update"] / (row["lr"] * max(found["gradient"], 1e-12))
            for found in measures.weights(row).values()
        )
        for row in rows
    }
    step, most = max(added.items(), key=lambda at: at[1])
    evidence = [f"A momentum of {momentum:g} adds up the steps of {memory:.0f}, and the run had "
                f"{records.steps:,}."]  # fmt: skip
    if records.recipe.optimiser.name == "sgd":
        evidence.append(
            f"At step {step} the update was {most:.3g} times what rate and gradient alone give; "
            "with the usual momentum of 0.9 it is up to 10."
        )
    return [
        Finding(
            code="momentum-too-high",
            severity="warning",
            what=f"The momentum is too high for so short a run, {momentum:g}: it rolls on when the "
            "slope has turned",
            evidence=tuple(evidence),
            remedy="Take the usual momentum of 0.9.",
            command=records.again("--optimiser.momentum 0.9"),
            step=step,
            series=measures.learning(records),
            explains=("loss-noise", *STUCK),
        )
    ]


def _too_fast(records: Records, severity: Severity, evidence: str, how: str) -> Finding:
    """Rate or momentum, whichever makes the steps too long."""
    recipe, rows = records.recipe, records.vitals
    moves = [(row["step"], m) for row in rows if (m := measures.motion(row)) is not None]
    told = [evidence]
    longest: tuple[int, float] | None = None
    if moves:
        longest = max(moves, key=lambda at: at[1])
        told.append(
            f"At step {longest[0]} the middle layer changed by {longest[1]:.2g} of its own norm; "
            f"about {USUAL / 3:g} to {3 * USUAL:g} is usual."
        )
    momentum, rate = float(recipe.optimiser.momentum), float(recipe.lr)
    memory = 1 / max(1e-9, 1 - momentum)
    alone = _first_step_at_full_rate(records)
    # With the usual momentum of 0.9, steps would be ten times those without any.
    if momentum >= STRONG and (alone is None or 10 * alone < 5 * LONGEST):
        if alone is not None:
            told.append(
                f"A single step at full rate, without what momentum adds, would change the middle "
                f"layer by {alone:.2g} of itself: the rate alone is not too high."
            )
        told.append(f"A momentum of {momentum:g} adds up the steps of {memory:.0f}.")
        return Finding(
            code="momentum-too-high",
            severity=severity,
            what=f"The momentum is too high, {momentum:g}. {how}, with steps that add up",
            evidence=tuple(told),
            remedy="Take the usual momentum of 0.9; or lower the rate by what the momentum adds.",
            command=records.again("--optimiser.momentum 0.9"),
            step=longest[0] if longest else None,
            series=measures.learning(records),
            explains=_SYMPTOMS,
        )
    factor = 10.0
    if alone is not None:  # the same layer, with what momentum adds, by a usual step
        factor = max(3.0, min(1000.0, alone * memory / (10 * USUAL)))
    lower = measures.rounded(rate / factor)
    return Finding(
        code="rate-too-high",
        severity=severity,
        what=f"The learning rate is too high, {rate:g}. {how}",
        evidence=tuple(told),
        remedy=f"Train at a lower rate, about {lower}; `{records.look_closer('--lr-range')}` "
        "measures which rates this network bears.",
        command=records.again(f"--lr {lower}"),
        step=longest[0] if longest else None,
        series=measures.learning(records),
        explains=_SYMPTOMS,
    )


_SYMPTOMS = (
    "dead-relus",
    "saturated",
    *STUCK,
    "loss-noise",
    "vanishing-gradient",
    "no-gradient",
    "not-finite",
    "overflow",
)
"""What steps that are too long do to a network that was healthy."""


def _first_step_at_full_rate(records: Records) -> float | None:
    """By how much of itself the middle layer would change in the first step at the highest rate."""
    rows = records.vitals
    if not rows or rows[0]["step"] != 1 or not rows[0].get("lr"):
        return None
    move = measures.motion(rows[0])
    return None if move is None else move * float(records.recipe.lr) / rows[0]["lr"]


def too_slow(records: Records) -> list[Finding]:
    """Weights that hardly moved in the whole run, though gradients reach them."""
    start, finish = measures.begin(records), measures.end(records)
    come = measures.path(records)
    if start is None or finish is None or come is None or records.steps < 20:
        return []
    if not any(measures.full_rate(records, row) for row in measures.later(records, 8)):
        return []
    little = come < STILL or (come < 5 * STILL and records.steps >= 100)
    highest = max(m for row in records.vitals if (m := measures.motion(row)) is not None)
    # A run of few steps of a usual length is short, and not slow.
    if not little or finish < 0.9 * start or highest > USUAL / 10:
        return []
    level = measures.reference(records)
    if level is not None and finish < 0.5 * level:
        return []  # what begins with a good network need not go far
    rate = float(records.recipe.lr)
    full = measures.highest_rate(records)
    at_full = max(
        m * full / row["lr"]
        for row in records.vitals
        if row.get("lr") and (m := measures.motion(row)) is not None
    )
    factor = max(10.0, USUAL / max(at_full, 1e-12))
    higher = measures.rounded(rate * factor)
    guess = factor > FARTHEST
    return [
        Finding(
            code="rate-too-low",
            severity="problem" if come < STILL and not records.recipe.weights else "warning",
            what=f"The learning rate is too low, {rate:g}: the weights hardly moved",
            evidence=(
                f"In {records.steps:,} steps the layer that moved most came at most {come:.2g} of "
                "its own norm.",
                f"The loss went from {start:.4g} to {finish:.4g}.",
                f"The longest step that was looked at changed the middle layer by {highest:.1g} of "
                f"its norm; about {USUAL / 3:g} to {3 * USUAL:g} is usual.",
            ),
            remedy="Let the rate be found (--lr find)."
            if guess
            else f"Train at a higher rate, about {higher}; `{records.look_closer('--lr-range')}` "
            "measures which rates this network bears.",
            command=records.again("--lr find" if guess else f"--lr {higher}"),
            series=measures.learning(records),
            explains=STUCK,
        )
    ]


def plateau(records: Records) -> list[Finding]:
    """The weights move, and the loss does not: a flat region."""
    level, found = measures.reference(records), measures.losses(records)
    come = measures.path(records)
    if level is None or len(found) < 6 or records.steps < 30:
        return []
    if come is not None and come < 5 * STILL:
        return []
    if _better_than_chance(records):
        return []
    finish = measures.end(records)
    if finish is not None and 0.95 * level < finish < 1.5 * level:
        return [_flat(records, f"The loss ended at {finish:.3g}, and equally likely answers cost "
                      f"{level:.3g}: nothing was learned", 1)]  # fmt: skip
    full = [row["step"] for row in records.rows if measures.full_rate(records, row)]
    values = [(s, loss) for s, loss in found if full and s <= full[-1]]
    if len(values) < 12:
        return []
    third = len(values) // 3
    middle = median(loss for _, loss in values[third : 2 * third])
    late = median(loss for _, loss in values[-third:])
    if late > 0.99 * middle and late > 0.5 * level:
        step = values[third][0]
        return [_flat(records, f"From step {step} on, at full rate, the loss stays at "
                      f"{late:.3g}", step)]  # fmt: skip
    return []


def _better_than_chance(records: Records) -> bool:
    """Whether validation says that something was learned: mixed or smoothed labels, or a batch of
    one, can keep the training loss where it began."""
    found = [row["metrics"].get("accuracy") for row in records.evaluations]
    best = max((value for value in found if value is not None), default=0.0)
    return bool(best > 1.5 / max(2, len(records.classes)) and best > 0.25)


def _flat(records: Records, evidence: str, step: int) -> Finding:
    return Finding(
        code="plateau",
        severity="warning",
        what="The loss lies on a plateau: the weights move, and it does not fall",
        evidence=(evidence + ".",),
        remedy="See first that one batch can be learned by heart: if it cannot, network or labels "
        "are at fault; if it can, train longer or at another rate.",
        command=records.look_closer("--overfit-one-batch"),
        step=step,
        series=measures.learning(records),
        explains=("underfitting",),
    )


def noise(records: Records) -> list[Finding]:
    """A loss that jumps from step to step, though it falls in the long run."""
    found = measures.losses(records)
    start = measures.begin(records)
    if start is None or len(found) < 12:
        return []
    late = [loss for _, loss in found[len(found) // 2 :]]
    jumps = [abs(b - a) for a, b in pairwise(late)]
    rough = median(jumps) / max(1e-12, median(late))
    if rough < 0.5 or median(late) < 0.1 * start:
        return []
    size = int(records.recipe.batch_size)
    return [
        Finding(
            code="loss-noise",
            severity="note",
            what=f"The loss is noisy: from step to step it jumps by {rough:.0%} of itself",
            evidence=(
                f"In the second half it is {median(late):.3g}, and jumps by {median(jumps):.2g} "
                f"between steps that were written down, with {size} images per batch.",
            ),
            remedy="Larger batches or a moving average of the weights calm it; read the mean over "
            "an epoch instead of single steps.",
            command=records.again(f"--batch-size {4 * size}"),
            series=measures.learning(records),
        )
    ]
