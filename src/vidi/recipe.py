"""The recipe: everything that decides how a run goes, as frozen dataclasses of plain values.

The command line is generated from it, a run saves it as ``recipe.json`` and reads it back exactly.
A value that depends on the task, the data or the machine is ``"auto"`` here and is resolved before
the first step (``engine/defaults.py``); the run stores the resolved recipe. No torch import, so
``--help`` is instant.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vidi.errors import InputError

Auto = Literal["auto"]

FREE: Any = {"free_on_resume": True}
"""Marks a field that may differ when a run is resumed: it changes no bit of the weights."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """How samples are read."""

    val_fraction: float = 0.1
    """Share of train that is carved off, stratified, where the data has no validation split."""
    balance: Literal["none", "sampler", "weights", "sqrt-weights"] = "none"
    """Against class imbalance: draw classes equally often (sampler), or weight the loss by 1/frequency (weights) or its square root (sqrt-weights)."""  # noqa: E501
    shorter: int | Auto = "auto"
    """Labels per pixel: images whose shorter side is longer than this (pixels) are shrunk to it, in training and prediction; 0 = none is. (Photographs of classes: settled by itself.)"""  # noqa: E501
    agree: int | Auto = "auto"
    """Boundaries: so many annotators make one; all of them, where an image has fewer."""
    disagreement: Literal["auto", "negative", "ignore", "share"] = "auto"
    """Boundaries: pixels that some annotators mark, but fewer, are none (negative), count for nothing (ignore), or are one to that degree (share)."""  # noqa: E501
    proposals: str = "auto"
    """Detection: the method that proposes regions (selective-fast, selective-quality, edge-boxes), a file of yours with them (.json, .npz), or the network itself (network); auto = network if it can, else selective-fast."""  # noqa: E501
    proposal_count: int = 2000
    """Detection: proposals per image, at most."""
    max_megapixels: float = 100.0
    """An image with more pixels than this (millions) is refused before it is decoded."""
    threads: int | Auto = field(default="auto", metadata=FREE)
    """Threads that read and augment; 0 = in the training thread. Changes no result."""
    prefetch: int = field(default=4, metadata=FREE)
    """Batches prepared ahead."""
    cache: Literal["auto", "memory", "disk", "off"] = field(default="auto", metadata=FREE)
    """Where decoded, shrunk images are kept. Changes no result."""
    cache_gb: float = field(default=20.0, metadata=FREE)
    """The disk cache of all datasets together takes at most this much (GB)."""


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """The update rule."""

    name: Literal["auto", "sgd", "adamw", "muon"] = "auto"
    """SGD with momentum, AdamW, or Muon (orthogonalised momentum; SGD for biases and head)."""
    momentum: float | Auto = "auto"
    """SGD's and Muon's momentum; AdamW's first beta."""
    nesterov: bool | Auto = "auto"
    """Nesterov's momentum (SGD)."""
    beta2: float = 0.999
    """AdamW's second beta."""
    weight_decay: float | Auto = "auto"
    """L2 penalty (SGD), decoupled decay (AdamW, Muon)."""
    decay_biases_and_norms: bool = False
    """Decay biases and normalisation parameters too."""
    trunk_lr: float | Auto = "auto"
    """Rate of everything but the new head, relative to --lr. Below 1 when fine-tuning."""
    rates: tuple[tuple[str, float], ...] = ()
    """Rates of parts of the network, relative to the others', by the start of their parameters' names: sides 0.01 fuse 0.001."""  # noqa: E501
    clip: float | None = None
    """Clip the gradient's global norm at this."""
    sum_pixels: bool = False
    """Labels per pixel: sum the loss over an image's pixels, as FCN's and HED's papers do, instead of averaging it; the rate is then to be smaller by the number of pixels."""  # noqa: E501
    accumulate: int = 1
    """Split each batch into this many parts that go through the network one after the other."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the rate changes over the run."""

    name: Literal["auto", "constant", "step", "cosine", "one-cycle"] = "auto"
    """The rate's shape after the warm-up."""
    warmup: float | Auto = "auto"
    """Linear warm-up, in epochs. One-cycle: its rising part."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Step: where the rate falls, as shares of the run."""
    gamma: float = 0.1
    """Step: what the rate is multiplied by at each milestone."""
    final: float = 0.0
    """Cosine and one-cycle: the last rate, relative to the highest."""
    half: float | Auto = "auto"
    """Segmentation: share of the run's work, from its start, on images of half the size, whose steps are up to four times as fast. The rate goes by work, too."""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """What keeps a network from learning its training set by heart, augmentation aside."""

    dropout: float | None = None
    """Dropout rate, where the network has dropout; none = the paper's."""
    label_smoothing: float | Auto = "auto"
    """Share of the target's probability that is spread over all classes."""
    ema: float | Auto = "auto"
    """Decay per step of the weights' moving average, which is what is evaluated; at step t at most (1 + t)/(10 + t), about a tenth of the run so far; 0 = off; auto = 0.998 for classifiers of tiny images from scratch by Muon, else 0."""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How regions are sampled in training, and detections chosen in evaluation."""

    regions: int | Auto = "auto"
    """Regions that are learned from per image and step; auto = 64, and 128 for Faster R-CNN, and for Fast R-CNN from scratch."""  # noqa: E501
    foreground: float | Auto = "auto"
    """The share of them, at most, that are objects; auto = 0.25, and 0.5 for Fast and Faster R-CNN from scratch."""  # noqa: E501
    foreground_iou: float = 0.5
    """A region is an object from this overlap with one on (intersection over union)."""
    background_iou: tuple[float, float] | Auto = "auto"
    """A region is background with an overlap from the first number up to, but not with, the second; where there are too few such, with less. auto = 0.1 0.5, and 0 0.5 for R-CNN and Faster R-CNN."""  # noqa: E501
    anchors: int = 256
    """Faster R-CNN: anchors that are learned from per image and step, at most half of them objects."""  # noqa: E501
    anchor_iou: tuple[float, float] = (0.3, 0.7)
    """Faster R-CNN: an anchor is background with an overlap below the first number, an object from the second on."""  # noqa: E501
    nms: float = 0.3
    """Of two detections of a class that overlap by more, the weaker is dropped."""
    soft_nms: Literal["none", "linear", "gaussian"] = "none"
    """Lower the score of the weaker instead of dropping it: by the overlap (linear), or by a Gaussian of it."""  # noqa: E501
    least_score: float = 0.01
    """Detections with a lower score are dropped. R-CNN's scores are the sigmoids of its SVMs' margins, of background mostly about 0.3."""  # noqa: E501
    most: int = 100
    """Detections per image, at most."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training image is varied. A preset fills whatever is left at auto."""

    preset: Literal[
        "auto", "none", "digits", "small", "photos", "strong", "dense", "flow", "boxes"
    ] = "auto"
    """What kind of images: digits (shift, rotate, zoom), small (pad-and-crop, flip), photos (random resized crop, flip, colour), strong (photos with TrivialAugment, erasing, mixup, CutMix), dense (labels per pixel: zoom-and-crop, flip, colour), flow (pairs of frames: zoom-and-crop, flip, rotation, colour, gamma, noise, and a little of it for the second frame alone), boxes (the whole image at one size, zoom, flip, colour)."""  # noqa: E501
    crop: Literal["auto", "resize", "pad", "random-resized", "zoom", "whole", "shorter"] = "auto"
    """The whole image squashed to the input (resize), padded and cropped (pad), a random part squashed (random-resized), a random part of the image at a random zoom, in its proportions (zoom), the whole image as it is (whole; batches are padded), or its shorter side brought to the image size (shorter; padded too)."""  # noqa: E501
    longest: int | Auto = "auto"
    """Shorter: the longer side has at most so many pixels; auto = 5/3 of the image size."""
    pad: int | Auto = "auto"
    """Padding of pad-and-crop, in input pixels."""
    pad_mode: Literal["auto", "mean", "reflect"] = "auto"
    """Pad-and-crop: what lies outside the image, also once it is turned or shifted: the mean colour, or the image's mirror image (reflect); auto = reflect for the preset small, else mean."""  # noqa: E501
    crop_area: tuple[float, float] | Auto = "auto"
    """Random resized crop: least and largest share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: least and largest width over height."""
    zoom: tuple[float, float] | Auto = "auto"
    """Zoom-and-crop: least and largest zoom; what lies outside the image is ignored."""
    flip: float | Auto = "auto"
    """Probability of a left-right flip."""
    vertical_flip: float = 0.0
    """Probability of an up-down flip."""
    rotation: float | Auto = "auto"
    """Largest rotation either way, in degrees."""
    scale: float | Auto = "auto"
    """Largest zoom either way: 0.1 is 1/1.1 to 1.1."""
    shift: float | Auto = "auto"
    """Largest shift either way, as a share of the input size."""
    brightness: float | Auto = "auto"
    """Largest relative change of brightness either way."""
    contrast: float | Auto = "auto"
    """Largest relative change of contrast either way."""
    saturation: float | Auto = "auto"
    """Largest relative change of saturation either way."""
    hue: float | Auto = "auto"
    """Largest turn of the hue circle either way, as a share of it (at most 0.5)."""
    channels: float | Auto = "auto"
    """Largest change of each colour channel by itself, either way: 0.25 is 1/1.25 to 1.25."""
    gamma: float | Auto = "auto"
    """Largest change of gamma either way: 0.5 is 1/1.5 to 1.5."""
    noise: float | Auto = "auto"
    """Largest deviation of Gaussian noise, as a share of white."""
    policy: Literal["auto", "none", "trivial", "rand"] = "auto"
    """TrivialAugment (one operation, any strength) or RandAugment."""
    rand_ops: int = 2
    """RandAugment: operations an image."""
    rand_magnitude: float = 9.0
    """RandAugment: strength, 0 to 30."""
    erasing: float | Auto = "auto"
    """Probability that a random rectangle is erased."""
    mixup: float | Auto = "auto"
    """Mixup's alpha; 0 = off."""
    cutmix: float | Auto = "auto"
    """CutMix's alpha; 0 = off. With both, each image draws one of them."""
    mix_probability: float = 1.0
    """Share of the images that are mixed, where mixup or CutMix is on."""
    pair_jitter: float | Auto = "auto"
    """Pairs of frames: largest relative change of the second one's colours alone, either way."""
    pair_rotation: float | Auto = "auto"
    """Pairs of frames: largest rotation of the second one alone, in degrees, about its centre."""
    pair_scale: float | Auto = "auto"
    """Pairs of frames: largest zoom of the second one alone, either way: 0.02 is 1/1.02 to 1.02."""
    pair_shift: float | Auto = "auto"
    """Pairs of frames: largest shift of the second one alone, as a share of the input size."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """When the run ends, evaluates and saves."""

    steps: int | None = field(default=None, metadata=FREE)
    """Length in steps, instead of --epochs."""
    minutes: float | None = field(default=None, metadata=FREE)
    """Length in minutes of training and evaluation; becomes a number of steps, which is saved."""
    patience: int | None = field(default=None, metadata=FREE)
    """Stop after this many evaluations without a better one."""
    evaluate_every: float | Auto = field(default="auto", metadata=FREE)
    """Epochs between evaluations; auto = 1, or more where they would take over a tenth of the time."""  # noqa: E501
    save_every: float = field(default=2.0, metadata=FREE)
    """Minutes between saves of the training state (it is saved after each evaluation too)."""
    save_every_steps: int | None = field(default=None, metadata=FREE)
    """Steps between saves, as well."""


@dataclass(frozen=True, kw_only=True)
class Logging:
    """What is written beside the weights."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = field(
        default=(), metadata=FREE
    )
    """Programs that are told what metrics.jsonl says, too: tensorboard, wandb, mlflow, each an extra. Nothing is sent anywhere unless their own settings say so."""  # noqa: E501
    every: int = field(default=10, metadata=FREE)
    """Steps between rows of metrics.jsonl."""
    pictures: bool = field(default=True, metadata=FREE)
    """Draw the learning curves and the confusion matrix."""
    vitals: bool = field(default=True, metadata=FREE)
    """Write down what layers and parameters do at some steps (vitals.jsonl), and say so if something is surely wrong."""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. The most used fields stand here, the others in their part."""

    task: str = "auto"
    """What is learned; found from the data."""
    model: str = "auto"
    """A name from `vidi list models`, my_package.nets:build, or timm:NAME."""
    epochs: float | Auto = field(default="auto", metadata=FREE)
    """Passes over the training set."""
    batch_size: int | Auto = "auto"
    """Images per step, over all processes together."""
    lr: float | Literal["auto", "find"] = "auto"
    """Highest learning rate; find = by a sweep over rates before the run begins, auto = vidi's own, and for a network of yours, from scratch, in a run of some length, as find."""  # noqa: E501
    image_size: int | Auto = "auto"
    """Side of the square network input, in pixels; with labels per pixel, of training's crops; of detection, an image's shorter side."""  # noqa: E501
    weights: str | None = None
    """Start from these: imagenet, a file (.safetensors, .pth), or a run (--init says the same)."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that are not trained, by the start of their parameters' names. Detectors that begin with weights freeze their first layers unless this says otherwise (none: nothing)."""  # noqa: E501
    seed: int = 0
    """Decides every random choice."""
    probe: bool = False
    """Fit the last layer in closed form (ridge regression on frozen features) instead of training by gradient descent: one pass over the data."""  # noqa: E501
    members: int = 1
    """Networks of an ensemble: from different random starts, on the same batches, each by itself; what is evaluated is their average."""  # noqa: E501
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; weights and their updates are fp32 always."""
    device: str = field(default="auto", metadata=FREE)
    """cpu, cuda, cuda:1, mps; auto = the fastest that is there."""
    channels_last: bool | Auto = "auto"
    """Store images pixel by pixel in memory, which most processors convolve faster."""
    compile: bool | Auto = "auto"
    """Compile the network with torch.compile."""
    bad_images: Literal["error", "skip"] = field(default="error", metadata=FREE)
    """An image that cannot be read: stop and list all such, or leave them out and list them."""

    data: Data = field(default_factory=Data)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    regularisation: Regularisation = field(default_factory=Regularisation)
    augmentation: Augmentation = field(default_factory=Augmentation)
    detection: Detection = field(default_factory=Detection)
    length: Length = field(default_factory=Length)
    logging: Logging = field(default_factory=Logging)


def to_dict(recipe: Any) -> dict[str, Any]:
    """Plain values, ready for JSON."""
    return {
        f.name: to_dict(v) if dataclasses.is_dataclass(v := getattr(recipe, f.name)) else v
        for f in dataclasses.fields(recipe)
    }


def from_dict(values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """The recipe that :func:`to_dict` gave. Unknown names and wrong types are an InputError."""
    return replace(Recipe(), values, where=where)


def _renamed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What recipes said before TensorBoard was one tracker of several, as it is said now."""
    if not isinstance(values.get("logging"), Mapping) or "tensorboard" not in values["logging"]:
        return values
    logging = dict(values["logging"])
    trackers = ["tensorboard"] if logging.pop("tensorboard") else []
    return {**values, "logging": {"trackers": trackers, **logging}}


def replace(recipe: Recipe, changes: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """A copy with some fields changed.

    ``changes`` maps names to values; a part may be given as its dataclass, as a mapping of its
    fields, or field by field under dotted names: ``{"optimiser.momentum": 0.95}``.

    Raises :class:`InputError` for a name that does not exist, naming the nearest that does, and
    for a value of the wrong type.
    """
    out: Recipe = _replaced(recipe, _renamed(changes), where, "")
    return out


RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1e-9, 1e9),
    "batch_size": (1, 1 << 20),
    "lr": (0, 1e6),
    "image_size": (1, 4096),
    "seed": (0, (1 << 63) - 1),
    "members": (1, 1000),
    "data.val_fraction": (1e-9, 1 - 1e-9),
    "data.agree": (1, 1000),
    "data.max_megapixels": (1e-6, 1e6),
    "data.shorter": (0, 100_000),
    "data.proposal_count": (1, 100_000),
    "data.threads": (0, 1024),
    "data.prefetch": (1, 1024),
    "data.cache_gb": (0, 1e9),
    "optimiser.momentum": (0, 1 - 1e-9),
    "optimiser.beta2": (0, 1 - 1e-9),
    "optimiser.weight_decay": (0, 1e6),
    "optimiser.trunk_lr": (0, 1e6),
    "optimiser.clip": (1e-12, 1e12),
    "optimiser.accumulate": (1, 1 << 20),
    "schedule.warmup": (0, 1e9),
    "schedule.gamma": (0, 1),
    "schedule.final": (0, 1),
    "schedule.half": (0, 1),
    "regularisation.dropout": (0, 1 - 1e-9),
    "regularisation.label_smoothing": (0, 1),
    "regularisation.ema": (0, 1 - 1e-12),
    "detection.regions": (1, 100_000),
    "detection.anchors": (1, 100_000),
    "detection.foreground": (0, 1),
    "detection.foreground_iou": (0.01, 1),
    "detection.nms": (0, 1),
    "detection.least_score": (0, 1),
    "detection.most": (1, 100_000),
    "augmentation.longest": (1, 100_000),
    "length.steps": (1, 1e15),
    "length.minutes": (1e-9, 1e9),
    "length.patience": (1, 1e9),
    "length.evaluate_every": (1e-9, 1e9),
    "length.save_every": (0, 1e9),
    "length.save_every_steps": (1, 1e15),
    "logging.every": (1, 1e9),
}
"""Least and greatest value of each number (augmentation's are checked where they are resolved)."""


def check(recipe: Recipe) -> None:
    """Raises :class:`InputError` for a number outside its range."""
    for name, value, _ in flat(recipe):
        if name in RANGES and isinstance(value, int | float):
            least, most = RANGES[name]
            if not least <= value <= most:
                flag = "--" + name.replace("_", "-")
                bound = f"at least {least:g}" if value < least else f"at most {most:g}"
                if least < 1e-3 and value <= 0 < least:
                    bound = "above 0"
                raise InputError(f"{flag} is {value:g}; it should be {bound}.")


def flat(recipe: Any, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Every field as (dotted name, value, whether it may change on resume)."""
    for f in dataclasses.fields(recipe):
        value = getattr(recipe, f.name)
        if dataclasses.is_dataclass(value):
            yield from flat(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, bool(f.metadata.get("free_on_resume"))


def names() -> list[str]:
    """The dotted names of all fields."""
    return [name for name, _, _ in flat(Recipe())]


def _replaced(part: Any, changes: Mapping[str, Any], where: str, prefix: str) -> Any:
    hints = get_type_hints(type(part))
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        if head not in hints:
            raise InputError(_unknown(prefix + name, where))
        is_part = dataclasses.is_dataclass(hints[head])
        if dot and is_part:
            below.setdefault(head, {})[rest] = value
        elif is_part and isinstance(value, Mapping):
            below.setdefault(head, {}).update(value)
        elif dot:
            raise InputError(_unknown(prefix + name, where))
        else:
            here[head] = _checked(value, hints[head], f"{where}: {prefix}{head}")
    for head, inner in below.items():
        here[head] = _replaced(
            here.get(head, getattr(part, head)), inner, where, f"{prefix}{head}."
        )
    return dataclasses.replace(part, **here)


def _unknown(name: str, where: str) -> str:
    if name == "logging.tensorboard":
        return (
            f"{where}: there is no field {name!r}. TensorBoard is one of logging.trackers now: "
            "--logging.trackers tensorboard."
        )
    known = names()
    # Someone who writes momentum=0.9 means optimiser.momentum: compare last words, too.
    near = [k for k in known if k.rpartition(".")[2] == name]
    near += difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    return f"{where}: there is no field {name!r}.{hint}"


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value, as its type hint says (lists become tuples, whole numbers floats)."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        ok, out = _fits(value, option)
        if ok:
            return out
    wanted = " or ".join(_describe(o) for o in options)
    raise InputError(f"{where} is {value!r}; it should be {wanted}.")


def _fits(value: Any, option: Any) -> tuple[bool, Any]:
    if option is type(None):
        return value is None, None
    if get_origin(option) is Literal:
        return any(
            value is o or (isinstance(value, str) and value == o) for o in get_args(option)
        ), value
    if get_origin(option) is tuple:
        inner = get_args(option)
        if not isinstance(value, list | tuple):
            return False, None
        if len(inner) == 2 and inner[1] is Ellipsis:
            inner = (inner[0],) * len(value)
        fits = [_fits(v, i) for v, i in zip(value, inner, strict=False)]
        ok = len(value) == len(inner) and all(f[0] for f in fits)
        return ok, tuple(f[1] for f in fits)
    if option is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        return ok, float(value) if ok else None
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, typing.cast(type, option)), value


def _describe(option: Any) -> str:
    if option is type(None):
        return "none"
    if get_origin(option) is Literal:
        return " or ".join(repr(a) for a in get_args(option))
    if get_origin(option) is tuple:
        inner = get_args(option)[0]
        return f"a list of {_describe(inner)}" if get_origin(inner) is Literal else "a list"
    if dataclasses.is_dataclass(option):
        return f"a {getattr(option, '__name__', option)}"
    return {float: "a number", int: "a whole number", str: "text", bool: "true or false"}.get(
        option, str(option)
    )
