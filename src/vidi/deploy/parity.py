"""Whether an exported file answers as the run does that it was made from.

Both see the same real images: the file from their bytes to the answer, the run through
:meth:`vidi.api.Model.predict` in fp32. Answers may differ by what rounding does, and no more:
a mean that is a little off, channels in the wrong order, another way of resizing show in the
typical difference long before a label changes. What hardly moves the answers shows in the weights
that lie in the file: they are those of the run, bit for bit, or the file is none of it.

A decision (a label, a pixel's class, a box) may be another one only where the run itself was
undecided: a tie.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vidi.data.open import from_images
from vidi.data.overlap import iou
from vidi.data.proposals import attach
from vidi.deploy import detection
from vidi.deploy.function import Function
from vidi.deploy.torch_files import PREPARATION
from vidi.engine.device import to_device
from vidi.engine.evaluate import answers, predictions
from vidi.tasks import multilabel
from vidi.types import Array, Detections

Named = Mapping[str, Array]
"""A sample, or the answer about it: arrays by name."""

PROBABILITY, TYPICAL_PROBABILITY = 2e-3, 1e-4
"""Largest and typical (median) difference of probabilities. fp32 sums that are taken in another
order move a probability by about 1e-6; where one pixel of a resized image falls on the other side
of a half, it is a grey level off, and moves one by up to 1e-3, but rarely and in few images."""
SCORES = 1e-3
"""A pixel is a tie where the two best scores are so close, in units of the range of all scores of
the image: a hundred times what fp32 sums in another order make of them."""
TIES = 1e-3
"""The share of decisions that may be ties and differ. With more, they say nothing."""
BOX_TIES = 0.02
"""The same of detections, whose every box went through two suppressions and several thresholds."""
BOUNDARY, TYPICAL_BOUNDARY = 5e-3, 2e-5
"""Largest and mean difference of a boundary map, 0 to 1; as with probabilities."""
MOTION, TYPICAL_MOTION = 2e-2, 2e-4
"""Largest and mean end-point difference in pixels; of vectors longer than a pixel, in their
lengths. Vectors come from differences of features that are far larger, so more digits are lost."""
LEAST = 0.05
"""Detections of that score or more are compared; those below it are hardly more than noise."""
SUREST = 10
"""So many are compared in each image, where there are any, however unsure they are."""
SCORE, TYPICAL_SCORE = 1e-2, 2e-4
"""Largest and mean difference of the scores of a detection and its counterpart."""
OVERLAP = 0.98
"""Its counterpart's least overlap (IoU)."""
NEAR = 0.01
"""An overlap so near the threshold of suppression is a tie: boxes are as far off as that."""
NOISE, NOISES = 1e-6, 8
"""Deviation of the noise in a normalised image, and how often it is drawn. Of a network's logits it
makes what sums in another order do (1e-5)."""
LEVELS = 0.02
"""The share of an image's numbers that resizing in the file may have a grey level higher or lower,
where sums are a half but for rounding: 0.0002 from 640 × 480 to 427 × 320, and 0.01 where sides
become a half and two thirds."""


@dataclass(frozen=True)
class Measure:
    """A difference, the largest that was found or a typical one, and how large it may be."""

    name: str
    value: float
    most: float | None
    """None: it is said alone; what it could be is decided by something else."""

    @property
    def passed(self) -> bool:
        return self.most is None or self.value <= self.most  # which NaN is not


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with its run on ``samples`` images (or pairs).

    ``decisions``: what was decided and compared, as ``what`` calls it, of which ``differing`` are
    others without being ties, and ``ties`` are others and ties; ``most_ties`` is the share of them
    that may be. ``tensors``: those that were found equal bit for bit. ``faults``: sentences on what
    is wrong besides.
    """

    task: str
    samples: int
    measures: tuple[Measure, ...]
    what: str
    decisions: int
    differing: int
    ties: int
    most_ties: float
    tensors: int
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        few = self.ties <= max(2, self.most_ties * self.decisions)
        measured = all(measure.passed for measure in self.measures)
        return self.samples > 0 and few and measured and not self.differing and not self.faults

    @property
    def sentence(self) -> str:
        """The figures, those that are past what is allowed with that."""
        said = [
            f"{m.name} {m.value:.2g}" + ("" if m.passed else f", where {m.most:g} is allowed")
            for m in self.measures
        ]
        if self.what:
            ties = f" and {self.ties:,} more are ties" if self.ties else ""
            said.append(f"{self.differing:,} of {self.decisions:,} {self.what} differ{ties}")
        said.append(f"{self.tensors:,} tensors are equal bit for bit")
        many = "sample" if self.samples == 1 else "samples"
        text = f"On {self.samples:,} {many}: {'; '.join(said)}."
        shown = list(self.faults[:5])
        if len(self.faults) > 5:
            shown.append(f"And {len(self.faults) - 5:,} more faults.")
        return " ".join([text, *shown])


class Artefact(Protocol):
    """An exported file (:func:`vidi.deploy.export.read`)."""

    metadata: dict[str, Any]

    def tensors(self) -> dict[str, Array]:
        """Those of the network that lie in it, by the network's names."""

    def run(self, inputs: Named) -> dict[str, Array]:
        """Its outputs by name."""


def check(
    artefact: Artefact,
    reference: Any,
    samples: Sequence[Named],
    tensors: Named,
) -> Parity:
    """Compare a file with the run.

    ``reference``: a :class:`vidi.api.Model` in fp32, on the CPU. ``samples``: inputs by name,
    uint8 RGB ``image`` [H, W, 3], for flow ``image2``, and for a detector that is told where to
    look ``regions`` float32 [P, 4]. ``tensors``: what has to lie in the file, by the network's
    names.
    """
    task = reference.recipe.task
    compared: _Comparison = _COMPARISONS[task](reference)
    faults = _metadata_faults(artefact.metadata, reference)
    equal, wrong = _stored(artefact.tensors(), tensors)
    faults += wrong
    done = 0
    for together in _in_twos(artefact.metadata, samples):
        try:
            answers = answered(artefact, together)
        except Exception as error:  # whatever a library raises over a graph or a shape
            lines = str(error).split("\n")
            faults.append(f"It cannot be run: {' '.join(line.strip() for line in lines)[:500]}")
            break
        for sample, right, answer in zip(
            together, _predicted(reference, together), answers, strict=True
        ):
            wrong = _shape_faults(right, answer)
            faults += [fault for fault in wrong if fault not in faults]
            if not wrong:
                compared.add(sample, right, answer)
            done += 1
    if done and not faults and compared.what and not compared.decisions:
        faults.append(
            f"No {compared.what[:-1]} could be compared; give more images, or other ones, with "
            "--data."
        )
    return Parity(
        task,
        done,
        compared.measures(),
        compared.what,
        compared.decisions,
        compared.differing,
        compared.ties,
        compared.most_ties,
        equal,
        tuple(faults),
    )


def preparation(reference: Any) -> dict[str, Array]:
    """What images are normalised with, as it has to lie in the file. A network that says the same
    of all pixels would hide that they are a little too bright."""
    whole = Function(nn.Identity(), reference.compute.normalisation, None, None)
    return {name: getattr(whole, name).numpy() for name in PREPARATION}


def answered(artefact: Artefact, samples: Sequence[Named]) -> list[dict[str, Array]]:
    """What the file answers of each sample; they have one size and go through it together, but for
    detections, of which each image has its own number."""
    if artefact.metadata["task"] == "detection":
        return [
            artefact.run({k: x if k == "regions" else x[None] for k, x in sample.items()})
            for sample in samples
        ]
    outputs = artefact.run({k: np.stack([s[k] for s in samples]) for k in samples[0]})
    return [{name: rows[i] for name, rows in outputs.items()} for i in range(len(samples))]


def _in_twos(metadata: dict[str, Any], samples: Sequence[Named]) -> Iterator[list[Named]]:
    """The first alone; of the others neighbours of one size together, where the file takes more
    than one image at a time. If there are none, the first with its mirror image."""
    free = isinstance(metadata["inputs"]["image"]["shape"][0], str)
    waiting: list[Named] = []
    paired = False
    for i in range(len(samples)):
        sample = samples[i]
        if i == 0:
            yield [sample]
            continue
        if waiting and waiting[0]["image"].shape == sample["image"].shape:
            yield [*waiting, sample]
            waiting, paired = [], True
            continue
        if waiting:
            yield waiting
        waiting = [sample]
        if not free:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
    if free and not paired and len(samples):
        first = samples[0]
        yield [first, {name: frame[:, ::-1].copy() for name, frame in first.items()}]


def _predicted(reference: Any, samples: Sequence[Named]) -> list[dict[str, Array]]:
    """What the run answers, under the names that the file has for it."""
    task, images = reference.recipe.task, [sample["image"] for sample in samples]
    if task == "flow":
        found = reference.predict([(s["image"], s["image2"]) for s in samples])
        return [{"flow": one.flow} for one in found]
    if "regions" in samples[0]:
        return [_outputs(one) for one in _told(reference, samples)]
    found = reference.predict(images)
    if task == "detection":
        return [_outputs(one.found) for one in found]
    if task == "segmentation":
        return [{"mask": one.mask} for one in found]
    if task == "boundaries":
        return [{"boundaries": one.soft} for one in found]
    return [{"probabilities": one.probabilities.astype(np.float32)} for one in found]


def _outputs(found: Detections) -> dict[str, Array]:
    return {"boxes": found.xyxy, "scores": found.scores, "labels": found.labels}


def _told(reference: Any, samples: Sequence[Named]) -> list[Detections]:
    """Detections of a run that is told where to look."""
    dataset = from_images([sample["image"] for sample in samples])
    ids = np.arange(len(dataset))
    dataset = attach(dataset, ids, [sample["regions"] for sample in samples])
    task, batches = reference._loader(dataset, ids)
    found: list[Detections] = []
    for _, some in predictions(reference.network, task, batches, reference.compute):
        found += some
    return found


def _stored(found: Named, wanted: Named) -> tuple[int, list[str]]:
    """(how many are equal bit for bit, a sentence on each that is not)."""
    faults = []
    for name, right in wanted.items():
        if name not in found:
            faults.append(f"The tensor {name} is not in the file.")
            continue
        stored = found[name]
        if stored.dtype != right.dtype or stored.shape != right.shape:
            faults.append(
                f"The tensor {name} is {stored.dtype} {list(stored.shape)} in the file, and "
                f"{right.dtype} {list(right.shape)} in the run."
            )
        elif (a := _bytes(stored)) != (b := _bytes(right)):
            size = right.dtype.itemsize
            apart = np.frombuffer(a, f"V{size}") != np.frombuffer(b, f"V{size}")
            faults.append(
                f"The tensor {name} differs from the run's in {int(apart.sum()):,} of "
                f"{right.size:,} numbers."
            )
    equal = len(wanted) - len(faults)
    faults += [f"The tensor {name} is not the run's." for name in found if name not in wanted]
    return equal, faults


def _bytes(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _metadata_faults(metadata: dict[str, Any], reference: Any) -> list[str]:
    """What the file says of itself and is not so."""
    normalisation = reference.compute.normalisation
    right = {
        "task": reference.recipe.task,
        "classes": list(reference.classes),
        "normalisation": {"mean": list(normalisation.mean), "std": list(normalisation.std)},
    }
    return [
        f"The file gives {name} as {metadata.get(name)}, and the run has {value}."
        for name, value in right.items()
        if metadata.get(name) != value
    ]


def _shape_faults(right: Named, answer: Named) -> list[str]:
    """Outputs that are missing, or are no such arrays. Of detections there may be another number:
    that is looked at one by one."""
    faults = []
    for name, wanted in right.items():
        if name not in answer:
            faults.append(f"The file gives no {name}.")
            continue
        found = answer[name]
        free = 1 if name in ("boxes", "scores", "labels") else 0
        if found.dtype != wanted.dtype or found.shape[free:] != wanted.shape[free:]:
            faults.append(
                f"The file gives {name} as {found.dtype} {list(found.shape)}, and the run as "
                f"{wanted.dtype} {list(wanted.shape)}."
            )
    return faults


class _Comparison:
    """The answers of one task, image after image."""

    what = ""
    """What is decided, in the plural; nothing, where answers are numbers alone."""
    most_ties = TIES

    def __init__(self, reference: Any) -> None:
        self.reference = reference
        self.decisions = self.differing = self.ties = 0

    def add(self, sample: Named, right: Named, answer: Named) -> None:
        raise NotImplementedError

    def measures(self) -> tuple[Measure, ...]:
        raise NotImplementedError

    def decide(self, apart: Array, tie: Array) -> None:
        """Counts decisions, bool: which are others, and which of them may be."""
        self.decisions += apart.size
        self.differing += int((apart & ~tie).sum())
        self.ties += int((apart & tie).sum())


class _Probabilities(_Comparison):
    what = "labels"

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self.apart: list[float] = []

    def add(self, sample: Named, right: Named, answer: Named) -> None:
        p, q = right["probabilities"], answer["probabilities"]
        self.apart.append(float(np.abs(p - q).max()))
        if self.reference.recipe.task == "multilabel":
            threshold = multilabel.THRESHOLD
            self.decide((p >= threshold) != (q >= threshold), np.abs(p - threshold) < PROBABILITY)
            return
        self.decide(np.array(p.argmax() != q.argmax()), np.array(_margin(p) < PROBABILITY))

    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("probabilities differ by at most", _largest(self.apart), PROBABILITY),
            Measure("typically by", _typical(self.apart), TYPICAL_PROBABILITY),
        )


class _Masks(_Comparison):
    what = "pixels"

    def add(self, sample: Named, right: Named, answer: Named) -> None:
        apart = right["mask"] != answer["mask"]
        tie = np.zeros_like(apart)
        if apart.any():
            tie = self._undecided(sample["image"])
        self.decide(apart, tie)

    def measures(self) -> tuple[Measure, ...]:
        share = (self.differing + self.ties) / max(1, self.decisions)
        return (Measure("the share of pixels that differ is", share, TIES),)

    def _undecided(self, image: Array) -> Array:
        """bool [H, W]: where the run's two best scores are about the same."""
        dataset = from_images([image])
        task, batches = self.reference._loader(dataset, np.arange(1))
        compute = self.reference.compute
        (batch,) = batches.epoch(0)
        on_device = to_device(batch, compute.device, compute.normalisation, compute.channels_last)
        with torch.inference_mode():
            scores = task._scores(self.reference.network, on_device.inputs["image"], False, (1.0,))
            height, width = image.shape[:2]
            full = F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
            if full.shape[1] == 1:
                return np.zeros((height, width), bool)
            best, second = full.topk(2, 1).values.unbind(1)
            near = best - second <= SCORES * (scores.max() - scores.min())
        return np.asarray(near[0].cpu().numpy())


class _Maps(_Comparison):
    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self.largest: list[float] = []
        self.mean: list[float] = []

    def add(self, sample: Named, right: Named, answer: Named) -> None:
        apart = self.apart(right, answer)
        self.largest.append(float(apart.max()))
        self.mean.append(float(apart.mean(dtype=np.float64)))

    def apart(self, right: Named, answer: Named) -> Array:
        """[H, W]: the difference at each pixel."""
        apart: Array = np.abs(right["boundaries"] - answer["boundaries"])
        return apart

    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("boundary maps differ by at most", _largest(self.largest), BOUNDARY),
            Measure("on average by", _mean(self.mean), TYPICAL_BOUNDARY),
        )


class _Fields(_Maps):
    def apart(self, right: Named, answer: Named) -> Array:
        length = np.linalg.norm(right["flow"], axis=2)
        apart = np.linalg.norm(right["flow"] - answer["flow"], axis=2)
        return np.asarray(apart / np.maximum(1, length))

    def measures(self) -> tuple[Measure, ...]:
        what = "vectors differ by at most (pixels, of long ones their length)"
        return (
            Measure(what, _largest(self.largest), MOTION),
            Measure("on average by", _mean(self.mean), TYPICAL_MOTION),
        )


class _Boxes(_Comparison):
    what = "detections"
    most_ties = BOX_TIES

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self.scores: list[float] = []
        self.overlaps: list[float] = []

    def add(self, sample: Named, right: Named, answer: Named) -> None:
        settings = self.reference.recipe.detection
        least = least_compared(right["scores"], settings.least_score)
        nearly: list[Named] | None = None
        for one, other in ((right, answer), (answer, right)):
            found = counterparts(one, other)
            sure = one["scores"] >= least
            alone = sure & (found < 0)
            tie = np.zeros_like(alone)
            for k in np.flatnonzero(alone):
                tie[k] = undecided(one, other, int(k), settings)
            if (alone & ~tie).any():
                nearly = self._nearly(sample) if nearly is None else nearly
                for run in nearly:  # where the run's own are gone, or the file's are there
                    tie |= alone & ((counterparts(one, run) < 0) == (one is right))
            self.decide(alone[sure], tie[sure])
            matched = np.flatnonzero(sure & (found >= 0))
            for k in matched:
                self.scores.append(abs(float(one["scores"][k] - other["scores"][found[k]])))
                pair = one["boxes"][k : k + 1], other["boxes"][found[k]][None]
                self.overlaps.append(1 - float(iou(*pair)[0, 0]))

    @functools.cached_property
    def _whole(self) -> detection.Detect:
        return detection.function(self.reference)

    def _nearly(self, sample: Named) -> list[Named]:
        """What the run answers to nearly the same image: as the file resizes it, and with noise of
        the size of rounding. Of two proposals that are as sure (there are many on a plain ground)
        the other one may then suppress the first. None, where resizing differs by more."""
        dataset = from_images([sample["image"]])
        if "regions" in sample:
            dataset = attach(dataset, np.arange(1), [sample["regions"]])
        task, batches = self.reference._loader(dataset, np.arange(1))
        (batch,) = batches.epoch(0)
        whole = self._whole
        pixels = torch.from_numpy(sample["image"].copy())[None]
        fitted = whole.fitted(pixels.permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1).numpy()
        loaded = np.asarray(batch.inputs["image"])
        if fitted.shape != loaded.shape:
            return []
        apart = np.abs(fitted - loaded)
        if apart.max() > 1 or (apart > 0).mean() > LEVELS:
            return []
        found: list[Named] = []
        seen = whole.seen(pixels)
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            for _ in range(NOISES):
                noise = NOISE * torch.randn(seen.shape, generator=generator)
                batch.inputs["image"] = (seen + noise).numpy()
                (one,) = answers(self.reference.network, task, batch, self.reference.compute)
                found.append(_outputs(one))
        return found

    def measures(self) -> tuple[Measure, ...]:
        return (
            # What has its counterpart is so near; what has none is decided above.
            Measure("scores differ by at most", _largest(self.scores), None),
            Measure("on average by", _mean(self.scores), TYPICAL_SCORE),
            Measure("boxes overlap by all but", _largest(self.overlaps), None),
        )


def least_compared(scores: Array, least: float) -> float:
    """From which score on detections are compared, in an image where the run has these ``scores``
    [D], none of them below ``least``: where few are sure, the ten surest are."""
    if len(scores) < SUREST:
        return min(LEAST, least)
    return min(LEAST, float(np.sort(scores)[-SUREST]))


def counterparts(one: Named, other: Named) -> Array:
    """int64 [D]: of each detection in ``one`` the row of ``other`` that is the same, or -1: of its
    class, with about the same box and score. Each is a counterpart once."""
    out = np.full(len(one["scores"]), -1)
    overlap = iou(one["boxes"], other["boxes"])
    fits = overlap >= OVERLAP
    fits &= one["labels"][:, None] == other["labels"][None]
    fits &= np.abs(one["scores"][:, None] - other["scores"][None]) <= SCORE
    for k in np.argsort(-one["scores"], kind="stable"):
        if fits[k].any():
            out[k] = np.where(fits[k], overlap[k], -1).argmax()
            fits[:, out[k]] = False
    return out


def undecided(one: Named, other: Named, k: int, settings: Any) -> bool:
    """Whether the detection ``k`` of ``one`` may well be missing in ``other``: its score is at a
    threshold, or it was suppressed there by one that is as sure, or by an overlap that is just
    enough. ``settings``: the recipe's, of detection."""
    score = one["scores"][k]
    if score <= settings.least_score + SCORE:
        return True
    if len(other["scores"]) >= settings.most and score <= other["scores"].min() + SCORE:
        return True
    overlap = iou(one["boxes"][k : k + 1], other["boxes"])[0]
    same = other["labels"] == one["labels"][k]
    near = np.abs(overlap - settings.nms) <= NEAR
    rival = (overlap > settings.nms) & (np.abs(other["scores"] - score) <= SCORE)
    return bool((same & (near | rival)).any())


_COMPARISONS: dict[str, Any] = {
    "classification": _Probabilities,
    "multilabel": _Probabilities,
    "segmentation": _Masks,
    "boundaries": _Maps,
    "flow": _Fields,
    "detection": _Boxes,
}


def _margin(p: Array) -> float:
    """How far the likeliest class is ahead of the next."""
    if len(p) == 1:
        return float("inf")
    second, best = np.sort(p)[-2:]
    return float(best - second)


def _largest(values: list[float]) -> float:
    return float(np.max(values)) if values else 0.0


def _typical(values: list[float]) -> float:
    return float(np.median(values)) if values else 0.0


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0
