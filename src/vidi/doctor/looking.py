"""A run opened again and looked at once, cheaply: what the checks that need data work on.

Some training samples as evaluation sees them, some validation samples likewise, and some of
training's own batches. The network, its batch statistics and its modes are left as they were, bit
for bit; and so are the global random numbers.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from vidi.data.audit import duplicates
from vidi.data.audit.finding import Finding as Twins
from vidi.data.audit.looks import look_at_all
from vidi.data.dataset import Dataset
from vidi.data.loader import Loader, spread
from vidi.data.overlap import iou
from vidi.doctor.records import Records
from vidi.engine.device import to_device
from vidi.engine.evaluate import predictions, quick_meter
from vidi.engine.gradients import split
from vidi.engine.prepare import Prepared
from vidi.errors import InputError
from vidi.models.members import members_of
from vidi.tasks import boundaries, detection
from vidi.types import Array, Batch, Sample

MOST = 256
"""Samples that are looked at, of each kind."""
FEWEST = 32
PIXELS = MOST * 128**2
"""Of large images fewer, but never fewer than :data:`FEW_LARGE`."""
FEW_LARGE = 16
SHARE = 0.05
"""Of the images that were trained on: five forward passes each are then a tenth of the run's time,
of which a forward pass is a third."""
TWINS = {"train": 4000, "val": 1000}
"""Samples that are compared for being the same picture; of images over :data:`TWIN_PIXELS`, each
of which is read at full size, a tenth."""
TWIN_PIXELS = 96**2
SIDE = 16
"""Pixels of a thumbnail's side."""
TOGETHER = 8
"""Samples that go through the network together, and then by halves."""

Norm = nn.modules.batchnorm._BatchNorm
Dropout = nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class Given:
    """What the first layer with weights was given: mean and deviation of all its values."""

    layer: str
    mean: float
    std: float


@dataclass(frozen=True)
class View:
    """Some samples as evaluation sees them.

    ``metrics``: the task's. ``colours``: float32 [N, 6], each sample's mean and deviation of red,
    green and blue, in [0, 1]. ``thumbs``: float32 [N, 16 · 16 · 3]. ``labels``: int64 [N], where a
    sample has one class. ``slope`` and ``correlation``: of the true flow on the predicted one,
    through zero. ``covered``: share of the objects that a proposal overlaps by half or more.
    """

    samples: int
    metrics: dict[str, float]
    given: Given | None
    colours: Array
    thumbs: Array
    labels: Array | None = None
    slope: float | None = None
    correlation: float | None = None
    covered: float | None = None


@dataclass(frozen=True)
class Trained:
    """Some of training's batches, as training sees them.

    ``loss``: the mean, of all the task's losses together; ``kept``: the same where batch norms use
    the statistics that evaluation does; ``without_dropout``: where nothing is dropped. None where
    the network has no such layer. ``foreground``: of detection, the share of the sampled
    regions that are objects. ``sides``: of boundaries, the mean loss of each output, the fused one
    first, relative to that of knowing nothing.
    """

    samples: int
    loss: float
    given: Given | None
    kept: float | None = None
    without_dropout: float | None = None
    foreground: float | None = None
    sides: tuple[float, ...] = ()


@dataclass(frozen=True)
class Looked:
    """``training`` and ``validation``: samples as evaluation sees them; ``trained``: training's
    batches. ``twins``: what the data's audit finds of the same pictures in several splits, among
    ``compared`` samples of validation (or test). ``alone``: how far the network's answers to a
    batch are from those to its halves, relative to their deviation; None where that cannot be
    asked. ``norms_training``: batch norms that look at the batch in evaluation."""

    task: str
    classes: tuple[str, ...]
    headline: str
    training: View
    validation: View
    trained: Trained
    counts: dict[str, Array] = field(default_factory=dict)
    """int64 [K] by split: images of each class in all of it, where an image has one."""
    twins: tuple[Twins, ...] = ()
    compared: int = 0
    alone: float | None = None
    norms_training: tuple[str, ...] = ()


def look(records: Records, made: Prepared) -> Looked:
    """Look at the run's network and data; takes about a tenth of what training took, or seconds.

    ``made``: the run opened again, as :func:`vidi.api.reopen` gives it. The same every time.
    """
    dataset = made.plain.dataset
    count = _how_many(records, made)
    with _untouched(made.model):
        training = _view(made, made.plain.few(count))
        validation = _view(made, made.loaders["val"].few(count))
        alone, norms = _alone(made)
        trained = _trained(made, count)
    twins, compared = _twins(dataset)
    labels = dataset.labels
    counts = {}
    if labels is not None and labels.ndim == 1:
        counts = {name: dataset.class_counts(name) for name in dataset.splits}
    return Looked(
        task=dataset.task,
        classes=made.description.classes,
        headline=made.task.headline,
        training=training,
        validation=validation,
        trained=trained,
        counts=counts,
        twins=twins,
        compared=compared,
        alone=alone,
        norms_training=norms,
    )


def _how_many(records: Records, made: Prepared) -> int:
    size = made.description.recipe.image_size
    assert size != "auto"
    seen = records.steps * made.train.batch_size
    large = max(FEW_LARGE, PIXELS // size**2)
    return int(min(MOST, large, max(FEWEST, SHARE * seen)))


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Whatever is done within, buffers, modes and random numbers are as before."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
            for module, training in modes:
                module.training = training


class _Ear:
    """Listens to what the first layer with weights is given."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            (name, module)
            for name, module in model.named_modules()
            if any(True for _ in module.parameters(recurse=False))
        ]
        self._first: str | None = None
        self._sums = np.zeros(3)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        handles = [m.register_forward_pre_hook(self._hook(name)) for name, m in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def given(self) -> Given | None:
        n, total, squares = self._sums
        if self._first is None or not n:
            return None
        mean = total / n
        return Given(self._first, float(mean), float(max(0.0, squares / n - mean**2) ** 0.5))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            if not given or not isinstance(given[0], Tensor):
                return
            self._first = self._first or name
            if name == self._first:
                values = given[0].detach().double()
                self._sums += [values.numel(), values.sum().item(), values.square().sum().item()]

        return hook


def _view(made: Prepared, loader: Loader) -> View:
    ear = _Ear(next(members_of(made.model))[1])
    meter = quick_meter(made.task)
    samples: list[Sample] = []
    colours: list[Array] = []
    thumbs: list[Array] = []
    flow = np.zeros(3)
    covered = np.zeros(2)
    with ear.listening():
        for batch, found in predictions(made.model, made.task, loader, made.compute):
            meter.update(found, batch.samples)
            images = [im for im, ok in zip(batch.inputs["image"], batch.valid, strict=True) if ok]
            colours += [_colours(image) for image in images]
            thumbs += [_thumb(image) for image in images]
            for sample, told in zip(batch.samples, found, strict=True):
                flow += _flow_sums(sample, told)
                covered += _covered(sample)
                # The pixels are not needed any more, and may be many.
                samples.append(replace(sample, image=sample.image[:1, :1], image2=None))
    if not samples:
        raise InputError(
            f"Not one of {len(loader.ids)} samples of {loader.dataset.root} that were looked at "
            "can be read."
        )
    labels = None
    if made.description.data["task"] == "classification":
        labels = np.array([sample.label for sample in samples], np.int64)
    both, predicted, true = flow
    return View(
        samples=len(samples),
        metrics=meter.compute(),
        given=ear.given(),
        colours=np.stack(colours),
        thumbs=np.stack(thumbs),
        labels=labels,
        slope=float(both / predicted) if predicted else None,
        correlation=float(both / (predicted * true) ** 0.5) if predicted * true > 0 else None,
        covered=float(covered[0] / covered[1]) if covered[1] else None,
    )


def _colours(image: Array) -> Array:
    pixels = image.reshape(-1, 3).astype(np.float64) / 255
    return np.concatenate([pixels.mean(0), pixels.std(0)]).astype(np.float32)


def _thumb(image: Array) -> Array:
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32).ravel() / 255


def _flow_sums(sample: Sample, told: Any) -> Array:
    """Sums over known pixels of (truth · prediction, prediction², truth²)."""
    if sample.flow is None:
        return np.zeros(3)
    known = np.isfinite(sample.flow).all(2)
    if sample.flow_valid is not None:
        known &= sample.flow_valid
    truth = sample.flow[known].astype(np.float64)
    said = told.flow[known].astype(np.float64)
    return np.array([(truth * said).sum(), (said**2).sum(), (truth**2).sum()])


def _covered(sample: Sample) -> Array:
    """(objects that a proposal overlaps by half, objects)."""
    if sample.proposals is None or sample.boxes is None:
        return np.zeros(2)
    boxes = sample.boxes
    truth = boxes.xyxy[~(boxes.difficult | boxes.crowd)]
    best = iou(truth, sample.proposals).max(1, initial=0.0)
    return np.array([float((best >= 0.5).sum()), float(len(truth))])


def _trained(made: Prepared, count: int) -> Trained:
    """Training's batches in training's mode, and with one thing after the other changed."""
    network = next(members_of(made.model))[1]
    batches = _batches(made, count)
    norms = [m for m in network.modules() if isinstance(m, Norm) and m.track_running_stats]
    dropouts = [m for m in network.modules() if isinstance(m, Dropout) and m.p > 0]
    ear = _Ear(network)
    shares: list[tuple[int, int]] = []
    kept = without = None
    made.train_mode(network)
    looking_at_batch = [m for m in norms if m.training]
    if looking_at_batch:
        # First: each pass by the batch's own statistics moves those that are kept.
        for norm in looking_at_batch:
            norm.eval()
        kept = _mean_loss(made, network, batches)
        made.train_mode(network)
    with ear.listening():
        loss = _mean_loss(made, network, batches, shares)
    sides = _sides(made, network, batches)
    if any(m.training for m in dropouts):
        for dropout in dropouts:
            dropout.eval()
        without = _mean_loss(made, network, batches)
    objects, regions = sum(o for o, _ in shares), sum(n for _, n in shares)
    return Trained(
        samples=sum(len(batch) for batch in batches),
        loss=loss,
        given=ear.given(),
        kept=kept,
        without_dropout=without,
        foreground=objects / regions if regions else None,
        sides=sides,
    )


def _batches(made: Prepared, count: int) -> list[Batch]:
    """As many parts of batches as hold ``count`` samples, one at least, on the device."""
    train = copy.copy(made.train)
    train.failures = {}
    wanted = max(1, count // made.train.batch_size)
    parts = made.description.recipe.optimiser.accumulate
    compute = made.compute
    with contextlib.closing(train.epoch(0)) as epoch:
        return [
            to_device(part, compute.device, compute.normalisation, compute.channels_last)
            for batch in islice(epoch, wanted)
            for part in split(batch, parts)
        ]


def _mean_loss(
    made: Prepared,
    network: nn.Module,
    batches: list[Batch],
    shares: list[tuple[int, int]] | None = None,
) -> float:
    """``shares`` takes (objects, regions) of each image of detection."""
    task: Any = made.task
    if shares is not None and made.description.data["task"] == "detection":
        task = _counting(task, shares, batches)
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for number, batch in enumerate(batches):
        torch.manual_seed(number)  # the same units are dropped each time
        for name, weight in task.weights(batch).items():
            weights[name] = weights.get(name, 0.0) + float(weight)
        with made.compute.autocast():
            found = task.losses(network, batch)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sum(value / max(weights[name], 1e-12) for name, value in sums.items())


def _counting(task: Any, shares: list[tuple[int, int]], batches: list[Batch]) -> Any:
    """The task; what it samples of regions goes into ``shares``. Where the network proposes, that
    is in the middle of the forward pass."""
    if not task.proposes:
        for batch in batches:
            labels = batch.targets["labels"]
            counted = labels != detection.UNCOUNTED
            shares.append((int((labels > 0).sum()), int(counted.sum())))
        return task
    counting = copy.copy(task)

    def sample(*given: Any) -> Any:
        regions, labels, matched = task.sample(*given)
        shares.append((int((labels > 0).sum()), len(labels)))
        return regions, labels, matched

    counting.sample = sample
    return counting


def _sides(made: Prepared, network: nn.Module, batches: list[Batch]) -> tuple[float, ...]:
    """Each output's loss by the task's own weights, relative to a half everywhere."""
    task: Any = made.task
    if not isinstance(task, boundaries.Task) or task.loss is not None:
        return ()
    sums: Array = np.zeros(0)
    weight = 0.0
    for batch in batches:
        with made.compute.autocast():
            outputs = network(batch.inputs["image"])
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        pixels = task._pixel_weights(batch)
        values = [
            float((pixels * task._per_pixel(y.float(), batch.targets["edges"])).sum())
            for y in heads
            if y is not None
        ]
        sums = np.array(values) if not len(sums) else sums + values
        weight += float(pixels.sum())
    if not weight:
        return ()
    return tuple((sums / weight / np.log(2)).tolist())


def _alone(made: Prepared) -> tuple[float | None, tuple[str, ...]]:
    """(how far answers to a batch are from those to its halves, norms that look at the batch)."""
    model = made.model
    model.eval()
    norms = tuple(n for n, m in model.named_modules() if isinstance(m, Norm) and _looks(m))
    if made.description.data["task"] == "detection":  # its images go through the network singly
        return None, norms
    loader = made.plain.few(TOGETHER)
    loader.batch_size = TOGETHER
    with contextlib.closing(loader.epoch(0)) as batches:
        batch = next(batches)
    compute = made.compute
    batch = to_device(batch, compute.device, compute.normalisation, compute.channels_last)
    images = [batch.inputs[name] for name in ("image", "image2") if name in batch.inputs]
    if isinstance(images[0], list) or len(images[0]) < 4:
        return None, norms
    half = len(images[0]) // 2
    together = _first(model(*images))
    halves = [
        _first(model(*(x[rows] for x in images))) for rows in (slice(half), slice(half, None))
    ]
    off = (together - torch.cat(halves)).square().mean().sqrt()
    return float(off / together.std().clamp_min(1e-6)), norms


def _looks(module: Any) -> bool:
    """Whether a batch norm normalises by the batch itself."""
    return bool(module.training or module.running_mean is None)


def _first(outputs: Any) -> Tensor:
    found: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return found.float()


def _twins(dataset: Dataset) -> tuple[tuple[Twins, ...], int]:
    """What the audit finds of pictures that are in several splits, and among how many samples that
    are not trained on."""
    height, width = dataset.images.size(int(dataset.splits["train"][0]))
    part = 10 if height * width > TWIN_PIXELS else 1
    most = {"train": TWINS["train"], "val": TWINS["val"], "test": TWINS["val"]}
    some = {name: spread(ids, most[name] // part) for name, ids in dataset.splits.items()}
    # Validation and test together: what is in both of them was not trained on.
    others = np.concatenate([ids for name, ids in some.items() if name != "train"])
    both = {"train": some["train"], "others": others}
    seen = look_at_all(replace(dataset, splits=both), threads=1)
    found = [*duplicates.exact(seen), *duplicates.near(seen)]
    compared = len(others)
    return tuple(f for f in found if f.code.endswith("across-splits")), compared
