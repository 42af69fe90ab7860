"""From indices to batches: threads read, warp and colour; the result does not depend on them.

A pool of threads and not of processes: OpenCV decodes and warps without Python's lock, nothing is
copied between processes, and an exception keeps its sample. Everything random comes from
:mod:`vidi.data.draws`, so any number of threads, any number of processes and any starting step give
the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from vidi.data import augment, draws, geometry, photometry
from vidi.data.augment import Plan
from vidi.data.draws import Draws
from vidi.errors import InputError
from vidi.recipe import Augmentation
from vidi.types import Array, Batch, Encoded, Sample

if TYPE_CHECKING:
    from vidi.data.dataset import Dataset

CHUNK = 16
"""Samples that a thread takes at a time."""
_REPEAT = 40
"""A sample drawn again in one epoch (balanced sampling) counts in the bits above these."""


class Loader:
    """Batches of some of a dataset's samples.

    ``ids``: int64 [N], indices in the dataset. ``load``: gives an image, uint8 [h, w, 3], perhaps
    shrunk, and its original (H, W). ``encode``: the task's inputs and targets of a sample whose
    image is the network's input already. ``augmentation``: resolved. ``fill``: RGB of what lies
    outside an image. ``batch_size``: over all ``world`` processes together; this one is ``rank``.
    ``train``: shuffled and augmented, else in order and centred. ``threads``: 0 works in the
    caller's. ``prefetch``: batches prepared ahead. ``balance``: float [N], how often each sample
    is drawn, relative to the others. ``keep_samples``: batches carry the samples, as loaded.

    What could not be read is in ``failures``, as key: sentence; its row of the batch is zeros and
    marked invalid, and the caller decides.

    ``load`` and ``encode`` are called from several threads at once.
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
        fill: tuple[int, ...] = (0, 0, 0),
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
        self.encode = encode
        self.augmentation = augmentation
        self.image_size = image_size
        self.fill = (int(fill[0]), int(fill[1]), int(fill[2]))
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
        work = _Work(ids, self.image_size)
        a = self.augmentation
        work.plan = augment.plan(a, self.image_size, self.seed, epoch, ids, order, train=self.train)
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
        image = work.views[row]
        key = self.dataset.images.key(i)
        loaded = self._read(i, key)
        work.keys[row] = key
        work.valid[row] = loaded is not None
        if loaded is None:
            image[...] = 0
        else:
            source, size = loaded
            work.sizes[row] = size
            work.matrices[row] = self._paint(work.plan, row, source, size, image)
        annotations = self.dataset.annotations(i)
        mix: Encoded | None = None
        if work.partner_plan is not None:
            mix = self._mix(work, epoch, row, image)
        sample = Sample(key=key, image=image, **annotations)
        encoded = self.encode(sample, Draws(self.seed, epoch, drawn))
        work.encoded[row] = encoded
        if work.partner_plan is not None:
            # What is not mixed is its own partner, at share zero.
            work.mixed[row] = encoded if mix is None else mix
        if self.keep_samples:
            shown = image if loaded is None else loaded[0]
            work.samples[row] = Sample(key=key, image=shown, **annotations)

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
        partner = np.empty_like(image)
        self._paint(partner_plan, row, *loaded, partner)
        x0, y0, x1, y1 = plan.cut[row].tolist()
        if x0 < x1 and y0 < y1:
            photometry.paste(image, partner, (x0, y0, x1, y1))
        else:
            photometry.mixup(image, partner, share)
        work.shares[row] = share
        sample = Sample(key=key, image=partner, **self.dataset.annotations(i))
        return self.encode(sample, Draws(self.seed, epoch, drawn))

    def _read(self, i: int, key: str) -> tuple[Array, tuple[int, int]] | None:
        try:
            return self.load(i)
        except InputError as error:
            self.failures[key] = str(error)
            return None

    def _paint(
        self, plan: Plan, row: int, source: Array, size: tuple[int, int], out: Array
    ) -> Array:
        """The network's input into ``out``; gives the matrix from original to input pixels."""
        h, w = source.shape[:2]
        matrix = augment.matrix(plan, row, (h, w))
        geometry.warp(source, matrix, self.image_size, self.fill, out=out)
        photometry.apply(plan, row, out, self.fill)
        if (h, w) == size:
            return matrix
        return np.asarray(matrix @ geometry.scaling(w / size[1], h / size[0]))

    def _collect(self, work: _Work) -> Batch:
        for future in work.futures:
            future.result()
        return work.batch(self.keep_samples)


class _Work:
    """A batch on its way: what the threads write into."""

    def __init__(self, ids: Array, size: int) -> None:
        n = len(ids)
        self.ids = ids
        self.plan: Plan
        self.partner_plan: Plan | None = None
        self.futures: list[Future[None]] = []
        self.images = np.empty((n, size, size, 3), np.uint8)
        self.views = list(self.images)
        self.matrices = np.tile(np.eye(3), (n, 1, 1))
        self.sizes = np.zeros((n, 2), np.int64)
        self.valid = np.ones(n, bool)
        self.shares = np.ones(n, np.float32)
        self.keys: list[str] = [""] * n
        self.encoded: list[Any] = [None] * n
        self.mixed: list[Any] = [None] * n
        self.samples: list[Any] = [None] * n

    def batch(self, keep_samples: bool) -> Batch:
        first: Encoded = self.encoded[0]
        inputs = {name: self._inputs(name) for name in first.inputs}
        targets = {
            name: _stacked([e.targets[name] for e in self.encoded]) for name in first.targets
        }
        if self.partner_plan is not None:
            targets |= {
                f"mix:{name}": _stacked([e.targets[name] for e in self.mixed])
                for name in first.targets
            }
            targets["mix_lambda"] = self.shares
        return Batch(
            inputs=inputs,
            targets=targets,
            keys=self.keys,
            ids=self.ids & ((1 << _REPEAT) - 1),
            matrices=self.matrices,
            sizes=self.sizes,
            valid=self.valid,
            samples=self.samples if keep_samples else [],
        )

    def _inputs(self, name: str) -> Any:
        arrays = [e.inputs[name] for e in self.encoded]
        # The image that the task passed on as it came lies in the batch already.
        if all(a is own for a, own in zip(arrays, self.views, strict=True)):
            return self.images
        return _stacked(arrays)


def _stacked(arrays: list[Array]) -> Any:
    """One array, or the list where shapes differ."""
    if all(a.shape == arrays[0].shape for a in arrays):
        return np.stack(arrays)
    return arrays
