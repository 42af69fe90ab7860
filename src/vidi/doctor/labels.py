"""Labels that say nothing of the images, say it by another numbering, or are mostly one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vidi.doctor.finding import Finding, Series, Severity
from vidi.doctor.looking import Looked, View
from vidi.doctor.records import Records

CHANCE = 0.01
"""A figure that guessing reaches with a greater probability is not above guessing."""
SURE = 1e-4
BY_HEART = 0.9
"""Accuracy on training samples from where on labels that say nothing were learned by heart."""
MANY = 500
"""So many samples are learned by heart only if there is nothing else to learn in them."""
FEWEST = 50
"""Samples by which neighbours can be asked."""
TRIED = 50
"""Steps after which a network that can learn has learned something."""
PRIOR, FORGOTTEN = 1.25, 0.5
"""Of the labels' entropy, which is the loss of knowing nothing but how frequent they are: training
that has not diverged stays below, and one that has learned by heart comes so far down."""
RENAMED, OWN = 0.7, 0.35
"""Mean recall under the best renumbering of the classes from where on they are renumbered, if that
under their own numbers is so low."""
RENUMBERED = 20
"""Steps before which a network may take one class for another for no reason."""
HIDDEN = 0.15
"""Of accuracy above the mean recall: it is the common classes' alone."""
COMMON = 0.5


def shuffled(records: Records, looked: Looked) -> list[Finding]:
    """Labels that have nothing to do with the images."""
    train, val = looked.training, looked.validation
    if looked.task != "classification" or records.steps < TRIED or val.samples < 20:
        return []
    if _chance(val) < CHANCE:
        return []
    own, others = neighbours(train), neighbours(val)
    if own is None:  # too few samples to say anything of their labels
        return []
    accuracy = train.metrics["accuracy"]
    from scipy import stats

    entropy = float(stats.entropy(looked.counts["train"]))
    by_heart = accuracy >= BY_HEART and _chance(train) < SURE
    # The best weights are those of no evaluation in particular, where none is better than chance.
    losses = [float(r["train_loss"]) for r in records.evaluations if r["train_loss"] is not None]
    by_heart = by_heart or (bool(losses) and losses[-1] < FORGOTTEN * entropy)
    evidence = [
        f"Accuracy on {val.samples} validation samples: {val.metrics['accuracy']:.3f}, beyond "
        f"chance no better than always the commonest class ({_commonest(val):.3f}).",
        f"Accuracy on {train.samples} training samples: {accuracy:.3f}.",
    ]
    evidence += [
        f"Of {view.samples} {name} images, {found[0]:.1%} have the label of the one that looks "
        f"most alike; by chance {found[1]:.1%} would."
        for name, view, found in (("training", train, own), ("validation", val, others))
        if found is not None
    ]
    known = own[2] < SURE
    if by_heart and known and others is not None and others[2] < SURE:
        return []  # each for itself they fit: validation is numbered or pictured otherwise
    size = records.description.data["samples"]
    if by_heart:
        severity: Severity = "problem" if size["train"] >= MANY or known else "warning"
        which = "validation" if known else "training"
        return [
            Finding(
                code="labels-shuffled",
                severity=severity,
                what=f"The labels of {which} seem to have nothing to do with the images: what was "
                "learned of training samples is learned by heart, and helps with no other.",
                evidence=tuple(evidence),
                remedy="Look at some images with their labels: a list of labels in another order "
                "than the images is the usual cause.",
                command=records.audit,
                explains=("generalisation-gap", "overfitting"),
            )
        ]
    if own[2] < CHANCE or looked.trained.loss > PRIOR * entropy:
        return []
    return [
        Finding(
            code="labels-shuffled",
            severity="warning",
            what="Nothing was learned that holds for other images, and those that look alike have "
            "the same label no more often than by chance: the labels may have nothing to do with "
            "the images.",
            evidence=(
                *evidence,
                f"The loss is {looked.trained.loss:.3g} after {records.steps:,} steps; knowing "
                f"only how frequent the classes are gives {entropy:.3g}.",
            ),
            remedy="Look at some images with their labels: a list of labels in another order than "
            "the images is the usual cause. If they are right, the task is hard: train longer, or "
            "begin with published weights.",
            command=records.audit,
            explains=("underfitting",),
        )
    ]


def renumbered(records: Records) -> list[Finding]:
    """Classes with other numbers in validation than in training: a shifted diagonal."""
    split, result = _evaluated(records)
    if "confusion" not in result:
        return []
    confusion = np.array(result["confusion"], float)
    rows = confusion.sum(1)
    there = rows > 0
    if there.sum() < 2 or rows.sum() < 3 * there.sum():
        return []
    recall = confusion[there] / rows[there, None]
    from scipy import stats
    from scipy.optimize import linear_sum_assignment

    truth = np.flatnonzero(there)
    own = float(recall[np.arange(len(truth)), truth].mean())
    which, said = linear_sum_assignment(recall, maximize=True)
    best = float(recall[which, said].mean())
    if best < RENAMED or own > OWN or records.steps < RENUMBERED:
        return []
    # Whatever is guessed, one of all renumberings fits best.
    hits = float(confusion[there][which, said].sum())
    guessed = float(confusion.sum(0).max() / rows.sum())
    by_chance = stats.binom.logsf(hits - 1, rows.sum(), guessed)
    if by_chance + math.lgamma(len(confusion) + 1) > math.log(SURE):
        return []
    moved = said - truth[which]
    step = int(np.bincount(moved % len(confusion), minlength=len(confusion)).argmax())
    step = step if step <= len(confusion) / 2 else step - len(confusion)
    alike = float((moved % len(confusion) == step % len(confusion)).mean())
    shifted = alike > 0.6 and step != 0
    pairs = ", ".join(
        f"{records.classes[truth[i]]} as {records.classes[j]}"
        for i, j in list(zip(which.tolist(), said.tolist(), strict=True))[:4]
    )
    what = f"by {step:+d} " if shifted else ""
    return [
        Finding(
            code="labels-shifted" if shifted else "classes-renumbered",
            severity="problem",
            what=f"The classes are numbered otherwise in {split} than they were learned"
            + (f": off {what}throughout." if shifted else "."),
            evidence=(
                f"Mean recall is {own:.3f}; were the classes renumbered, it would be {best:.3f}.",
                f"The network takes {pairs}{' …' if len(which) > 4 else ''}.",
            ),
            remedy="Number the classes of all splits by one list, from 0 on (a list that begins "
            "with 1, or with a background, is the usual cause); a loss of your own must not shift "
            "them either.",
            explains=("generalisation-gap", "labels-shuffled", "underfitting"),
        )
    ]


def imbalance(records: Records) -> list[Finding]:
    """An accuracy that comes from the common classes alone."""
    split, result = _evaluated(records)
    if records.task != "classification" or "confusion" not in result:
        return []
    confusion = np.array(result["confusion"], float)
    rows = confusion.sum(1)
    there = rows > 0
    if there.sum() < 2:
        return []
    share = float(rows.max() / rows.sum())
    accuracy = float(np.trace(confusion) / rows.sum())
    recall = np.diag(confusion)[there] / rows[there]
    mean = float(recall.mean())
    if share < max(COMMON, 1.5 / there.sum()) or accuracy - mean < HIDDEN:
        return []
    names = [name for name, ok in zip(records.classes, there, strict=True) if ok]
    worst = int(recall.argmin())
    return [
        Finding(
            code="imbalance-hidden",
            severity="warning",
            what="The accuracy comes from the commonest class, and hides that others are not "
            "recognised.",
            evidence=(
                f"Accuracy in {split}: {accuracy:.3f}; averaged over the classes: {mean:.3f}.",
                f"{records.classes[int(rows.argmax())]} alone is {share:.0%} of the samples.",
                f"Of {names[worst]} {recall[worst]:.0%} are recognised.",
            ),
            remedy="Judge by each class's recall, and let all classes count the same in training.",
            command=records.again("--data.balance weights")
            if records.recipe.data.balance == "none"
            else None,
            series=Series(
                x=tuple(range(len(names))),
                ys={"recall": tuple(recall.tolist())},
                xlabel="class",
                ylabel="recall",
                threshold=accuracy,
                meaning="accuracy",
                names=tuple(names),
            ),
        )
    ]


def neighbours(view: View) -> tuple[float, float, float] | None:
    """(the share of samples whose nearest neighbour by thumbnails has their label, that to be
    expected by chance, the probability of so high a share by chance); None for too few samples."""
    from scipy import stats
    from sklearn.neighbors import NearestNeighbors  # takes a second to import

    labels = view.labels
    if labels is None or len(labels) < FEWEST:
        return None
    found = NearestNeighbors(n_neighbors=2).fit(view.thumbs)
    nearest = found.kneighbors(view.thumbs, return_distance=False)
    rows = np.arange(len(labels))
    # A sample is its own nearest one, unless another is the very same.
    other = np.where(nearest[:, 0] == rows, nearest[:, 1], nearest[:, 0])
    hits = int((labels[other] == labels).sum())
    p = np.bincount(labels) / len(labels)
    expected = float((p**2).sum())
    # Mutual neighbours agree together, so there are fewer independent trials than samples.
    test = stats.binomtest(hits // 2, max(1, len(labels) // 2), expected, "greater")
    return hits / len(labels), expected, float(test.pvalue)


def _evaluated(records: Records) -> tuple[str, dict[str, Any]]:
    """The last score of a split, and its name."""
    for split in ("val", "test"):
        if split in records.evaluation:
            return split, records.evaluation[split]
    return "", {}


def _commonest(view: View) -> float:
    assert view.labels is not None
    return float(np.bincount(view.labels).max() / len(view.labels))


def _chance(view: View) -> float:
    """The probability that guessing the commonest class does as well."""
    from scipy import stats

    hits = round(view.metrics["accuracy"] * view.samples)
    return float(stats.binomtest(hits, view.samples, _commonest(view), "greater").pvalue)
