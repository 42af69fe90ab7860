"""What ``auto`` means. Resolved before the first step, printed, and saved resolved.

Two steps, because the second needs the network: first what decides the network and its input, then
what its training needs. Each decision gives a sentence.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from vidi.data import augment
from vidi.data.survey import Survey
from vidi.engine import muon, optimisers, propose
from vidi.engine.device import best_precision
from vidi.models import DENSE
from vidi.recipe import Detection, Recipe

SMALL = 64
"""Images up to this side (pixels) are tiny pictures: CIFAR's networks, no random resized crop."""
CPU_FLOPS = 1e11
GPU_FLOPS = 2e13
"""Operations a second to plan with where nothing is measured yet; only the default length uses
them."""
SHORT = 30
"""Epochs up to which a run on tiny pictures ends before it overfits."""
LONG = 1000
"""Steps from which on a run is long enough for its rate to be found, in up to a tenth of them."""
LONG_MINUTES = 2.0
"""The same for a length in minutes."""
MUON_SHARE = 0.1
"""Muon is the default where making its updates orthogonal costs at most this share of a step."""
MUON_RATE = {"classification": 0.06, "segmentation": 0.08, "boundaries": 0.04, "flow": 0.02}
"""By task; others have 0.03."""
MUON_DECAY = {"classification": 0.02, "segmentation": 0.01}
"""Muon's steps have one size, so that only decay keeps weights from outgrowing them. Other tasks,
for which more than SGD's usual 0.0005 was not tried, have that."""
AVERAGED = 0.998
"""Decay of the weights' average, of classifiers of tiny images from scratch by Muon: its steps have
one size, so that single weights are far from their average until the rate is low."""
CPU_MINUTES = 10.0
GPU_MINUTES = 30.0
SMALL_NETWORKS = {
    "segmentation": "fcn_small",
    "boundaries": "hed_small",
    "flow": "flownet_small",
    "detection": "faster_rcnn_small",
}
NATIVE = 720
"""Up to this median shorter side, images with labels per pixel stay at their own size; larger ones
are shrunk to :data:`SHRUNK`, at which most objects can still be told."""
SHRUNK = 512
TASK_MINUTES = {"segmentation": 13.0, "boundaries": 10.0, "flow": 20.0, "detection": 16.0}
"""On a CPU, where images give more than one label. Scoring BSDS500 afterwards takes half as long;
what moves is learned later than what is there."""
DETECTED = (192, 320)
"""The shorter side of images, in pixels, at which detection is learned from scratch on a CPU: at
least, so that small objects show their outlines, and at most."""
MARGIN = 1.5
HARDLY = 2.0
"""Images of which random parts are seen are kept at a shorter side of 1.5 times the input's, or of
twice, where the median has no more than that: shrinking by so little takes longer than decoding."""
FLOW_CROP = 64
"""Flow's crops have a multiple of this many pixels a side, to which its networks shrink them."""
ON_HALVES = 0.4
"""Where minutes count, that share of segmentation's training, from its start, is on images of half
the size. Howard et al. 2018 (DAWNBench) grew images so for classification."""
HALVED = 96
"""The smallest crop, in pixels, of which a half still shows something."""
MOST_ZOOM = 1.0
"""Zoom-and-crop, at most; at least, the crop shows the whole of an image's shorter side."""
EVALUATING = 0.1
"""The share of training's time that evaluations in between may take."""


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_data(
    recipe: Recipe, survey: Survey, images: int, device: torch.device, weights_size: int | None
) -> tuple[Recipe, list[str]]:
    """Network, input size, batch, augmentation, arithmetic.

    ``images``: size of the training split. ``weights_size``: the input side that the weights were
    trained at, if some are loaded; for detection, if they are a detector's.
    """
    notes: list[str] = []
    dense, detects = recipe.task in DENSE, recipe.task == "detection"
    shorter = recipe.data.shorter
    if shorter == "auto":
        shorter = SHRUNK if dense and survey.shorter > NATIVE else 0
        if shorter:
            notes.append(
                f"images are shrunk to a shorter side of {shorter} px (half of them have more than "
                f"{survey.shorter}); predictions have the full size (--data.shorter)"
            )
    working = min(shorter, survey.shorter) if shorter else survey.shorter
    if recipe.image_size != "auto":
        size = recipe.image_size
    elif recipe.task == "flow":
        most = 384 if device.type == "cuda" else 256
        size = max(1, min(most, working) // FLOW_CROP) * FLOW_CROP
        notes.append(f"image size: crops of {size} px in training, whole frames in evaluation")
    elif dense:
        most = 512 if device.type == "cuda" else 224
        # 16 n + 1: strides of 2 then take the first and the last pixel at each resolution, and
        # what is interpolated between them needs no cut.
        size = max(16, min(most, working)) // 16 * 16 + 1
        notes.append(f"image size: crops of {size} px in training, whole images in evaluation")
    elif detects:
        # As in the paper; on a CPU from scratch as small as its objects can be told in.
        paper = device.type == "cuda" or recipe.weights is not None
        size = 600 if paper else max(DETECTED[0], min(DETECTED[1], survey.shorter))
        if weights_size is not None:
            size = weights_size
        notes.append(f"image size: shorter side {size} px, longer side at most {5 * size // 3}")
    else:
        if weights_size is not None:
            size, why = weights_size, "what the weights were trained at"
        elif survey.longest <= SMALL:
            size, why = survey.longest, "the images' own"
        else:
            most = 224 if device.type == "cuda" else 128
            size = min(most, survey.shorter)
            why = f"images of about {survey.shorter} px on {device.type}"
        notes.append(f"image size: {size} px ({why})")
    model = recipe.model
    if model == "auto":
        usual = "resnet20" if size <= SMALL else "resnet18"
        model = SMALL_NETWORKS.get(recipe.task, usual)
        if detects and device.type == "cuda":
            model = "faster_rcnn_resnet50_fpn"
        notes.append(f"model: {model} (for {size} px)")
    batch = recipe.batch_size
    if batch == "auto":
        # At least twenty updates an epoch, in batches that fill the processor.
        gpu = device.type == "cuda"
        # From scratch, many small steps of crops bring more than few large ones.
        few = 16 if gpu or (recipe.task == "segmentation" and recipe.weights is None) else 8
        most = few if dense or detects else 128 if gpu else 64
        batch = max(8, min(most, 1 << max(0, (images // 20).bit_length() - 1)))
        if detects:  # the paper's two with weights, and for R-CNN always (128 regions)
            batch = 2 if recipe.weights is not None or _each(model) else 8
        notes.append(f"batch size: {batch} (of {images:,} training images)")
    augmentation = recipe.augmentation
    if augmentation.preset == "auto":
        preset: Literal["photos", "digits", "small", "dense", "flow", "boxes"] = "photos"
        if recipe.task == "flow":
            preset = "flow"
        elif dense:
            preset = "dense"
        elif detects:
            preset = "boxes"
        elif size <= SMALL:
            preset = "digits" if survey.grey else "small"
        augmentation = replace(augmentation, preset=preset)
        if preset == "dense" and augmentation.zoom == "auto":
            augmentation = replace(augmentation, zoom=(min(1.0, size / working), MOST_ZOOM))
        kind = "grey" if survey.grey else "colour"
        notes.append(f"augmentation: {preset} ({kind} images at {size} px)")
    if augmentation.preset == "none" and augmentation.crop == "auto" and (dense or detects):
        augmentation = replace(augmentation, crop="whole" if dense else "shorter")
    if augmentation.longest == "auto":
        augmentation = replace(augmentation, longest=round(augment.LONGER * size))
    agree, disagreement = recipe.data.agree, recipe.data.disagreement
    agree = 3 if agree == "auto" else agree
    disagreement = "share" if disagreement == "auto" else disagreement
    if recipe.task == "boundaries":
        rest = {"negative": "are none", "ignore": "count for nothing", "share": "are one in part"}
        notes.append(
            f"a boundary is what {agree} annotators mark (all, where an image has fewer); pixels "
            f"that fewer mark {rest[disagreement]} (--data.agree, --data.disagreement)"
        )
    augmentation = augment.resolve(augmentation)
    if recipe.data.shorter == "auto" and not dense and augmentation.crop == "random-resized":
        shorter = kept(survey.shorter, size)
    precision = recipe.precision
    if precision == "auto":
        precision = best_precision(device)
        notes.append(f"precision: {precision} (what {device.type} here computes well)")
    channels_last = recipe.channels_last
    if channels_last == "auto":
        channels_last = device.type in ("cpu", "cuda")
    compiled = False if recipe.compile == "auto" else recipe.compile
    threads = recipe.data.threads
    if threads == "auto":
        # Tiny images cost less to augment than a second thread costs a network on the same cores.
        small = size <= SMALL and not dense and not detects
        threads = 0 if small and device.type == "cpu" else min(16, cores())
    resolved = replace(
        recipe,
        model=model,
        image_size=size,
        batch_size=batch,
        precision=precision,
        channels_last=channels_last,
        compile=compiled,
        augmentation=augmentation,
        data=replace(
            recipe.data,
            threads=threads,
            shorter=shorter,
            agree=agree,
            disagreement=disagreement,
            proposals=propose.settled(recipe.data.proposals),
        ),
    )
    return resolved, notes


def kept(shorter: int, size: int) -> int:
    """The shorter side, at most, at which images are kept whose median is ``shorter`` and of which
    random parts are seen at ``size``."""
    hardly = MARGIN * size < shorter <= HARDLY * size
    return math.ceil(size * (HARDLY if hardly else MARGIN))


def _each(model: str) -> bool:
    """Whether the network looks at each region by itself."""
    return model.startswith("rcnn")


def for_regions(recipe: Recipe, learned: bool) -> Detection:
    """How regions are sampled. ``learned``: the network proposes them itself.

    R-CNN fine-tunes on all that is no object (2014, section 2.3); Fast R-CNN on what overlaps
    one a little (2015, section 2.3). Both on 64 regions an image, a quarter of them objects. From
    scratch Fast and Faster R-CNN get more of both, which cost them little: most of what they are to
    learn, the classes, they learn from objects. Faster R-CNN has 128 regions with weights, too, and
    its background is all that is no object: its own network proposes that."""
    told = recipe.detection
    each = _each(recipe.model)
    scratch = recipe.weights is None and not each
    auto: dict[str, Any] = {
        "regions": 128 if scratch or learned else 64,
        "foreground": 0.5 if scratch else 0.25,
        "background_iou": (0.0 if each or learned else 0.1, 0.5),
    }
    return replace(told, **{k: v for k, v in auto.items() if getattr(told, k) == "auto"})


def for_model(
    recipe: Recipe,
    model: nn.Module,
    macs: float,
    images: int,
    device: torch.device,
    evaluation: float,
) -> tuple[Recipe, list[str]]:
    """Optimiser, rate, schedule, regularisation and length.

    ``macs``: multiply-adds of one image's forward pass. ``evaluation``: the time that an evaluation
    takes, relative to an epoch's.
    """
    notes: list[str] = []
    assert recipe.image_size != "auto" and recipe.batch_size != "auto"
    tuned = recipe.weights is not None
    small, dense = recipe.image_size <= SMALL, recipe.task in DENSE
    detects = recipe.task == "detection"
    normed = _normed(model)

    epochs, when = recipe.epochs, recipe.length
    if epochs == "auto":
        gpu = device.type != "cpu"
        seconds = 60 * (GPU_MINUTES if gpu else CPU_MINUTES)
        affordable = seconds * (GPU_FLOPS if gpu else CPU_FLOPS) / (6 * macs * images)
        most = 15 if tuned else 60
        epochs = float(max(3, min(most, round(affordable))))
        untold = recipe.length.steps is None and recipe.length.minutes is None
        if untold and recipe.task in TASK_MINUTES:
            # For each member of an ensemble as much.
            minutes = recipe.members * (GPU_MINUTES if gpu else TASK_MINUTES[recipe.task])
            when = replace(when, minutes=minutes)
            notes.append(f"length: {minutes:g} minutes, without the last evaluation")
        elif untold:
            notes.append(f"epochs: {epochs:g} (a run of minutes, at most {most})")

    optimiser = recipe.optimiser
    name = optimiser.name
    if name == "auto":
        # A step is a forward pass, and twice that backward.
        orthogonal = muon.work(optimisers.matrices(model).values())
        # Few images, each seen often: there a step's worth counts more than its time.
        share = 3 * MUON_SHARE if dense or detects else MUON_SHARE
        cheap = orthogonal <= share * 3 * macs * recipe.batch_size
        # Who gives a rate or a momentum means those of SGD, whose scale everybody knows.
        given = (recipe.lr, optimiser.momentum, optimiser.nesterov, optimiser.weight_decay)
        free = all(value in ("auto", "find") for value in given)
        light = small or dense or detects
        # FlowNet's is Adam, whose steps do not hang on the scale of the flow's error.
        usual: Literal["adamw", "sgd"] = "adamw" if recipe.task == "flow" else "sgd"
        suits = light and normed and not tuned and cheap
        name = "muon" if suits and free else usual
        if name == "muon":
            notes.append("optimiser: muon (a small network from scratch learns faster by it)")
        elif suits:
            notes.append(
                f"optimiser: {name} (a rate, momentum or decay that is given is on its scale; "
                "--optimiser.name muon would suit this network)"
            )
    momentum = optimiser.momentum
    if momentum == "auto":
        momentum = 0.95 if name == "muon" else 0.9
    lr = recipe.lr
    own = ":" in recipe.model and not tuned and not recipe.probe  # which has no rate
    steps: float | None
    steps = when.steps or max(1.0, epochs * max(1, images // recipe.batch_size))
    long = steps >= LONG
    if when.steps is None and when.minutes is not None:
        steps, long = None, when.minutes >= LONG_MINUTES
    if lr == "auto" and own and long:
        lr = "find"
    if lr == "auto":
        lr = usual_lr(recipe, model, name, steps)
        notes.append(f"learning rate: {lr:g} ({name}, batch {recipe.batch_size})")
    decay = optimiser.weight_decay
    if decay == "auto":
        # A small net in a short run fits too little, not too much.
        short = small and epochs <= SHORT
        if name == "adamw":
            decay = 4e-4 if recipe.task == "flow" else 0.05
        elif name == "muon" and not tuned:
            decay = MUON_DECAY.get(_kind(recipe), 5e-4)
        else:
            decay = 1e-4 if tuned or short else 5e-4
    trunk_lr = optimiser.trunk_lr
    if trunk_lr == "auto":  # what finds objects is the classifier's trunk, learned on at full rate
        trunk_lr = 0.1 if tuned and not detects else 1.0
    optimiser = replace(
        optimiser,
        name=name,
        momentum=momentum,
        nesterov=name == "sgd" if optimiser.nesterov == "auto" else optimiser.nesterov,
        weight_decay=decay,
        trunk_lr=trunk_lr,
    )
    every = recipe.length.evaluate_every
    if every == "auto":
        every = float(max(1, round(evaluation / EVALUATING)))
    schedule = recipe.schedule
    kind = "one-cycle" if schedule.name == "auto" else schedule.name
    warmup = schedule.warmup
    if warmup == "auto":
        length = epochs
        if recipe.length.steps is not None:
            length = recipe.length.steps * recipe.batch_size / images
        warmup = {"one-cycle": 0.2 * length, "cosine": min(1.0, 0.1 * length)}.get(kind, 0.0)
    half = schedule.half
    if half == "auto":
        learns = recipe.task == "segmentation" and not tuned and device.type == "cpu"
        half = ON_HALVES if learns and recipe.image_size >= HALVED else 0.0
    regularisation = recipe.regularisation
    smoothing = regularisation.label_smoothing
    if smoothing == "auto":
        # The papers' networks, which begin with a classifier's weights, have none.
        smoothing = 0.0 if small or dense or (detects and tuned) else 0.1
    ema = regularisation.ema
    if ema == "auto":
        classifies = _kind(recipe) == "classification"
        ema = AVERAGED if name == "muon" and small and classifies and not tuned else 0.0
        if ema:
            notes.append("evaluated: the moving average of the weights (--regularisation.ema)")
    resolved = replace(
        recipe,
        epochs=epochs,
        lr=lr,
        optimiser=optimiser,
        schedule=replace(schedule, name=kind, warmup=round(warmup, 4), half=half),
        length=replace(when, evaluate_every=every),
        regularisation=replace(regularisation, label_smoothing=smoothing, ema=ema),
    )
    return resolved, notes


def usual_lr(recipe: Recipe, model: nn.Module, optimiser: str, steps: float | None = None) -> float:
    """The rate that was chosen for vidi's own networks of that kind. ``steps``: of the whole run,
    if that is known."""
    assert recipe.image_size != "auto" and recipe.batch_size != "auto"
    tuned = recipe.weights is not None
    normed = _normed(model)
    if optimiser == "adamw":
        # Dosovitskiy et al. 2015, section 5.1, for a network without normalisation.
        plain = recipe.task == "flow" and not normed
        return 1e-4 if tuned or plain else 1e-3
    if optimiser == "muon":
        if tuned:
            return 0.003
        return MUON_RATE.get(_kind(recipe), 0.03)
    # Without normalisation layers a plain net diverges at the rate a normed one needs.
    base = 0.02 if tuned or not normed else (0.4 if recipe.image_size <= SMALL else 0.2)
    if recipe.task == "detection":  # of 64 regions an image; tuned, the paper's 0.001 for two
        base = 0.064 if tuned or not normed else 2.0
    if steps is not None and normed and not tuned:
        # In a hundred steps a ResNet comes ten points further at a third of the rate
        # (benchmarks/lr_auto.py on imagenette-small).
        base *= min(1.0, round(math.sqrt(steps / LONG), 2))
    return round(base * recipe.batch_size / 128, 6)


def _kind(recipe: Recipe) -> str:
    """The task; of classification's networks one."""
    return "classification" if recipe.task == "multilabel" else recipe.task


def _normed(model: nn.Module) -> bool:
    return any("norm" in type(m).__name__.lower() for m in model.modules())
