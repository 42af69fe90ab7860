"""Which library computes a run's network fastest here, and whether it computes the same.

On x86 CPUs OpenVINO and ONNX Runtime are mostly faster than torch: normalisation and activation
become part of the convolution before them, and weights are laid out for the processor once. Which
of them is fastest hangs on processor and network, so each is timed on the run's own input. The
fastest is taken that gives what torch gives, within a stated tolerance; torch itself is one of
those that are timed.

Converting takes seconds, so what was converted is kept (:mod:`vidi.deploy.network_cache`). It is
compared with torch at every use, on a few images: a network whose code has changed since gives
something else, and is converted anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.deploy import libraries, network_cache
from vidi.deploy.converted import Converted, Library, ONNXRuntime, OpenVINO, write_onnx
from vidi.deploy.function import first
from vidi.deploy.torch_files import lacking
from vidi.engine import defaults, device
from vidi.engine.evaluate import Compute
from vidi.errors import InputError
from vidi.models import DENSE
from vidi.recipe import Recipe
from vidi.types import Notes

Backend = Literal["torch", "auto", "openvino", "onnxruntime"]
PACKAGES = ("vidi", "torch", "onnx", "onnxscript", "onnxruntime", "openvino")
"""Another version of one may give another network, or another library may be fastest."""
NETWORK = "network.onnx"
LIBRARIES: dict[str, Callable[[Path, int], Library]] = {
    "openvino bf16": lambda file, threads: OpenVINO(file, "bf16", threads),
    "openvino fp32": lambda file, threads: OpenVINO(file, "fp32", threads),
    "onnxruntime fp32": ONNXRuntime,
}
TIMED = 0.25
"""Seconds for which each is timed on each input, or two runs of it."""
PAYS = 10.0
"""Seconds that torch needs for all images from which on it pays to convert; that takes as long, and
brings more than half of them back."""
TOLERANCE = 1e-3
"""By how much outputs may differ from torch's in fp32: the root mean square of the difference, in
units of the outputs' own deviation. In bf16, by twice as much more as torch's own bf16 does."""
FULL = ("boundaries", "flow")
"""Tasks whose networks compute their last maps in fp32, whatever the rest is computed in, since
there the digits count (:func:`vidi.models.heds.outputs`). OpenVINO's bf16 goes on to the end."""
SIDE = 224
"""Of the images that networks for any size are timed and compared on, in pixels, at most."""


@dataclass(frozen=True)
class Chosen:
    """``network``: the run's own, or a :class:`Converted` that stands for it. ``notes``: why it is
    its own, if another library was to be tried."""

    network: nn.Module
    notes: Notes = field(default_factory=list)


class Unsound(Exception):
    """No network of another library that gives what torch gives. Its text is a sentence."""


def choose(
    network: nn.Module,
    file: Path,
    recipe: Recipe,
    compute: Compute,
    wanted: Backend,
    images: int | None = None,
) -> Chosen:
    """The network as ``wanted`` computes it; ``auto``: as the fastest does.

    ``network``: in evaluation mode, with the weights of ``file``. ``images``: how many it is to
    look at, where that is known. For so few that torch is done before another library begins,
    ``auto`` takes torch, unless the network was converted before.

    Raises :class:`InputError` where one library is asked for and is not installed, or cannot
    compute this network, or not on this device.
    """
    if wanted not in get_args(Backend):
        raise InputError(
            f"The backend {wanted!r} is unknown; it is one of {', '.join(get_args(Backend))}."
        )
    if wanted == "torch":
        return Chosen(network)
    why = _impossible(recipe, compute, wanted)
    if why is None:
        try:
            return _found(network, file, recipe, compute, wanted, images)
        except Unsound as error:
            why = str(error)
    if wanted != "auto":
        raise InputError(f"{why} Say torch instead of {wanted}.")
    return Chosen(network, [f"{why} So torch computes it."])


def _impossible(recipe: Recipe, compute: Compute, wanted: Backend) -> str | None:
    """Why no other library can compute this run here, as a sentence; None where one may."""
    if compute.device.type != "cpu":
        return f"OpenVINO and ONNX Runtime are for CPUs, and this run is on {compute.device.type}."
    if wanted == "auto" and platform.machine().lower() not in ("x86_64", "amd64"):
        return f"Other libraries were found faster on x86, and this is {platform.machine()}."
    if recipe.task == "detection":
        return "A detector is not converted, since regions go in and out of it."
    either = ("onnxruntime", "openvino") if wanted == "auto" else (wanted,)
    missing = [p for p in ("onnx", "onnxscript", *either) if importlib.util.find_spec(p) is None]
    if missing:
        return f"Not installed: {', '.join(missing)}; pip install 'vidi[export]'."
    return None


def _found(
    network: nn.Module,
    file: Path,
    recipe: Recipe,
    compute: Compute,
    wanted: Backend,
    images: int | None,
) -> Chosen:
    """From the cache, or made. Raises :class:`Unsound` where there is none."""
    trial = Trial(network, recipe, compute)
    allowed = list(LIBRARIES)
    if not _bf16(recipe, compute):
        allowed = [name for name in allowed if not name.endswith("bf16")]
    names = [name for name in allowed if wanted == "auto" or name.startswith(wanted)]
    made_of = {
        "weights": _sha256(file),
        "code": _code(network),
        "versions": {p: libraries.version(p) for p in PACKAGES},
        "libraries": allowed,
        "precision": compute.precision,
        "processor": f"{defaults.cores()} × {_processor()}",
        "shapes": trial.shapes,
    }
    # What was made for auto has the others, too.
    places = {one: network_cache.place({**made_of, "backend": one}) for one in (wanted, "auto")}
    about = None
    for folder in places.values():
        about = network_cache.read(folder)
        if about is not None:
            try:
                return _opened(trial, folder, about, names, wanted)
            except Unsound:
                pass  # its code has changed, or it is damaged after all: made anew
    if wanted == "auto" and about is None and images is not None and images * trial.once() < PAYS:
        return Chosen(network)
    return _made(trial, places[wanted], names, {**made_of, "backend": wanted}, wanted)


def _opened(
    trial: Trial, folder: Path, about: dict[str, Any], names: list[str], wanted: Backend
) -> Chosen:
    """Raises :class:`Unsound` where it is not what torch gives, or has none of ``names``."""
    asked = ["torch", *names] if wanted == "auto" else names
    try:
        seconds = {name: about["seconds"][name] for name in asked if name in about["seconds"]}
        fastest = min(seconds, key=lambda name: seconds[name])
        notes = [n for n in about["notes"] if wanted == "auto" or n.startswith(wanted)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unsound("Of the converted network it is not known how fast it is.") from error
    if fastest == "torch":
        return Chosen(trial.network, notes)
    library = _library(fastest, folder / NETWORK)
    trial.compare(library, trial.shapes[:1])  # all were when it was made
    return Chosen(Converted(trial.network, library), notes)


def _made(
    trial: Trial, folder: Path, names: list[str], made_of: dict[str, Any], wanted: Backend
) -> Chosen:
    """Converted, timed and compared, and kept for the next time. Raises :class:`Unsound`."""
    with network_cache.making(folder) as part:
        file = part / NETWORK
        timed: list[tuple[float, str, Library | None]] = []
        if wanted == "auto":
            timed.append((trial.seconds(trial.own), "torch", None))
        reasons: Notes = []
        try:
            write_onnx(trial.network, trial.example(), file, sizes=trial.sizes)
        except Exception as error:  # whatever the exporter says of what it cannot follow
            if lacking(error):  # another time there may be enough, so it is not kept
                raise Unsound(
                    f"{trial.model} was not converted ({libraries.short(error)})."
                ) from error
            reasons.append(f"{trial.model} cannot be converted ({libraries.short(error)}).")
            names = []
        for name in names:
            try:
                library = _library(name, file)
                trial.compare(library, trial.shapes)
                timed.append((trial.seconds(library), name, library))
            except Unsound as error:
                reasons.append(str(error))
        if all(library is None for _, _, library in timed):
            # Whoever asks next is told the same without waiting for it.
            if wanted == "auto":
                notes = [f"{' '.join(reasons)} So torch computes it."]
                file.unlink(missing_ok=True)
                network_cache.keep(part, folder, _about(made_of, timed, notes))
                return Chosen(trial.network, notes)
            raise Unsound(" ".join(reasons))
        _, _, fastest = min(timed, key=lambda one: one[0])
        network_cache.keep(part, folder, _about(made_of, timed, reasons))
    if fastest is None:
        return Chosen(trial.network, reasons)
    return Chosen(Converted(trial.network, fastest), reasons)


def _about(made_of: dict[str, Any], timed: list[Any], notes: Notes) -> dict[str, Any]:
    seconds = {name: value for value, name, _ in timed}
    return {"made_of": made_of, "seconds": seconds, "notes": notes}


def _library(name: str, file: Path) -> Library:
    try:
        return LIBRARIES[name](file, defaults.cores())
    except Exception as error:  # whatever the library says of a network it cannot compute
        raise Unsound(
            f"{name} cannot read the converted network ({libraries.short(error)})."
        ) from error


Shape = tuple[int, int, int]
"""(B, H, W) of images."""


class Trial:
    """What a network is timed and compared on: smooth noise, which is as plausible for images as
    anything that has none.

    ``shapes``: of the inputs, one image and several.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, compute: Compute) -> None:
        assert recipe.image_size != "auto"
        self.network = network
        self.model = recipe.model
        self.compute = compute
        self.sizes = recipe.task in DENSE
        """Whether images of any size go through it."""
        self.inputs = 2 if recipe.task == "flow" else 1
        side = min(recipe.image_size, SIDE) if self.sizes else recipe.image_size
        self.shapes: list[Shape] = [(1, side, side), (8, side, side)]
        if self.sizes:
            self.shapes = [(1, side, side), (2, side // 2 + 7, side + 11)]
        self._wanted: dict[Shape, tuple[Tensor, float]] = {}

    def own(self, *images: Tensor) -> Tensor:
        """As the run itself is computed."""
        with torch.inference_mode(), self.compute.autocast():
            return first(self.network(*images))

    def example(self) -> tuple[Tensor, ...]:
        """To follow the network with: sides that differ from one another and are no multiples of
        anything, where any will do."""
        batch, height, width = self.shapes[1]
        return self.images(batch, height, width)

    def images(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Normalised, fp32 [B, 3, H, W] each; the second one is the first, moved a little."""
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros(batch, 3, height + 4, width + 4)
        for cell in (1, 4, 16, 64):
            noise = torch.randn(
                batch, 3, height // cell + 2, width // cell + 2, generator=generator
            )
            total += F.interpolate(noise, total.shape[2:], mode="bilinear", align_corners=False)
        total /= total.std()
        seen = [total[:, :, 2 * k : 2 * k + height, k : k + width] for k in range(self.inputs)]
        kind = torch.channels_last if self.compute.channels_last else torch.contiguous_format
        return tuple(image.contiguous(memory_format=kind) for image in seen)

    def seconds(self, compute: Callable[..., Tensor]) -> float:
        """An image, the average over the inputs of what it takes at the least."""
        total = 0.0
        for shape in self.shapes:
            images = self.images(*shape)
            compute(*images)
            spent: list[float] = []
            while sum(spent) < TIMED or len(spent) < 2:
                began = time.perf_counter()
                compute(*images)
                spent.append(time.perf_counter() - began)
            total += min(spent) / shape[0]  # whatever else runs only adds to it
        return total / len(self.shapes)

    def once(self) -> float:
        """Seconds that torch takes for an image; measured fast rather than well."""
        images = self.images(*self.shapes[0])
        self.own(*images)
        began = time.perf_counter()
        self.own(*images)
        return time.perf_counter() - began

    def compare(self, library: Library, shapes: Sequence[Shape]) -> None:
        """Raises :class:`Unsound` where the outputs differ from torch's by more than they may."""
        for shape in shapes:
            if shape not in self._wanted:
                self._wanted[shape] = self._computed(shape)
            wanted, noise = self._wanted[shape]
            allowed = TOLERANCE + (2 * noise if library.name.endswith("bf16") else 0.0)
            try:
                found = library(*self.images(*shape))
            except Exception as error:  # whatever the library says of an input it cannot take
                raise Unsound(f"{library.name} fails ({libraries.short(error)}).") from error
            if found.shape != wanted.shape:
                raise Unsound(f"{library.name} gives an output of another shape than torch.")
            if not (off := difference(found, wanted)) <= allowed:  # NaN is not, either
                raise Unsound(
                    f"{library.name} gives other outputs than torch, by {off:.2g} of their "
                    f"deviation where {allowed:.2g} may be."
                )

    @torch.inference_mode()
    def _computed(self, shape: Shape) -> tuple[Tensor, float]:
        """(What torch gives in fp32, by how much the run's own arithmetic differs from it.)"""
        images = self.images(*shape)
        wanted = first(self.network(*images))
        own = self.own(*images) if self.compute.precision != "fp32" else wanted
        return wanted, difference(own, wanted)


def difference(found: Tensor, wanted: Tensor) -> float:
    """The root mean square of the difference, in units of what is wanted's deviation."""
    spread = wanted.std(correction=0) + 1e-3 * wanted.abs().max() + 1e-6
    return float((found - wanted).square().mean().sqrt() / spread)


def _bf16(recipe: Recipe, compute: Compute) -> bool:
    """Whether the run may be computed in bf16, and the processor is faster in it."""
    allowed = compute.precision == "bf16" and recipe.task not in FULL
    return allowed and device.best_precision(compute.device) == "bf16"


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _code(network: nn.Module) -> str | None:
    """The SHA-256 of its class's source; None where that is not to be had."""
    try:
        return hashlib.sha256(inspect.getsource(type(network)).encode()).hexdigest()
    except (OSError, TypeError):
        return None


def _processor() -> str:
    """Its name, and on Linux its model, which tells processors of one name apart."""
    wanted = ("model name", "cpu family", "model")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    return " ".join(told[name] for name in wanted if name in told)
