"""Whether evaluation sees images, and the network its own statistics, as training did."""

from __future__ import annotations

import math

from vidi.doctor.finding import STUCK, Finding, Severity
from vidi.doctor.looking import Looked
from vidi.doctor.records import Records

MEANS, SPREADS = 0.5, 1.6
"""What the first layer is given in training and in evaluation differs if its means are so many
deviations apart, or its deviations differ by such a factor; surely if by twice as many, or by the
square."""
TIMES, MORE = 1.5, 0.1
"""Kept statistics do not fit if the loss with them is so many times that with the batch's, and so
much more."""
FITTED = 100
"""Steps after which running averages fit, at the usual momentum of 0.1."""
ALONE = 0.02
"""By which answers to a batch and to its halves may differ, relative to their deviation."""


def differing(records: Records, looked: Looked) -> list[Finding]:
    """The same samples reach the first layer otherwise in evaluation than in training."""
    there, here = looked.trained.given, looked.training.given
    if there is None or here is None:
        return []
    spread = max(there.std, here.std, 1e-9)
    off = abs(there.mean - here.mean) / spread
    ratio = spread / max(min(there.std, here.std), 1e-9)
    if off < MEANS and ratio < SPREADS:
        return []
    severity: Severity = "problem" if off > 2 * MEANS or ratio > SPREADS**2 else "warning"
    return [
        Finding(
            code="preprocessing-differs",
            severity=severity,
            what="Evaluation gives the network other values than training does, for the same "
            "samples.",
            evidence=(
                f"The layer {there.layer} is given values of {there.mean:.3g} ± {there.std:.3g} in "
                f"training and of {here.mean:.3g} ± {here.std:.3g} in evaluation.",
                f"That is {off:.2f} deviations apart, and {ratio:.2f} times as wide.",
            ),
            remedy="Scale and normalise in one place, for both: vidi does it before the network. "
            "If the network itself does more in training only (`if self.training`), let it do so "
            "always; if augmentation is the cause, let it change brightness and contrast less.",
            layer=there.layer,
            explains=("norm-statistics", "generalisation-gap") if severity == "problem" else (),
        )
    ]


def statistics(records: Records, looked: Looked) -> list[Finding]:
    """Batch norms' kept statistics do not fit what the layers are given."""
    seen = looked.trained
    if seen.kept is None:
        return []
    bad = not math.isfinite(seen.kept)
    if not bad and seen.kept < TIMES * seen.loss + MORE:
        return []
    early = records.steps < FITTED
    sure = bad or seen.kept > 2 * TIMES * seen.loss + MORE
    return [
        Finding(
            code="norm-statistics",
            severity="problem" if sure and not early else "warning",
            what="The statistics that batch norms keep for evaluation do not fit what they are "
            "given.",
            evidence=(
                f"On the same {seen.samples} training samples the loss is {seen.loss:.3g} with "
                f"the batch's statistics and {seen.kept:.3g} with the kept ones.",
                f"They are averages over {records.steps:,} steps.",
            ),
            remedy="Train longer; they are averages, and lag behind."
            if early
            else "Let batch norms average faster (momentum 0.1), over larger batches, and do not "
            "put them into evaluation mode while weights still change.",
            command=records.again("--epochs 10") if early else None,
            explains=("generalisation-gap", *STUCK) if sure else (),
        )
    ]


def by_batch(records: Records, looked: Looked) -> list[Finding]:
    """In evaluation, an image's answer depends on which others are in its batch."""
    depends = looked.alone is not None and not looked.alone < ALONE
    if not depends and not looked.norms_training:
        return []
    evidence = []
    if depends:
        evidence.append(
            f"Answers to a batch and to its halves are {looked.alone:.2g} deviations apart."
        )
    if looked.norms_training:
        some = ", ".join(looked.norms_training[:3])
        evidence.append(
            f"{len(looked.norms_training)} batch norms use the batch's statistics though the "
            f"network is in evaluation mode: {some}."
        )
    return [
        Finding(
            code="norm-mode",
            severity="problem",
            what="In evaluation an image's answer depends on the others in its batch.",
            evidence=tuple(evidence),
            remedy="Batch norms must use their kept statistics there: leave track_running_stats "
            "on, and let `eval()` of your network reach them.",
            layer=looked.norms_training[0] if looked.norms_training else None,
        )
    ]
