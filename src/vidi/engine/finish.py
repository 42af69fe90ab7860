"""What a network for detection still needs when its training is over.

R-CNN (Girshick et al. 2014) needs an SVM and a regression of boxes for each class, fitted to
features of its regions: read :func:`_finish_rcnn` from top to bottom. Its stages are

1. features of all proposals and true boxes of each training image, not augmented: a file per image;
2. the SVMs, with hard negatives mined in one pass over the images: a file per class;
3. the regressions: a file per class;
4. the best weights, with all that in them.

They are in the run's folder ``finish``, beside the SHA-256 of the weights they belong to, and go
when the last is done. Every file is whole or not there, and what it holds hangs on nothing but the
weights and the images: a run that was killed anywhere comes to the same result.

Fast R-CNN (Girshick 2015) needs the deviations of its targets folded into its last layer. Other
networks need nothing.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from vidi.data import geometry
from vidi.engine import distributed
from vidi.engine.checkpoint import write_atomically
from vidi.engine.device import to_device
from vidi.engine.prepare import unreadable
from vidi.engine.region_files import RegionFiles, Regions
from vidi.engine.region_fits import MinedSvm, Ridge
from vidi.engine.signals import Signals
from vidi.errors import InputError, RunError
from vidi.models.rcnns import CHUNK, RCNN
from vidi.ops.regions import regions_of
from vidi.tasks.detection import deltas
from vidi.types import Array, Batch, Boxes

if TYPE_CHECKING:
    from vidi.engine.prepare import Prepared
    from vidi.engine.run import RunDirectory
    from vidi.engine.train import Progress

FOLDER = "finish"
NORM = 20.0
"""The features' mean norm for which the fits' constants are meant."""
LOOKED_AT = 200
"""Images, of which the mean norm is taken."""
BACKGROUND = 0.3
"""A region that overlaps a class's objects by less is none of them (section 2.3)."""
AT_ONCE = 4
"""Classes whose SVMs are fitted in one pass over the images: so many sets of negatives are in
memory, and a run that is killed loses one pass."""
NEVER = -100.0
"""The bias of a class that nothing can be told of: its score is zero everywhere."""
QUIET_SECONDS = 30.0


def finish(directory: RunDirectory, made: Prepared, progress: Progress) -> int | None:
    """Bring the run's best weights to their final form, or go on with it.

    Called in every process, when the best weights are written. Gives the signal that ended it
    early, if one did. ``made.plain``: the training images, not augmented, as evaluation has them,
    with their samples. What was finished stays as it is.
    """
    interrupted = None
    if isinstance(made.model, RCNN):
        interrupted = _finish_rcnn(directory, made, made.model, progress)
    elif hasattr(made.model, "fold") and distributed.is_writer():
        _fold(directory, made.model)
    distributed.gathered(None)  # the weights are there for every process
    return interrupted


def _fold(directory: RunDirectory, model: Any) -> None:
    """A second time changes nothing: the deviations are one then."""
    before = safetensors.torch.load_file(directory.best)
    model.load_state_dict(before)
    model.fold()
    after = model.state_dict()
    if any(not torch.equal(tensor, after[name].cpu()) for name, tensor in before.items()):
        _rewrite(directory.best, after)


def _finish_rcnn(
    directory: RunDirectory, made: Prepared, model: RCNN, progress: Progress
) -> int | None:
    tensors = safetensors.torch.load_file(directory.best)
    folder = directory.path / FOLDER
    if tensors["finished"]:
        if distributed.is_writer():
            shutil.rmtree(folder, ignore_errors=True)  # killed after the last stage
        return None
    if distributed.is_writer():
        _begin(folder, directory.best)
    distributed.gathered(None)
    model.load_state_dict(tensors)
    ids = made.plain.ids
    files = RegionFiles(folder / "features")
    fits = folder / "fits"
    classes = made.description.classes
    began = time.perf_counter()

    with Signals() as signals:
        told = _Told(progress, signals)
        if number := _write_features(files, made, model, told):
            return number
        for group in _waiting("svm", fits, len(classes)):
            # Only one process fits; the others hear of signals, group by group.
            if distributed.is_writer():
                _fit_svms(files, ids, fits, group, classes, told)
            if number := _any_signal(signals):
                return number
        for group in _waiting("boxes", fits, len(classes)):
            if distributed.is_writer():
                _fit_boxes(files, ids, fits, group, classes, told)
            if number := _any_signal(signals):
                return number
    if distributed.is_writer():
        for layer in ("svm", "boxes"):
            rows = [_read_fit(layer, fits, k) for k in range(len(classes))]
            tensors[f"{layer}.weight"] = torch.from_numpy(np.concatenate([w for w, _ in rows]))
            tensors[f"{layer}.bias"] = torch.from_numpy(np.concatenate([b for _, b in rows]))
        tensors["finished"] = torch.ones_like(tensors["finished"])
        _rewrite(directory.best, tensors)
        shutil.rmtree(folder)
    progress.note(f"R-CNN is finished, in {_spoken(time.perf_counter() - began)}.")
    return None


def _begin(folder: Path, best: Path) -> None:
    """The stages' folder, empty unless it belongs to these weights."""
    with best.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    note = folder / "of.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(note.read_bytes()) == {"weights_sha256": digest}:
            return
    shutil.rmtree(folder, ignore_errors=True)
    write_atomically(note, json.dumps({"weights_sha256": digest}).encode())


# Features


def _write_features(files: RegionFiles, made: Prepared, model: RCNN, told: _Told) -> int | None:
    """The processes share the images out."""
    ids = made.plain.ids
    missing = distributed.from_writer([i for i in ids.tolist() if not files.has(i)])
    loader = copy.copy(made.plain)
    loader.ids = np.array(missing, np.int64)
    told.start("Features of regions", len(loader.ids[loader.rank :: loader.world]))
    was_training = model.training
    model.eval()
    try:
        with contextlib.closing(loader.epoch(0)) as batches:
            for batch in batches:
                _check_read(batch, loader.failures, made)
                compute = made.compute
                on_device = to_device(
                    batch, compute.device, compute.normalisation, compute.channels_last
                )
                for row in range(len(batch)):
                    if not told.stopped:
                        with torch.inference_mode(), compute.autocast():
                            regions, features, near = _described(model, on_device, row)
                        files.write(int(batch.ids[row]), regions, features, near)
                        told.one()
                if told.stopped:
                    break
    finally:
        model.train(was_training)
    told.end()
    if number := _any_signal(told.signals):
        return number
    lost = [i for i in missing if not files.has(i)] if distributed.is_writer() else []
    if lost:
        raise RunError(
            f"The features of {len(lost):,} images are not in {files.folder}, where the other "
            "processes wrote them. Put the run on a disk that all machines share, or go on with "
            "--resume in one process."
        )
    return None


def _check_read(batch: Batch, failures: dict[str, str], made: Prepared) -> None:
    if not batch.valid.all() and made.description.recipe.bad_images == "error":
        raise InputError(unreadable(failures, "for R-CNN's features"))


def _described(model: RCNN, batch: Batch, row: int) -> tuple[Regions, Array, Array]:
    """(the regions of one of the batch's images, their fc7, pool5 of those near a true box)."""
    image = batch.inputs["image"][row]
    image = image if image.dim() == 4 else image[None]
    proposals = batch.targets["proposals"][row].cpu().numpy()
    truth = batch.samples[row].boxes
    if not batch.valid[row]:
        proposals, truth = proposals[:0], None
    regions = Regions(proposals, _in_input(truth, batch.matrices[row]))
    rows, _ = regions.near()
    wanted = np.zeros(len(regions), bool)
    wanted[rows] = True
    where = regions_of([torch.from_numpy(regions.xyxy).to(image.device)])
    fc7 = [torch.zeros(0, model.svm.in_features)]
    near = [torch.zeros(0, model.boxes.in_features)]
    parts = torch.split(where, CHUNK), torch.split(torch.from_numpy(wanted), CHUNK)
    for part, kept in zip(*parts, strict=True):
        if len(part):
            pooled, described = model.describe(image, part)
            fc7.append(described.float().cpu())
            near.append(pooled[kept.to(pooled.device)].float().cpu())
    return regions, torch.cat(fc7).numpy(), torch.cat(near).numpy()


def _in_input(boxes: Boxes | None, matrix: Array) -> Boxes:
    """The boxes in pixels of the input; those without area are left out."""
    if boxes is None:
        return Boxes(
            xyxy=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            difficult=np.zeros(0, bool),
            crowd=np.zeros(0, bool),
        )
    xyxy = geometry.hulls(matrix, boxes.xyxy).astype(np.float32)
    real = (xyxy[:, 2:] > xyxy[:, :2]).all(1)
    return Boxes(
        xyxy=xyxy[real],
        labels=boxes.labels[real],
        difficult=boxes.difficult[real],
        crowd=boxes.crowd[real],
    )


# Fits


def _fit_svms(
    files: RegionFiles,
    ids: Array,
    fits: Path,
    group: Sequence[int],
    classes: Sequence[str],
    told: _Told,
) -> None:
    """One pass for the positives of those classes, and one for their negatives."""
    names = ", ".join(classes[k] for k in group)
    told.start(f"SVMs of {names}", 2 * len(ids))
    scale = _scale(files.features, ids)
    positives: dict[int, list[Array]] = {k: [] for k in group}
    for i in told.each(ids):
        regions = files.regions(i)
        first = len(regions.proposals)
        if len(regions.truth):
            true = scale * files.features(i, first)
            for k in group:
                positives[k].append(true[regions.examples(k) - first])
    svms = {}
    for k in group:
        if sum(map(len, positives[k])):
            svms[k] = MinedSvm(np.concatenate(positives[k]))
    for i in told.each(ids):
        regions, features = files.regions(i), scale * files.features(i)
        for k, miner in svms.items():
            miner.add(features[regions.overlaps(k) < BACKGROUND])
    if told.stopped:
        return
    for k in group:
        line = svms[k].finish() if k in svms else None
        if line is None:
            weight, bias = np.zeros((1, files.features(int(ids[0])).shape[1])), NEVER
            what = "no true box to learn from" if k not in svms else "no region that is none"
            told.note(f"{classes[k]} has {what}: it will never be found.")
        else:
            weight, bias = scale * line.weight[None], line.bias
            if not svms[k].converged:
                told.note(
                    f"The SVM of {classes[k]} is a little off: its solver took all of its rounds."
                )
        _write_fit("svm", fits, k, weight, np.array([bias]))
    told.end()


def _fit_boxes(
    files: RegionFiles,
    ids: Array,
    fits: Path,
    group: Sequence[int],
    classes: Sequence[str],
    told: _Told,
) -> None:
    """Class by class, for one matrix of a regression is large enough.

    Pool5 is scaled as the published code does, for which λ is meant; the paper does not say so.
    """
    scale = _scale(files.near, ids)
    told.start(f"Boxes of {', '.join(classes[k] for k in group)}", len(group) * len(ids))
    for k in group:
        ridge = None
        for i in told.each(ids):
            regions = files.regions(i)
            rows, objects = regions.near()
            own = np.flatnonzero(regions.truth.labels[objects] == k)
            if not len(own):
                continue
            features = scale * files.near(i)[own]
            ridge = Ridge(features.shape[1]) if ridge is None else ridge
            targets = deltas(regions.proposals[rows[own]], regions.truth.xyxy[objects[own]])
            ridge.add(features, targets)
        if told.stopped:
            return
        if ridge is None:
            weight, bias = np.zeros((4, files.near(int(ids[0])).shape[1])), np.zeros(4)
            told.note(f"No proposal is near any {classes[k]}: its boxes stay where they are.")
        else:
            weight, bias = ridge.solve()
        _write_fit("boxes", fits, k, scale * weight, bias)
    told.end()


def _scale(read: Callable[[int], Array], ids: Array) -> float:
    """What brings the features that ``read`` gives of an image to a mean norm of :data:`NORM`."""
    some = np.unique(np.linspace(0, len(ids) - 1, min(LOOKED_AT, len(ids))).round().astype(int))
    norms = np.concatenate([np.linalg.norm(read(int(i)), axis=1) for i in ids[some]])
    mean = float(norms.mean(dtype=np.float64)) if len(norms) else 0.0
    return NORM / mean if mean else 1.0


# Files


def _waiting(layer: str, fits: Path, classes: int) -> Iterator[list[int]]:
    """The classes whose fit is not there, :data:`AT_ONCE` at a time, the same in every process."""
    left = [k for k in range(classes) if not _fit_path(layer, fits, k).is_file()]
    left = distributed.from_writer(left)
    for start in range(0, len(left), AT_ONCE):
        yield left[start : start + AT_ONCE]


def _write_fit(layer: str, fits: Path, k: int, weight: Array, bias: Array) -> None:
    body = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    body = {name: np.ascontiguousarray(array) for name, array in body.items()}
    write_atomically(_fit_path(layer, fits, k), safetensors.numpy.save(body))


def _read_fit(layer: str, fits: Path, k: int) -> tuple[Array, Array]:
    body = safetensors.numpy.load_file(_fit_path(layer, fits, k))
    return body["weight"], body["bias"]


def _fit_path(layer: str, fits: Path, k: int) -> Path:
    return fits / f"{layer}-{k:05d}.safetensors"


def _rewrite(best: Path, tensors: dict[str, Tensor]) -> None:
    """Other tensors under the same header."""
    with safetensors.safe_open(str(best), framework="pt") as opened:
        header = opened.metadata()
    body = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(best, safetensors.torch.save(body, header))


# Signals, and what is told


def _any_signal(signals: Signals) -> int | None:
    """The signal that any process received, in every process."""
    number = max(distributed.gathered(signals.received or 0))
    return number or None


class _Told:
    """How far a stage is: a sentence now and then, and at its end."""

    def __init__(self, progress: Progress, signals: Signals) -> None:
        self.progress, self.signals = progress, signals
        self._stage, self._images, self._done = "", 0, 0
        self._began = self._last = 0.0

    @property
    def stopped(self) -> bool:
        return self.signals.received is not None

    def note(self, sentence: str) -> None:
        self.progress.note(sentence)

    def start(self, stage: str, images: int) -> None:
        self._stage, self._images, self._done = stage, images, 0
        self._began = self._last = time.perf_counter()

    def one(self) -> None:
        self._done += 1
        if time.perf_counter() - self._last > QUIET_SECONDS:
            self._last = time.perf_counter()
            seconds = _spoken(self._last - self._began)
            self.note(f"{self._stage}: {self._done:,} of {self._images:,} images in {seconds}.")

    def each(self, ids: Array) -> Iterator[int]:
        """The images one by one, until a signal comes."""
        for i in ids.tolist():
            if self.stopped:
                return
            yield i
            self.one()

    def end(self) -> None:
        if self._images and not self.stopped:
            seconds = _spoken(time.perf_counter() - self._began)
            self.note(f"{self._stage}: done, in {seconds}.")


def _spoken(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
