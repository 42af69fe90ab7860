"""What goes wrong in one task only: regions, masks, motion, side outputs."""

from __future__ import annotations

import numpy as np

from vidi.doctor.finding import Finding, Series, Severity
from vidi.doctor.looking import Looked
from vidi.doctor.records import Records

NONE, RARE = 0.001, 0.05
"""Share of the sampled regions that are objects: as good as none, and too rare."""
COVERED = 0.3
"""Share of the objects that proposals overlap by half, below which most cannot be found."""
NEARLY_ALL, MOST = 0.95, 0.5
"""Share of ignored pixels."""
ONE = 0.99
"""Share of the pixels (images) that one class is said of."""
ALIKE = 0.6
"""Correlation of true and predicted flow, from where on their ratio says something."""
SCALED, SURELY = 2.0, 8.0
"""That ratio, either way."""
STILL = 0.98
"""Share of the zero flow's error, above which nothing of motion is known."""
DULL, LEARNED = 0.97, 0.9
"""Loss of a side output relative to that of knowing nothing, above which it has learned nothing,
where the fused output has, by the same measure."""


def no_objects(records: Records) -> list[Finding]:
    """Regions to learn from of which hardly any is an object."""
    values = _signs(records, "foreground")
    if records.task != "detection" or not values:
        return []
    return _no_objects(records, float(np.mean([v for _, v in values])), values)


def no_objects_sampled(records: Records, looked: Looked) -> list[Finding]:
    """The same, where the network proposes its regions, in the middle of the forward pass."""
    if looked.trained.foreground is None or _signs(records, "foreground"):
        return []
    return _no_objects(records, looked.trained.foreground, [])


def _no_objects(records: Records, share: float, values: list[tuple[int, float]]) -> list[Finding]:
    if share >= RARE:
        return []
    evidence = [f"Of the regions that are learned from, {share:.2%} are objects."]
    losses = [(row["step"], row["losses"]) for row in records.vitals if row.get("losses")]
    if losses and "cross_entropy" in losses[-1][1]:
        evidence.append(
            f"The classes' loss went from {losses[0][1]['cross_entropy']:.3g} to "
            f"{losses[-1][1]['cross_entropy']:.3g}: saying background everywhere is nearly right."
        )
    return [
        Finding(
            code="no-positive-regions",
            severity="problem" if share < NONE else "warning",
            what="Hardly any of the regions that the network learns from is an object"
            if share >= NONE
            else "None of the regions that the network learns from is an object",
            evidence=tuple(evidence),
            remedy="Sample more of them, lower the overlap from which a region is an object, and "
            "look whether the proposals lie on the objects and the boxes are not all difficult.",
            command=records.again("--detection.foreground 0.25 --detection.foreground-iou 0.5"),
            series=_series(values, "share of regions that are objects", RARE),
            explains=("underfitting",),
        )
    ]


def missed_by_proposals(records: Records, looked: Looked) -> list[Finding]:
    """Objects that no proposal overlaps cannot be found, whatever is learned."""
    there, away = looked.training.covered, looked.validation.covered
    if there is None or away is None or min(there, away) >= COVERED:
        return []
    return [
        Finding(
            code="proposals-miss-objects",
            severity="problem" if max(there, away) < COVERED / 2 else "warning",
            what="The proposals miss most objects, so these cannot be found, whatever is learned.",
            evidence=(
                f"A proposal overlaps {there:.0%} of the training objects by half or more, and "
                f"{away:.0%} of those of validation.",
            ),
            remedy="Look whether their coordinates are those of the images (x before y, pixels, "
            "the same size), and whether there are enough; or let a network propose.",
            command=records.again("--data.proposals auto"),
            explains=("underfitting", "no-positive-regions"),
        )
    ]


def ignored(records: Records) -> list[Finding]:
    """Masks of which most pixels count for nothing."""
    values = _signs(records, "ignored")
    if records.task != "segmentation" or not values:
        return []
    share = float(np.mean([v for _, v in values]))
    if share < MOST:
        return []
    return [
        Finding(
            code="masks-ignored",
            severity="problem" if share > NEARLY_ALL else "warning",
            what="Most pixels of the masks are ignored (255), and teach nothing.",
            evidence=(f"In the batches that were looked at, {share:.1%} of the pixels are.",),
            remedy="Look at the masks' values: 255 means ignored, the classes count from 0. A "
            "least zoom below 1 pads with ignored pixels, too (--augmentation.zoom).",
            command=records.audit,
            series=_series(values, "share of ignored pixels", MOST),
        )
    ]


def one_class(records: Records) -> list[Finding]:
    """A network that says the same class of everything."""
    split = next((name for name in ("val", "test") if name in records.evaluation), None)
    if split is None or "confusion" not in records.evaluation[split]:
        return []
    confusion = np.array(records.evaluation[split]["confusion"], float)
    said, true = confusion.sum(0), confusion.sum(1)
    if said.sum() == 0 or (true > 0).sum() < 2:
        return []
    k = int(said.argmax())
    share, wanted = float(said[k] / said.sum()), float(true[k] / true.sum())
    if share < ONE or wanted > ONE:
        return []
    pixels = records.task == "segmentation"
    things = "pixels" if pixels else "images"
    common = wanted > 2 / max(2, int((true > 0).sum()))
    return [
        Finding(
            code="one-class-predicted",
            severity="warning",
            what=f"The network says the same of nearly all {things}: {records.classes[k]}.",
            evidence=(
                f"It is said of {share:.1%} of the {things} in {split}, and true of {wanted:.1%}.",
            ),
            remedy="Train longer first. If it stays so, "
            + ("let rare classes count for more, and look" if common else "look")
            + " at the rate.",
            command=records.again("--data.balance sqrt-weights")
            if common and records.recipe.data.balance == "none"
            else records.look_closer("--overfit-one-batch"),
        )
    ]


def scale(records: Records, looked: Looked) -> list[Finding]:
    """Flow that has the right direction and a wrong length."""
    views = (("training", looked.training), ("validation", looked.validation))
    told = [(n, v.slope, v.correlation) for n, v in views if v.slope and v.correlation]
    if looked.task != "flow" or not told:
        return []
    name, slope, alike = max(told, key=lambda one: one[2])
    factor = max(slope, 1 / slope) if slope > 0 else 1.0
    if alike < ALIKE or factor < SCALED:
        return []
    severity: Severity = "problem" if factor > SURELY else "warning"
    off = f"{1 / slope:.3g} times as long" if slope < 1 else f"{slope:.3g} times too short"
    return [
        Finding(
            code="flow-scale",
            severity=severity,
            what=f"The predicted flow points where the true one does, and is {off}.",
            evidence=(
                f"On {name} pairs the true flow is {slope:.3g} times the predicted one, at a "
                f"correlation of {alike:.2f}.",
                f"End-point error: {looked.validation.metrics['epe']:.3g} px; of no flow at all: "
                f"{looked.validation.metrics['epe_zero']:.3g} px.",
            ),
            remedy="A network is trained on pixels / 20, and gives pixels in evaluation; look "
            "whether yours multiplies by 20 there, and by the images' size if it shrinks them.",
            explains=("flow-still", "underfitting"),
        )
    ]


def still(records: Records) -> list[Finding]:
    """Flow that is no better than saying that nothing moves."""
    rows = [row for row in records.evaluations if row["metrics"].get("epe") is not None]
    if records.task != "flow" or not rows:
        return []
    best = min(rows, key=lambda row: float(row["metrics"]["epe"]))
    epe, zero = float(best["metrics"]["epe"]), float(best["metrics"]["epe_zero"])
    if epe < STILL * zero:
        return []
    return [
        Finding(
            code="flow-still",
            severity="warning",
            what="The predicted flow is no better than saying that nothing moves.",
            evidence=(f"End-point error: {epe:.3g} px at best; of no flow at all: {zero:.3g} px.",),
            remedy="Train longer. If it stays so, look whether the flow fits the frames (`vidi "
            "doctor DATA` does): its direction, its order of x and y, and its unit, pixels.",
            command=records.audit,
            step=int(best["step"]),
            series=Series(
                x=tuple(float(row["step"]) for row in rows),
                ys={"network": tuple(float(row["metrics"]["epe"]) for row in rows)},
                xlabel="step",
                ylabel="end-point error (px)",
                threshold=zero,
                meaning="no flow at all",
            ),
        )
    ]


def dull_sides(records: Records, looked: Looked) -> list[Finding]:
    """Side outputs of a boundary network that do not learn, beside a fused one that does."""
    sides = looked.trained.sides
    if len(sides) < 2 or sides[0] > LEARNED:
        return []
    dull = [i for i, loss in enumerate(sides[1:], 1) if loss > DULL]
    if not dull:
        return []
    return [
        Finding(
            code="sides-do-not-learn",
            severity="warning",
            what=f"Of {len(sides) - 1} side outputs {len(dull)} "
            f"{'does' if len(dull) == 1 else 'do'} not learn: "
            f"{', '.join(str(i) for i in dull)} (counted from the finest).",
            evidence=(
                "Their loss is "
                + ", ".join(f"{sides[i]:.2f}" for i in dull)
                + f" of that of knowing nothing; the fused output's is {sides[0]:.2f}.",
            ),
            remedy="See that the loss reaches every side output (deep supervision), that nothing "
            "detaches or freezes them, and that their own rate is not too small "
            "(--optimiser.rates).",
            series=Series(
                x=tuple(range(len(sides))),
                ys={"loss": sides},
                xlabel="output",
                ylabel="loss, relative to knowing nothing",
                threshold=1.0,
                meaning="knowing nothing",
                names=("fused", *(f"side {i}" for i in range(1, len(sides)))),
            ),
        )
    ]


def _signs(records: Records, name: str) -> list[tuple[int, float]]:
    rows = ((int(row["step"]), (row.get("signs") or {}).get(name)) for row in records.vitals)
    return [(step, float(value)) for step, value in rows if value is not None]


def _series(values: list[tuple[int, float]], label: str, level: float) -> Series | None:
    if len(values) < 2:
        return None
    return Series(
        x=tuple(float(step) for step, _ in values),
        ys={label: tuple(value for _, value in values)},
        xlabel="step",
        ylabel=label,
        threshold=level,
        meaning="too few" if level == RARE else "too many",
    )
