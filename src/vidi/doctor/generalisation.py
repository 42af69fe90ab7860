"""What the network makes of samples that it was not trained on: too little learned, too much
learned by heart, another kind of samples, the same samples twice."""

from __future__ import annotations

import math
from statistics import median

import numpy as np

from vidi.doctor import measures
from vidi.doctor.finding import Finding, Series, Severity
from vidi.doctor.looking import Looked, View
from vidi.doctor.records import Records
from vidi.types import Array

VAL_LOSS = {"classification": "cross_entropy", "multilabel": "binary_cross_entropy"}
"""The metric that is a loss, which overfitting shows in first."""
RISEN, FALLEN = 1.15, 0.9
"""Overfitting: the validation loss rises by so much from its least, while that of training falls
by so much."""
GAP = 0.15
"""Of skill: overfitting beyond, underfitting below."""
LEARNED = 0.6
"""Skill on training samples, below which a network has learned too little. A detector's and a
segmenter's measures are stricter: :data:`LEARNED_OF`."""
LEARNED_OF = {"segmentation": 0.4, "detection": 0.3, "boundaries": 0.4, "flow": 0.4}
FALLING = 0.98
"""The training loss still falls if the last evaluation's is below so much of that before."""
SURE = 1e-6
"""Probability, by chance alone, below which a difference is none."""
SHIFTED, APART = 0.5, 0.98
"""Of the distributions of a colour in training and validation: the distance of their means in
deviations from where on it is told; and the probability that one from the one is above one from
the other, from where on they are different pictures."""
SHARES = 0.2
"""Total variation between the classes' shares in training and validation."""
LEAKED = 0.05
"""Share of validation that is in training too, from where on its figures are worth nothing."""
EASIER = 0.05
COLOURS = (
    "mean red",
    "mean green",
    "mean blue",
    "deviation of red",
    "deviation of green",
    "deviation of blue",
    "red minus blue",
)


def overfitting(records: Records) -> list[Finding]:
    """The loss on validation samples rises while that of training falls."""
    name = VAL_LOSS.get(records.task)
    if name is None:
        return []
    # What was not finite was written as null.
    rows = [
        row
        for row in records.evaluations
        if row["metrics"].get(name) is not None and row["train_loss"] is not None
    ]
    if len(rows) < 4:
        return []
    val = [float(row["metrics"][name]) for row in rows]
    train = [float(row["train_loss"]) for row in rows]
    least = int(np.argmin(val))
    # The last two together: one evaluation alone may be bad by chance.
    now, then = min(val[-2:]), val[least]
    falls = train[-1] < FALLEN * train[least]
    if least >= len(rows) - 2 or now < RISEN * then + 0.02 or not falls:
        return []
    return [
        Finding(
            code="overfitting",
            severity="warning",
            what="The network learns its training set by heart: since step "
            f"{rows[least]['step']:,} the loss on validation samples rises while that of training "
            "falls.",
            evidence=(
                f"Validation {name.replace('_', '-')}: {then:.3g} at step {rows[least]['step']:,}, "
                f"{val[-1]:.3g} at step {rows[-1]['step']:,}.",
                f"Training loss: {train[least]:.3g} then, {train[-1]:.3g} at the end.",
            ),
            remedy="Vary the images more, smooth the labels, use dropout or more weight decay, "
            "gather more samples, or stop earlier. The best weights by "
            f"{'accuracy' if records.task == 'classification' else 'map'} are kept in any case.",
            command=records.again(
                "--augmentation.preset strong"
                if records.task == "classification"
                else "--regularisation.label-smoothing 0.1"
            ),
            step=int(rows[least]["step"]),
            series=Series(
                x=tuple(float(row["step"]) for row in rows),
                ys={"training": tuple(train), "validation": tuple(val)},
                xlabel="step",
                ylabel="loss",
            ),
        )
    ]


def gap(records: Records, looked: Looked) -> list[Finding]:
    """Far better on training samples than on others."""
    there, away = skill(looked, looked.training), skill(looked, looked.validation)
    off = _by_chance(looked, there, away)
    if there is None or away is None or there - away < max(GAP, 4 * off):
        return []
    return [
        Finding(
            code="generalisation-gap",
            severity="warning",
            what="The network knows its training samples far better than others.",
            evidence=(
                scores(looked),
                f"Both are scored alike, on {looked.training.samples} training and "
                f"{looked.validation.samples} validation samples, without augmentation.",
            ),
            remedy="Give it less to learn by heart with: more augmentation, dropout, weight decay, "
            "a smaller network, one that begins with published weights, or more samples.",
            command=records.again("--augmentation.preset strong")
            if looked.task == "classification"
            else None,
        )
    ]


def underfitting(records: Records, looked: Looked) -> list[Finding]:
    """Little learned, even of what it was trained on."""
    if not knows_little(looked):
        return []
    losses = [float(r["train_loss"]) for r in records.evaluations if r["train_loss"] is not None]
    if len(losses) < 2:  # too short a run for two: its first half and its second
        steps = [loss for _, loss in measures.losses(records)]
        half = len(steps) // 2
        losses = [median(steps[:half]), median(steps[half:])] if half else []
    falls = len(losses) < 2 or losses[-1] < FALLING * losses[-2]
    evidence = [scores(looked)]
    if len(losses) >= 2:
        evidence.append(
            f"The training loss went from {losses[-2]:.3g} to {losses[-1]:.3g} at last: it "
            f"{'still falls' if falls else 'falls no more'}."
        )
    epochs = max((float(row.get("epoch") or 1) for row in records.rows), default=1.0)
    return [
        Finding(
            code="underfitting",
            severity="warning",
            what="The network knows little, even of the samples that it was trained on"
            + (", and was still learning when training ended." if falls and losses else "."),
            evidence=tuple(evidence),
            remedy="Train longer."
            if falls
            else "Longer training alone will not do. Try a larger network, another rate, less "
            "weight decay, dropout and augmentation, or larger images.",
            command=records.again(f"--epochs {math.ceil(2 * epochs)}")
            if falls
            else records.look_closer("--lr-range"),
        )
    ]


def shift(records: Records, looked: Looked) -> list[Finding]:
    """Validation images of other brightness, contrast or colours than those of training."""
    from scipy import stats

    train, val = _colours(looked.training), _colours(looked.validation)
    if min(len(train), len(val)) < 8:
        return []
    worst: tuple[float, float, int] | None = None
    for k in range(train.shape[1]):
        spread = math.sqrt((train[:, k].var() + val[:, k].var()) / 2)
        if spread < 1e-4:
            continue
        distance = abs(float(train[:, k].mean() - val[:, k].mean())) / spread
        test = stats.mannwhitneyu(train[:, k], val[:, k])
        above = float(test.statistic) / (len(train) * len(val))
        if distance > SHIFTED and test.pvalue < SURE:
            worst = max(worst or (0.0, 0.0, 0), (max(above, 1 - above), distance, k))
    if worst is None:
        return []
    above, distance, k = worst
    return [
        Finding(
            code="input-shift",
            severity="problem" if above > APART else "warning",
            what="Validation images differ from those of training in what has nothing to do with "
            f"their content: their {COLOURS[k]}.",
            evidence=(
                f"The {COLOURS[k]} is {train[:, k].mean():.3f} ± {train[:, k].std():.3f} in "
                f"{len(train)} training images and {val[:, k].mean():.3f} ± "
                f"{val[:, k].std():.3f} in {len(val)} validation images (from 0 to 1), "
                f"{distance:.1f} deviations apart.",
                f"Of an image of each, the same split's has the higher value in {above:.0%}.",
            ),
            remedy="See to it that both are read in the same way (order of colours, range of "
            "values, camera, crop); divide the data at random; or vary brightness and colours in "
            "training.",
            command=records.again("--augmentation.brightness 0.4 --augmentation.contrast 0.4"),
            series=Series(
                x=tuple(range(len(COLOURS))),
                ys={
                    "training": tuple(train.mean(0).tolist()),
                    "validation": tuple(val.mean(0).tolist()),
                },
                xlabel="statistic of an image",
                ylabel="mean over images",
                names=COLOURS,
            ),
            explains=("generalisation-gap", "labels-shuffled") if above > APART else (),
        )
    ]


def class_shift(records: Records, looked: Looked) -> list[Finding]:
    """Classes that are common in training and rare in validation, or the other way round."""
    from scipy import stats

    train = looked.counts.get("train")
    val = looked.counts.get("val")
    if train is None or val is None or not train.sum() or not val.sum():
        return []
    p, q = train / train.sum(), val / val.sum()
    off = float(np.abs(p - q).sum()) / 2
    there = (train + val) > 0
    if off < SHARES or there.sum() < 2:
        return []
    if stats.chi2_contingency(np.stack([train[there], val[there]])).pvalue > SURE:
        return []
    k = int(np.abs(p - q).argmax())
    return [
        Finding(
            code="class-shift",
            severity="warning",
            what="The classes are shared out otherwise in validation than in training.",
            evidence=(
                f"{looked.classes[k]} is {p[k]:.0%} of training and {q[k]:.0%} of validation.",
                f"{off:.0%} of the samples would have to be of other classes for the shares to be "
                "the same.",
            ),
            remedy="Divide the data by class (a validation split that vidi carves off is), or "
            "judge by the mean over classes, not by the accuracy.",
            series=Series(
                x=tuple(range(len(p))),
                ys={"training": tuple(p.tolist()), "validation": tuple(q.tolist())},
                xlabel="class",
                ylabel="share of the images",
                names=looked.classes,
            ),
        )
    ]


def leakage(records: Records, looked: Looked) -> list[Finding]:
    """The same pictures in training and validation, by the data's own audit."""
    findings = []
    for twins in looked.twins:
        exact = twins.code == "duplicate-across-splits"
        share = twins.of / max(1, looked.compared)
        severity: Severity = "problem" if exact and share >= LEAKED else "warning"
        pairs = zip(twins.samples[:3], twins.twins[:3], strict=False)
        alike = ", ".join(f"{key} and {twin}" for (key, _), twin in pairs)
        findings.append(
            Finding(
                code="leakage" if exact else "near-leakage",
                severity=severity,
                what="Validation (or test) images are in training, too."
                if exact
                else "Validation (or test) images are nearly the same as some of training.",
                evidence=(
                    f"{twins.of} of {looked.compared} that were compared ({share:.1%}): {alike}"
                    f"{' …' if twins.of > 3 else ''}.",
                ),
                remedy="What was trained on is tested on, so the figures flatter. Remove the "
                "copies from training, or divide the data by scene, film or source. `vidi doctor "
                "DATA` lists all of them.",
                command=records.audit,
            )
        )
    return findings


def easier(records: Records, looked: Looked) -> list[Finding]:
    """Better on validation than on what was trained on: it is easier, or leaks."""
    there, away = skill(looked, looked.training), skill(looked, looked.validation)
    off = _by_chance(looked, there, away)
    if looked.task != "classification" or there is None or away is None:
        return []
    if away - there < max(EASIER, 5 * off):
        return []
    return [
        Finding(
            code="validation-easier",
            severity="warning",
            what="The network does better on validation samples than on those it was trained on.",
            evidence=(scores(looked),),
            remedy="That is no luck at this number of samples: validation holds easier images or "
            "other classes, or training's labels are worse. Look at both.",
        )
    ]


def skill(looked: Looked, view: View) -> float | None:
    """The headline's figure as a share of what can be had: 0 is guessing, 1 perfect."""
    value = view.metrics.get(looked.headline, math.nan)
    if not math.isfinite(value):
        return None
    if looked.task == "classification":
        chance = 1 / max(2, len(looked.classes))
        return max(0.0, value - chance) / (1 - chance)
    if looked.task == "flow":
        zero = view.metrics["epe_zero"]
        return max(0.0, 1 - value / zero) if zero else None
    if looked.task == "detection":  # as the papers have it: found is what overlaps by half
        value = view.metrics["map50"]
        return value if math.isfinite(value) else None
    return value


def knows_little(looked: Looked) -> bool:
    """Whether little was learned even of training samples, and not far more than of others."""
    there, away = skill(looked, looked.training), skill(looked, looked.validation)
    if there is None or away is None or there >= LEARNED_OF.get(looked.task, LEARNED):
        return False
    return there - away < max(GAP, 4 * _by_chance(looked, there, away))


def _by_chance(looked: Looked, there: float | None, away: float | None) -> float:
    """Deviation of the difference of both skills, by the numbers of samples alone."""
    if there is None or away is None:
        return 0.0
    return math.sqrt(
        sum(
            max(0.02, min(max(p, 0.0), 1.0) * (1 - min(max(p, 0.0), 1.0))) / view.samples
            for p, view in ((there, looked.training), (away, looked.validation))
        )
    )


def scores(looked: Looked) -> str:
    name = looked.headline
    train, val = looked.training.metrics[name], looked.validation.metrics[name]
    zero = ""
    if looked.task == "flow":
        zero = f" (no motion at all: {looked.training.metrics['epe_zero']:.3g})"
    return f"{name}: {train:.3g} on training samples{zero}, {val:.3g} on validation samples."


def _colours(view: View) -> Array:
    """[N, 7]: of each image what :data:`COLOURS` names."""
    return np.column_stack([view.colours, view.colours[:, 0] - view.colours[:, 2]]).astype(float)
