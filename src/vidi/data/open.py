"""From whatever the user names to a :class:`Dataset`, saying what was found and why."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidi.data import formats
from vidi.data.dataset import (
    SPLITS,
    Dataset,
    FileImages,
    JoinedImages,
    ObjectImages,
    PathTable,
    pair,
    pixels_of,
)
from vidi.data.images import MAX_MEGAPIXELS
from vidi.data.splits import carve
from vidi.errors import InputError
from vidi.types import Array, Notes, Samples

KIND = {"multilabel": "classification"}
"""A task whose data comes in another's formats."""
UNKNOWN = -1
"""The label of an image whose class is not known."""


def open_data(
    source: Any,
    *,
    task: str = "auto",
    val_fraction: float = 0.1,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    carve_val: bool = True,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Dataset:
    """The dataset that ``source`` is.

    ``source``: a path; the name of embedded data ("digits"); a :class:`Dataset`; an object with
    ``__len__`` and ``__getitem__`` whose items are :class:`vidi.types.Sample` or (image, label); or
    a mapping of "train", "val", "test" to any of these. ``val_fraction``: the share of train that
    is held out, by class and ``seed``, where there is no validation split; not if ``carve_val`` is
    off. ``classes``: those of a run that is to be tested on this data; labels then follow their
    order, and the data may lack some of them, and a training split.

    Raises :class:`InputError` where nothing readable is found, for less than two classes, classes
    that differ between the splits, and a class too small to be shared out.
    """
    dataset = read_source(source, task)
    # Who asks for classification may have several classes per image; a run is of one kind.
    kinds = {"auto", dataset.task} | ({KIND.get(dataset.task)} if classes is None else set())
    if task not in kinds:
        raise InputError(_other_task(dataset.root, {dataset.format: dataset.task}, task))
    for images in _all_images(dataset):
        images.max_megapixels = max_megapixels
    if classes is not None:
        dataset = _with_classes(dataset, tuple(classes))
    else:
        dataset = dataclasses.replace(dataset, notes=[*dataset.notes, *_check_classes(dataset)])
    if carve_val and "val" not in dataset.splits and "train" in dataset.splits:
        dataset = _carved(dataset, val_fraction, seed)
    sizes = ", ".join(f"{name} {len(ids):,}" for name, ids in dataset.splits.items())
    counted = f"{len(dataset.classes)} classes; " if dataset.classes else ""
    what = "images" if dataset.images2 is None else "pairs of images"
    notes = [*dataset.notes, f"{counted}{what}: {sizes}."]
    return dataclasses.replace(dataset, notes=notes)


def from_images(
    images: Sequence[Any], *, max_megapixels: float = MAX_MEGAPIXELS, first: int = 0
) -> Dataset:
    """Images without classes, to be predicted: paths, or arrays, Pillow images or tensors.

    Keys are the paths as given, or "image 0" and so on from ``first``; labels are -1. A path that
    cannot be read shows when it is loaded. Raises :class:`InputError` for a mixture of paths and
    others, and for a path that holds a NUL.
    """
    if not images:
        raise InputError("There is no image to look at.")
    paths = [isinstance(image, str | Path) for image in images]
    if all(paths):
        table = PathTable()
        names = [os.path.expanduser(os.fspath(image)) for image in images]
        if bad := next((name for name in names if "\0" in name), None):
            raise InputError(f"{bad!r} is no path: it holds a NUL.")
        table.extend(names)
        files = table.images("")
        files.max_megapixels = max_megapixels
        return _unlabelled(files)
    if any(paths):
        raise InputError("The images are partly paths, partly not; give one kind at a time.")
    return _unlabelled(_Given(images, first))


def from_pairs(
    pairs: Sequence[tuple[Any, Any]], *, max_megapixels: float, first: int = 0
) -> Dataset:
    """Pairs of frames without flow, as :func:`from_images` takes single ones; keys are those of the
    first frames."""
    if not pairs:
        raise InputError("There is no pair of frames to look at.")
    one, two = (
        from_images([pair[k] for pair in pairs], max_megapixels=max_megapixels, first=first).images
        for k in range(2)
    )
    return Dataset(
        root="frames",
        format="frames",
        task="flow",
        classes=(),
        images=one,
        images2=two,
        labels=None,
        splits={"test": np.arange(len(one))},
    )


def _unlabelled(images: Any) -> Dataset:
    n = len(images)
    return Dataset(
        root="images",
        format="images",
        task="classification",
        classes=(),
        images=images,
        labels=np.full(n, UNKNOWN, np.int64),
        splits={"test": np.arange(n)},
    )


class _Given(ObjectImages):
    """Images that were handed over themselves."""

    def __init__(self, images: Sequence[Any], first: int = 0) -> None:
        self._first = first
        pairs = [(pixels_of(image, self.key(i)), UNKNOWN) for i, image in enumerate(images)]
        super().__init__(pairs, "image", [UNKNOWN] * len(pairs))

    def key(self, i: int) -> str:
        return f"image {self._first + i}"


def read_source(source: Any, task: str = "auto") -> Dataset:
    """What ``source`` holds and nothing more: no validation split is carved, no class checked."""
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str | Path):
        return _read_path(source, task)
    if isinstance(source, Mapping):
        return _joined(source, task)
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return _read_object(source, "sample")
    raise InputError(
        f"Data was given as a {type(source).__name__}; a path, or an object with __len__ and "
        "__getitem__, is expected."
    )


def _read_path(given: str | Path, task: str = "auto") -> Dataset:
    source = os.path.expanduser(os.fspath(given))
    if source.startswith(OBJECT):
        raise InputError(
            f"The data was {source}, an object given from Python, and cannot be opened by name. "
            "Hand it over again."
        )
    readings = {
        name: reason
        for name in formats.names()
        if (reason := formats.find(name).sniff(source)) is not None
    }
    if not readings:
        raise InputError(_nothing_found(source))
    tasks = {name: formats.task_of(name, source) for name in readings}
    if task != "auto":
        asked = KIND.get(task, task)
        readings = {name: reason for name, reason in readings.items() if tasks[name] == asked}
        if not readings:
            raise InputError(_other_task(source, tasks, task))
    said: Notes = []
    if sorted(tasks[name] for name in readings) == ["detection", "segmentation"]:
        # One set of files with both; boxes are what most people want of it.
        other = next(name for name in readings if tasks[name] == "segmentation")
        said.append(
            f"{source} serves two tasks and is read for detection; --task segmentation reads it as "
            f"{readings.pop(other)}."
        )
    if len(readings) > 1:
        both = "; or ".join(f"{name}: {reason}" for name, reason in readings.items())
        choose = " Say which with --task." if len({tasks[name] for name in readings}) > 1 else ""
        hint = (
            " Write ./ before it if the folder is meant."
            if source == os.path.basename(source)
            else ""
        )
        raise InputError(f"{source} can be read in {len(readings)} ways: {both}.{choose}{hint}")
    found: Dataset = formats.find(next(iter(readings))).read(source)
    return dataclasses.replace(found, notes=[*said, *found.notes])


def _other_task(source: str, found: Mapping[str, str], task: str) -> str:
    """``found``: each format that the source was read as, and its task."""
    held = " and ".join(f"{task} ({name})" for name, task in found.items())
    return f"{source} holds data for {held}, not for {task}. Leave --task out, or name other data."


def _nothing_found(source: str) -> str:
    accepted = (
        "Data is a folder with a folder of images per class (within train, val, test or not), a "
        "CSV of path and label, CIFAR's or MNIST's own files, the name digits, or what else `vidi "
        "list formats` names."
    )
    if not os.path.lexists(source):
        return f"There is no {source}. {accepted}"
    if not os.path.exists(source):
        return f"{source} is a link to {os.readlink(source)}, which does not exist."
    if not os.path.isdir(source):
        return f"{source} is a file in no format known here. {accepted}"
    try:
        inside = sorted(name for name in os.listdir(source) if not name.startswith("."))
    except OSError as error:
        return f"{source} cannot be read: {error.strerror}."
    if not inside:
        return f"{source} is an empty folder. {accepted}"
    folders = [name for name in inside if os.path.isdir(os.path.join(source, name))]
    images = [name for name in inside if formats.find("folders").is_image(name)]
    tables = [name for name in inside if name.lower().endswith((".csv", ".tsv"))]
    found = [f"{len(images):,} images without a class"] if images else []
    if folders:
        some = ", ".join(folders[:8]) + (" …" if len(folders) > 8 else "")
        found.append(f"the folders {some}, in which no folder of images per class was found")
    others = len(inside) - len(folders) - len(images)
    if others:
        found.append(f"{others:,} other files")
    hint = f" If {tables[0]} says the classes, name that file." if tables else ""
    return f"{source} holds {' and '.join(found)}. {accepted}{hint}"


OBJECT = "python:"


def _read_object(source: Samples, name: str) -> Dataset:
    """A user's object, all of it as "train"."""
    n = len(source)
    if not n:
        raise InputError(f"The {type(source).__name__} that was given as data has no samples.")
    given = _given_targets(source, n)
    labels: list[Any] = given or [pair(source[i], f"{name}/{i:06d}")[1] for i in range(n)]
    kinds = {type(label) for label in labels}
    if len(kinds) > 1:
        raise InputError(
            "The labels are of several kinds: whole numbers, names, or 0/1 vectors; give one kind."
        )
    named = getattr(source, "classes", None)
    classes: tuple[str, ...]
    if kinds == {str}:
        classes = tuple(sorted(set(labels)))
        numbers = np.array([classes.index(label) for label in labels], np.int64)
    elif kinds == {tuple}:
        lengths = {len(label) for label in labels}
        if len(lengths) > 1:
            found = _some([str(n) for n in sorted(lengths)])
            raise InputError(
                f"The labels are 0/1 vectors of different lengths ({found}); each needs a place "
                "for every class."
            )
        numbers = np.array(labels, bool)
        classes = _class_names(named, numbers.shape[1])
        if len(classes) != numbers.shape[1]:
            raise InputError(
                f"The labels are 0/1 vectors of {numbers.shape[1]} classes, and {len(classes)} "
                "classes are named. Name as many."
            )
    else:
        numbers = np.array(labels, np.int64)
        classes = _class_names(named, int(numbers.max()) + 1)
        if numbers.min() < 0 or numbers.max() >= len(classes):
            i = int(np.argmax((numbers < 0) | (numbers >= len(classes))))
            raise InputError(
                f"{name}/{i:06d} has the label {numbers[i]}; with {len(classes)} classes it should "
                f"lie between 0 and {len(classes) - 1}."
            )
    kind = type(source)
    how = "its attribute targets" if given else "looking at every item"
    return Dataset(
        root=f"{OBJECT}{kind.__module__}.{kind.__qualname__}",
        format="object",
        task="classification" if numbers.ndim == 1 else "multilabel",
        classes=classes,
        images=ObjectImages(source, name, labels),
        labels=numbers,
        splits={"train": np.arange(n)},
        notes=[f"A {kind.__name__} of {n:,} samples was given; its labels come from {how}."],
    )


def _class_names(named: Any, count: int) -> tuple[str, ...]:
    """The object's own names of its classes, or their numbers."""
    if named and isinstance(named, list | tuple) and all(isinstance(c, str) for c in named):
        return tuple(named)
    return tuple(str(k) for k in range(count))


def _given_targets(source: Any, n: int) -> list[int] | None:
    """The labels that torchvision's datasets keep in ``targets``, which spares loading all images.

    Each is compared with the item's own when that is loaded.
    """
    targets = getattr(source, "targets", None)
    if targets is None or getattr(source, "target_transform", None) is not None:
        return None
    try:
        numbers = np.asarray(targets)
    except (TypeError, ValueError):
        return None
    if numbers.shape != (n,) or numbers.dtype.kind not in "iu":
        return None
    return [int(x) for x in numbers]


def _joined(sources: Mapping[Any, Any], task: str) -> Dataset:
    """Several sources, one per split."""
    unknown = [name for name in sources if name not in SPLITS]
    if unknown or "train" not in sources:
        raise InputError(
            f"Data was given for {', '.join(map(str, sources))}; train is expected, and val and "
            "test if you have them."
        )
    parts = {
        name: read_source(sources[name], task)
        if isinstance(sources[name], str | Path | Dataset)
        else _read_object(sources[name], name)
        for name in SPLITS
        if sources.get(name) is not None
    }
    split_already = [name for name, part in parts.items() if set(part.splits) != {"train"}]
    if split_already:
        raise InputError(
            f"What was given for {', '.join(split_already)} is itself divided into splits; give "
            "data without them."
        )
    tasks = {name: part.task for name, part in parts.items()}
    if len(set(tasks.values())) > 1 or any(part.labels is None for part in parts.values()):
        held = ", ".join(f"{name} for {task}" for name, task in tasks.items())
        raise InputError(
            f"The data given by splits is {held}. Splits that are given one by one must be for one "
            "kind of classification; for other tasks name one source that holds them all."
        )
    # Numbered classes go up to the highest label seen anywhere.
    classes = max((part.classes for part in parts.values()), key=len)
    labels, starts = [], [0]
    for part in parts.values():
        labels.append(_renumbered(part, classes))
        starts.append(starts[-1] + len(part))
    splits = {name: np.arange(starts[i], starts[i + 1]) for i, name in enumerate(parts)}
    return Dataset(
        root=parts["train"].root if len(parts) == 1 else OBJECT + "mapping",
        format=parts["train"].format,
        task=parts["train"].task,
        classes=classes,
        images=JoinedImages({name: part.images for name, part in parts.items()}),
        labels=np.concatenate(labels),
        splits=splits,
        notes=[f"{name}: {note}" for name, part in parts.items() for note in part.notes],
    )


def _with_classes(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The dataset with its labels in the order of a run's classes."""
    if dataset.labels is None and dataset.classes == classes:
        return dataset
    return dataclasses.replace(dataset, labels=_renumbered(dataset, classes), classes=classes)


def _renumbered(dataset: Dataset, classes: tuple[str, ...]) -> Array:
    labels = dataset.labels
    if dataset.classes == classes and labels is not None:
        return labels
    if labels is None:
        raise InputError(
            f"{dataset.root} has the classes {_some(dataset.classes)}, and {_some(classes)} are "
            f"expected, in this order. For {dataset.task} they must be the same."
        )
    number = {name: k for k, name in enumerate(classes)}
    unknown = [name for name in dataset.classes if name not in number]
    if unknown:
        raise InputError(
            f"{dataset.root} has the classes {_some(unknown)}, which are not among the "
            f"{len(classes)} expected: {_some(classes)}."
        )
    table = np.array([number[name] for name in dataset.classes], np.int64)
    if labels.ndim > 1:
        out = np.zeros((len(labels), len(classes)), bool)
        out[:, table] = labels
        return out
    return np.asarray(table[labels])


def _check_classes(dataset: Dataset) -> Notes:
    """What should be known of the classes; InputError where no training makes sense."""
    if "train" not in dataset.splits:
        raise InputError(
            f"{dataset.root} has no training split, only {', '.join(dataset.splits)}. Add a folder "
            "train, with the same classes."
        )
    if dataset.labels is None:
        return []
    if dataset.labels.ndim > 1:
        never = np.flatnonzero(~dataset.split("train").labels.any(0))
        none = _some([dataset.classes[k] for k in never])
        return [f"No training image has the classes {none}."] if len(never) else []
    count = {name: dataset.class_counts(name) for name in dataset.splits}
    trained = [dataset.classes[k] for k in np.flatnonzero(count["train"])]
    if len(trained) < 2:
        raise InputError(
            f"{dataset.root} has training images of one class only ({', '.join(trained)}); a "
            "classifier needs at least two. In a folder of images, each class is a folder."
        )
    for name in dataset.splits:
        unseen = np.flatnonzero((count[name] > 0) & (count["train"] == 0))
        if len(unseen):
            raise InputError(
                f"{dataset.root}: the classes differ between the splits: "
                f"{_some([dataset.classes[k] for k in unseen])} in {name} but not in train. Add "
                "training images of them, or leave them out."
            )
    # Only where classes are not folders: the folders' format refuses an empty one itself.
    missing = {
        name: _some([dataset.classes[k] for k in np.flatnonzero(found == 0)])
        for name, found in count.items()
    }
    return [
        f"The split {name} has no image of the classes {absent}."
        for name, absent in missing.items()
        if absent
    ]


def _carved(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    if not 0 < fraction < 1:
        raise InputError(
            f"--data.val-fraction is {fraction:g}; it should lie between 0 and 1: the best weights "
            "are chosen on validation images."
        )
    ids = dataset.splits["train"]
    if dataset.labels is None or dataset.labels.ndim > 1:
        if len(ids) < 2:
            raise InputError(
                f"{dataset.root} has {len(ids)} training sample; training and validation need one "
                "each."
            )
        labels, shares = np.zeros(len(ids), np.int64), f"{fraction:.0%}"
        single = np.zeros(0, np.int64)
    else:
        labels, shares = dataset.labels[ids], f"{fraction:.0%} of each class"
        single = np.flatnonzero(dataset.class_counts("train") == 1)
    if len(single):
        raise InputError(
            f"{dataset.root} has only one training image of "
            f"{_some([dataset.classes[k] for k in single])}; training and validation need one "
            "each. Add images, leave the class out, or give a validation split."
        )
    kept, held = carve(labels, fraction, seed)
    splits = {"train": ids[kept], "val": ids[held]}
    splits.update((name, found) for name, found in dataset.splits.items() if name != "train")
    note = (
        f"There is no validation split: {len(held):,} of the {len(ids):,} training images were "
        f"held out for it, {shares}, by seed {seed}."
    )
    return dataclasses.replace(dataset, splits=splits, notes=[*dataset.notes, note])


def _all_images(dataset: Dataset) -> list[FileImages]:
    frames = [dataset.images] if dataset.images2 is None else [dataset.images, dataset.images2]
    parts = [p for one in frames for p in (one.parts if isinstance(one, JoinedImages) else [one])]
    return [part for part in parts if isinstance(part, FileImages)]


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
