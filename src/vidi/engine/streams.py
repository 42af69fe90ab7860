"""Answers about images as they come: threads read ahead while the network computes, and nothing is
kept, so that a million images take the memory of a few batches.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
import torch
from torch import nn

from vidi.data.cache import seconds
from vidi.data.dataset import Dataset, FramePairs
from vidi.data.images import read_file_header
from vidi.data.loader import Loader
from vidi.data.open import from_images, from_pairs
from vidi.engine import defaults, distributed, propose, tiled
from vidi.engine.answers import BoundaryMap, DetectedObjects, Prediction, Segmentation
from vidi.engine.evaluate import Compute, answers
from vidi.engine.flow_fields import FlowField
from vidi.engine.prepare import EVALUATED_PIXELS, evaluated_pixels, kept_size, loader, make_task
from vidi.errors import InputError
from vidi.models import DENSE
from vidi.recipe import Recipe
from vidi.tasks import Task, multilabel
from vidi.types import Array, Batch, Notes

BATCH = 32
"""Images that go through the network together, unless told. More hardly make a processor faster."""
AHEAD = 4
"""Batches that are read while one is computed."""
AHEAD_PIXELS = 1 << 24
"""Of large images fewer are read ahead: those before the last one have so many pixels together. A
batch has no more either, unless its size was told."""


def reader(
    dataset: Dataset,
    ids: Array,
    recipe: Recipe,
    task: Task,
    compute: Compute,
    *,
    together: bool = False,
) -> Loader:
    """The loader by which evaluation and prediction see images: from their source, without a cache.
    ``together``: as one batch, of this process alone."""
    shorter = kept_size(recipe)
    images = dataset.images
    if dataset.images2 is not None:
        images = FramePairs(images, dataset.images2)

    def load(i: int) -> tuple[Array, tuple[int, int]]:
        return images.load(i, shorter)

    return loader(
        dataset,
        ids,
        recipe,
        task,
        load,
        compute.normalisation,
        load2=seconds(dataset, load),
        together=together,
    )


@dataclass(frozen=True)
class _Group:
    """Sources that go through the network together, the first one's number, and their pixels as far
    as they are known before they are read. A source that is an error is a group of its own."""

    first: int
    sources: list[Any]
    pixels: int = 0


@dataclass(frozen=True)
class _Begun:
    """A group that threads are reading. ``wait`` gives its batch."""

    group: _Group
    dataset: Dataset
    batches: Loader
    wait: Callable[[], Batch]


@dataclass(frozen=True)
class _Pending:
    """The answers to a group, as soon as they are known, and the group's pixels."""

    pixels: int
    answers: Callable[[], Iterable[Any]]


@dataclass
class Stream:
    """``network``: in evaluation mode. ``batch_size``: images that go through it together; None: as
    many as suit the task and their sizes. ``ahead``: batches that are read while one is computed;
    0 where sources come slowly and each is to be answered at once. ``views``, ``tile``,
    ``overlap``: as :meth:`vidi.api.Model.predict` has them, settled. ``notes`` gets what should be
    known of the answers."""

    network: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    compute: Compute
    batch_size: int | None = None
    ahead: int = AHEAD
    views: dict[str, Any] = field(default_factory=dict)
    tile: int | None = None
    overlap: int = 0
    notes: Notes = field(default_factory=list)

    def __post_init__(self) -> None:
        self._task: Any = make_task(self.recipe.task, self.classes, self.recipe, None)
        self._whole = self.recipe.task in DENSE or self.recipe.task == "detection"
        """Images keep their sizes: how many fit a batch depends on them."""
        self._threads = max(1, defaults.cores() // distributed.neighbours())
        searched = self.recipe.task == "detection" and self.recipe.data.proposals != propose.NETWORK
        self._searchers = min(self._threads, self.ahead + 1) if searched else 0
        """Groups whose proposals are searched at once, which takes longer than the network."""
        # Images of one small size: of large ones too few are read ahead for all threads.
        few = self.batch_size is not None and self.batch_size < 2 * self._threads
        self._beside = few and self.ahead > 0 and self._threads > 1 and not self._whole
        """Whether groups may be computed beside one another, if there are several."""
        self._computers = 0
        """Groups that are computed at once; one more than can be, so that its images are ready when
        another one's are done."""

    def answers(self, sources: Iterable[Any]) -> Generator[Any, None, None]:
        """One for each source, in order: an answer, or the :class:`InputError` that says why there
        is none. Close it to stop early."""
        groups = self._groups(sources)
        if self._beside:
            some = list(itertools.islice(groups, 2))
            groups = itertools.chain(some, groups)
            # One by itself is computed sooner by all threads together.
            apart = getattr(self.network, "apart", lambda: None)() if len(some) > 1 else None
            if apart is not None:
                self.network, self._computers = apart, self._threads + 1
        pool = ThreadPoolExecutor(self._threads, "vidi-reading")
        searching = ThreadPoolExecutor(max(1, self._searchers), "vidi-searching")
        computing = ThreadPoolExecutor(max(1, self._computers), "vidi-computing", _by_one_thread)
        ahead = max(self.ahead, self._computers)
        pending: deque[_Pending] = deque()
        try:
            for group in groups:
                pending.append(self._pending(group, pool, searching, computing))
                while len(pending) > ahead or _pixels_of(pending) > AHEAD_PIXELS:
                    yield from pending.popleft().answers()
            while pending:
                yield from pending.popleft().answers()
        finally:
            for one in (computing, searching, pool):
                one.shutdown(wait=True, cancel_futures=True)

    def _pending(
        self, group: _Group, pool: Executor, searching: Executor, computing: Executor
    ) -> _Pending:
        parts: Callable[[], list[_Begun | InputError]]
        if self._searchers:
            parts = searching.submit(self._begun, group, pool).result
        else:
            begun = self._begun(group, pool)
            parts = lambda: begun  # noqa: E731

        def found() -> Iterator[Any]:
            for part in parts():
                yield from self._finished(part, pool)

        if self._computers:
            return _Pending(group.pixels, computing.submit(lambda: list(found())).result)
        return _Pending(group.pixels, found)

    def _groups(self, sources: Iterable[Any]) -> Iterator[_Group]:
        """Of paths alone or of arrays alone. Where images keep their sizes, a group has
        ``EVALUATED_PIXELS`` at most, or one image, and else ``AHEAD_PIXELS``; unless the batch's
        size was told."""
        most = self.batch_size or BATCH
        limit = EVALUATED_PIXELS if self._whole else AHEAD_PIXELS
        first, some, pixels = 0, list[Any](), 0
        for n, source in enumerate(sources):
            more = self._pixels(source)
            full = self.batch_size is None and pixels + more > limit
            if some and (full or _kind(source) != _kind(some[0])):
                yield _Group(first, some, pixels)
                some, pixels = [], 0
            if isinstance(source, InputError):
                yield _Group(n, [source])
                continue
            if not some:
                first = n
            some.append(source)
            pixels += more
            if len(some) == most:  # at once, for the next source may be long in coming
                yield _Group(first, some, pixels)
                some, pixels = [], 0
        if some:
            yield _Group(first, some, pixels)

    def _pixels(self, source: Any) -> int:
        """Pixels that the network sees, or that lie in memory; 0 where that is not known before the
        image is read."""
        image = source[0] if isinstance(source, tuple) else source
        if not isinstance(image, str | Path):
            shape = tuple(getattr(image, "shape", getattr(image, "size", ())))
            channels_first = hasattr(image, "detach") and len(shape) == 3  # a tensor
            return math.prod(shape[-2:] if channels_first else shape[:2])
        if not self._whole:
            return 0
        try:
            size = read_file_header(os.path.expanduser(os.fspath(image))).size
        except (InputError, ValueError):  # reading it will say so
            return 0
        return evaluated_pixels(size, self.recipe)

    def _begun(self, group: _Group, pool: Executor) -> list[_Begun | InputError]:
        """The group on its way; or its sources one by one, where something is wrong with one."""
        if isinstance(group.sources[0], InputError):
            return [group.sources[0]]
        try:
            dataset = self._dataset(group)
        except InputError as error:
            if len(group.sources) == 1:
                return [error]
            return [one for single in _singles(group) for one in self._begun(single, pool)]
        batches = reader(
            dataset,
            np.arange(len(dataset)),
            self.recipe,
            self._task,
            self.compute,
            together=True,
        )
        return [_Begun(group, dataset, batches, batches.begin(pool))]

    def _dataset(self, group: _Group) -> Dataset:
        """Raises :class:`InputError` for what is no image, and proposals that cannot be had."""
        most = self.recipe.data.max_megapixels
        if self.recipe.task == "flow":
            return from_pairs(group.sources, max_megapixels=most, first=group.first)
        dataset = from_images(group.sources, max_megapixels=most, first=group.first)
        if self.recipe.task == "detection":
            with distributed.alone():
                dataset = propose.attach(
                    dataset,
                    np.arange(len(dataset)),
                    self.recipe,
                    threads=max(1, self._threads // max(1, self._searchers)),
                )
        return dataset

    def _finished(self, begun: _Begun | InputError, pool: Executor) -> Iterator[Any]:
        if isinstance(begun, InputError):
            yield begun
            return
        failures = begun.batches.failures
        try:
            batch = begun.wait()
            found = self._found(begun, batch)
        except InputError as error:
            if len(begun.group.sources) == 1:
                yield InputError(next(iter(failures.values()), str(error)))
                return
            # The others are not to suffer from one that the network cannot look at; and where none
            # can be read, each has its own reason.
            for single in _singles(begun.group):
                for one in self._begun(single, pool):
                    yield from self._finished(one, pool)
            return
        for row, ok in enumerate(batch.valid):
            if ok:
                yield self._answer(begun.dataset, batch, row, found[row])
            else:
                yield InputError(failures[batch.keys[row]])

    def _found(self, begun: _Begun, batch: Batch) -> list[Any]:
        task = self._task
        if self.tile is not None:
            task = tiled.Tiled(
                task, begun.dataset, self.recipe, self.compute, self.tile, self.overlap
            )
        with distributed.alone(), _evaluating(self.network):
            found = answers(self.network, task, batch, self.compute, **self.views)
        self.notes += [n for n in getattr(task, "notes", ()) if n not in self.notes]
        return found

    def _answer(self, dataset: Dataset, batch: Batch, row: int, found: Any) -> Any:
        path = batch.keys[row]
        height, width = (int(side) for side in batch.sizes[row])
        if self.recipe.task == "flow":
            assert dataset.images2 is not None
            sample = batch.samples[row]
            image, image2 = sample.image, sample.image2
            if image2 is None or image.shape[:2] != (height, width):  # it was shrunk
                image, image2 = (
                    source.load(row, None)[0] for source in (dataset.images, dataset.images2)
                )
            return FlowField(path, dataset.images2.key(row), image, image2, found.flow)
        if self.recipe.task == "detection":
            names = tuple(self.classes[k] for k in found.labels)
            return DetectedObjects(path, (height, width), found, names)
        if self.recipe.task == "boundaries":
            return BoundaryMap(path, found.soft)
        if self.recipe.task == "segmentation":
            return Segmentation(path, found.mask, self._shares(found.mask))
        p = found.probabilities
        likeliest = self.classes[int(p.argmax())]
        labels: tuple[str, ...] = (likeliest,)
        if self.recipe.task == "multilabel":
            labels = tuple(self.classes[k] for k in np.flatnonzero(p >= multilabel.THRESHOLD))
        return Prediction(path, likeliest, float(p.max()), labels, p)

    def _shares(self, mask: Array) -> dict[str, float]:
        counts = np.bincount(mask.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return {self.classes[k]: float(counts[k] / mask.size) for k in order if counts[k]}


def _by_one_thread() -> None:
    """From now on what torch computes in this thread is computed by it alone; torch's own setting
    would be one for all threads to come."""
    torch.get_num_threads()  # at its first use in a thread torch sets the number itself
    threadpoolctl.threadpool_limits(1, user_api="openmp")


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, and then as it was."""
    if not network.training:
        yield
        return
    network.eval()
    try:
        yield
    finally:
        network.train()


def _singles(group: _Group) -> Iterator[_Group]:
    for k, source in enumerate(group.sources):
        yield _Group(group.first + k, [source])


def _kind(source: Any) -> str:
    """Sources of one kind may be in one group."""
    if isinstance(source, InputError):
        return "error"
    is_path = isinstance(source[0] if isinstance(source, tuple) else source, str | Path)
    return "path" if is_path else "image"


def _pixels_of(pending: Iterable[_Pending]) -> int:
    """Of all groups but the last."""
    return sum([one.pixels for one in pending][:-1])
