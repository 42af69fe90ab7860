"""From indices to batches: threads read, warp and colour; the result does not depend on them.

A pool of threads and not of processes: OpenCV decodes and warps without Python's lock, nothing is
copied between processes, and an exception keeps its sample. Everything random comes from
:mod:`vidi.data.draws`, so any number of threads, any number of processes and any starting step give
the same bytes.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from vidi.data import augment, draws, geometry, photometry
from vidi.data.annotations import warp_sample
from vidi.data.augment import Plan
from vidi.data.draws import Draws
from vidi.errors import InputError
from vidi.recipe import Augmentation
from vidi.types import Array, Batch, Encoded, Sample

if TYPE_CHECKING:
    from vidi.data.dataset import Dataset

_Loaded = tuple[Array, tuple[int, int], dict[str, Any]]
"""An image, uint8 [h, w, 3], its original (H, W), and what is annotated, in original pixels; of a
pair the second frame is there, as ``image2``, too."""
CHUNK = 16
"""Samples that a thread takes at a time."""
_REPEAT = 40
"""A sample drawn again in one epoch (balanced sampling) counts in the bits above these."""


class Loader:
    """Batches of some of a dataset's samples.

    ``ids``: int64 [N], indices in the dataset. ``load``: gives an image, uint8 [h, w, 3], perhaps
    shrunk, and its original (H, W). ``load2``: the same of the second frame of a pair, where there
    are pairs. ``truth``: gives what is annotated of a sample, as the dataset's ``annotations``
    does, which is the default. ``encode``: the task's inputs and targets of a sample whose geometry
    is settled: image and annotations are the network's input already. ``augmentation``: resolved.
    ``fill``: RGB of what lies outside an image, unless its mirror image does (``pad_mode``).
    ``padding``: what training's targets are padded with, by name, where whole images differ in
    size.
    ``batch_size``: over all ``world`` processes together; this one is ``rank``.
    ``train``: shuffled and augmented, else in order and centred. ``threads``: 0 works in the
    caller's. ``prefetch``: batches prepared ahead. ``balance``: float [N], how often each sample
    is drawn, relative to the others. ``keep_samples``: batches carry the samples, as loaded.

    In evaluation, images and targets of different sizes stay lists, for padding would reach into
    the network's view of them. What could not be read is in ``failures``, as key: sentence; its row
    of the batch is black and marked invalid, and the caller decides.

    ``load``, ``load2``, ``truth`` and ``encode`` are called from several threads at once.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: Array,
        *,
        load: Callable[[int], tuple[Array, tuple[int, int]]],
        encode: Callable[[Sample, Draws], Encoded],
        augmentation: Augmentation,
        image_size: int,
        load2: Callable[[int], tuple[Array, tuple[int, int]]] | None = None,
        truth: Callable[[int], dict[str, Any]] | None = None,
        fill: tuple[int, ...] = (0, 0, 0),
        padding: Mapping[str, int] | None = None,
        batch_size: int,
        seed: int = 0,
        train: bool = False,
        threads: int = 1,
        prefetch: int = 4,
        rank: int = 0,
        world: int = 1,
        balance: Array | None = None,
        keep_samples: bool = False,
    ) -> None:
        assert len(ids)
        assert 0 <= rank < world
        assert batch_size > 0
        assert balance is None or len(balance) == len(ids)
        self.dataset = dataset
        self.ids = np.asarray(ids, np.int64)
        self.load = load
        self.load2 = load2
        self.truth = dataset.annotations if truth is None else truth
        self.encode = encode
        self.augmentation = augmentation
        self.image_size = image_size
        self.fill = (int(fill[0]), int(fill[1]), int(fill[2]))
        self.padding = padding or {}
        self.batch_size = batch_size
        self.seed = seed
        self.train = train
        self.threads = threads
        self.prefetch = prefetch
        self.rank = rank
        self.world = world
        self.balance = balance
        self.keep_samples = keep_samples
        self.failures: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def few(self, count: int) -> Loader:
        """The same for ``count`` of its samples, evenly spread, with failures of its own."""
        out = copy.copy(self)
        out.ids = spread(self.ids, count)
        out.failures = {}
        return out

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch. In training the last, partial one is left out (its samples come in
        other epochs), unless it is the only one; in evaluation it stays."""
        if self.train:
            return max(1, len(self.ids) // self.batch_size)
        return -(-len(self._own()) // self._own_batch())

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """This process's share of the epoch's batches, from ``start_step`` on, as NumPy arrays.

        Training: step k is the k-th ``batch_size`` of the epoch's order, and each process takes a
        contiguous part of it. Evaluation: process r takes samples r, r + world, and so on.

        With mixup or CutMix on, targets also hold the partner's under ``"mix:" + name``, and
        ``"mix_lambda"``, float32 [B]: the own share (1 = not mixed).

        Close the iterator to stop early: no thread stays behind.
        """
        order = self.order(epoch)
        steps = range(start_step, self.steps_per_epoch)
        if self.threads == 0:
            for step in steps:
                yield self._collect(self._submit(order, epoch, step, None))
            return
        with_threads = ThreadPoolExecutor(self.threads, thread_name_prefix="vidi-loader")
        try:
            pending: deque[_Work] = deque()
            for step in steps:
                pending.append(self._submit(order, epoch, step, with_threads))
                if len(pending) > self.prefetch:
                    yield self._collect(pending.popleft())
            while pending:
                yield self._collect(pending.popleft())
        finally:
            with_threads.shutdown(wait=True, cancel_futures=True)

    def begin(self, pool: Executor) -> Callable[[], Batch]:
        """All samples as one batch of evaluation, which the pool's threads begin to make at once;
        what is given waits for it. It raises :class:`InputError` if not one can be read."""
        work = self._submit(self.ids, 0, 0, pool)
        return lambda: self._collect(work)

    def order(self, epoch: int) -> Array:
        """The epoch's samples over all processes, int64 [N], as they are drawn for: the index in
        the dataset, and from bit 40 on how often it came before in this epoch."""
        if not self.train:
            return self.ids
        if self.balance is None:
            return draws.permutation(self.seed, epoch, self.ids)
        return draws.permutation(self.seed, epoch, self._balanced(epoch))

    def _balanced(self, epoch: int) -> Array:
        """N samples, each as often as its weight says, rounded up or down by chance.

        Systematic sampling: N evenly spaced needles, one random offset, on a line on which each
        sample takes up its weight. Equal weights lie together, in random order, so that a class
        gets its share exactly (to one sample).
        """
        assert self.balance is not None
        n = len(self.ids)
        mixed = np.argsort(draws.bits(self.seed, epoch, self.ids, "balance")[:, 0], kind="stable")
        mixed = mixed[np.argsort(self.balance[mixed], kind="stable")]
        ends = np.cumsum(self.balance[mixed].astype(np.float64))
        offset = float(draws.uniform(self.seed, epoch, np.zeros(1, np.int64), "balance.at")[0, 0])
        needles = (np.arange(n) + offset) * (ends[-1] / n)
        which = np.minimum(np.searchsorted(ends, needles, side="right"), n - 1)
        # Needles ascend, so a sample's repeats are neighbours: count within each run of equals.
        first = np.searchsorted(which, which, side="left")
        repeats = np.arange(n) - first
        return np.asarray(self.ids[mixed[which]] + (repeats << _REPEAT))

    def _own(self) -> Array:
        """Evaluation's samples of this process."""
        return self.ids[self.rank :: self.world]

    def _own_batch(self) -> int:
        return max(1, self.batch_size // self.world)

    def _drawn(self, order: Array, step: int) -> Array:
        """This process's samples of the step."""
        if self.train:
            whole = order[step * self.batch_size : (step + 1) * self.batch_size]
            return np.array_split(whole, self.world)[self.rank]
        return self._own()[step * self._own_batch() : (step + 1) * self._own_batch()]

    def _submit(self, order: Array, epoch: int, step: int, pool: Executor | None) -> _Work:
        ids = self._drawn(order, step)
        a = self.augmentation
        plan = augment.plan(a, self.image_size, self.seed, epoch, ids, order, train=self.train)
        size = None if plan.crop in augment.OWN_SIZE else self.image_size
        work = _Work(ids, size, pairs=self.load2 is not None)
        work.plan = plan
        if work.plan.partner is not None:
            work.partner_plan = augment.plan(
                a, self.image_size, self.seed, epoch, work.plan.partner, train=self.train
            )
        for start in range(0, len(ids), CHUNK):
            rows = range(start, min(start + CHUNK, len(ids)))
            if pool is None:
                self._chunk(work, epoch, rows)
            else:
                work.futures.append(pool.submit(self._chunk, work, epoch, rows))
        return work

    def _chunk(self, work: _Work, epoch: int, rows: range) -> None:
        for row in rows:
            self._one(work, epoch, row)

    def _one(self, work: _Work, epoch: int, row: int) -> None:
        drawn = int(work.ids[row])
        i = drawn & ((1 << _REPEAT) - 1)
        key = self.dataset.images.key(i)
        work.keys[row] = key
        loaded = self._read(i, key)
        work.valid[row] = loaded is not None
        image, size, truth = loaded or self._stand_in(i)
        work.sizes[row] = size
        views = {name: own[row] for name, own in work.views.items()}
        sample, work.matrices[row] = self._moved(work.plan, row, key, image, size, truth, views)
        if not work.valid[row]:
            sample.image[...] = 0
            if sample.image2 is not None:
                sample.image2[...] = 0
        mix: Encoded | None = None
        if work.partner_plan is not None:
            mix = self._mix(work, epoch, row, sample.image)
        encoded = self.encode(sample, Draws(self.seed, epoch, drawn))
        work.encoded[row] = encoded
        if work.partner_plan is not None:
            # What is not mixed is its own partner, at share zero.
            work.mixed[row] = encoded if mix is None else mix
        if self.keep_samples:
            work.samples[row] = Sample(key=key, image=image, **truth)

    def _mix(self, work: _Work, epoch: int, row: int, image: Array) -> Encoded | None:
        """Mixes the partner into the image and gives the partner's encoding; ``None`` where there
        is nothing to mix, or the partner cannot be read (its failure is noted)."""
        plan, partner_plan = work.plan, work.partner_plan
        assert partner_plan is not None
        assert plan.share is not None
        assert plan.partner is not None
        assert plan.cut is not None
        share = float(plan.share[row])
        if share == 1 or not work.valid[row]:
            return None
        drawn = int(plan.partner[row])
        i = drawn & ((1 << _REPEAT) - 1)
        key = self.dataset.images.key(i)
        loaded = self._read(i, key)
        if loaded is None:
            return None
        partner, _ = self._moved(partner_plan, row, key, *loaded, {})
        x0, y0, x1, y1 = plan.cut[row].tolist()
        if x0 < x1 and y0 < y1:
            photometry.paste(image, partner.image, (x0, y0, x1, y1))
        else:
            photometry.mixup(image, partner.image, share)
        work.shares[row] = share
        return self.encode(partner, Draws(self.seed, epoch, drawn))

    def _read(self, i: int, key: str) -> _Loaded | None:
        try:
            return self._whole(i)
        except InputError as error:
            self.failures[key] = str(error)
            return None

    def _whole(self, i: int) -> _Loaded:
        """Raises :class:`InputError` for what cannot be read, and frames of different sizes."""
        image, size = self.load(i)
        # What is asked for first draws all of a generated scene.
        second = None if self.load2 is None else self.load2(i)
        truth = self.truth(i)
        if second is None:
            return image, size, truth
        if second[1] != size:
            (h, w), (h2, w2) = size, second[1]
            raise InputError(
                f"{self.dataset.images.key(i)} is {w} × {h} pixels, and the frame after it {w2} × "
                f"{h2}. Both frames of a pair have one size."
            )
        return image, size, {**truth, "image2": second[0]}

    def _stand_in(self, i: int) -> _Loaded:
        """What takes the row of a sample that cannot be read, so that shapes and order stay: the
        first that can. Its image is made black, and whatever the task makes of it counts for
        nothing. In evaluation, where no target is looked at, a black pixel with what is annotated
        of sample ``i`` itself does."""
        if not self.train:
            truth: dict[str, Any] = {}
            with contextlib.suppress(InputError):
                truth = dict(self.truth(i))
            black = np.zeros((1, 1, 3), np.uint8)
            if self.load2 is not None:
                truth["image2"] = black
            return black, (1, 1), truth
        for other in self.ids.tolist():
            with contextlib.suppress(InputError):
                return self._whole(other)
        raise InputError(f"Not one of {len(self.ids)} samples of {self.dataset.root} can be read.")

    def _moved(
        self,
        plan: Plan,
        row: int,
        key: str,
        image: Array,
        size: tuple[int, int],
        truth: dict[str, Any],
        views: dict[str, Array],
    ) -> tuple[Sample, Array]:
        """The sample as the network sees it, its images in ``views`` (by name) where they are
        there; and the matrix from original to input pixels."""
        h, w = image.shape[:2]
        matrix = augment.matrix(plan, row, (h, w))
        if (h, w) != size:
            matrix = matrix @ geometry.scaling(w / size[1], h / size[0])
        target = augment.target(plan, (h, w))
        reflects = plan.crop == "pad" and self.augmentation.pad_mode == "reflect"
        sample = warp_sample(
            Sample(key=key, image=image, **truth),
            matrix,
            target,
            matrix2=None if self.load2 is None else augment.second(plan, row, matrix, target),
            fill=None if reflects else self.fill,
            full=size,
            out=views.get("image"),
            out2=views.get("image2"),
            quick=self.train,
        )
        if sample.image2 is None:
            photometry.apply(plan, row, sample.image, self.fill)
        else:
            photometry.apply_pair(plan, row, sample.image, sample.image2, self.fill)
        return sample, matrix

    def _collect(self, work: _Work) -> Batch:
        for future in work.futures:
            future.result()
        return work.batch(self.keep_samples, self.fill, self.padding if self.train else None)


class _Work:
    """A batch on its way: what the threads write into. ``size``: side of its images; ``None``:
    each has its own. ``pairs``: there are second frames."""

    def __init__(self, ids: Array, size: int | None, *, pairs: bool) -> None:
        n = len(ids)
        self.ids = ids
        self.plan: Plan
        self.partner_plan: Plan | None = None
        self.futures: list[Future[None]] = []
        names = ["image", "image2"] if pairs else ["image"]
        self.images: dict[str, Array] = {}
        if size is not None:
            self.images = {name: np.empty((n, size, size, 3), np.uint8) for name in names}
        self.views = {name: list(own) for name, own in self.images.items()}
        self.matrices = np.tile(np.eye(3), (n, 1, 1))
        self.sizes = np.zeros((n, 2), np.int64)
        self.valid = np.ones(n, bool)
        self.shares = np.ones(n, np.float32)
        self.keys: list[str] = [""] * n
        self.encoded: list[Any] = [None] * n
        self.mixed: list[Any] = [None] * n
        self.samples: list[Any] = [None] * n

    def batch(
        self,
        keep_samples: bool,
        fill: tuple[int, int, int],
        padding: Mapping[str, int] | None,
    ) -> Batch:
        """``padding``: ``None`` leaves arrays of different shapes a list."""
        first: Encoded = self.encoded[0]
        pad = {} if padding is None else padding

        def stacked(encoded: list[Encoded], name: str) -> Any:
            return _stacked([e.targets[name] for e in encoded], pad.get(name))

        targets = {name: stacked(self.encoded, name) for name in first.targets}
        if self.partner_plan is not None:
            targets |= {f"mix:{name}": stacked(self.mixed, name) for name in first.targets}
            targets["mix_lambda"] = self.shares
        return Batch(
            inputs={
                name: self._inputs(name, None if padding is None else fill) for name in first.inputs
            },
            targets=targets,
            keys=self.keys,
            ids=self.ids & ((1 << _REPEAT) - 1),
            matrices=self.matrices,
            sizes=self.sizes,
            valid=self.valid,
            samples=self.samples if keep_samples else [],
        )

    def _inputs(self, name: str, fill: tuple[int, int, int] | None) -> Any:
        arrays = [e.inputs[name] for e in self.encoded]
        # The image that the task passed on as it came lies in the batch already.
        if name in self.images and all(
            a is own for a, own in zip(arrays, self.views[name], strict=True)
        ):
            return self.images[name]
        return _stacked(arrays, fill)


def spread(ids: Array, count: int) -> Array:
    """``count`` of them, or all if there are no more: the first, the last, and evenly between."""
    rows = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(np.int64)
    return np.asarray(ids[rows])


def _stacked(arrays: list[Array], padding: Any) -> Any:
    """One array; where shapes differ, padded on the right and below, or, without a padding, the
    list."""
    if all(a.shape == arrays[0].shape for a in arrays):
        return np.stack(arrays)
    if padding is None:
        return arrays
    h, w = np.max([a.shape[:2] for a in arrays], 0)
    out = np.empty((len(arrays), h, w, *arrays[0].shape[2:]), arrays[0].dtype)
    out[...] = padding
    for row, array in zip(out, arrays, strict=True):
        row[: array.shape[0], : array.shape[1]] = array
    return out
