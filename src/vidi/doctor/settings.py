"""What the recipe's settings did: decay, dropout; and why a run stopped."""

from __future__ import annotations

import re
from statistics import median

from vidi.doctor import generalisation, measures
from vidi.doctor.finding import STUCK, Finding
from vidi.doctor.looking import Looked
from vidi.doctor.records import Records, Row

FULL_PULL = 1.0
"""From here on weight decay pulls as strongly as all that is to be learned."""
SHRUNK = 0.7
MUCH_DROPOUT = 0.7
MEASURED_DROPOUT = 0.85
"""As it is seen in a layer's zeros: some of them may be of a ReLU that is no layer."""
DROPPED = 1.5
"""Dropout is too strong if the loss with it is so many times that without."""


def not_finite(records: Records) -> list[Finding]:
    """The run stopped because a loss or a gradient was no number."""
    stopped = records.of("stopped")
    if not stopped:
        return []
    row = stopped[-1]
    why = str(row.get("why", ""))
    named = re.search(r"(?:output of|input of|gradient of|weight) (\S+)(?: \((\w+)\))?(?= is)", why)
    layer = named.group(1) if named else None
    what = why.split(": ", 1)[-1].split(". ", 1)[0]
    rest = re.search(r"Samples: (.+?)\. The weights", why)
    evidence = [f"The run stopped at step {row['step']}: {what}."]
    if rest:
        evidence.append(f"The batch: {rest.group(1)}.")
    found = measures.losses(records)
    if found:
        evidence.append(f"The last loss that was written down is {found[-1][1]:.3g}, of step "
                        f"{found[-1][0]}.")  # fmt: skip
    return [
        Finding(
            code="not-finite",
            severity="problem",
            what="The loss or its gradient stopped being a number"
            + (f", first at {layer}" if layer else ""),
            evidence=tuple(evidence),
            remedy="Look at that layer and at these samples. Where the loss had grown before, the "
            "rate is too high; otherwise it is a division by zero, a logarithm or root of what may "
            "be zero, or half precision (--precision fp32).",
            command=records.again("--precision fp32"),
            layer=layer,
            step=int(row["step"]),
            series=measures.learning(records) if len(found) > 1 else None,
        )
    ]


def strong_decay(records: Records) -> list[Finding]:
    """Weight decay that pulls the weights to zero more strongly than the data pulls them away."""
    recipe = records.recipe
    decay = float(recipe.optimiser.weight_decay)
    rows = [row for row in measures.later(records, 8) if measures.weights(row)]
    if not decay or len(rows) < 2:
        return []
    pulls = [median(_pulls(row, records).values()) for row in rows if _pulls(row, records)]
    if not pulls:
        return []
    before, after = measures.weights(records.vitals[0]), measures.weights(rows[-1])
    kept = [after[n]["weight"] / before[n]["weight"] for n in after if n in before]
    start, finish = measures.begin(records), measures.end(records)
    if not kept or start is None or finish is None:
        return []
    if median(pulls) < FULL_PULL or median(kept) > SHRUNK or finish < 0.3 * start:
        return []
    lower = measures.rounded(min(decay / 100, 5e-4))
    return [
        Finding(
            code="decay-too-strong",
            severity="problem" if finish > 0.9 * start else "warning",
            what=f"Weight decay is too strong, {decay:g}: it outweighs what is to be learned",
            evidence=(
                f"In the middle look it pulls the middle layer's weights to zero "
                f"{median(pulls):.2g} times as strongly as the loss moves them.",
                f"From step {records.vitals[0]['step']} to {rows[-1]['step']} they shrank to "
                f"{median(kept):.0%} of their norm, and the loss went from {start:.3g} to "
                f"{finish:.3g}.",
            ),
            remedy=f"Decay less, about {lower}.",
            command=records.again(f"--optimiser.weight-decay {lower}"),
            step=rows[-1]["step"],
            series=measures.over_steps(
                records, "parameters", list(after), "weight", "norm of the weights"
            ),
            explains=(
                *STUCK,
                "vanishing-gradient",
                "rate-too-high",
                "dead-relus",
            ),
        )
    ]


def _pulls(row: Row, records: Records) -> dict[str, float]:
    """How strongly decay pulls each matrix to zero, relative to what else moves it."""
    optimiser = records.recipe.optimiser
    decay = float(optimiser.weight_decay)
    found: dict[str, float] = {}
    for name, told in measures.weights(row).items():
        if optimiser.name == "sgd":  # the penalty is part of the gradient
            found[name] = decay * told["weight"] / max(told["gradient"], 1e-12)
        else:  # it is part of the update: what is left of it is the rest
            pull = row["lr"] * decay * told["weight"]
            found[name] = pull / max(told["update"] - pull, 0.1 * told["update"], 1e-12)
    return found


def strong_dropout(records: Records) -> list[Finding]:
    """So much dropout that the network cannot learn its own training set."""
    start, finish = measures.begin(records), measures.end(records)
    level = measures.reference(records)
    if start is None or finish is None or level is None or finish < 0.4 * level:
        return []
    rate, layer, how = _dropout(records)
    if rate is None:
        return []
    evidence = [how]
    known = [row for row in records.evaluations if row["metrics"].get("cross_entropy") is not None]
    if known:
        value = known[-1]["metrics"]["cross_entropy"]
        evidence.append(
            f"The training loss ended at {finish:.3g}; on validation, where nothing is dropped, it "
            f"was {value:.3g}."
        )
    else:
        evidence.append(f"The training loss went from {start:.3g} to {finish:.3g} only.")
    return [
        Finding(
            code="dropout-too-strong",
            severity="warning",
            what=f"Dropout is too strong: about {rate:.0%} of the units are left out at each step",
            evidence=tuple(evidence),
            remedy="Drop at most half; in a short run, less.",
            command=records.again("--regularisation.dropout 0.5"),
            layer=layer,
            series=measures.learning(records),
            explains=("loss-noise", "dead-relus", *STUCK),
        )
    ]


def costly_dropout(records: Records, looked: Looked) -> list[Finding]:
    """Dropout that raises the loss of a network that knows little: less of it is too much, too."""
    seen = looked.trained
    if seen.without_dropout is None or seen.loss < DROPPED * seen.without_dropout:
        return []
    if not generalisation.knows_little(looked):
        return []
    return [
        Finding(
            code="dropout-too-strong",
            severity="warning",
            what="So much is dropped out in training that little is learned.",
            evidence=(
                generalisation.scores(looked),
                f"On the same batches the loss is {seen.loss:.3g} with dropout and "
                f"{seen.without_dropout:.3g} without.",
            ),
            remedy="Drop less, or nothing, until the network fits its training samples.",
            command=records.again("--regularisation.dropout 0.1"),
            explains=("underfitting",),
        )
    ]


def _dropout(records: Records) -> tuple[float | None, str | None, str]:
    """(the rate, its layer, a sentence): the recipe's, or what is seen in the zeros of a layer
    beyond those that it was given."""
    told = records.recipe.regularisation.dropout
    kinds = {f["kind"] for row in records.vitals[:1] for f in row["layers"].values()}
    drops = any(kind.endswith("Dropout") or kind.startswith("Dropout") for kind in kinds)
    if told is not None and told >= MUCH_DROPOUT and (drops or not records.vitals):
        return told, None, f"The recipe says --regularisation.dropout {told:g}."
    seen: dict[str, list[float]] = {}
    for row in records.vitals:
        before = 0.0
        for name, found in row["layers"].items():
            if found["kind"].startswith("Dropout") and before < 1:
                seen.setdefault(name, []).append(1 - (1 - found["zero"]) / (1 - before))
            before = found["zero"]
    rates = {name: median(values) for name, values in seen.items()}
    high = {name: rate for name, rate in rates.items() if rate >= MEASURED_DROPOUT}
    if not high:
        return None, None, ""
    name = max(high, key=lambda n: high[n])
    return high[name], name, f"The layer {name} sets {high[name]:.0%} of what it is given to zero."


def decayed_norms(records: Records) -> list[Finding]:
    """Biases and normalisation parameters are decayed too."""
    recipe = records.recipe
    decay = float(recipe.optimiser.weight_decay)
    if not recipe.optimiser.decay_biases_and_norms or not decay or not records.vitals:
        return []
    row = records.vitals[-1]
    count = sum(f["spread"] is None for f in row["parameters"].values())
    norms = row["norms"]["layers"]
    # As papers of 2015 did, at decays so small that it hardly counts.
    strong = decay >= 1e-3
    return [
        Finding(
            code="decay-on-norms",
            severity="warning" if strong else "note",
            what="Weight decay pulls biases and the scales of norms to zero, too",
            evidence=(
                f"--optimiser.decay-biases-and-norms is on, with a decay of {decay:g}: {count} "
                f"parameters that are no matrices, of {norms} batch norms among others.",
            ),
            remedy="Leave it off: to shrink a norm's scale or a bias regularises nothing, and the "
            "accuracy of long runs falls by it (Goyal et al. 2017, section 5.3).",
            command=records.again("--optimiser.no-decay-biases-and-norms"),
        )
    ]
