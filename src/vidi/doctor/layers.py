"""What the layers tell: their input, gradients by depth, units that are dead, saturated or alike,
parameters that do not learn, batch norms."""

from __future__ import annotations

from statistics import median
from typing import Any

from vidi.doctor import measures
from vidi.doctor.finding import STUCK, Finding, Severity, some
from vidi.doctor.records import Records, Row

VANISHED = 1e-3
"""First layers whose gradient is smaller than this, relative to the largest, hardly learn."""
EXPLODED = 100.0
"""Activations or gradients that grow by this from one end of the network to the other."""
DEAD, ALL_DEAD = 0.5, 0.95
SATURATED, ALL_SATURATED = 0.6, 0.9
ALIKE = 1e-3
"""Units that differ by less than this from their mean are the same unit."""
FEW = 8
"""A batch norm that averages over fewer values than this sees mostly noise."""
RELU = {"ReLU", "ReLU6"}
BIG = 10.0
"""Deviation of an input that was not normalised but counts from 0 to 255."""


def own(records: Records) -> bool:
    """Whether the network is the user's, not one of the package's."""
    return ":" in records.recipe.model and not records.recipe.model.startswith("timm:")


def wrong_input(records: Records) -> list[Finding]:
    """What the first layer is given has mean 0 and deviation 1, about."""
    rows = [row for row in records.vitals if row.get("input")]
    if not rows:
        return []
    seen: dict[str, Any] = rows[0]["input"]
    if any(seen[key] is None for key in ("mean", "std", "least", "most")):
        return []
    means, stds = records.description.normalisation.mean, records.description.normalisation.std
    m, s = sum(means) / len(means), sum(stds) / len(stds)
    normal = [(edge - a) / b for edge in (0.0, 1.0) for a, b in zip(means, stds, strict=True)]
    least, most = min(normal), max(normal)
    found = (
        f"The first layer with weights, {seen['layer']}, was given values from {seen['least']:.3g} "
        f"to {seen['most']:.3g}, of mean {seen['mean']:.3g} and deviation {seen['std']:.3g}.",
        f"Images that are normalised once lie between {least:.3g} and {most:.3g}, about mean 0 and "
        "deviation 1.",
    )

    def finding(code: str, severity: Severity, what: str, remedy: str) -> list[Finding]:
        return [
            Finding(
                code=code,
                severity=severity,
                what=what,
                evidence=found,
                remedy=remedy,
                layer=seen["layer"],
                step=rows[0]["step"],
                explains=_OF_INPUT,
            )
        ]

    if seen["std"] > BIG or abs(seen["mean"]) > BIG:
        return finding(
            "input-not-normalised",
            "problem",
            "The network's input is not normalised: its values are those of 0 to 255",
            "Give the images as vidi does (mean 0, deviation 1), or let the network divide by 255 "
            "and normalise what it multiplied.",
        )
    if seen["std"] < 0.02:
        return finding(
            "input-not-normalised",
            "problem",
            f"The network's input hardly varies: its deviation is {seen['std']:.2g}",
            "See what the network does with the images before its first layer; they come with mean "
            "0 and deviation 1.",
        )
    # Normalised again, 0 and 1 lie at ((0 - m) / s - m) / s and ((1 - m) / s - m) / s.
    again = (((0 - m) / s - m) / s, ((1 - m) / s - m) / s)
    spans = seen["most"] - seen["least"] > 1.3 * (most - least)
    if (
        spans
        and seen["std"] > 1.6
        and _between(seen, again, 0.25)
        and abs(m / s + seen["mean"]) < 1
    ):
        return finding(
            "input-normalised-twice",
            "problem",
            "The network's input is normalised twice",
            "Leave out the network's own normalisation: the images come normalised already.",
        )
    inside = seen["least"] > -0.02 and seen["most"] < 1.02
    if inside and seen["mean"] > 0.02 and seen["std"] < 0.6 and least < -0.2:
        return finding(
            "input-not-normalised",
            "warning",
            "The network's input is not normalised: its values lie between 0 and 1",
            "Let the network take the images as they come, of mean 0 and deviation 1, and undo no "
            "normalisation.",
        )
    return []


_OF_INPUT = (
    "initial-loss",
    "exploding-gradient",
    "rate-too-high",
    "rate-too-low",
    "momentum-too-high",
    "dead-relus",
    "saturated",
    "vanishing-gradient",
    *STUCK,
)


def _between(seen: dict[str, Any], edges: tuple[float, float], part: float) -> bool:
    """Whether the values fill most of an interval, and do not leave it by much."""
    margin = part * (edges[1] - edges[0])
    least, most = float(seen["least"]), float(seen["most"])
    return abs(least - edges[0]) < margin and abs(most - edges[1]) < 2 * margin


def not_finite(records: Records) -> list[Finding]:
    """Activations that are no numbers in what was looked at, before the run stopped for it."""
    for row in records.vitals:
        for name, found in row["layers"].items():
            if found["std"] is None or found["mean"] is None:
                return [
                    Finding(
                        code="overflow",
                        severity="problem",
                        what=f"What the layer {name} ({found['kind']}) gives is not finite",
                        evidence=(f"At step {row['step']} it is the first such layer.",),
                        remedy="Look at what that layer computes: a division, a logarithm, a root, "
                        "or half precision.",
                        layer=name,
                        step=row["step"],
                    )
                ]
    return []


def alike(records: Records) -> list[Finding]:
    """Output units with the same weights get the same gradient and stay the same for ever."""
    rows = measures.later(records)
    if len(rows) < 2:
        return []
    names = [
        name
        for name, found in measures.weights(rows[-1]).items()
        if all(
            (f := row["parameters"].get(name)) is not None
            and (f["spread"] is None or f["spread"] < ALIKE)
            for row in rows
        )
        and found["spread"] < ALIKE
    ]
    if not names:
        return []
    spread = measures.weights(rows[-1])[names[0]]["spread"]
    return [
        Finding(
            code="equal-weights",
            severity="problem",
            what=f"The units of a layer are all the same: {some(names)} began with equal weights",
            evidence=(
                f"At step {rows[-1]['step']} the weights of {names[0]} differ by {spread:.1g} of "
                "their norm from the mean of the units. Equal units get equal gradients, so that a "
                "layer of any width is worth one unit.",
            ),
            remedy="Begin with random weights (torch's own, or He's: nn.init.kaiming_normal_).",
            layer=names[0].rpartition(".")[0],
            step=rows[-1]["step"],
            explains=(*STUCK, "dead-relus"),
        )
    ]


def frozen(records: Records) -> list[Finding]:
    """Parameters that ask for no gradient, though nobody told them not to. The package's own
    networks have some by design."""
    if not records.vitals or not own(records):
        return []
    asked = records.recipe.freeze
    names = [n for n in records.vitals[-1]["frozen"] if not _asked(n, asked)]
    if not names:
        return []
    trained = len(records.vitals[-1]["parameters"])
    return [
        Finding(
            code="frozen",
            severity="warning",
            what=f"Parameters are frozen, and nobody asked for it: {some(names)}",
            evidence=(
                f"{len(names)} of {len(names) + trained} parameters ask for no gradient "
                "(requires_grad is False), and --freeze names none of them.",
            ),
            remedy="Let them learn (requires_grad_(True)), or say so with --freeze, which also "
            "keeps their batch norms' statistics.",
            layer=names[0].rpartition(".")[0],
            step=records.vitals[-1]["step"],
            explains=STUCK,
        )
    ]


def disconnected(records: Records) -> list[Finding]:
    """Parameters that no gradient reached in any step that was looked at."""
    rows = measures.later(records)
    if len(rows) < 2:
        return []
    names = [
        name
        for name in rows[-1]["parameters"]
        if all(not row["parameters"].get(name, {}).get("gradient") for row in rows)
    ]
    # Behind units that are all dead or alike there is no gradient either; those say so themselves.
    if not names or _dead_layers(records, ALL_DEAD):
        return []
    none = [n for n in names if rows[-1]["parameters"][n]["gradient"] is None]
    how = "they are not part of the forward pass" if none else "their gradient is zero throughout"
    return [
        Finding(
            code="no-gradient",
            severity="warning",
            what=f"No gradient reaches {some(names)}: {how}",
            evidence=(
                f"{len(names)} of {len(rows[-1]['parameters'])} trained parameters got none in "
                f"{len(rows)} looks between steps {rows[0]['step']} and {rows[-1]['step']}.",
            ),
            remedy="Look for what cuts the path to the loss: a detach(), a no_grad(), an output "
            "that is not used, an argmax. What is not needed may go.",
            layer=names[0].rpartition(".")[0],
            step=rows[-1]["step"],
            explains=(*STUCK, "vanishing-gradient"),
        )
    ]


def vanishing(records: Records) -> list[Finding]:
    """The gradient of the first layers is tiny beside that of the last ones."""
    rows = [row for row in measures.later(records) if len(measures.weights(row)) >= 4]
    if not rows or _dead_layers(records, ALL_DEAD):
        return []
    shares = [s for row in rows if (s := _first_share(row)) is not None]
    if not shares or median(shares) >= VANISHED:
        return []
    # It may have been so at the beginning only, and be over.
    if shares[-1] >= VANISHED:
        return []
    row = rows[0]
    gradients = {n: f["gradient"] for n, f in measures.weights(row).items()}
    stds = [f["std"] for f in row["layers"].values() if f["std"] is not None]
    first = next(iter(gradients))
    evidence = [
        f"At step {row['step']} the gradient's norm is {gradients[first]:.1g} in the first layer, "
        f"{first}, and {_largest_gradient(row):.2g} where it is largest; in the middle of all "
        f"looks the first layers have {median(shares):.1g} of the largest."
    ]
    shrinks = len(stds) > 1 and stds[0] > 0 and stds[-1] < stds[0] / EXPLODED
    if shrinks:
        evidence.append(
            f"The deviation of the activations falls from {stds[0]:.2g} in the first layer to "
            f"{stds[-1]:.1g} in the last: the weights begin too small."
        )
    kinds = {f["kind"] for f in row["layers"].values()}
    squashing = sorted(kinds & {"Sigmoid", "Tanh", "Hardsigmoid", "Softsign"})
    if squashing:
        evidence.append(f"Each {squashing[0]} passes on only part of the gradient.")
    return [
        Finding(
            code="vanishing-gradient",
            severity="problem" if median(shares) < VANISHED / 10 else "warning",
            what="The gradient vanishes on its way to the first layers: they hardly learn",
            evidence=tuple(evidence),
            remedy="Begin with He's weights (nn.init.kaiming_normal_), use ReLUs with batch norm, "
            "or shortcuts as a residual network has them.",
            layer=first.rpartition(".")[0],
            step=row["step"],
            series=measures.by_depth(gradients, "norm of the gradient"),
            explains=(
                *STUCK,
                "rate-too-low",
                *(["dead-relus"] if shrinks else []),
            ),
        )
    ]


def exploding(records: Records) -> list[Finding]:
    """Activations or gradients that grow with every layer, before any step could be at fault."""
    if not records.vitals or records.vitals[0]["step"] != 1:
        return []
    row = records.vitals[0]
    if len(measures.weights(row)) < 3 or records.recipe.optimiser.sum_pixels:
        return []
    given = (row.get("input") or {}).get("std")
    stds = {n: f["std"] for n, f in row["layers"].items() if f["std"]}
    if not given or not stds:
        return []
    last = list(stds.values())[-1]
    gradients = list(measures.relative(row, "gradient").values())
    forward = last / given
    backward = gradients[0] / max(median(gradients[-3:]), 1e-12)
    if forward < EXPLODED and (backward < 10 * EXPLODED or gradients[0] < 10):
        return []
    what = "activations" if forward >= EXPLODED else "gradients"
    return [
        Finding(
            code="exploding-gradient",
            # A deep network of batch norms and no shortcuts begins so, and may recover.
            severity="problem" if forward >= EXPLODED else "warning",
            what=f"The network's {what} explode: they grow from layer to layer",
            evidence=(
                f"At step 1, before any update, the deviation is {given:.2g} at the input and "
                f"{last:.2g} at the output; the first layer's gradient is {gradients[0]:.2g} of "
                "its weights.",
            ),
            remedy="Begin with He's weights (nn.init.kaiming_normal_: deviation √(2 / inputs)), or "
            "put batch norms and shortcuts between the layers. Clipping the gradient hides it.",
            layer=next((n for n, s in stds.items() if s > EXPLODED * given), next(iter(stds))),
            step=1,
            series=measures.by_depth(stds, "deviation of the output"),
            explains=(
                "initial-loss",
                "rate-too-high",
                "momentum-too-high",
                "dead-relus",
                *STUCK,
            ),
        )
    ]


def dead(records: Records) -> list[Finding]:
    """ReLUs that gave zero for everything in several looks."""
    layers = _dead_layers(records, DEAD)
    if not layers:
        return []
    rows = records.vitals
    worst = max(layers, key=lambda name: layers[name])
    share = layers[worst]
    key = "dead" if rows[-1]["layers"][worst]["kind"] in RELU else "input_dead"
    history = [(row["step"], row["layers"][worst][key]) for row in rows if worst in row["layers"]]
    began = next((v for _, v in history if v is not None), share)
    where = "of" if key == "dead" else "of what is given to"
    first = (
        f"They were dead from the first step on ({began:.0%}): it is the beginning, such as a bias "
        "far below zero, that killed them."
        if began > DEAD
        else f"At step {history[0][0]} it was {began:.0%}: they died in training, as by too "
        "long a step."
    )
    gone = share >= ALL_DEAD
    return [
        Finding(
            code="dead-relus",
            severity="problem" if gone else "warning",
            what=f"ReLUs are dead: {share:.0%} of the channels {where} {worst} are zero for every "
            "image",
            evidence=(
                f"So it is in all of the last {min(3, len(rows))} looks, up to step "
                f"{rows[-1]['step']}; {len(layers)} layers are at {DEAD:.0%} or more.",
                first,
            ),
            remedy="Begin with biases of zero and He's weights, and train at a lower rate with a "
            "warm-up; batch norm or leaky ReLUs keep units alive."
            if began <= DEAD
            else "Begin with biases of zero and He's weights; batch norm or leaky ReLUs keep units "
            "alive.",
            command=None
            if began > DEAD
            else records.again(f"--lr {measures.rounded(float(records.recipe.lr) / 3)}"),
            layer=worst,
            step=rows[-1]["step"],
            series=measures.over_steps(
                records, "layers", list(layers), key, "share of dead channels"
            ),
            explains=("vanishing-gradient", "no-gradient", "rate-too-low", *STUCK) if gone else (),
        )
    ]


def saturated(records: Records) -> list[Finding]:
    """Sigmoids and tanhs at their bounds, where they pass no gradient on."""
    rows = records.vitals
    if len(rows) < 2:
        return []
    last = rows[-3:]
    # The last layer's answers may well be sure.
    names = list(last[-1]["layers"])[:-1]
    shares = {
        name: min(row["layers"][name]["saturated"] for row in last)
        for name in names
        if all(row["layers"].get(name, {}).get("saturated") is not None for row in last)
    }
    bad = {name: share for name, share in shares.items() if share > SATURATED}
    if not bad:
        return []
    worst = max(bad, key=lambda name: bad[name])
    first = rows[0]["layers"].get(worst, {}).get("saturated")
    began = first is not None and first > SATURATED
    return [
        Finding(
            code="saturated",
            severity="problem" if bad[worst] > ALL_SATURATED and began else "warning",
            what=f"Units are saturated: {bad[worst]:.0%} of what {worst} gives lies at its bounds, "
            "where no gradient passes",
            evidence=(
                f"So it is in all of the last {len(last)} looks, up to step {last[-1]['step']}, in "
                f"{len(bad)} of {len(shares)} such layers.",
                f"At step {rows[0]['step']} it was {first:.0%}."
                if first is not None
                else "The layer was not used at first.",
            ),
            remedy="Begin with smaller weights (nn.init.xavier_normal_), or put a batch norm "
            "before it; ReLUs do not saturate."
            if began
            else "It came with training: lower the rate, or put a batch norm before it.",
            layer=worst,
            step=last[-1]["step"],
            series=measures.over_steps(
                records, "layers", list(bad), "saturated", "share at the bounds"
            ),
            explains=("vanishing-gradient", "rate-too-low", "initial-loss", *STUCK),
        )
    ]


def evaluating_norms(records: Records) -> list[Finding]:
    """Batch norms in evaluation mode while their network learns, though they are not frozen."""
    if not records.vitals:
        return []
    row = records.vitals[-1]
    still = row["norms"]["evaluating"]
    trained = set(row["parameters"])
    asked = records.recipe.freeze
    # Those of frozen parts are to stay as they are; some have no parameters of their own.
    names = [n for n in still if f"{n}.weight" in trained and not _asked(n, asked)]
    if not own(records):
        names = [n for n in names if not row["frozen"]]
    if not names:
        return []
    return [
        Finding(
            code="norms-evaluating",
            severity="problem" if len(names) == row["norms"]["layers"] else "warning",
            what=f"Batch norms are in evaluation mode during training: {some(names)}",
            evidence=(
                f"At step {row['step']} {len(names)} of {row['norms']['layers']} batch norms "
                "normalise by their stored statistics, which then never change: from scratch those "
                "are mean 0 and variance 1, and nothing is normalised.",
            ),
            remedy="Leave the mode to training: no eval() in the network's forward or train(). To "
            "keep a trunk as it is, name it with --freeze.",
            layer=names[0],
            step=row["step"],
        )
    ]


def few_values(records: Records) -> list[Finding]:
    """Batch norms that average over too little: a batch of one, or few small maps."""
    if not records.vitals or not records.vitals[0]["norms"]["layers"]:
        return []
    row, recipe = records.vitals[0], records.recipe
    if len(row["norms"]["evaluating"]) == row["norms"]["layers"]:
        return []
    fewest = row["norms"]["fewest"]
    each = max(1, int(recipe.batch_size) // recipe.optimiser.accumulate)
    if each > 1 and (fewest is None or fewest >= FEW):
        return []
    accumulate = recipe.optimiser.accumulate
    parts = f", in {accumulate} parts" if accumulate > 1 else ""
    what = (
        "Batch norms see a batch of one image"
        if each == 1
        else f"A batch norm averages over {fewest} values only"
    )
    return [
        Finding(
            code="norms-small-batch",
            severity="problem" if fewest is not None and fewest <= 2 else "warning",
            what=what + ": what they learn of the statistics is noise",
            evidence=(
                f"{each} {'image goes' if each == 1 else 'images go'} through the network at a "
                f"time (batch {recipe.batch_size}{parts}), and the batch norm that sees least sees "
                f"{fewest} values of each channel.",
            ),
            remedy="Larger batches (in fewer parts), larger images, or group norm.",
            command=records.again(f"--batch-size {max(16, 4 * int(recipe.batch_size))}"),
            step=row["step"],
        )
    ]


def _dead_layers(records: Records, least: float) -> dict[str, float]:
    """Layers whose channels were dead in all of the last looks, in more than that share: ReLUs;
    where there are none as layers, what layers with weights are given."""
    rows = records.vitals[-3:]
    if len(rows) < 2:
        return {}
    for key in ("dead", "input_dead"):
        found: dict[str, float] = {}
        before = ""
        for name, told in rows[-1]["layers"].items():
            dropped, before = before.startswith("Dropout"), told["kind"]
            if dropped or (key == "dead" and told["kind"] not in RELU):
                continue
            shares = [row["layers"].get(name, {}).get(key) for row in rows]
            known = [s for s in shares if s is not None]
            if len(known) == len(rows) and min(known) >= least:
                found[name] = min(known)
        if found:
            return found
    return {}


def _first_share(row: Row) -> float | None:
    """The largest gradient of the first matrices, relative to the largest of all. Of several, since
    a branch that begins at zero has none at first, and its neighbours do."""
    found = [f["gradient"] for f in measures.weights(row).values()]
    largest = _largest_gradient(row)
    if not found or not largest:
        return None
    return max(found[: max(1, len(found) // 4)]) / largest


def _largest_gradient(row: Row) -> float:
    return max((f["gradient"] or 0.0 for f in row["parameters"].values()), default=0.0)


def _asked(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)
