"""A run's whole function as one file, which is only left where it answers as the run does.

All is written into a hidden folder beside the target. There the file is read again and runs on real
images (:mod:`vidi.deploy.parity`), and only what passes gets its name.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from vidi.data.dataset import Dataset
from vidi.data.formats.folders import is_image
from vidi.data.geometry import resize
from vidi.data.loader import spread
from vidi.data.open import from_images, open_data
from vidi.deploy import card, detection, libraries, onnx_files, openvino_files, torch_files
from vidi.deploy import int8 as whole_numbers
from vidi.deploy import parity as gate
from vidi.deploy.function import Function, frozen, function
from vidi.engine.evaluate import Compute
from vidi.engine.prepare import without
from vidi.engine.run import BEST, read_header, versions
from vidi.errors import InputError, RunError
from vidi.models import DENSE
from vidi.ops import tiles
from vidi.recipe import Recipe
from vidi.types import Array, Notes

FORMATS: dict[str, Any] = {"onnx": onnx_files, "openvino": openvino_files, "torch": torch_files}
"""The module of each."""
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
CARD = "MODEL.md"
IMAGES = 64
"""Real images that an exported file is compared on, unless told."""
MAX_LOSS = 0.01
"""Of the headline metric, what int8 may cost unless told."""
CROPPED = 4
"""Images that are compared in another size, too, where a file takes any."""
SMALLEST, SMALLEST_MAP = 8, 64
"""Pixels of the shorter side, of images that can be cropped to see that; the second where each
pixel is answered for."""

TILED = ("segmentation", "boundaries")
"""Tasks whose runs answer large images in tiles (:mod:`vidi.ops.tiles`), and files in one piece."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What was written: ``path``, the model; ``files``, all of it, with the model's card ``card``.
    ``parity``: how it compares with the run. ``int8``: what that costs, where it was asked for."""

    path: Path
    card: Path
    files: tuple[Path, ...]
    metadata: dict[str, Any]
    parity: gate.Parity
    int8: whole_numbers.Int8 | None = None


def export(
    model: Any,
    format: str,
    out: str | Path,
    *,
    data: Any = None,
    int8: bool = False,
    max_loss: float = MAX_LOSS,
    images: int = IMAGES,
    size: tuple[int, int] | None = None,
    say: Say = lambda note: None,
) -> Exported:
    """Write a run's whole function as the new file ``out``, and a card beside it.

    ``model``: a :class:`vidi.api.Model`, as its run has it. ``format``: onnx, openvino or torch.
    ``data``: the dataset whose images it is compared on, or a folder of images; None is the run's
    own. ``images``: how many. ``size``: the only (height, width) that the file takes; None is any,
    where the network can. ``int8``: in whole numbers of 8 bits, unless that costs more than
    ``max_loss`` of the headline metric. ``say`` hears what was settled.

    Raises :class:`InputError` for what cannot be asked for, and :class:`RunError`, with the
    figures, where the file does not answer as the run does; then nothing is left.
    """
    out = Path(out).expanduser()
    model = dataclasses.replace(model, network=model.trained)
    _check(model, format, out, int8, max_loss, images, size)
    dataset, split = opened(model, data, say)
    ids = spread(dataset.splits[split], images)
    reference = dataclasses.replace(
        model,
        network=frozen(model.network),
        compute=Compute(torch.device("cpu"), "fp32", False, model.compute.normalisation),
        notes=[],
    )
    with _beside(out) as folder:
        if format == "openvino" or int8:
            first, steps = "onnx", folder / "steps"
            steps.mkdir()
        else:
            first, steps = format, folder
        file = steps / f"{out.stem}{SUFFIXES[first]}"
        whole, names, metadata = _written(model, first, file, dataset, ids, size, say)
        samples = Samples(dataset, ids, whole, model.recipe)
        tensors = _trained(model, names) | gate.preparation(reference)
        say(f"comparing with the run on {samples.told(split)}")
        for note in samples.notes:
            say(note)
        found = _passed(gate.check(read(file), reference, samples, tensors), out)
        cost = None
        if int8:
            small = folder / f"{out.stem}.onnx" if format == "onnx" else steps / "int8.onnx"
            cost = whole_numbers.quantise(
                file, small, reference, dataset, max_loss=max_loss, say=say
            )
            metadata, file = read(small).metadata, small
        if format == "openvino":
            openvino_files.convert(file, folder / out.name, metadata)
            file = folder / out.name
            if cost is not None:
                cost = whole_numbers.measured(file, read(file), reference, dataset, cost, max_loss)
            else:
                found = _passed(gate.check(read(file), reference, samples, tensors), out)
        more = [*metadata["notes"], *samples.notes, *reference.notes]
        card.write(folder / CARD, reference, {**metadata, "notes": more}, found, file.name, cost)
        if steps != folder:
            shutil.rmtree(steps)
        files = _moved(folder, out)
    return Exported(out, out.parent / CARD, files, metadata, found, cost)


def read(path: str | Path) -> Any:
    """An exported file: ``metadata``, ``tensors()`` by the network's names, and ``run(inputs)``.

    Raises :class:`InputError` where it is none.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    for name, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return FORMATS[name].read(path)
    raise InputError(
        f"{path.name} is no exported model by its name; these end in "
        f"{', '.join(SUFFIXES.values())}."
    )


def opened(model: Any, data: Any, say: Say) -> tuple[Dataset, str]:
    """The data that an exported file is compared on, and the split that is looked at.

    Raises :class:`InputError` where it is gone, or is no longer what the run was trained on.
    """
    told = model.description.data
    if data is None:
        try:
            dataset = _dataset(model, told["root"], own=True)
        except InputError as error:
            raise InputError(
                f"No file is exported that was not compared with the run on real images, and this "
                f"run's own are not to be had: {error} Name a folder of images with --data."
            ) from error
    else:
        try:
            dataset = _dataset(model, data, own=False)
        except InputError as error:
            found = _images(data)
            if not found or model.recipe.task == "flow":
                raise
            say(f"{data} is looked at as a folder of images, not as data: {error}")
            dataset = from_images(found, max_megapixels=model.recipe.data.max_megapixels)
    split = next(s for s in ("val", "test", "train") if s in dataset.splits)
    return dataset, split


class Samples(Sequence[dict[str, Array]]):
    """Images of a dataset as an exported file takes them, one at a time, read when asked for.

    Of images of any size the first few come once more at the end, cropped; to a file that takes
    one size alone, all are brought by areas or bilinearly. A detector that is told where to look
    gets the image's ``regions``, too.
    """

    def __init__(self, dataset: Dataset, ids: Array, whole: Function, recipe: Recipe) -> None:
        self.ids = ids
        self._size = whole.size
        self._frames = [dataset.images]
        if "image2" in whole.inputs:
            assert dataset.images2 is not None
            self._frames.append(dataset.images2)
        self._regions = detection.told(dataset, ids, recipe) if "regions" in whole.inputs else []
        self._cropped = 0
        # The run answers larger ones in tiles.
        self._most = tiles.SMALL if recipe.task in TILED and whole.size is None else None
        free = whole.size is None and not self._regions
        height, width = self._image(0, self._frames[0]).shape[:2]
        labelled = recipe.task in ("classification", "multilabel")
        if free and min(height, width) >= (SMALLEST if labelled else SMALLEST_MAP):
            self._cropped = CROPPED
        sizes = {dataset.images.size(int(i)) for i in ids}
        self.notes: Notes = []
        if free and not self._cropped and len(sizes) == 1:
            self.notes.append(
                f"Images of {height} × {width} px (height × width) alone were compared with the "
                "run."
            )

    def __len__(self) -> int:
        return len(self.ids) + self._cropped

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(row)
        names = ("image", "image2")
        found = {n: self._image(row, of) for n, of in zip(names, self._frames, strict=False)}
        if self._regions:
            found["regions"] = self._regions[row]
            if self._size is not None:
                height, width = self._frames[0].size(int(self.ids[row]))
                scale = np.array([self._size[1] / width, self._size[0] / height] * 2, np.float32)
                found["regions"] = self._regions[row] * scale
        return found

    def told(self, split: str) -> str:
        """A sentence's part: how many, of what."""
        what = "images" if len(self._frames) == 1 else "pairs of images"
        more = f", and {self._cropped} crops of them" if self._cropped else ""
        return f"{len(self.ids)} {what} of the split {split}{more}"

    def _image(self, row: int, images: Any) -> Array:
        image: Array = images.load(int(self.ids[row % len(self.ids)]), None)[0]
        area = image.shape[0] * image.shape[1]
        if self._most is not None and area > self._most:
            share = math.sqrt(self._most / area)
            image = image[: int(image.shape[0] * share), : int(image.shape[1] * share)]
        if row >= len(self.ids):
            (height, width), k = image.shape[:2], row - len(self.ids)
            image = image[: height - height // 5 - k, width // 3 + k * max(1, width // 24) :]
        elif self._size is not None and image.shape[:2] != self._size:
            image = resize(image, np.empty((*self._size, 3), np.uint8))
        return np.ascontiguousarray(image)


def _check(
    model: Any,
    format: str,
    out: Path,
    int8: bool,
    max_loss: float,
    images: int,
    size: tuple[int, int] | None,
) -> None:
    """InputError for what cannot be asked for."""
    if format not in FORMATS:
        raise InputError(
            f"There is no format {format!r} to export; there are {', '.join(FORMATS)}."
        )
    if out.suffix != SUFFIXES[format]:
        raise InputError(
            f"{out} does not end in {SUFFIXES[format]}, as a file of {format} does. Name it so."
        )
    if int8 and format == "torch":
        raise InputError("int8 is for --format onnx and openvino; torch's files have none.")
    if not max_loss >= 0:  # which NaN is not, either
        raise InputError(f"--max-loss is {max_loss:g}; a number from 0 on is expected.")
    if images < 1:
        raise InputError(f"--images is {images}; at least 1 is compared.")
    if size is not None and min(size) < 2:
        raise InputError(f"--image-size is {size[0]} × {size[1]}; at least 2 × 2 is expected.")
    for path in _targets(out):
        if os.path.lexists(path):
            raise InputError(
                f"{path} exists already, and nothing is written over. Give --out another name, in "
                "a folder of its own."
            )
    file = _file(model)
    own = read_header(file).data if file.is_file() else None
    if own is None or any(own.get(k) != model.description.data.get(k) for k in ("svd", "members")):
        raise InputError(
            f"These weights lie in no file{'' if own is None else f' ({file} has others)'}. Save "
            "them first (Model.save), and export what was saved."
        )


def _file(model: Any) -> Path:
    path = Path(model.path)
    return path / BEST if path.is_dir() else path


def _targets(out: Path) -> list[Path]:
    """All files that will be there."""
    return [out, *([out.with_suffix(".bin")] if out.suffix == ".xml" else []), out.parent / CARD]


def _written(
    model: Any,
    format: str,
    file: Path,
    dataset: Dataset,
    ids: Array,
    size: tuple[int, int] | None,
    say: Say,
) -> tuple[Function, set[str], dict[str, Any]]:
    """Writes the function as ``file``, as free in its sizes as the network allows. Gives it, the
    names of the tensors that it uses, and the file's metadata."""
    tries: list[tuple[tuple[int, int] | None, int | None]] = [(size, None)]
    if size is None and model.recipe.task in DENSE:
        usual = _usual_size(dataset, ids)
        tries += [(usual, None), (usual, 1)]
    elif model.recipe.task != "detection":
        tries += [(size, 1)]
    why = ""
    for fixed, batch in tries:
        whole = function(model, fixed)
        if fixed != size or batch is not None:
            what = f"images of {fixed[0]} × {fixed[1]} px" if fixed else "images of any size"
            many = "one at a time" if batch else "any number at a time"
            note = f"The file takes only {what} (height × width), {many}: {why}"
            whole.batch = batch
            whole.notes.append(note)
        example = whole.example()
        metadata = described(model, whole, example, dataset)
        try:
            names = FORMATS[format].write(whole, example, file, metadata)
        except InputError:
            raise
        except Exception as error:  # of torch's exporter, which raises nearly anything
            if torch_files.lacking(error):
                if isinstance(error, OSError):
                    raise
                raise RunError(
                    f"The network was not exported, for memory or room on the disk ran out "
                    f"({libraries.short(error)})."
                ) from error
            reason = libraries.short(error)
            why = f"{model.recipe.model} cannot be drawn as a graph otherwise ({reason})."
            continue
        for note in whole.notes:
            say(note)
        return whole, names, metadata
    raise RunError(f"The network cannot be exported: {why}")


def _usual_size(dataset: Dataset, ids: Array) -> tuple[int, int]:
    """The commonest (height, width) of the images."""
    sizes = collections.Counter(dataset.images.size(int(i)) for i in ids)
    return sizes.most_common(1)[0][0]


def described(
    model: Any, whole: Function, example: Mapping[str, Any], dataset: Dataset
) -> dict[str, Any]:
    """What a file says of itself."""
    recipe, description = model.recipe, model.description
    with torch.no_grad():
        found = whole(**example)
    types = {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in {**example, **found}.items()
    }
    network = next((m for m in model.network.modules() if hasattr(m, "source")), None)
    data = description.data
    return {
        "format": 1,
        "task": recipe.task,
        "network": recipe.model,
        "classes": list(model.classes),
        "palette": data.get("palette"),
        "inputs": _sides(whole.inputs, types),
        "outputs": _sides(whole.outputs, types),
        "size": None if whole.size is None else list(whole.size),
        "preparation": whole.preparation,
        "normalisation": {
            "mean": list(model.compute.normalisation.mean),
            "std": list(model.compute.normalisation.std),
        },
        "weights": {
            "file": BEST,
            "sha256": hashlib.sha256(_file(model).read_bytes()).hexdigest(),
            "source": getattr(network, "source", None),
            "start": recipe.weights,
            "licence": licence(recipe.weights),
        },
        "data": {
            "name": Path(str(data["root"])).name,
            "format": data["format"],
            "fingerprint": data["fingerprint"],
            "samples": data["samples"],
        },
        "command": description.command,
        "versions": {"trained": description.versions or {}, "exported": _versions()},
        "notes": list(whole.notes),
    }


def licence(start: str | None) -> str:
    """What is known of the terms under which the weights may be used."""
    if start is None:
        return "trained from random numbers; the terms of the training data apply"
    return (
        f"training began with {start}; its terms, and those of the training data, apply, and are "
        "not known here"
    )


def _sides(sides: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"type": types[name], "shape": list(of)} for name, of in sides.items()}


def _versions() -> dict[str, str]:
    """What the file is made with."""
    found = {k: v for k, v in versions().items() if k in ("vidi", "python", "torch")}
    others = ("onnx", "onnxscript", "onnxruntime", "openvino")
    return found | {p: v for p in others if (v := libraries.version(p)) is not None}


def _trained(model: Any, names: set[str]) -> dict[str, Array]:
    """Those tensors of the run's own file, and of the network's what its code alone says."""
    tensors = safetensors.numpy.load_file(_file(model))
    stored = model.network.state_dict()
    for name, constant in model.network.named_buffers():
        if name not in stored:
            tensors[name] = constant.cpu().numpy()
    if missing := sorted(names - tensors.keys()):
        raise InputError(
            f"{_file(model)} holds no {missing[0]}, which the network computes with: these are not "
            "that run's weights. Save them as a run of their own first (Model.save)."
        )
    return {name: tensors[name] for name in names}


def _passed(found: gate.Parity, out: Path) -> gate.Parity:
    if not found.passed:
        raise RunError(
            f"{out} was not written: the exported file does not answer as the run does. "
            f"{found.sentence}"
        )
    return found


def _dataset(model: Any, source: Any, *, own: bool) -> Dataset:
    recipe, told = model.recipe, model.description.data
    dataset = open_data(
        source,
        task=recipe.task,
        val_fraction=recipe.data.val_fraction,
        seed=recipe.seed,
        classes=model.classes,
        carve_val=own,
        max_megapixels=recipe.data.max_megapixels,
    )
    if not own:
        return dataset
    dataset = without(dataset, told["left_out"])
    if dataset.fingerprint() != told["fingerprint"]:
        raise InputError(f"{dataset.root} is no longer what the run was trained on.")
    return dataset


def _images(folder: Any) -> list[Path]:
    """The images below a folder."""
    if not isinstance(folder, str | Path) or not Path(folder).expanduser().is_dir():
        return []
    found = Path(folder).expanduser().rglob("*")
    return sorted(p for p in found if is_image(p.name) and not p.name.startswith("."))


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside the target, which goes away in any case; and so does the target's own
    folder where it is new and stays empty."""
    new = [p for p in (out.parent, *out.parent.parents) if not p.exists()]
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        yield folder
    except OSError as error:
        why, at = error.strerror or error, Path(error.filename or out).absolute()
        own = [*_targets(out.absolute()), *out.absolute().parents]
        if at not in own and (folder is None or folder.absolute() not in (at, *at.parents)):
            raise InputError(f"{at} cannot be read or written: {why}.") from error
        raise InputError(
            f"{out} cannot be written: {why}. Make room, or give --out another name."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in new:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _moved(folder: Path, out: Path) -> tuple[Path, ...]:
    """All files to their place; the model itself last, so that it never stands there without what
    belongs to it."""
    done: list[Path] = []
    try:
        for path in reversed(_targets(out)):
            try:  # an empty file first, which only one process can make
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError as error:
                raise InputError(f"{path} was made by another process at this moment.") from error
            done.append(path)
            os.replace(folder / path.name, path)
    except BaseException:
        for path in done:
            path.unlink(missing_ok=True)
        raise
    return tuple(reversed(done))
