"""From a recipe and data to everything the loop needs; every ``auto`` is settled here."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vidi import models, tasks
from vidi.data import audit, augment, cache, check, splits
from vidi.data.dataset import Dataset, FramePairs
from vidi.data.loader import Loader, spread
from vidi.data.open import KIND
from vidi.data.survey import LOOK, Survey, class_pixels, survey
from vidi.engine import defaults, device, distributed, lr_range, propose
from vidi.engine.evaluate import Compute
from vidi.engine.run import BEST, Description, command, read_header, versions
from vidi.errors import InputError
from vidi.models import count
from vidi.models.members import Members, members_of
from vidi.models.weights import (
    freeze,
    frozen_modules,
    load_weights,
    published_preprocessing,
)
from vidi.ops import anchors
from vidi.recipe import Data, Detection, Recipe
from vidi.tasks import Task, detection
from vidi.types import Array, Normalisation

FINDING = 0.1
"""The share of a length in minutes that the search for a rate takes, at most."""
POWERS = {"weights": 1.0, "sqrt-weights": 0.5}
SCORING = 10.0
"""A boundary map's forward pass and its score take this many times the forward pass."""
BALANCES = {
    "classification": ("none", "sampler", *POWERS),
    "segmentation": ("none", *POWERS),
}
"""How each task can weigh its classes; others cannot."""


@dataclass
class Prepared:
    """All that :func:`vidi.engine.train.fit` is called with, and the test split's loader."""

    description: Description
    model: nn.Module
    task: Task
    compute: Compute
    train: Loader
    plain: Loader
    """The training samples as evaluation sees them."""
    loaders: dict[str, Loader]
    """For evaluation, by split: val, and test where there is one."""
    is_head: Callable[[str], bool]
    train_mode: Callable[[nn.Module], None]
    store: cache.Store
    work: float
    """Multiply-adds of one step's forward pass, in this process, of one network at a time."""
    notes: list[str]


def prepare(
    recipe: Recipe,
    dataset: Dataset,
    where: torch.device,
    *,
    saved: Description | None = None,
    restored: bool = False,
    network: Any = None,
    loss: Any = None,
    say: propose.Say | None = None,
) -> Prepared:
    """Settle the recipe, check the images, build network, task and loaders.

    ``saved``: the description of a run that is resumed; then the recipe is settled already.
    ``restored``: its network's state will be, too; a run that was killed before it saved any begins
    with the recipe's weights again.
    ``network``: the user's own module, or a callable that builds one for ``num_classes``. ``say``
    hears at once of what takes minutes.
    """
    notes: list[str] = []
    if dataset.task not in tasks.names():
        raise InputError(
            f"{dataset.root} is data for {dataset.task}, which is read and can be checked, but "
            f"there is no training for it yet; there is for {', '.join(tasks.names())}."
        )
    if recipe.data.balance not in BALANCES.get(dataset.task, ("none",)):
        raise InputError(
            f"--data.balance {recipe.data.balance} is for data with one class per image"
            + (" or pixel" if recipe.data.balance in POWERS else "")
            + f"; {dataset.root} is data for {dataset.task}. Leave it at none."
        )
    detects = dataset.task == "detection"
    if detects:
        _refuse_for_detection(recipe)
        _need_objects(dataset)
    elif saved is None and (
        recipe.detection != Detection()
        or recipe.data.proposals != "auto"
        or recipe.augmentation.crop == "shorter"
        or recipe.augmentation.preset == "boxes"
    ):
        raise InputError(
            "--detection, --data.proposals, and of augmentation the crop shorter and the preset "
            "boxes, are for detection; "
            f"{dataset.root} is data for {dataset.task}. Leave them out."
        )
    if dataset.task in models.DENSE:
        _refuse_for_dense(recipe, dataset.task)
    elif (
        recipe.augmentation.crop in ("zoom", "whole")
        or (saved is None and recipe.data.shorter not in ("auto", 0))
        or recipe.optimiser.sum_pixels
    ):
        raise InputError(
            "--augmentation.crop zoom and whole, --data.shorter and --optimiser.sum-pixels are for "
            f"labels per pixel; {dataset.root} is data for {dataset.task}. Leave them out."
        )
    asked = (recipe.data.agree, recipe.data.disagreement)
    if saved is None and dataset.task != "boundaries" and asked != ("auto", "auto"):
        raise InputError(
            "--data.agree and --data.disagreement are for boundaries with several annotators; "
            f"{dataset.root} is data for {dataset.task}. Leave them out."
        )
    if saved is None and dataset.task != "segmentation" and recipe.schedule.half not in ("auto", 0):
        raise InputError(
            f"--schedule.half is for segmentation; {dataset.root} is data for {dataset.task}. "
            "Leave it out."
        )
    if saved is None and dataset.images2 is None:
        _refuse_for_single_images(recipe, dataset.root)
    if saved is not None and saved.data["loss"] != address(loss):
        raise InputError(
            f"This run was begun with the loss {saved.data['loss'] or 'cross-entropy'}, and is to "
            f"go on with {address(loss) or 'cross-entropy'}. Hand over the same one."
        )
    if saved is not None:
        dataset = without(dataset, saved.data["left_out"])
        if dataset.fingerprint() != saved.data["fingerprint"]:
            raise InputError(
                f"{dataset.root} is not the data that this run was begun with: files, labels or "
                f"splits differ (then: {saved.data['samples']}, now: "
                f"{ {name: len(ids) for name, ids in dataset.splits.items()} }). Train a new run "
                "on it, with --weights set to this one if you like."
            )
    train_ids = dataset.splits["train"]
    asked_for, asked_for_lr = recipe.data.proposals, recipe.lr
    weights_look = None if saved else _weights_look(recipe)
    if saved is None:
        look = survey(dataset.images, train_ids)
        size = weights_look.image_size if weights_look else None
        if detects and weights_look and not weights_look.whole:
            size = None
        recipe, said = defaults.for_data(
            dataclasses.replace(recipe, task=dataset.task), look, len(train_ids), where, size
        )
        # What was measured (bf16 or fp32) must be the same in every process.
        recipe = distributed.from_writer(recipe)
        notes += said
        normalisation = weights_look.normalisation if weights_look else look.normalisation
    else:
        normalisation = saved.normalisation
    assert recipe.image_size != "auto" and recipe.batch_size != "auto"
    assert recipe.data.threads != "auto"
    batch = min(recipe.batch_size, len(train_ids))
    if batch < distributed.world() * recipe.optimiser.accumulate:
        raise InputError(
            f"A batch of {batch} images cannot be shared by {distributed.world()} processes "
            f"with {recipe.optimiser.accumulate} parts each. Raise --batch-size."
        )

    # The network comes first: what is wrong with it shows before a minute of decoding.
    torch.manual_seed(recipe.seed)
    classes = dataset.classes
    model = build(recipe, network, len(classes))
    is_head: Callable[[str], bool] = lambda name: True  # noqa: E731
    if recipe.weights is not None and not restored:
        replaced: set[str] = set()
        for start, member in members_of(model):
            report = load_weights(
                member, recipe.weights, model_name=recipe.model, num_classes=max(1, len(classes))
            )
            replaced |= {start + name for name in report.replaced}
        notes.append(report.sentence)
        is_head = replaced.__contains__
        if recipe.members > 1 and not replaced:
            notes.append(
                "Every member of the ensemble begins with the very same weights, and all of them "
                "see the same batches: they will differ by dropout alone."
            )
    if saved is not None:
        is_head = set(saved.data["head"]).__contains__
    frames = 1 if dataset.images2 is None else 2
    # Members are built alike, and each is a network by itself: what one costs, or has, all do.
    _, one = next(members_of(model))
    learned = bool(getattr(one, "proposes", False))
    if saved is None:
        recipe = dataclasses.replace(recipe, detection=defaults.for_regions(recipe, learned))
    if detects and saved is None:
        recipe = _proposing(recipe, learned, asked_for)
    regions = recipe.detection.regions
    assert regions != "auto" and recipe.image_size != "auto"
    macs = count.macs(one, recipe.image_size, frames=frames, regions=regions)
    if saved is None:
        val = len(dataset.splits["val"])
        seen = _evaluated_pixels(recipe, look) / recipe.image_size**2
        if detects:
            proposed = count.proposed(one) if learned else recipe.data.proposal_count
            seen = count.macs(one, recipe.image_size, regions=proposed) / macs
        share = val * seen / (3 * len(train_ids))  # a forward pass is a third of a step's work
        if dataset.task == "boundaries":
            share *= SCORING
        by_default = recipe.schedule.half == "auto"
        recipe, said = defaults.for_model(recipe, one, macs, len(train_ids), where, share)
        notes += said
        if recipe.schedule.half:
            recipe, said = _on_halves(recipe, one, len(classes), by_default)
            notes += said
    if detects and recipe.weights is not None and not recipe.freeze and saved is None:
        recipe = dataclasses.replace(recipe, freeze=tuple(getattr(model, "frozen", ())))
        if recipe.freeze:
            some = ", ".join(recipe.freeze[:4]) + (" …" if len(recipe.freeze) > 4 else "")
            notes.append(f"frozen, as is usual with weights: {some} (--freeze none: nothing is)")
    if recipe.freeze and recipe.freeze != ("none",):
        for _, member in members_of(model):
            freeze(member, recipe.freeze)
    frozen = frozen_modules(model)
    model = device.for_training(model, where, recipe)

    # Images: where they are kept, and whether they can all be read.
    shorter = kept_size(recipe)
    images = dataset.images
    if dataset.images2 is not None:
        images = FramePairs(images, dataset.images2)
    store = cache.make(
        images,
        f"{dataset.root}",
        shorter,
        recipe.data.cache,
        recipe.data.cache_gb,
    )
    load2 = cache.seconds(dataset, store.load)
    truth = cache.keep_truth(dataset)

    def read(i: int) -> tuple[Array, tuple[int, int]]:
        found = store.load(i)
        if load2 is not None:
            load2(i)
        truth(i)  # after the images: of scenes all is drawn at once
        return found

    bad = _check(dataset, recipe, store.load if dataset.truth is None else read)
    if bad and saved is None:
        dataset = without(dataset, bad)
        many = "1 image is" if len(bad) == 1 else f"{len(bad):,} images are"
        notes.append(f"{many} left out, unreadable: {'; '.join(bad)}")
    if saved is None:
        notes += audit.warnings(dataset)
    train_ids = dataset.splits["train"]
    fingerprint, proposed_as = dataset.fingerprint(), None
    if detects and not learned:
        ids = np.concatenate(list(dataset.splits.values()))
        dataset = propose.attach(dataset, ids, recipe, say, threads=defaults.cores())
        truth = cache.keep_truth(dataset)
        proposed_as = propose.digest(dataset, ids)
        if saved is not None and saved.data.get("proposals") != proposed_as:
            raise InputError(
                f"The proposals ({recipe.data.proposals}) are not those that this run was begun "
                "with: the file, or the version of OpenCV that computes them, is another. Begin a "
                "new run."
            )

    def train_mode(network: nn.Module) -> None:
        network.train()
        for module in frozen:
            module.eval()

    labels = None if dataset.labels is None else dataset.labels[train_ids]
    counts = None
    if labels is not None and labels.ndim == 1:
        counts = np.bincount(labels, minlength=len(classes))
    elif dataset.task == "segmentation":
        counts = class_pixels(truth, train_ids, len(classes))
        missing = [name for name, n in zip(classes, counts, strict=True) if not n]
        if missing and saved is None:
            many = f"the {LOOK:,} training masks looked at" if len(train_ids) > LOOK else "training"
            notes.append(f"no pixel of {many} is {' or '.join(missing)}, which will not be learned")
    task = make_task(dataset.task, classes, recipe, counts, loss)
    if detects:
        objects = detection.objects(truth, train_ids, len(classes))
        missing = [name for name, n in zip(classes, objects, strict=True) if not n]
        if missing and saved is None:
            notes.append(f"no box of training is {' or '.join(missing)}, which will not be learned")
        # On resuming too: a run may have been killed before its first save.
        said = _fitted_to_boxes(model, is_head, recipe, dataset, truth, train_ids, objects)
        notes += said if saved is None else []
    compute = Compute(where, recipe.precision, bool(recipe.channels_last), normalisation)
    balance = None
    if recipe.data.balance == "sampler" and labels is not None:
        assert counts is not None
        balance = splits.class_weights(counts)[labels]
    train = loader(
        dataset,
        train_ids,
        recipe,
        task,
        store.load,
        normalisation,
        load2=load2,
        truth=truth,
        train=True,
        balance=balance,
    )
    loaders = {
        name: loader(
            dataset, ids, recipe, task, store.load, normalisation, load2=load2, truth=truth
        )
        for name, ids in dataset.splits.items()
    }
    plain = loaders.pop("train")
    work = macs * train.batch_size / distributed.world()
    swept = saved is None and recipe.lr == "find"
    if swept:
        seconds = lr_range.SECONDS
        if recipe.length.minutes is not None:
            seconds = min(seconds, 60 * recipe.length.minutes * FINDING)
        with device.threads_for(work):
            seen_rates = lr_range.sweep(
                model,
                task,
                train,
                compute,
                recipe,
                is_head=is_head,
                train_mode=train_mode,
                seconds=seconds,
            )
        # The same in every process, and what the recipe says.
        lr, sentence = _found_lr(distributed.from_writer(seen_rates), recipe, one, asked_for_lr)
        recipe = dataclasses.replace(recipe, lr=lr)
        notes.append(sentence)
    description = Description(
        recipe=recipe,
        classes=classes,
        normalisation=normalisation,
        data={
            "root": str(dataset.root),
            "format": dataset.format,
            "task": dataset.task,
            "fingerprint": fingerprint,
            "proposals": proposed_as,
            "samples": {name: len(ids) for name, ids in dataset.splits.items()},
            "left_out": bad,
            "loss": address(loss),
            "palette": None if dataset.palette is None else dataset.palette.tolist(),
            "head": sorted(n for n, _ in model.named_parameters() if is_head(n)),
            # What comes of it may be another rate for every seed.
            "asked": {"lr": "find"} if swept else {},
        },
        command=command(),
        versions=versions(),
        notes=(*dataset.notes, *notes),
    )
    if saved is not None:
        description = dataclasses.replace(saved, recipe=recipe)
    return Prepared(
        description=description,
        model=model,
        task=task,
        compute=compute,
        train=train,
        plain=plain,
        loaders=loaders,
        is_head=is_head,
        train_mode=train_mode,
        store=store,
        work=work,
        notes=notes,
    )


def _proposing(recipe: Recipe, learned: bool, asked: str) -> Recipe:
    """The recipe, which says who proposes. ``learned``: the network does. ``asked``: the recipe's
    own word, before it was settled."""
    if learned and asked not in ("auto", propose.NETWORK):
        raise InputError(
            f"{recipe.model} proposes its regions itself, so --data.proposals {asked} would count "
            "for nothing. Leave it out, or choose a network that is told, such as fast_rcnn_small."
        )
    if not learned and asked == propose.NETWORK:
        raise InputError(
            f"{recipe.model} does not propose regions. Choose a network that does, such as "
            "faster_rcnn_small, or another --data.proposals."
        )
    plain = Detection()
    told = recipe.detection
    if not learned:
        if (told.anchors, told.anchor_iou) != (plain.anchors, plain.anchor_iou):
            raise InputError(
                f"{recipe.model} has no anchors, so --detection.anchors and --detection.anchor-iou "
                "would count for nothing. Leave them out."
            )
        return recipe
    if recipe.data.proposal_count != Data().proposal_count:
        raise InputError(
            f"{recipe.model} proposes its regions itself, so --data.proposal-count would count for "
            "nothing. Leave it out."
        )
    return dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, proposals=propose.NETWORK)
    )


def _fitted_to_boxes(
    model: nn.Module,
    is_head: Callable[[str], bool],
    recipe: Recipe,
    dataset: Dataset,
    truth: Callable[[int], dict[str, Any]],
    ids: Array,
    objects: Array,
) -> list[str]:
    """Gives the network what it wants to know of the training set's boxes: the statistics of its
    deltas, or anchors that suit them."""
    named = [name for name, _ in model.named_parameters()]
    take: Any = getattr(model, "set_delta_statistics", None)
    if take is not None:
        mean, std = detection.delta_statistics(truth, ids, len(objects))
        take(torch.from_numpy(mean), torch.from_numpy(std))
    take = getattr(model, "set_anchors", None)
    if take is None:
        return []
    # Weights that say something of anchors come with those they know.
    if not any(
        is_head(name) for name in named if name.startswith(getattr(model, "of_anchors", ""))
    ):
        return ["anchors: those of the weights"]
    assert recipe.image_size != "auto" and recipe.augmentation.longest != "auto"
    side, longest = recipe.image_size, recipe.augmentation.longest

    def scale(i: int) -> float:
        """Input pixels per pixel."""
        h, w = dataset.images.size(i)
        if recipe.augmentation.crop == "whole":
            return 1.0
        return min(side / min(h, w), longest / max(h, w))

    sides, weights = detection.box_sides(truth, ids, objects, scale)
    wanted: Any = model
    shapes, overlap = anchors.fit(sides, weights, wanted.sides.numel() // 2)
    take(torch.from_numpy(shapes))
    told = ", ".join(f"{w:.0f}×{h:.0f}" for w, h in shapes)
    return [
        f"anchors: {told} px, fitted to the training boxes, which they overlap by {overlap:.2f} on "
        "average"
    ]


def _found_lr(
    seen: lr_range.Sweep, recipe: Recipe, network: nn.Module, asked: float | str
) -> tuple[float, str]:
    """(the rate that a sweep suggests, a sentence). Where it suggests none, InputError, or vidi's
    own rate if this one was not asked for."""
    name = recipe.optimiser.name
    if seen.suggestion is not None:
        said = f"learning rate: {seen.suggestion:g} ({name}, batch {recipe.batch_size}), found"
        return seen.suggestion, f"{said}: {seen.sentence}"
    if asked == "find":
        raise InputError(
            f"--lr find finds no rate: {seen.sentence}. Give a number, or leave it at auto."
        )
    usual = defaults.usual_lr(recipe, network, name)
    return usual, f"learning rate: {usual:g} ({name}, batch {recipe.batch_size}); {seen.sentence}"


def completed(recipe: Recipe) -> Recipe:
    """A saved recipe as it was meant when it was saved: settings that have come since are off."""
    augmentation = recipe.augmentation
    if augmentation.pad_mode == "auto":
        augmentation = dataclasses.replace(augmentation, pad_mode="mean")
    half = 0.0 if recipe.schedule.half == "auto" else recipe.schedule.half
    told = recipe.detection
    regions = 64 if told.regions == "auto" else told.regions
    return dataclasses.replace(
        recipe,
        augmentation=augment.resolve(augmentation),
        schedule=dataclasses.replace(recipe.schedule, half=half),
        detection=dataclasses.replace(told, regions=regions),
    )


def _on_halves(
    recipe: Recipe, model: nn.Module, classes: int, by_default: bool
) -> tuple[Recipe, list[str]]:
    """The recipe, without images of half the size where these are only the default and the network
    cannot take them.

    Raises :class:`InputError` for such a network if they were asked for.
    """
    assert recipe.image_size != "auto" and recipe.schedule.half != "auto"
    size = (recipe.image_size + 1) // 2
    try:
        models.check(model, recipe.model, classes, size, recipe.task)
    except InputError:
        if not by_default:
            raise
        schedule = dataclasses.replace(recipe.schedule, half=0.0)
        return dataclasses.replace(recipe, schedule=schedule), []
    share = f"the first {recipe.schedule.half:.0%} of the work"
    return recipe, [f"size: {size} px for {share} (--schedule.half)"]


def make_task(
    name: str, classes: tuple[str, ...], recipe: Recipe, counts: Array | None, loss: Any = None
) -> Task:
    """The task for those classes; ``counts``, int64 [K], of training samples or pixels weigh them
    where asked."""
    options: dict[str, Any] = {}
    if recipe.data.balance in POWERS and counts is not None:
        weights = splits.class_weights(counts, POWERS[recipe.data.balance])
        options["class_weights"] = weights.astype(np.float32)
    if recipe.regularisation.label_smoothing != "auto" and name != "flow":
        options["label_smoothing"] = recipe.regularisation.label_smoothing
    if name in models.DENSE:
        options["sum_pixels"] = recipe.optimiser.sum_pixels
    if name == "boundaries":
        options |= {"agree": recipe.data.agree, "disagreement": recipe.data.disagreement}
    if name == "detection":
        options |= {f.name: getattr(recipe.detection, f.name) for f in fields(recipe.detection)}
        options["proposes"] = recipe.data.proposals == propose.NETWORK
    task: Task = tasks.find(name).Task(classes=classes, loss=loss, **options)
    return task


def loader(
    dataset: Dataset,
    ids: Array,
    recipe: Recipe,
    task: Task,
    load: Callable[[int], tuple[Array, tuple[int, int]]],
    normalisation: Normalisation,
    *,
    load2: Callable[[int], tuple[Array, tuple[int, int]]] | None = None,
    truth: Callable[[int], dict[str, Any]] | None = None,
    train: bool = False,
    balance: Array | None = None,
    together: bool = False,
) -> Loader:
    """The loader of some of a dataset's samples, as the recipe has it. ``together``: all of them
    are one batch, of this process alone."""
    assert recipe.image_size != "auto" and recipe.batch_size != "auto"
    assert recipe.data.threads != "auto"
    batch = recipe.batch_size
    if together:
        batch = len(ids)
    elif not train and (recipe.task in models.DENSE or recipe.task == "detection"):
        batch = min(batch, _whole_images(dataset, ids, recipe) * distributed.world())
    return Loader(
        dataset,
        ids,
        load=load,
        load2=load2,
        truth=truth,
        padding=task.padding,
        encode=lambda sample, rng: task.encode(sample, rng, train=train),
        augmentation=recipe.augmentation,
        image_size=recipe.image_size,
        # What lies outside an image is the mean colour: zero once normalised.
        fill=tuple(round(255 * m) for m in normalisation.mean),
        batch_size=batch,
        seed=recipe.seed,
        train=train,
        threads=recipe.data.threads,
        prefetch=recipe.data.prefetch,
        rank=0 if together else distributed.rank(),
        world=1 if together else distributed.world(),
        balance=balance,
        keep_samples=not train,
    )


EVALUATED_PIXELS = 1 << 20
"""Of whole images, so many pixels go through the network at once."""


def _whole_images(dataset: Dataset, ids: Array, recipe: Recipe) -> int:
    """How many whole images make a batch of evaluation, by the largest of a few."""
    largest = 0
    for i in spread(ids, 16):
        with contextlib.suppress(InputError):  # loading it will say so
            largest = max(largest, evaluated_pixels(dataset.images.size(int(i)), recipe))
    return max(1, EVALUATED_PIXELS // max(1, largest))


def evaluated_pixels(size: tuple[int, int], recipe: Recipe) -> int:
    """As many as the network sees of a whole image of that height and width."""
    shorter = min(size)
    return round(math.prod(size) * min(1.0, (kept_size(recipe) or shorter) / shorter) ** 2)


def kept_size(recipe: Recipe) -> int | None:
    """The shorter side, in pixels, to which images are shrunk before they are augmented."""
    assert recipe.image_size != "auto"
    if recipe.task in models.DENSE:
        assert recipe.data.shorter != "auto"
        return recipe.data.shorter or None
    if recipe.augmentation.crop == "whole":  # of detection
        return None
    if recipe.augmentation.crop == "random-resized":
        if recipe.data.shorter in ("auto", 0):  # of runs that did not record it
            return math.ceil(recipe.image_size * defaults.MARGIN)
        return int(recipe.data.shorter)
    return recipe.image_size


def _refuse_for_single_images(recipe: Recipe, root: str) -> None:
    """InputError for what only pairs of frames have."""
    a = recipe.augmentation
    for name in ("pair_jitter", "pair_rotation", "pair_scale", "pair_shift"):
        if getattr(a, name) not in ("auto", 0):
            raise InputError(
                f"--augmentation.{name.replace('_', '-')} is for pairs of frames, and {root} has "
                "single images. Leave it out."
            )
    if a.preset == "flow":
        raise InputError(
            f"The augmentation preset flow is for pairs of frames, and {root} has single images."
        )


def _refuse_for_detection(recipe: Recipe) -> None:
    """InputError for augmentation that makes no sense of boxes, and regions that nothing is."""
    a = recipe.augmentation
    if a.crop not in ("auto", "shorter", "whole") or a.preset not in ("auto", "boxes", "none"):
        raise InputError(
            "Detection is trained with the augmentation preset boxes (or none) and the crop "
            f"shorter or whole, which keep proportions; asked for are {a.preset} and {a.crop}."
        )
    if any(value not in ("auto", 0) for value in (a.mixup, a.cutmix)):
        raise InputError("Mixup and CutMix mix labels of whole images; here they are boxes.")
    propose.settled(recipe.data.proposals)
    d = recipe.detection
    for name, overlaps in (("background", d.background_iou), ("anchor", d.anchor_iou)):
        if overlaps == "auto":
            continue
        low, high = overlaps
        if not 0 <= low < high <= 1:
            raise InputError(
                f"--detection.{name}-iou is {low:g} {high:g}; two numbers from 0 to 1 are "
                "expected, the smaller one first."
            )


def _need_objects(dataset: Dataset) -> None:
    """InputError where training or validation has nothing that can be found."""
    for name in ("train", "val"):
        if not any(
            (~(found["boxes"].difficult | found["boxes"].crowd)).any()
            for found in map(dataset.annotations, dataset.splits[name].tolist())
        ):
            raise InputError(
                f"Not one image of the split {name} of {dataset.root} has a box (difficult and "
                "crowd ones aside). Annotate some, or share the images out otherwise."
            )


def _refuse_for_dense(recipe: Recipe, task: str) -> None:
    """InputError for augmentation that makes no sense of labels per pixel."""
    a = recipe.augmentation
    own = "flow" if task == "flow" else "dense"
    if a.crop not in ("auto", "zoom", "whole") or a.preset not in ("auto", own, "none"):
        raise InputError(
            f"Labels per pixel are trained on with the augmentation preset {own} (or none) and the "
            f"crop zoom or whole, which keep proportions; asked for are {a.preset} and {a.crop}."
        )
    if any(value not in ("auto", 0) for value in (a.mixup, a.cutmix)):
        raise InputError("Mixup and CutMix mix labels of whole images; there are labels per pixel.")
    if task == "flow" and a.erasing not in ("auto", 0):
        raise InputError(
            "--augmentation.erasing would hide what moves and leave its motion as the truth. Leave "
            "it out for flow."
        )
    if task == "flow" and recipe.regularisation.label_smoothing not in ("auto", 0):
        raise InputError("--regularisation.label-smoothing is for classes; flow has none.")


def _evaluated_pixels(recipe: Recipe, look: Survey) -> float:
    """Pixels of an image as evaluation sees it, on average."""
    assert recipe.image_size != "auto" and recipe.data.shorter != "auto"
    if recipe.task not in models.DENSE:
        return float(recipe.image_size**2)
    shorter = look.sides.min(1)
    kept = np.minimum(shorter, recipe.data.shorter) if recipe.data.shorter else shorter
    return float((look.sides.prod(1) * (kept / shorter) ** 2).mean())


def without(dataset: Dataset, bad: dict[str, str]) -> Dataset:
    """The dataset with those samples (by key) left out of every split."""
    out = {i for i in range(len(dataset)) if dataset.images.key(i) in bad}
    kept = {
        name: np.array([i for i in ids if int(i) not in out], np.int64)
        for name, ids in dataset.splits.items()
    }
    for name, ids in kept.items():
        if not len(ids):
            raise InputError(f"Not one image of the split {name} of {dataset.root} can be read.")
    return dataclasses.replace(dataset, splits=kept)


@dataclass(frozen=True)
class _Look:
    image_size: int
    normalisation: Normalisation
    whole: bool
    """Of detection: whether they are a detector's, not those of a classifier for its trunk."""


def _weights_look(recipe: Recipe) -> _Look | None:
    """Input size and normalisation that the given weights were trained with, where they tell."""
    if recipe.weights is None:
        return None
    if recipe.model == "auto":
        raise InputError("--weights needs --model: it says which network the weights belong to.")
    path = Path(recipe.weights).expanduser()
    file = path / BEST if path.is_dir() else path
    if file.name == BEST and file.is_file():
        saved = read_header(file)
        assert saved.recipe.image_size != "auto"
        whole = saved.recipe.task == "detection"
        return _Look(saved.recipe.image_size, saved.normalisation, whole)
    found = published_preprocessing(recipe.model, recipe.weights)
    if found is None:
        return None
    mean, std = found.mean, found.std
    return _Look(
        found.image_size,
        Normalisation((mean[0], mean[1], mean[2]), (std[0], std[1], std[2])),
        found.categories is not None,  # a trunk's weights come without what knew them
    )


def address(value: Any) -> str | None:
    """What is noted of a network or a loss that was given from Python."""
    if value is None:
        return None
    kind = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    return f"python:{getattr(kind, '__module__', '?')}.{getattr(kind, '__qualname__', '?')}"


def build(recipe: Recipe, network: Any, classes: int) -> nn.Module:
    """The recipe's network, or the one given from Python: a module, or what builds one."""
    assert recipe.image_size != "auto"
    if network is None and recipe.model.startswith("python:"):
        raise InputError(
            f"The network of this run ({recipe.model.removeprefix('python:')}) was given from "
            "Python and is not in its folder. Hand it over again, or train under an address, "
            "model='package.module:function'."
        )
    if recipe.members > 1:
        return _ensemble(recipe, network, classes)
    task = KIND.get(recipe.task, recipe.task)
    classes = max(1, classes)  # what has none is one map
    if isinstance(network, nn.Module):
        models.check(network, recipe.model, classes, recipe.image_size, task=task)
        return network
    return models.build(
        recipe.model,
        num_classes=classes,
        image_size=recipe.image_size,
        builder=network,
        task=task,
        dropout=recipe.regularisation.dropout,
    )


def _ensemble(recipe: Recipe, network: Any, classes: int) -> Members:
    """Member i begins as a run of its own would under the seed i higher."""
    if isinstance(network, nn.Module):
        raise InputError(
            f"Of one module there are no {recipe.members} members: give a function that builds the "
            "network, or its address, my_package.nets:build."
        )
    one = dataclasses.replace(recipe, members=1)
    members = []
    for i in range(recipe.members):
        torch.manual_seed((recipe.seed + i) % (1 << 63))
        members.append(build(one, network, classes))
    return Members(members, recipe.task)


def _check(
    dataset: Dataset,
    recipe: Recipe,
    load: Callable[[int], tuple[Array, tuple[int, int]]],
) -> dict[str, str]:
    """Unreadable images by key, with a sentence each; raises for them unless the recipe skips."""
    ids = np.concatenate(list(dataset.splits.values()))
    threads = recipe.data.threads
    report = check.check_images(
        dataset,
        ids[distributed.rank() :: distributed.world()],
        how="skip",  # every process hears of all of them first
        threads=threads if isinstance(threads, int) else 1,
        load=load,
    )
    bad: dict[str, str] = {}
    for part in distributed.gathered(dict(report.bad)):
        bad.update(part)
    if bad and recipe.bad_images == "error":
        raise InputError(unreadable(bad, "before training"))
    return bad


def unreadable(failures: dict[str, str], when: str, most: int = 20) -> str:
    """The list of images that could not be read (key: sentence), and what can be done."""
    shown = list(failures.values())[:most]
    if len(failures) > most:
        shown.append(f"and {len(failures) - most:,} more")
    count = "1 image" if len(failures) == 1 else f"{len(failures):,} images"
    lines = "\n".join(f"  {sentence}" for sentence in shown)
    return (
        f"{count} could not be read {when}:\n{lines}\nMend or remove them, or leave them out "
        "with --bad-images skip."
    )
