"""The Python interface: ``train`` and ``load``. The command line calls the same functions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import safetensors
import safetensors.torch
from torch import nn

from vidi import doctor
from vidi import recipe as recipes
from vidi.data.dataset import Dataset
from vidi.data.open import KIND, from_images, open_data
from vidi.deploy import backends
from vidi.deploy.converted import Converted
from vidi.deploy.export import IMAGES, MAX_LOSS, Exported, export
from vidi.engine import (
    checkpoint,
    defaults,
    device,
    distributed,
    ensembles,
    finish,
    heatmaps,
    learned_proposals,
    probe,
    propose,
    streams,
    tiled,
    trackers,
)
from vidi.engine.answers import Evaluation, Prediction
from vidi.engine.evaluate import Compute, predictions
from vidi.engine.heatmaps import ENLARGE, HeatMap
from vidi.engine.learned_proposals import Proposed
from vidi.engine.prepare import (
    Prepared,
    address,
    build,
    completed,
    make_task,
    prepare,
    unreadable,
    without,
)
from vidi.engine.run import (
    BEST,
    Description,
    RunDirectory,
    command,
    free_name,
    read_header,
    read_metrics,
    versions,
)
from vidi.engine.train import Outcome, Progress, fit, write_weights
from vidi.errors import InputError
from vidi.models import compress
from vidi.models.convolutional import Convolutional, convolutionalize
from vidi.models.members import Members, members_of
from vidi.recipe import Recipe
from vidi.report import compare
from vidi.report import progress as report
from vidi.report import run_report as run_reports
from vidi.report.run_report import RunReport
from vidi.types import Array, Notes

WATCHING = 0.002
"""The share of training's time in which the doctor may look at it."""
DRAWN = 6
"""Samples whose predictions are drawn into a run."""


@dataclass(frozen=True)
class Run:
    """A finished or interrupted training run, as its folder tells it."""

    path: Path
    recipe: Recipe
    classes: tuple[str, ...]
    metrics: dict[str, float]
    """Of the best weights on the validation split."""
    test_metrics: dict[str, float] | None
    """Of the best weights on the test split, where there is one."""
    epochs: float
    steps: int
    images_per_second: float
    interrupted: int | None = None
    """The signal that ended training early, if one did; then go on with ``resume=True``."""

    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl that count."""
        return read_metrics(self.path)

    def predict(self, sources: Any) -> list[Prediction]:
        """See :meth:`Model.predict`."""
        return load(self.path).predict(sources)


def train(
    data: Any = None,
    /,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    recipe: Recipe | None = None,
    model: Any = None,
    loss: Any = None,
    val: Any = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Run:
    """Train a network on ``data`` and return its run.

    ``data``: a path, ``"digits"``, or any object with ``__len__`` and ``__getitem__`` that yields
    samples (``val``: another for validation). ``run``: the folder to write, default
    ``runs/<data>-<model>``. ``model``: a name, a ``nn.Module``, or a callable that builds one for
    ``num_classes``. ``loss``: a callable of logits [B, K] and labels [B]. ``changes``: fields of
    the recipe, such as ``epochs=30`` or ``optimiser={"momentum": 0.95}``.

    With ``resume`` a run goes on at the very step where it was; a longer length extends a finished
    one.

    Raises :class:`InputError` for what the caller can mend, :class:`RunError` when training
    cannot go on.
    """
    network, name = (None, model) if isinstance(model, str | None) else (model, _named(model))
    if name is not None:
        changes["model"] = name
    if val is not None:
        data = {"train": data, "val": val}
    wanted = recipes.replace(recipe or Recipe(), changes)
    recipes.check(wanted)
    device.tune_allocator()
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.session())
        display = progress if progress is not None else stack.enter_context(report.display())
        directory, saved = _place(run, resume, data, wanted)
        if saved is not None and saved.data.get("svd"):
            raise InputError(
                f"{directory.path} holds compressed weights (truncated SVD), which are not trained "
                "on. Go on with the run that they were made from."
            )
        if saved is not None and saved.data.get("members"):
            raise InputError(
                f"{directory.path} is an ensemble that was made of finished runs, and is not "
                "trained on. Go on with those, and make it again."
            )
        if saved is not None:
            wanted = _resumed(completed(saved.recipe), changes, recipe)
            data = saved.data["root"] if data is None else data
        elif data is None:
            raise InputError("There is nothing to train on. Name a folder of images, or digits.")
        trackers.check(wanted.logging.trackers)
        where = distributed.local_device(device.choose(wanted.device))
        dataset = _opened(data, wanted)
        for note in dataset.notes:
            display.note(note)
        if distributed.is_writer():
            stack.enter_context(directory.locked())
            if saved is None and directory.exists():
                raise InputError(f"{directory.path} was made by another process at this moment.")
        if wanted.probe:
            wanted = probe.settled(wanted, dataset.task, loss)
        state = checkpoint.load(directory.last) if saved is not None else None
        made = prepare(
            wanted,
            dataset,
            where,
            saved=saved,
            restored=state is not None,
            network=network,
            loss=loss,
            say=display.note,
        )
        for note in made.notes:
            display.note(note)
        if distributed.is_writer():
            directory.write_description(made.description)
        display.note(f"run: {directory.path}")
        stack.enter_context(device.threads_for(made.work))
        watch = _watcher(directory, made.description.recipe, display)
        step = 0 if state is None else state.step
        tracked = stack.enter_context(
            trackers.tracked(directory, made.description, step, display.note)
        )
        if wanted.probe:
            outcome = probe.fit(directory, made, display)
        else:
            outcome = fit(
                directory,
                made.description,
                made.model,
                made.task,
                made.train,
                made.loaders["val"],
                made.compute,
                is_head=made.is_head,
                train_mode=made.train_mode,
                progress=display,
                state=state,
                watch=watch,
                tell=tracked.tell,
            )
        watch(last=True)
        distributed.gathered(None)  # every process waits for the best weights to be written
        if not outcome.interrupted:
            outcome.interrupted = finish.finish(directory, made, display)
        results = {} if outcome.interrupted else _evaluate_best(directory, made)
        result = _result(directory, made, outcome, results)
        if distributed.is_writer():
            if not outcome.interrupted:
                _write_end(directory, result, results)
            if result.recipe.logging.pictures:
                try:
                    _draw(directory, made, results)
                except OSError as error:  # the run itself is whole
                    display.note(f"The pictures could not be drawn: {error.strerror or error}.")
        tracked.finish(128 + outcome.interrupted if outcome.interrupted else 0)
        for note in made.store.notes:
            display.note(note)
        display.finish(_table(result))
        return result


@dataclass
class Model:
    """A run's best weights, ready to use."""

    path: Path
    description: Description
    network: nn.Module
    compute: Compute
    notes: Notes = field(default_factory=list)
    """What should be known of the predictions made so far."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.description.classes

    @property
    def recipe(self) -> Recipe:
        return self.description.recipe

    @property
    def trained(self) -> nn.Module:
        """The network in torch, whatever computes :attr:`network`."""
        network = self.network
        return network.trained if isinstance(network, Converted) else network

    @property
    def backend(self) -> str:
        """What computes the network: ``torch``, or a library and its arithmetic, such as
        ``openvino bf16``."""
        return self.network.name if isinstance(self.network, Converted) else "torch"

    @property
    def palette(self) -> list[list[int]] | None:
        """RGB of each class, where the training data gave it."""
        return self.description.data.get("palette")

    def image(self, path: str | Path) -> Array:
        """The image as predictions see it before it is shrunk: upright, uint8 RGB [H, W, 3]."""
        source = from_images([path], max_megapixels=self.recipe.data.max_megapixels)
        return source.images.load(0, None)[0]

    def predict(
        self,
        sources: Any,
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        tile: int | None = None,
        overlap: int | None = None,
    ) -> list[Any]:
        """One prediction per image, in order: a :class:`Prediction`, a :class:`Segmentation`, a
        :class:`BoundaryMap` or :class:`DetectedObjects`; for flow, a :class:`FlowField` per pair.

        ``sources``: a path, a uint8 RGB array [H, W, 3], or a list of either; for flow, a list of
        pairs of them. The image goes through the very steps that evaluation takes. ``flip``
        averages over its mirror image, ``scales`` over several sizes, relative to its own
        (segmentation, boundaries). ``tile`` looks for small objects (detection) in windows of so
        many pixels, too, as if each was an image; they are ``overlap`` pixels or more over one
        another, a quarter unless told.

        Raises :class:`InputError` that lists every image that cannot be read.
        """
        images = [sources] if isinstance(sources, str | Path | np.ndarray) else list(sources)
        if not images:
            raise InputError("There is no image to look at.")
        if self.recipe.task == "flow":
            images = [_pair(one) for one in images]
        answers = list(self.stream(images, flip=flip, scales=scales, tile=tile, overlap=overlap))
        failures = {str(n): str(a) for n, a in enumerate(answers) if isinstance(a, InputError)}
        if failures:
            raise InputError(unreadable(failures, "and got no prediction"))
        return answers

    def stream(
        self,
        sources: Iterable[Any],
        *,
        batch_size: int | None = None,
        ahead: int = streams.AHEAD,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Generator[Any, None, None]:
        """What :meth:`predict` says of each source, in order, as it comes: sources are taken as
        they are needed, threads read images ahead while the network computes, and nothing is kept.
        In the place of an answer about what cannot be read stands the :class:`InputError` that says
        why; one that is among the sources is passed on in its place. Close it to stop early.

        ``batch_size``: images that go through the network together; None: as many as suit the task
        and the images. ``ahead``: batches that are read while one is computed; 0 for sources that
        come slowly, such as a camera's, with a batch of one. The others: as for :meth:`predict`.
        """
        views = self._views(flip, scales)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"The batch is {batch_size} images; at least 1 is expected.")
        if self.recipe.task == "flow":
            sources = map(_pair_or_error, sources)
        return streams.Stream(
            self.network,
            self.recipe,
            self.classes,
            self.compute,
            batch_size=batch_size,
            ahead=ahead,
            views=views,
            tile=tile,
            overlap=tiled.settled(self.recipe.task, tile, overlap),
            notes=self.notes,
        ).answers(sources)

    def proposals(self, sources: Any, count: int = 1000) -> list[Proposed]:
        """Where a network that proposes regions itself says that objects may be, of whatever class,
        in each image, in order: its ``count`` surest proposals. ``sources``: as for
        :meth:`predict`.

        Raises :class:`InputError` for a network that does not, and images that cannot be read.
        """
        images = [sources] if isinstance(sources, str | Path | np.ndarray) else list(sources)
        dataset = from_images(images, max_megapixels=self.recipe.data.max_megapixels)
        return learned_proposals.search(
            self.trained,
            self.recipe,
            self.compute,
            dataset,
            np.arange(len(dataset)),
            count=count,
            threads=defaults.cores(),
        )

    @functools.cached_property
    def convolutional(self) -> Convolutional:
        """The network, made to give its scores at every place of an image of any size
        (:func:`vidi.models.convolutionalize`); it shares its weights with :attr:`network`."""
        if isinstance(self.trained, Members):
            raise InputError(
                "This run is an ensemble, of which no one network could be laid over the image. "
                "Ask a run of one network."
            )
        assert self.recipe.image_size != "auto"
        return convolutionalize(self.trained, image_size=self.recipe.image_size)

    def heatmap(
        self, sources: Any, *, label: str | None = None, enlarge: float = ENLARGE
    ) -> list[HeatMap]:
        """Where a class is in each image, in order, from a classifier: how probable it is in each
        window of the image, once its shorter side is ``enlarge`` times the training size.

        ``sources``: as for :meth:`predict`. ``label``: the class; unless told, each image's
        likeliest.

        Raises :class:`InputError` for a class that the run does not know, a run or a network that
        gives none (:func:`vidi.models.convolutionalize`), and images that cannot be read.
        """
        recipe = self.recipe
        if recipe.task not in ("classification", "multilabel"):
            raise InputError(
                f"This run's task is {recipe.task}; heat maps are for classification, where "
                "nothing else says where things are."
            )
        if label is not None and label not in self.classes:
            raise InputError(
                f"This run knows no class {label!r}; it knows {', '.join(self.classes[:20])}"
                + (f" and {len(self.classes) - 20} more." if len(self.classes) > 20 else ".")
            )
        if not 1 <= enlarge <= 8:
            raise InputError(f"The enlargement is {enlarge}; a number from 1 to 8 is expected.")
        network = self.convolutional
        images = [sources] if isinstance(sources, str | Path | np.ndarray) else list(sources)
        predicted = self.predict(images)
        dataset = from_images(images, max_megapixels=recipe.data.max_megapixels)
        fill = tuple(round(255 * m) for m in self.compute.normalisation.mean)
        shorter = round(enlarge * network.window)
        out = []
        for i, p in enumerate(predicted):
            shown = p.label if label is None else label
            k = self.classes.index(shown)
            image = heatmaps.enlarged(*dataset.images.load(i, shorter), shorter, fill, p.path)
            cells, offset = heatmaps.cells(
                network, image, self.compute, fill=fill, several=recipe.task == "multilabel"
            )
            found = HeatMap(
                path=p.path,
                label=shown,
                probability=float(p.probabilities[k]),
                image=image,
                cells=cells[k],
                stride=network.stride,
                offset=offset,
                window=network.window,
            )
            out.append(found)
        return out

    def evaluate(
        self,
        data: Any = None,
        *,
        split: str | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Evaluation:
        """The metrics on a split: test where there is one, else validation; ``split`` chooses.

        ``data``: other data with the same classes (default: what the run was trained on). ``flip``,
        ``scales``, ``tile`` and ``overlap`` as in :meth:`predict`.
        """
        views = self._views(flip, scales)
        overlap = tiled.settled(self.recipe.task, tile, overlap)
        description = self.description
        own = data is None
        dataset = open_data(
            description.data["root"] if own else data,
            task=description.recipe.task,
            val_fraction=self.recipe.data.val_fraction,
            seed=self.recipe.seed,
            classes=self.classes,
            carve_val=own,
            max_megapixels=self.recipe.data.max_megapixels,
        )
        if own:
            dataset = without(dataset, description.data["left_out"])
            if dataset.fingerprint() != description.data["fingerprint"]:
                raise InputError(
                    f"{dataset.root} is no longer the data that this run was trained on, so what "
                    "was held out then cannot be told. Name the data to evaluate on after the run."
                )
        if split is None:
            split = next(s for s in ("test", "val", "train") if s in dataset.splits)
        if split not in dataset.splits:
            raise InputError(
                f"{dataset.root} has no split {split!r}; it has {', '.join(dataset.splits)}."
            )
        if own and (seen := description.data.get("seen", {}).get(split)):
            raise InputError(f"{seen} Name data that no member has seen, or another --split.")
        ids = dataset.splits[split]
        if self.recipe.task == "detection":
            dataset = propose.attach(dataset, ids, self.recipe, threads=defaults.cores())
        task, batches = self._loader(dataset, ids)
        if tile is not None:
            task = tiled.Tiled(task, dataset, self.recipe, self.compute, tile, overlap)
        meter, samples, failures, members = ensembles.evaluate(
            self.network, task, batches, self.compute, **views
        )
        if failures and self.recipe.bad_images == "error":
            raise InputError(unreadable(failures, f"in the split {split}"))
        return Evaluation(
            run=str(self.path),
            data=str(dataset.root),
            split=split,
            samples=samples,
            metrics=meter.compute(),
            details=task.details(meter) | ({"members": members} if members else {}),
        )

    def compressed(self, ranks: Sequence[int]) -> Model:
        """The same with the fully connected layers that look at each region, in their order, cut
        down to these ranks by a truncated SVD (Girshick 2015, "Fast R-CNN", section 3.1, which took
        1024 and 256 for VGG-16). What it costs, :meth:`evaluate` of both says.

        Raises :class:`InputError` where there are no such layers, for more ranks than layers, and
        for a rank that a layer cannot have.
        """
        if self.description.data.get("svd"):
            raise InputError(
                f"{self.path} is compressed already. Compress the run that it was made from."
            )
        layers = compress.connected(self.trained)
        if not layers:
            raise InputError(
                "A truncated SVD is for Fast R-CNN's fully connected layers; "
                f"{self.recipe.model} is none, or has no such layers."
            )
        if not 0 < len(ranks) <= len(layers):
            raise InputError(
                f"A truncated SVD takes a rank for each layer, and {self.recipe.model} has "
                f"{len(layers)} fully connected layers that look at regions ({', '.join(layers)}); "
                f"given are {len(ranks)} ranks."
            )
        cut = dict(zip(layers, map(int, ranks), strict=False))
        network = compress.truncated_svd(self.trained, cut)
        data = self.description.data | {"svd": cut}
        description = dataclasses.replace(self.description, data=data)
        return dataclasses.replace(self, network=network, description=description)

    def save(self, run: str | Path) -> Path:
        """Write a run of these weights alone, which can be used and evaluated but not gone on with,
        into a new folder. Gives its path."""
        directory = RunDirectory(Path(run).expanduser())
        if directory.path.exists():
            raise InputError(f"{directory.path} exists already. Choose another folder.")
        directory.write_description(self.description)
        write_weights(directory, self.trained, self.description)
        return directory.path

    def export(
        self,
        format: Literal["onnx", "openvino", "torch"],
        out: str | Path,
        *,
        data: Any = None,
        int8: bool = False,
        max_loss: float = MAX_LOSS,
        images: int = IMAGES,
        size: tuple[int, int] | None = None,
        say: Callable[[str], None] = lambda note: None,
    ) -> Exported:
        """Write the whole function, from an image's bytes to the answer, as the new file ``out``
        (.onnx, .xml, .pt2), and a card beside it; compared with this run on real images.

        ``data``: the data that it is compared on, or a folder of images; default: the run's own
        validation split. ``images``: how many of them. ``int8``: in whole numbers of 8 bits, unless
        that costs more than ``max_loss`` of the task's main metric. ``size``: the only (height,
        width) that the file takes. ``say`` hears what was settled.

        Raises :class:`InputError` for what cannot be exported, and :class:`RunError`, with the
        figures, where the file does not answer as the run does; then nothing is left.
        """
        return export(
            self,
            format,
            out,
            data=data,
            int8=int8,
            max_loss=max_loss,
            images=images,
            size=size,
            say=say,
        )

    def _views(self, flip: bool, scales: Sequence[float]) -> dict[str, Any]:
        """What the task's predict is to average over."""
        scales = tuple(float(scale) for scale in scales)
        if scales == (1.0,):
            return {"flip": flip}
        if self.recipe.task not in ("segmentation", "boundaries"):
            raise InputError(
                f"This run's task is {self.recipe.task}; several scales are averaged over only "
                "where each pixel has a class or is on a boundary."
            )
        if not scales or not all(0.1 <= scale <= 10 for scale in scales):
            raise InputError(f"The scales are {scales}; numbers from 0.1 to 10 are expected.")
        return {"flip": flip, "scales": scales}

    def _loader(self, dataset: Dataset, ids: Array) -> tuple[Any, Any]:
        task = make_task(self.recipe.task, self.classes, self.recipe, None)
        return task, streams.reader(dataset, ids, self.recipe, task, self.compute)


def load(
    run: str | Path,
    *,
    device: str = "auto",
    network: Any = None,
    backend: backends.Backend = "torch",
    images: int | None = None,
) -> Model:
    """The best weights of a run folder, or of its ``best.safetensors`` alone.

    ``network``: the one that was given from Python for training, if it was. ``backend``: what
    computes it. ``auto`` is the fastest of torch, OpenVINO and ONNX Runtime on an x86 CPU whose
    outputs are torch's within a tolerance, and torch elsewhere; finding out takes some seconds,
    once (:mod:`vidi.deploy.backends`). ``images``: how many are going to be predicted, where that
    is known; for so few that it would not pay, ``auto`` does not convert.

    Raises :class:`InputError` where there is none, or it was not written by vidi, and for a named
    backend that is not installed or cannot compute it.
    """
    from vidi.engine import device as devices

    path = Path(run).expanduser()
    file = path / BEST if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        RunDirectory(path).read_description()  # says so if the folder is no run at all
        raise InputError(
            f"{path} holds no {BEST}: its training has not come to an evaluation yet. Go on with "
            "`vidi train --resume`."
        )
    if not file.is_file():
        raise InputError(f"There is no run at {path}. A run is the folder that `vidi train` wrote.")
    description = read_header(file)
    recipe = description.recipe
    assert recipe.image_size != "auto"
    if description.data.get("members"):
        network = ensembles.built(description)
    else:
        network = build(recipe, network, len(description.classes))
    if description.data.get("svd"):  # of the shapes alone: the numbers are in the file
        network = compress.truncated_svd(network.to("meta"), description.data["svd"])
        network = network.to_empty(device="cpu")
    _load_strictly(network, file, recipe.model)
    where = devices.choose(device)
    channels_last = bool(recipe.channels_last)
    network = devices.layout(network.to(where), channels_last).eval()
    precision = recipe.precision if devices.computes(where, recipe.precision) else "fp32"
    compute = Compute(where, precision, channels_last, description.normalisation)
    chosen = backends.choose(network, file, recipe, compute, backend, images)
    return Model(path, description, chosen.network, compute, chosen.notes)


def ensemble(runs: Sequence[str | Path], *, device: str = "auto") -> Model:
    """The ensemble of finished runs, possibly of different networks, which answers with the average
    of theirs. ``save`` writes it as a run like any other.

    Arithmetic, data and whatever else a run has are the first one's; each member sees the images
    normalised as in its own training.

    Raises :class:`InputError` for runs that cannot be members of one: of another task, other
    classes, another image size, and detectors.
    """
    from vidi.engine import device as devices

    models = [load(run, device=device) for run in runs]
    described = ensembles.joined([(one.path, one.description) for one in models])
    seen, notes = _seen(models)
    described = dataclasses.replace(
        described,
        data=described.data | {"seen": seen},
        command=command(),
        versions=versions(),
        notes=(f"an ensemble of {', '.join(str(one.path) for one in models)}", *notes),
    )
    members = [member for one in models for _, member in members_of(one.network)]
    compute = models[0].compute
    network: nn.Module = ensembles.built(described, members).to(compute.device)
    network = devices.layout(network, compute.channels_last).eval()
    return Model(models[0].path, described, network, compute, notes=notes)


def _seen(models: Sequence[Model]) -> tuple[dict[str, str], list[str]]:
    """By split of the first run's data, a sentence if another was trained on some of it; and what
    cannot be told."""
    first, *others = models
    fingerprint = first.description.data["fingerprint"]
    others = [one for one in others if one.description.data["fingerprint"] != fingerprint]
    elsewhere = [
        str(one.path)
        for one in others
        if one.description.data["root"] != first.description.data["root"]
    ]
    notes = []
    if elsewhere:
        notes.append(
            f"{', '.join(elsewhere)} had other data than {first.path}; whether it holds samples "
            "that the ensemble is measured on cannot be told."
        )
    seen: dict[str, str] = {}
    if len(elsewhere) == len(others):
        return seen, notes
    for one in others:
        if str(one.path) in elsewhere:
            continue
        try:
            held, learned = _keys(first), _keys(one)["train"]
        except InputError as error:
            notes.append(
                f"Whether {one.path} was trained on samples that the ensemble is measured on "
                f"cannot be told: {error}"
            )
            continue
        for split, keys in held.items():
            known = len(keys & learned)
            if split != "train" and known:
                seen[split] = (
                    f"{one.path} was trained on {known:,} of the {len(keys):,} samples of the "
                    f"split {split} of {first.path}: the ensemble's figures there would be too "
                    "good."
                )
    return seen, notes


def _keys(model: Model) -> dict[str, set[str]]:
    """The samples of each split of a run's data, as it was trained on."""
    dataset = _opened(model.description.data["root"], model.recipe)
    dataset = without(dataset, model.description.data["left_out"])
    return {
        split: {dataset.images.key(int(i)) for i in ids} for split, ids in dataset.splits.items()
    }


def reopen(
    run: str | Path,
    *,
    weights: Literal["first", "best", "last"] = "best",
    data: Any = None,
    device: str = "auto",
    network: Any = None,
    loss: Any = None,
) -> Prepared:
    """A run with its data, task and loaders, as training left it, to be looked at.

    ``weights``: those that it began with, those of the best evaluation, or of the last saved state.
    ``data``, ``network``, ``loss``: what was given from Python for training, if it was.

    Raises :class:`InputError` where there is no run, its data cannot be opened or is no longer
    what it was, or there are no such weights yet.
    """
    from vidi.engine import device as devices

    directory = RunDirectory(Path(run).expanduser())
    saved = directory.read_description()
    if saved.data.get("svd") or saved.data.get("members"):
        raise InputError(
            f"{directory.path} was made from other runs and not trained as it is. Look at those."
        )
    where = devices.choose(device)
    dataset = _opened(saved.data["root"] if data is None else data, saved.recipe)
    made = prepare(
        completed(saved.recipe),
        dataset,
        where,
        saved=saved,
        restored=weights != "first",
        network=network,
        loss=loss,
    )
    if weights == "first":
        return made
    if weights == "best":
        if not directory.best.is_file():
            raise InputError(
                f"{directory.path} holds no {BEST}: its training has not come to an evaluation."
            )
        _load_strictly(made.model, directory.best, saved.recipe.model)
        return made
    state = checkpoint.load(directory.last)
    if state is None:
        raise InputError(f"{directory.path} holds no saved state of its training.")
    start = "model/"
    made.model.load_state_dict(
        {k.removeprefix(start): t for k, t in state.tensors.items() if k.startswith(start)}
    )
    return made


def examine(
    run: str | Path,
    *,
    data: Any = None,
    device: str = "auto",
    network: Any = None,
    loss: Any = None,
) -> tuple[doctor.Finding, ...]:
    """What the doctor finds in a run, its data and its network, the worst first; as
    ``vidi doctor RUN`` does. ``data``, ``network``, ``loss``: as for :func:`reopen`, which says
    what it raises; ``vidi.doctor.examine`` takes a run's records alone."""
    records = doctor.read_records(Path(run).expanduser())
    made = reopen(run, data=data, device=device, network=network, loss=loss)
    return doctor.examine_on_data(records, made)


def run_report(
    runs: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    data: bool = True,
    device: str = "auto",
) -> RunReport:
    """One HTML page about a run, or about several side by side, as ``vidi report`` writes it;
    :func:`vidi.report.run_report.save` writes it to a file.

    ``split``: whose details and samples are shown; test where there is one, else validation.
    ``data``: whether the data is opened; without, samples and what is measured on them are left
    out, as they are where it is gone.

    Raises :class:`InputError` for a folder that is no run, runs of different tasks, and a split
    that there is nothing to say of.
    """
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    comparison = compare.compare(paths) if len(paths) > 1 else None
    found = compare.read_all(paths) if comparison is None else comparison.runs
    subjects = [_subject(run, split, data, device) for run in found]
    return run_reports.written(subjects, comparison)


def _subject(
    run: compare.ComparedRun, asked: str | None, with_data: bool, device: str
) -> run_reports.Subject:
    """A run with what can be opened of it; what cannot is said in its notes."""
    records = doctor.read_records(run.path)
    results = run_reports.with_nan(records.evaluation)
    # Of a run that was never measured, what its data has.
    known = results or run.metrics or run.description.data["samples"]
    split = asked or next(s for s in ("test", "val", "train") if s in known)
    notes: list[str] = []
    opened, made, network = None, None, None
    try:
        if with_data:
            opened, made = _split_of(run, split, device)
            network = opened.network
        else:
            notes.append("The data was not opened (--no-data).")
            network = load(run.path, device=device).network
    except InputError as error:
        notes.append(f"Data and weights could not be opened. {error}")
        with contextlib.suppress(InputError):  # the same that was said already
            network = load(run.path, device=device).network
    if opened is not None and split not in results:
        try:
            result = load(run.path, device=device).evaluate(split=split)
        except InputError as error:
            notes.append(f"The run could not be measured. {error}")
        else:
            results[split] = {
                "samples": result.samples, "metrics": result.metrics, **result.details
            }  # fmt: skip
    if asked is not None and split not in (results or run.metrics):
        there = ", ".join(results or run.metrics) or "none yet"
        raise InputError(
            f"There is nothing to say of {run.path} on a split {split!r}; its figures are of: "
            f"{there}. {' '.join(notes)}".rstrip()
        )
    findings = doctor.examine(records)
    if made is not None:
        try:
            findings = doctor.examine_on_data(records, made)
        except InputError as error:
            notes.append(f"The doctor could look at the records alone. {error}")
    return run_reports.Subject(
        run=run,
        records=records,
        split=split,
        results=results,
        findings=findings,
        network=network,
        opened=opened,
        notes=tuple(notes),
    )


def _split_of(
    run: compare.ComparedRun, split: str, device: str
) -> tuple[run_reports.Opened, Prepared | None]:
    """The run's best weights and a split of its data; and all that training had, where it was
    trained and not made of other runs."""
    description = run.description
    if not (description.data.get("svd") or description.data.get("members")):
        made = reopen(run.path, device=device)
        loaders = {"train": made.plain} | made.loaders
        _check_split(split, loaders, description)
        return run_reports.Opened(made.model, made.task, made.compute, loaders[split]), made
    model = load(run.path, device=device)
    dataset = without(_opened(description.data["root"], model.recipe), description.data["left_out"])
    if dataset.fingerprint() != description.data["fingerprint"]:
        raise InputError(f"{dataset.root} is no longer the data that this run was made with.")
    _check_split(split, dataset.splits, description)
    ids = dataset.splits[split]
    if model.recipe.task == "detection":
        dataset = propose.attach(dataset, ids, model.recipe, threads=defaults.cores())
    task, batches = model._loader(dataset, ids)
    return run_reports.Opened(model.network, task, model.compute, batches), None


def _check_split(split: str, known: Iterable[str], description: Description) -> None:
    if split not in known:
        raise InputError(
            f"{description.data['root']} has no split {split!r}; it has {', '.join(known)}."
        )


def _opened(data: Any, recipe: Recipe) -> Dataset:
    """The data as training has it."""
    return open_data(
        data,
        task=recipe.task,
        val_fraction=recipe.data.val_fraction,
        seed=recipe.seed,
        max_megapixels=recipe.data.max_megapixels,
    )


def _watcher(directory: RunDirectory, recipe: Recipe, display: Progress) -> Callable[..., None]:
    """Says what the doctor finds in a run's records, each problem once. It is passed over where
    it would take more than that share of the time; the ``last`` time never."""
    said: set[str] = set()
    began, spent = time.perf_counter(), 0.0

    def tell(code: str, sentence: str) -> None:
        if code not in said:
            said.add(code)
            display.note(f"{code}: {sentence}")

    def watch(last: bool = False) -> None:
        nonlocal spent
        now = time.perf_counter()
        if spent > WATCHING * (now - began) and not last:
            return
        try:
            for finding in doctor.examine(doctor.read_records(directory.path)):
                if finding.severity == "problem":
                    tell(finding.code, finding.sentence)
        except Exception as error:  # a check's defect is no reason to lose hours of training
            what = f"{type(error).__name__}: {error}"
            tell("doctor", f"This run could not be looked at ({what}); training goes on.")
        spent += time.perf_counter() - now

    silent = not (recipe.logging.vitals and distributed.is_writer())
    return (lambda last=False: None) if silent else watch


def _place(
    run: str | Path | None, resume: bool, data: Any, recipe: Recipe
) -> tuple[RunDirectory, Description | None]:
    """The run's folder, and its description if it is to be resumed."""
    if run is None:
        if resume:
            raise InputError("Which run is to be resumed? Name it with --run.")
        stem = f"{_stem(data)}-{_stem(recipe.model)}" if recipe.model != "auto" else _stem(data)
        run = distributed.from_writer(free_name(Path("runs"), stem))
    directory = RunDirectory(Path(run))
    if directory.exists():
        if not resume:
            raise InputError(
                f"{directory.path} is a run already. Go on with it by --resume, or choose another "
                "folder with --run."
            )
        return directory, directory.read_description()
    if directory.path.exists() and (
        not directory.path.is_dir()
        or any(not f.name.startswith(".") for f in directory.path.iterdir())
    ):
        raise InputError(
            f"{directory.path} exists and is no run; nothing in it was touched. Choose another "
            "folder with --run."
        )
    if resume and data is None:
        raise InputError(f"There is no run at {directory.path} to resume.")
    distributed.gathered(None)  # no process makes the folder before all have looked
    return directory, None


def _resumed(saved: Recipe, changes: Mapping[str, Any], given: Recipe | None) -> Recipe:
    """The saved recipe with what may change changed; InputError for what may not."""
    wanted = recipes.replace(given or saved, changes)
    differing = []
    out: dict[str, Any] = {}
    for (name, new, free), (_, old, _) in zip(
        recipes.flat(wanted), recipes.flat(saved), strict=True
    ):
        if new == old or (new in ("auto", "find") and name != "device"):
            continue
        if name == "task" and KIND.get(old) == new:
            continue  # multi-label data was asked for by the name of its kind
        if free:
            out[name] = new
        else:
            differing.append(f"{name} (was {old!r}, now {new!r})")
    if differing:
        raise InputError(
            f"A resumed run goes on as it began, and this differs: {', '.join(differing)}. Leave "
            "it out, or begin a new run."
        )
    # The length that was asked for last is the one that counts.
    lengths = ("epochs", "length.steps", "length.minutes")
    if any(out.get(name) is not None for name in lengths):
        out = {"length.steps": None, "length.minutes": None} | out
    return recipes.replace(saved, out)


def _evaluate_best(directory: RunDirectory, made: Any) -> dict[str, Any]:
    """{split: {samples, metrics, per_class, confusion}} of the best weights."""
    _load_strictly(made.model, directory.best, made.description.recipe.model)
    results = {}
    for split, batches in made.loaders.items():
        # A whole boundary score takes minutes; where there is a test set it is for that.
        quick = split == "val" and "test" in made.loaders
        meter, samples, failed, members = ensembles.evaluate(
            made.model, made.task, batches, made.compute, quick=quick
        )
        if failed and made.description.recipe.bad_images == "error":
            raise InputError(unreadable(failed, f"in the split {split}"))
        results[split] = {
            "samples": samples,
            "metrics": meter.compute(),
            **made.task.details(meter),
            **({"members": members} if members else {}),
        }
    return results


def _result(
    directory: RunDirectory, made: Prepared, outcome: Outcome, results: dict[str, Any]
) -> Run:
    val = results.get("val", {}).get("metrics")
    if val is None:  # interrupted: what the best evaluation so far gave
        rows = [r["metrics"] for r in read_metrics(directory.path) if r["event"] == "evaluation"]
        # A row's null is a metric without a value, such as that of large objects where none is.
        rows = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
        sign = -1 if getattr(made.task, "lower_is_better", False) else 1
        val = max(rows, key=lambda m: sign * float(m[made.task.headline]), default={})
    return Run(
        path=directory.path,
        recipe=made.description.recipe,
        classes=made.description.classes,
        metrics=val,
        test_metrics=results.get("test", {}).get("metrics"),
        epochs=outcome.position.step / made.train.steps_per_epoch,
        steps=outcome.position.step,
        images_per_second=outcome.images_per_second,
        interrupted=outcome.interrupted,
    )


def _write_end(directory: RunDirectory, result: Run, results: dict[str, Any]) -> None:
    directory.write_evaluation(results)
    directory.append(
        event="end",
        step=result.steps,
        epoch=result.epochs,
        metrics=result.metrics,
        test_metrics=result.test_metrics,
        images_per_second=result.images_per_second,
    )


def _draw(directory: RunDirectory, made: Prepared, results: dict[str, Any]) -> None:
    from vidi.report import pictures, probe_pictures

    if made.description.recipe.probe:
        probe_pictures.by_weight(read_metrics(directory.path), directory.path / "probe.png")
    else:
        pictures.curves(
            read_metrics(directory.path),
            directory.path / "curves.png",
            headline=made.task.headline,
            lower_is_better=getattr(made.task, "lower_is_better", False),
        )
    split = "test" if "test" in results else "val"
    if "confusion" in results.get(split, {}):
        confusion = np.array(results[split]["confusion"])
        pictures.confusion(confusion, made.description.classes, directory.path / "confusion.png")
    if results and made.description.recipe.task == "segmentation":
        _draw_masks(directory, made, split)
    if results and made.description.recipe.task == "boundaries":
        _draw_boundaries(directory, made, split, results[split])
    if results and made.description.recipe.task == "flow":
        _draw_flow(directory, made, split)
    if results and made.description.recipe.task == "detection":
        _draw_detections(directory, made, split, results[split])


def _draw_masks(directory: RunDirectory, made: Prepared, split: str) -> None:
    """A sheet of some of the split's images with their true and predicted masks."""
    from vidi.report import overlay

    some = made.loaders[split].few(DRAWN)
    images, truths, masks, keys = [], [], [], []
    for batch, found in predictions(made.model, made.task, some, made.compute):
        for sample, prediction in zip(batch.samples, found, strict=True):
            assert sample.mask is not None
            truths.append(sample.mask)
            masks.append(prediction.mask)
            keys.append(sample.key)
            images.append(cv2.resize(sample.image, prediction.mask.shape[::-1]))
    if not images:
        return
    classes = made.description.classes
    colours = overlay.palette(len(classes), some.dataset.palette)
    path = directory.path / "predictions.png"
    overlay.segmentation_sheet(images, truths, masks, classes, colours, path, titles=keys)


def _draw_boundaries(
    directory: RunDirectory, made: Prepared, split: str, result: Mapping[str, Any]
) -> None:
    """The precision-recall curve, and a sheet of some of the split's images, with their truth."""
    from vidi.report import boundary_pictures

    boundary_pictures.precision_recall(
        {made.description.recipe.model: result},
        directory.path / "precision-recall.png",
        human=made.description.data["format"] == "bsds",
    )
    images, truths, maps, keys = [], [], [], []
    for batch, found in predictions(
        made.model, made.task, made.loaders[split].few(DRAWN), made.compute
    ):
        for sample, prediction in zip(batch.samples, found, strict=True):
            assert sample.edges is not None
            truths.append(sample.edges)
            maps.append(prediction.soft)
            keys.append(sample.key)
            images.append(cv2.resize(sample.image, prediction.soft.shape[::-1]))
    if not images:
        return
    boundary_pictures.sheet(images, truths, maps, directory.path / "predictions.png", titles=keys)


def _draw_flow(directory: RunDirectory, made: Prepared, split: str) -> None:
    """A sheet of some of the split's pairs with their true and predicted flow."""
    from vidi.report import flow_pictures

    rows, keys = [], []
    for batch, found in predictions(
        made.model, made.task, made.loaders[split].few(DRAWN), made.compute
    ):
        for sample, prediction in zip(batch.samples, found, strict=True):
            rows.append((sample, prediction.flow))
            keys.append(sample.key)
    if not rows:
        return
    flow_pictures.sheet(rows, directory.path / "predictions.png", titles=keys)


def _draw_detections(
    directory: RunDirectory, made: Prepared, split: str, result: Mapping[str, Any]
) -> None:
    """Precision-recall curves, the kinds of error, and a sheet of some of the split's images, with
    what is true and what was found."""
    from vidi.report import detection_pictures

    folder, classes = directory.path, made.description.classes
    detection_pictures.precision_recall(
        result["per_class"], result["curves"], folder / "precision-recall.png"
    )
    detection_pictures.errors(result["errors"], result["gains"], folder / "errors.png")
    rows, sizes = [], []
    for batch, found in predictions(
        made.model, made.task, made.loaders[split].few(DRAWN), made.compute
    ):
        rows += list(zip(batch.samples, found, strict=True))
        sizes += [(int(h), int(w)) for h, w in batch.sizes[batch.valid]]
    if rows:
        detection_pictures.sheet(rows, classes, folder / "predictions.png", sizes=sizes)


def _table(result: Run) -> list[tuple[str, str]]:
    rows = []
    for split, metrics in (("val", result.metrics), ("test", result.test_metrics or {})):
        rows += [(f"{split} {name}", f"{value:.4f}") for name, value in metrics.items()]
    return [
        *rows,
        ("epochs", f"{result.epochs:g}"),
        (
            "images per second",
            f"{result.images_per_second:,.0f}" if result.images_per_second else "–",
        ),
        ("run", str(result.path)),
    ]


def _load_strictly(network: nn.Module, file: Path, model: str) -> None:
    tensors = safetensors.torch.load_file(file)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"{file} does not hold the weights of {model}: {first}") from error


def _pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, tuple | list) and len(value) == 2:
        return value[0], value[1]
    what = value if isinstance(value, str | Path) else f"a {type(value).__name__}"
    raise InputError(f"Flow is predicted of pairs (first frame, second frame); {what} is no pair.")


def _pair_or_error(value: Any) -> tuple[Any, Any] | InputError:
    """The pair; an error that was given, or the one that says why it is none."""
    try:
        return value if isinstance(value, InputError) else _pair(value)
    except InputError as error:
        return error


def _named(model: Any) -> str:
    """What the recipe says of a network that was given from Python."""
    if inspect.isfunction(model) and model.__module__.startswith("vidi.models"):
        return model.__name__
    return str(address(model))


def _stem(value: Any) -> str:
    """A short name for a folder."""
    text = str(value) if isinstance(value, str | Path) else "data"
    last = Path(text).resolve().name if text not in ("", "digits") else text
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in last) or "data"
