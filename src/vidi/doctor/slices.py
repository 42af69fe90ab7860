"""The metric of parts of a split: by class, size, brightness, contrast. Which are worse than chance
would have it?

Whoever looks at many parts finds some that look bad: a part is said to differ only where a
difference as large would be rare (5 %) in any of all the parts, had none differed (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np
from scipy import stats

from vidi.engine.evaluate import predictions, quick_meter
from vidi.engine.prepare import Prepared
from vidi.errors import InputError
from vidi.ops import average_precision
from vidi.ops.detection_meter import DetectionMeter
from vidi.tasks import classification
from vidi.tasks.multilabel import MultilabelMeter
from vidi.tasks.segmentation import SegmentationMeter
from vidi.types import Array, Batch, Meter, Sample

CHANCE = 0.05
"""How often something may be said that is not so, over all parts together."""
CONFIDENCE = 0.95
"""Of the intervals, each by itself."""
RESAMPLES = 100
"""Of the bootstrap."""
FEWEST = 8
"""A part of fewer samples is shown, and nothing is said of it."""
THIRDS = {
    "size": ("small", "medium", "large"),
    "brightness": ("dark", "medium", "bright"),
    "contrast": ("low", "medium", "high"),
    "objects": ("small objects", "medium objects", "large objects"),
}
"""What the three parts are called."""


@dataclass(frozen=True)
class Slice:
    """One part. ``by``: what the samples were parted by; ``name``: which part; ``n`` samples.
    ``value``: the metric there, ``low`` and ``high`` its 95 % interval; ``rest``: the metric of the
    other samples, of a class where each has its own value the mean of the other classes.
    ``p``: how probable so large a difference is by chance; NaN where there are too few samples.
    """

    by: str
    name: str
    n: int
    value: float
    low: float
    high: float
    rest: float
    p: float
    differs: bool = False


@dataclass(frozen=True)
class Slices:
    """``metric`` of ``samples`` of a split, whole (``value``) and in parts, the worst first,
    and last those without a value."""

    split: str
    metric: str
    lower_is_better: bool
    samples: int
    value: float
    rows: tuple[Slice, ...]

    def worse(self, row: Slice) -> bool:
        """Whether the part is worse than the rest, by chance or not."""
        return (row.value > row.rest) if self.lower_is_better else (row.value < row.rest)

    def as_json(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "metric": self.metric,
            "samples": self.samples,
            "value": self.value,
            "slices": [
                {
                    k: None if isinstance(v, float) and math.isnan(v) else v
                    for k, v in asdict(row).items()
                }
                for row in self.rows
            ],
        }

    def lines(self) -> list[str]:
        out = [
            f"{self.metric} {self.value:.4f} on the split {self.split}, {self.samples:,} samples"
        ]
        said = [row for row in self.rows if row.differs]
        if not self.rows:
            return [*out, "There are no parts to compare: all samples are alike."]
        if not said:
            out.append(f"None of {len(self.rows)} parts differs from the rest beyond chance.")
        else:
            differ = "differs" if len(said) == 1 else "differ"
            out.append(
                f"{len(said)} of {len(self.rows)} parts {differ} from the rest beyond chance:"
            )
        wide = max((len(f"{row.by} {row.name}") for row in said), default=0)
        for row in said:
            word = "worse " if self.worse(row) else "better"
            out.append(
                f"  {word}  {f'{row.by} {row.name}':<{wide}}  {row.value:.4f} "
                f"({row.low:.4f} to {row.high:.4f}), the rest {row.rest:.4f}; n {row.n:,}"
            )
        few = sum(math.isnan(row.p) for row in self.rows)
        if few:
            parts = "part has" if few == 1 else "parts have"
            out.append(f"{few} {parts} too few samples (under {FEWEST}) to say anything of.")
        return out


def slices(made: Prepared, split: str | None = None) -> Slices:
    """The headline metric by class, by the image's size (original pixels), brightness and contrast
    (mean and deviation of its grey values), and for detection by its objects' size, in thirds.

    Accuracy's intervals are Wilson's, and its differences are tested exactly (Fisher). Other
    metrics are of a whole set, so theirs is measured on each part, and again on 100 resamples of
    the split's images, with a fixed seed. Where a task has a quick meter, by that; detection by
    its average precision at one overlap, 0.5. Where each class has a value (IoU, average
    precision) it is compared with the mean of the others.

    ``split``: test where there is one, else val. Raises :class:`InputError` for one that is not.
    """
    loaders = {"train": made.plain} | made.loaders
    split = split or ("test" if "test" in loaders else "val")
    if split not in loaders:
        raise InputError(
            f"There is no split {split!r} in the data of this run; there are {', '.join(loaders)}."
        )
    task: Any = made.task
    meters: list[Meter] = []
    looks: list[dict[str, float]] = []
    right: list[bool] = []
    held: list[set[int]] = []
    for batch, found in predictions(made.model, made.task, loaders[split], made.compute):
        for row, sample, prediction in zip(
            np.flatnonzero(batch.valid), batch.samples, found, strict=True
        ):
            meter = quick_meter(task)
            meter.update([prediction], [sample])
            meters.append(meter)
            looks.append(_looks(batch, int(row), sample))
            held.append(_classes(sample))
            if isinstance(prediction, classification.Prediction):
                right.append(int(prediction.log_probabilities.argmax()) == sample.label)
    parts = _parts(looks)
    classes = made.description.classes
    lower = bool(getattr(task, "lower_is_better", False))
    if right:
        for k, name in enumerate(classes):
            parts.append(("class", name, np.array([k in own for own in held])))
        rows = [_share(by, name, np.array(right), rows) for by, name, rows in parts]
    else:
        rows = _measured(task, meters, parts, classes, held)
    rows = judged(rows)
    rows.sort(key=lambda row: (math.isnan(row.value), -row.value if lower else row.value))
    return Slices(
        split=split,
        metric="map50" if made.description.recipe.task == "detection" else task.headline,
        lower_is_better=lower,
        samples=len(meters),
        value=_score(task, meters, np.arange(len(meters)))[0],
        rows=tuple(rows),
    )


def judged(rows: Sequence[Slice]) -> list[Slice]:
    """The same, each with whether it differs from the rest beyond chance."""
    tested = sum(not math.isnan(row.p) for row in rows)
    return [replace(row, differs=row.p * tested < CHANCE) for row in rows]


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share, ``right`` of ``n`` (Wilson 1927)."""
    found = stats.binomtest(right, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def _share(by: str, name: str, right: Array, rows: Array) -> Slice:
    n, hit = int(rows.sum()), int(right[rows].sum())
    m, other = int((~rows).sum()), int(right[~rows].sum())
    if not n:
        nan = float("nan")
        return Slice(by, name, 0, nan, nan, nan, nan, nan)
    p = float("nan")
    if min(n, m) >= FEWEST:
        p = float(stats.fisher_exact([[hit, n - hit], [other, m - other]]).pvalue)
    low, high = wilson(hit, n)
    return Slice(by, name, n, hit / n, low, high, other / m if m else float("nan"), p)


def _measured(
    task: Any,
    meters: Sequence[Meter],
    parts: Sequence[tuple[str, str, Array]],
    classes: Sequence[str],
    held: Sequence[set[int]],
) -> list[Slice]:
    """By the task's meter, with a bootstrap of the images."""
    n = len(meters)
    every = np.arange(n)
    told = [(by, name, int(rows.sum())) for by, name, rows in parts]
    value = [_score(task, meters, every[rows])[0] for _, _, rows in parts]
    rest = [_score(task, meters, every[~rows])[0] for _, _, rows in parts]
    enough = [min(count, n - count) >= FEWEST for _, _, count in told]
    tested = [rows for (_, _, rows), ok in zip(parts, enough, strict=True) if ok]
    own = _score(task, meters, every)[1]
    for k in range(len(own)):
        told.append(("class", classes[k], sum(k in there for there in held)))
        enough.append(told[-1][2] >= FEWEST)
    value += own.tolist()
    rest += _others(own).tolist()

    rng = np.random.default_rng(0)
    values, gaps = [], []
    for _ in range(RESAMPLES if any(enough) else 0):
        drawn = rng.integers(0, n, n)
        of = [_score(task, meters, drawn[rows[drawn]])[0] for rows in tested]
        other = [_score(task, meters, drawn[~rows[drawn]])[0] for rows in tested]
        if len(own):
            by_class = _score(task, meters, drawn)[1]
            of += by_class[enough[len(parts) :]].tolist()
            other += _others(by_class)[enough[len(parts) :]].tolist()
        values.append(of)
        gaps.append(np.subtract(of, other))
    columns = iter(zip(np.array(values).T, np.array(gaps).T, strict=True))
    out = []
    for (by, name, count), v, r, ok in zip(told, value, rest, enough, strict=True):
        low = high = p = float("nan")
        if ok:
            again, gap = (column[~np.isnan(column)] for column in next(columns))
            if len(gap) > 1:
                half = (1 - CONFIDENCE) / 2
                low, high = (float(q) for q in np.quantile(again, (half, 1 - half)))
                p = _by_chance(v - r, float(gap.std(ddof=1)))
        out.append(Slice(by, name, count, v, low, high, r, p))
    return out


def _by_chance(gap: float, spread: float) -> float:
    """How probable a normal variable of that deviation is to be so far from zero."""
    if spread == 0:
        return float(gap == 0)
    return float(2 * stats.norm.sf(abs(gap) / spread))


def _others(own: Array) -> Array:
    """float64 [K]: for each class the mean of the others that have a value."""
    return np.array([_mean(np.delete(own, k)) for k in range(len(own))])


def _parts(looks: Sequence[dict[str, float]]) -> list[tuple[str, str, Array]]:
    """(by what, name, bool [N]) of the thirds. What is alike everywhere is not parted."""
    out = []
    for by, names in THIRDS.items():
        values = np.array([look.get(by, np.nan) for look in looks])
        known = ~np.isnan(values)
        if not known.any() or np.ptp(values[known]) == 0:
            continue
        edges = np.quantile(values[known], (1 / 3, 2 / 3))
        which = np.searchsorted(edges, values, side="left")
        for k, name in enumerate(names):
            rows = known & (which == k)
            if rows.any():
                span = _said(by, float(values[rows].min()), float(values[rows].max()))
                out.append((by, f"{name} ({span})", rows))
    return out


def _said(by: str, low: float, high: float) -> str:
    if by in ("size", "objects"):  # areas, said as the side of a square
        return f"{low**0.5:.0f} to {high**0.5:.0f} px"
    return f"{low:.0f} to {high:.0f}"


def _looks(batch: Batch, row: int, sample: Sample) -> dict[str, float]:
    grey = cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY)
    out = {
        "size": float(batch.sizes[row].prod()),
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
    }
    if sample.boxes is not None and len(sample.boxes):
        sides = sample.boxes.xyxy[:, 2:] - sample.boxes.xyxy[:, :2]
        out["objects"] = float(np.median(sides.prod(1)))
    return out


def _classes(sample: Sample) -> set[int]:
    """The classes that are in the sample."""
    if sample.boxes is not None:
        return set(sample.boxes.labels.tolist())
    if sample.mask is not None:
        return set(np.unique(sample.mask).tolist())
    if isinstance(sample.label, np.ndarray):
        return set(np.flatnonzero(sample.label).tolist())
    return set() if sample.label is None else {int(sample.label)}


def _score(task: Any, meters: Sequence[Meter], rows: Array) -> tuple[float, Array]:
    """(the metric, each class's own [K] or nothing [0]) of the samples ``rows``; NaN where there is
    nothing to measure it on."""
    whole: Any = quick_meter(task)
    for i in rows:
        whole.merge(meters[i])
    if isinstance(whole, DetectionMeter):
        # The average over ten overlaps takes forty times as long.
        own = np.array(
            [
                average_precision.coco(recall, precision) if there else np.nan
                for (recall, precision, _), there in zip(
                    whole.curves(), whole.objects[0], strict=True
                )
            ]
        )
        return _mean(own), own
    own = np.zeros(0)
    if isinstance(whole, MultilabelMeter):
        own = np.array([row["ap"] for row in whole.per_class(task.classes)])
    elif isinstance(whole, SegmentationMeter):
        own = np.array([row["iou"] for row in whole.per_class(task.classes)])
    if not len(rows):
        return float("nan"), own
    try:
        return float(whole.compute()[task.headline]), own
    except InputError:  # the flow of no pixel is known
        return float("nan"), own


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
