"""How training images vary: presets, and the plan of a batch.

A plan holds what was drawn for each sample, free of its image's size; it is a function of (seed,
epoch, sample) alone. :func:`matrix` turns its geometry into one matrix for an image; its colours
are applied by :mod:`vidi.data.photometry`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from vidi.data import draws
from vidi.data.geometry import translation
from vidi.errors import InputError
from vidi.recipe import Augmentation
from vidi.types import Array

_OFF: dict[str, Any] = {
    "crop": "resize",
    "pad": 0,
    "pad_mode": "mean",
    "crop_area": (1.0, 1.0),
    "zoom": (1.0, 1.0),
    "flip": 0.0,
    "rotation": 0.0,
    "scale": 0.0,
    "shift": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "channels": 0.0,
    "gamma": 0.0,
    "noise": 0.0,
    "policy": "none",
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "pair_jitter": 0.0,
    "pair_rotation": 0.0,
    "pair_scale": 0.0,
    "pair_shift": 0.0,
}
_PHOTOS = {
    **_OFF,
    "crop": "random-resized",
    # From a quarter of the area, where ImageNet's long trainings go down to 0.08: runs of minutes
    # fit better when the crops still show the object.
    "crop_area": (0.25, 1.0),
    "flip": 0.5,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
}
PRESETS: dict[str, dict[str, Any]] = {
    "none": _OFF,
    # No flip: a mirrored digit is another sign.
    "digits": {**_OFF, "shift": 0.1, "rotation": 10.0, "scale": 0.1},
    # He et al. 2016, "Deep residual learning", section 4.2, who pad by 4 in a run of 182 epochs; in
    # the short ones that are usual here, less leaves more of each image to learn from. They pad
    # with the mean; by the mirror image validation was slightly ahead (docs/design.md).
    "small": {**_OFF, "crop": "pad", "pad": 2, "pad_mode": "reflect", "flip": 0.5},
    "photos": _PHOTOS,
    # Labels per pixel: proportions are kept.
    "dense": {**_PHOTOS, "crop": "zoom", "crop_area": (1.0, 1.0), "zoom": (0.5, 2.0)},
    # Dosovitskiy et al. 2015, "FlowNet", section 4.3, and its ranges where they mean the same here.
    # A crop's place is the paper's translation, its brightness is added and ours multiplies, and it
    # does not mirror. How large the relative motion is, it does not say.
    "flow": {
        **_OFF,
        "crop": "zoom",
        "zoom": (0.9, 2.0),
        "flip": 0.5,
        "rotation": 17.0,
        "brightness": 0.2,
        "contrast": 0.4,
        "channels": 0.5,
        "gamma": 0.4,
        "noise": 0.04,
        "pair_jitter": 0.02,
        "pair_rotation": 2.0,
        "pair_scale": 0.03,
        "pair_shift": 0.03,
    },
    # Girshick 2015, "Fast R-CNN", section 2.3 has the flip alone; from scratch more is needed.
    "boxes": {**_PHOTOS, "crop": "shorter", "crop_area": (1.0, 1.0), "scale": 0.25},
    # TrivialAugment brings its own colours, so the preset's are off.
    "strong": {
        **_PHOTOS,
        "crop_area": (0.08, 1.0),
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "policy": "trivial",
        "erasing": 0.1,
        "mixup": 0.2,
        "cutmix": 1.0,
    },
}
"""What each preset puts where a field is ``"auto"``."""

LONGER = 5 / 3
"""The longer side of an image, at most, in shorter ones: 1000 pixels for 600, as Fast R-CNN has it
(Girshick 2015, section 5.2)."""
CROP_PCT = 0.875
"""Evaluation after random resized crops: the share of the resized shorter side that is seen."""
OWN_SIZE = ("whole", "shorter")
"""Crops by which inputs keep their image's proportions, so that their sizes differ."""
TRIES = 10
"""Crops and erased boxes that do not fit the image are drawn again, this often at most."""
EVALUATION: dict[str, Literal["centre", "whole", "shorter"]] = {
    "random-resized": "centre",
    "zoom": "whole",
    "whole": "whole",
    "shorter": "shorter",
}
"""What evaluation sees, by the crop of training; the whole image squashed for the others."""
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)
"""Zhong et al. 2020, "Random erasing data augmentation": share of the area, and height over
width."""

OPS = (
    "identity",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""What TrivialAugment and RandAugment draw from."""
SHARPNESS, POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE = range(9, 14)
_SIGNED = np.array([1 <= k <= 9 for k in range(len(OPS))])
_STRENGTH_BINS = 31


def resolve(augmentation: Augmentation) -> Augmentation:
    """The same with every ``"auto"`` filled in from its preset, which must be chosen already.

    Raises :class:`InputError` for a value out of its range.
    """
    if augmentation.preset == "auto":
        raise InputError(
            "augmentation.preset is still auto; choose one of " + ", ".join(PRESETS) + "."
        )
    preset = PRESETS[augmentation.preset]
    filled = dataclasses.replace(
        augmentation,
        **{k: v for k, v in preset.items() if getattr(augmentation, k) == "auto"},
    )
    ranges = {
        "crop_area": (0, 1),
        "crop_ratio": (0, math.inf),
        "zoom": (0, math.inf),
        "pad": (0, math.inf),
        "flip": (0, 1),
        "vertical_flip": (0, 1),
        "rotation": (0, 180),
        "scale": (0, math.inf),
        "shift": (0, 1),
        "brightness": (0, 1),
        "contrast": (0, 1),
        "saturation": (0, 1),
        "hue": (0, 0.5),
        "channels": (0, math.inf),
        "gamma": (0, math.inf),
        "noise": (0, 1),
        "rand_ops": (0, 100),
        "rand_magnitude": (0, _STRENGTH_BINS - 1),
        "erasing": (0, 1),
        "mixup": (0, math.inf),
        "cutmix": (0, math.inf),
        "mix_probability": (0, 1),
        "pair_jitter": (0, 1),
        "pair_rotation": (0, 180),
        "pair_scale": (0, math.inf),
        "pair_shift": (0, 1),
    }
    for name, (low, high) in ranges.items():
        value = getattr(filled, name)
        pair = isinstance(value, tuple)
        least, most = value if pair else (value, value)
        # Of an area or a ratio, zero and infinity are no more possible than a reversed pair.
        fits = low < least <= most <= high and most < math.inf if pair else low <= value <= high
        if not fits or not math.isfinite(most):
            above = f"between {low} and {high}" if high < math.inf else f"at least {low}"
            wanted = f"two numbers above {low}, the smaller one first" if pair else above
            if pair and high < math.inf:
                wanted += f", at most {high}"
            raise InputError(f"augmentation.{name} is {value}; it should be {wanted}.")
    return filled


def mixes(augmentation: Augmentation) -> bool:
    """Whether images are mixed with others at all."""
    a = augmentation
    assert a.mixup != "auto"
    assert a.cutmix != "auto"
    return (a.mixup > 0 or a.cutmix > 0) and a.mix_probability > 0


@dataclass(slots=True)
class Plan:
    """What was drawn for B samples. Arrays have B rows; ``None`` where nothing of the kind is on.

    ``ids``: int64 [B], the samples as drawn (see :func:`plan`).
    """

    ids: Array
    size: int
    crop: Literal["resize", "pad", "random-resized", "centre", "zoom", "whole", "shorter"]
    longest: int = 0
    """Shorter: pixels of the longer side, at most."""
    areas: Array | None = None
    """float64 [B, TRIES]: shares of the image's area to try, and the ratios (w / h) with them."""
    ratios: Array | None = None
    ratio_range: tuple[float, float] = (3 / 4, 4 / 3)
    zooms: Array | None = None
    """float64 [B]: input pixels per image pixel."""
    at: Array | None = None
    """float64 [B, 2] in [0, 1): where the crop lies, of all the places (x, y) it could take."""
    padding: int = 0
    after: Array | None = None
    """float64 [B, 3, 3]: flips, rotation, zoom, shift and shear, from input to input pixels."""
    apart: Array | None = None
    """float64 [B, 3, 3]: of a pair, what the second frame alone does after all that."""
    colour: Array | None = None
    """float64 [B, 4]: factors of brightness, contrast and saturation; turn of the hue circle."""
    channels: Array | None = None
    """float64 [B, 3]: factors of red, green and blue."""
    gamma: Array | None = None
    """float64 [B]: the exponent of values from 0 to 1."""
    noise: Array | None = None
    """float64 [B]: the noise's standard deviation, as a share of white."""
    grain: Array | None = None
    """float64 [B, 2] in [0, 1): which noise, for the first and the second frame."""
    colour2: Array | None = None
    """float64 [B, 3]: of a pair, further factors (brightness, contrast, saturation) of the second
    frame alone."""
    ops: Array | None = None
    """int64 [B, K]: operations of :data:`OPS` that are neither geometry nor in ``colour``; 0
    elsewhere."""
    amounts: Array | None = None
    """float64 [B, K]: sharpness: its factor; posterize: bits kept; solarize: threshold."""
    erased: Array | None = None
    """int64 [B, 4]: the erased box, xyxy in input pixels; empty where there is none."""
    partner: Array | None = None
    """int64 [B]: the sample (as drawn) that this one is mixed with."""
    share: Array | None = None
    """float64 [B]: the own share in the mix; 1 = not mixed."""
    cut: Array | None = None
    """int64 [B, 4]: CutMix's box, xyxy in input pixels; empty for mixup."""


def plan(
    augmentation: Augmentation,
    image_size: int,
    seed: int,
    epoch: int,
    ids: Array,
    pool: Array | None = None,
    *,
    train: bool = True,
) -> Plan:
    """Draw for the samples ``ids``, int64 [B].

    ``augmentation``: resolved. ``image_size``: side of the input in pixels. ``pool``: the samples
    that a partner is drawn from (mixup, CutMix), all of the epoch's in a fixed order; without it
    nothing is mixed, which is how a partner itself is planned. In evaluation nothing is drawn.

    A number in ``ids`` names what is drawn for: the loader adds to a sample's index how often it
    has come already in this epoch, so that a repeated sample varies.
    """
    a = augmentation
    assert a.crop != "auto"
    assert a.policy != "auto"
    assert a.pad != "auto"
    assert a.erasing != "auto"
    longest = round(LONGER * image_size) if a.longest == "auto" else a.longest
    if not train:
        return Plan(ids, image_size, EVALUATION.get(a.crop, "resize"), longest)
    out = Plan(ids, image_size, a.crop, longest, padding=a.pad, ratio_range=a.crop_ratio)

    def uniform(name: str, n: int = 1) -> Array:
        return draws.uniform(seed, epoch, ids, name, n)

    if a.crop not in ("resize", *OWN_SIZE):
        out.at = uniform("crop.at", 2)
    if a.crop == "random-resized":
        assert a.crop_area != "auto"
        low, high = a.crop_area
        out.areas = low + (high - low) * uniform("crop.area", TRIES)
        least, most = np.log(a.crop_ratio)
        out.ratios = np.exp(least + (most - least) * uniform("crop.ratio", TRIES))
    if a.crop == "zoom":
        assert a.zoom != "auto"
        nearest, farthest = np.log(a.zoom)
        out.zooms = np.exp(nearest + (farthest - nearest) * uniform("crop.zoom")[:, 0])
    ops, signed = _policy(a, uniform)
    out.after = _after(a, image_size, uniform, ops, signed)
    out.apart = _apart(a, image_size, uniform)
    out.colour = _colour(a, uniform, ops, signed)
    assert a.channels != "auto"
    assert a.gamma != "auto"
    assert a.noise != "auto"
    assert a.pair_jitter != "auto"
    if a.channels > 0:
        out.channels = (1 + a.channels) ** (2 * uniform("channels", 3) - 1)
    if a.gamma > 0:
        out.gamma = (1 + a.gamma) ** (2 * uniform("gamma")[:, 0] - 1)
    if a.noise > 0:
        out.noise = a.noise * uniform("noise")[:, 0]
        out.grain = uniform("noise.grain", 2)
    if a.pair_jitter > 0:
        out.colour2 = 1 + (2 * uniform("pair", 3) - 1) * a.pair_jitter
    if ops is not None and (ops >= SHARPNESS).any():
        assert signed is not None
        out.ops = np.where(ops >= SHARPNESS, ops, 0)
        out.amounts = _amounts(ops, signed, a.policy == "trivial")
    if a.erasing > 0:
        out.erased = _erased(a.erasing, image_size, uniform)
    if mixes(a) and pool is not None:
        _mix(a, image_size, seed, epoch, ids, pool, out)
    return out


def target(plan: Plan, shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the input that an image of ``shape`` (h, w) becomes."""
    h, w = shape
    if plan.crop == "whole":
        return h, w
    if plan.crop == "shorter":
        # Of whole numbers, so that a half is one on every machine and in an exported graph.
        scale = min(Fraction(plan.size, min(h, w)), Fraction(plan.longest, max(h, w)))
        return max(1, round(h * scale)), max(1, round(w * scale))
    return plan.size, plan.size


def shown(side: int, size: int) -> int:
    """The side of the centre crop, in pixels of an image whose shorter side is ``side``, that
    becomes an input of ``size``."""
    return max(1, min(side, round(size * side / round(size / CROP_PCT))))


def matrix(plan: Plan, row: int, shape: tuple[int, int]) -> Array:
    """From the pixels of an image of ``shape`` (h, w) to input pixels, float64 [3, 3].

    The crop is a box of whole source pixels, as in torchvision; then follow, about the input's
    centre, what ``plan.after`` holds.

    - random-resized: area and log-ratio uniform, its place uniform among those within the image;
      after ten that do not fit, the largest centred crop of an allowed ratio (Szegedy et al. 2015;
      the fallback is torchvision's).
    - pad: the image squashed to the input size, with a border all around, and a crop of the input
      size from that. Where squashing changes the size, the place is rounded to source pixels.
    - centre (evaluation of random-resized): the shorter side resized to the input size over 0.875,
      and the centre of that.
    - zoom: a square that is the input once zoomed, its place uniform among those within the image,
      or, along a side that it is longer than, among those that hold the image.
    - whole: the image as it is.
    - shorter: the whole image, its shorter side brought to the input size, or less where the longer
      one would be too long.
    - resize: the whole image, squashed.
    """
    h, w = shape
    size = plan.size
    out_h, out_w = target(plan, shape)
    x0, y0, cw, ch = 0, 0, w, h
    if plan.crop == "random-resized":
        x0, y0, cw, ch = _random_box(plan, row, h, w)
    elif plan.crop == "pad":
        assert plan.at is not None
        # How far the crop goes beyond the image, in input pixels: -padding to padding.
        u, v = plan.at[row].tolist()
        places = 2 * plan.padding + 1
        x0 = round((math.floor(u * places) - plan.padding) * w / size)
        y0 = round((math.floor(v * places) - plan.padding) * h / size)
    elif plan.crop == "zoom":
        assert plan.at is not None
        assert plan.zooms is not None
        # Of whole pixels, so that it is cut out and resized, which is quicker than interpolation.
        cw = ch = max(1, round(size / float(plan.zooms[row])))
        u, v = plan.at[row].tolist()
        x0, y0 = _place(u, w - cw), _place(v, h - ch)
    elif plan.crop == "centre":
        side = min(h, w)
        seen = shown(side, size)
        x0, y0, cw, ch = (w - seen) // 2, (h - seen) // 2, seen, seen
    sx, sy = out_w / cw, out_h / ch
    out = np.array(((sx, 0.0, -x0 * sx), (0.0, sy, -y0 * sy), (0.0, 0.0, 1.0)))
    return out if plan.after is None else _centred(plan.after[row], size, (out_h, out_w)) @ out


def second(plan: Plan, row: int, first: Array, shape: tuple[int, int]) -> Array:
    """Of a pair whose first frame is moved by ``first``, the second frame's matrix. ``shape``: the
    input's (h, w)."""
    return first if plan.apart is None else _centred(plan.apart[row], plan.size, shape) @ first


def _centred(moved: Array, size: int, shape: tuple[int, int]) -> Array:
    """A matrix made for a square input of ``size``, about the centre of one of ``shape``."""
    h, w = shape
    if (h, w) == (size, size):
        return moved
    there = translation((w - size) / 2, (h - size) / 2)
    return np.asarray(there @ moved @ np.linalg.inv(there))


def _place(u: float, room: int) -> int:
    """One of the whole numbers between 0 and ``room``, which may be negative; u is in [0, 1)."""
    return math.floor(u * (abs(room) + 1)) * (1 if room >= 0 else -1)


def _random_box(plan: Plan, row: int, h: int, w: int) -> tuple[int, int, int, int]:
    """x, y, width and height of the first tried crop that fits."""
    assert plan.areas is not None
    assert plan.ratios is not None
    assert plan.at is not None
    u, v = plan.at[row].tolist()
    for share, ratio in zip(plan.areas[row].tolist(), plan.ratios[row].tolist(), strict=True):
        area = share * h * w
        cw, ch = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < cw <= w and 0 < ch <= h:
            return math.floor(u * (w - cw + 1)), math.floor(v * (h - ch + 1)), cw, ch
    least, most = plan.ratio_range
    cw, ch = w, h
    if w / h < least:
        ch = min(h, max(1, round(w / least)))
    elif w / h > most:
        cw = min(w, max(1, round(h * most)))
    return (w - cw) // 2, (h - ch) // 2, cw, ch


def _policy(a: Augmentation, uniform: Any) -> tuple[Array | None, Array | None]:
    """(operations [B, K], signed strengths in [-1, 1] [B, K]) of TrivialAugment or RandAugment.

    TrivialAugment (Müller & Hutter 2021, the wide space): one operation, its strength one of 31,
    all equally likely. RandAugment (Cubuk et al. 2020): ``rand_ops`` operations at one strength.
    """
    if a.policy == "none":
        return None, None
    k = 1 if a.policy == "trivial" else a.rand_ops
    if k == 0:
        return None, None
    ops = np.floor(uniform("policy.op", k) * len(OPS)).astype(np.int64)
    top = _STRENGTH_BINS - 1
    if a.policy == "trivial":
        strengths = np.floor(uniform("policy.strength", k) * _STRENGTH_BINS) / top
    else:
        strengths = np.full(ops.shape, a.rand_magnitude / top)
    negative = (uniform("policy.sign", k) < 0.5) & _SIGNED[ops]
    return ops, np.where(negative, -strengths, strengths)


def _after(
    a: Augmentation, size: int, uniform: Any, ops: Array | None, strengths: Array | None
) -> Array | None:
    """[B, 3, 3]: flips, then rotation, zoom and shift, then the policy's geometry, in its order."""
    assert a.flip != "auto"
    assert a.rotation != "auto"
    assert a.scale != "auto"
    assert a.shift != "auto"
    parts = []
    for name, probability, axis in (("flip", a.flip, 0), ("vflip", a.vertical_flip, 1)):
        if probability > 0:
            mirrored = uniform(name)[:, 0] < probability
            part = _identities(len(mirrored))
            part[mirrored, axis, axis] = -1
            part[mirrored, axis, 2] = size
            parts.append(part)
    moved = _moves(a.rotation, a.scale, a.shift, size, uniform, "")
    if ops is not None and strengths is not None:
        wide = a.policy == "trivial"
        for op, s in zip(ops.T, strengths.T, strict=True):
            moved.append(_policy_geometry(op, s, size, wide))
    if moved:
        parts.append(_about_the_centre(moved, size))
    if not parts:
        return None
    out = parts[0]
    for part in parts[1:]:
        out = part @ out
    return np.asarray(out)


def _apart(a: Augmentation, size: int, uniform: Any) -> Array | None:
    """[B, 3, 3]: rotation, zoom and shift of a second frame alone."""
    assert a.pair_rotation != "auto"
    assert a.pair_scale != "auto"
    assert a.pair_shift != "auto"
    moved = _moves(a.pair_rotation, a.pair_scale, a.pair_shift, size, uniform, "pair.")
    return _about_the_centre(moved, size) if moved else None


def _moves(
    rotation: float, scale: float, shift: float, size: int, uniform: Any, prefix: str
) -> list[Array]:
    """[B, 3, 3] each, about the origin; ``prefix`` of the names under which they are drawn."""
    moved = []
    if rotation > 0:
        angle = np.radians((2 * uniform(f"{prefix}rotation")[:, 0] - 1) * rotation)
        moved.append(_rotations(angle))
    if scale > 0:
        zoom = (1 + scale) ** (2 * uniform(f"{prefix}scale")[:, 0] - 1)
        part = _identities(len(zoom))
        part[:, 0, 0] = part[:, 1, 1] = zoom
        moved.append(part)
    if shift > 0:
        way = (2 * uniform(f"{prefix}shift", 2) - 1) * shift * size
        part = _identities(len(way))
        part[:, :2, 2] = way
        moved.append(part)
    return moved


def _about_the_centre(moved: list[Array], size: int) -> Array:
    """One after the other, about the input's centre."""
    out = _identities(len(moved[0]))
    out[:, :2, 2] = -size / 2
    for part in moved:
        out = part @ out
    out[:, :2, 2] += size / 2
    # What nothing moved is the identity to the bit, so that its pixels are copied.
    still = np.all([(part == np.eye(3)).all((1, 2)) for part in moved], axis=0)
    out[still] = np.eye(3)
    return out


def _policy_geometry(op: Array, strength: Array, size: int, wide: bool) -> Array:
    """[B, 3, 3] of one operation each, about the origin. Strongest: as in the two papers' code
    (TrivialAugment's wide space: shear 0.99, 32 px, 135 degrees; RandAugment's: shear 0.3, 150/331
    of the input, 30 degrees). Shears are about the centre, where Pillow's are about a corner."""
    out = _identities(len(op))
    name = np.array(OPS)[op]
    out[:, 0, 1] = np.where(name == "shear-x", strength * (0.99 if wide else 0.3), 0)
    out[:, 1, 0] = np.where(name == "shear-y", strength * (0.99 if wide else 0.3), 0)
    most = 32.0 if wide else 150 / 331 * size
    out[:, 0, 2] = np.where(name == "translate-x", np.trunc(strength * most), 0)
    out[:, 1, 2] = np.where(name == "translate-y", np.trunc(strength * most), 0)
    turned = name == "rotate"
    out[turned] = _rotations(np.radians(strength[turned] * (135 if wide else 30)))
    return out


def _colour(
    a: Augmentation, uniform: Any, ops: Array | None, strengths: Array | None
) -> Array | None:
    """[B, 4]; the policies' brightness, contrast and colour (saturation) are multiplied in."""
    columns: list[Array | float] = []
    for name in ("brightness", "contrast", "saturation"):
        most = getattr(a, name)
        columns.append(1 + (2 * uniform(name)[:, 0] - 1) * most if most > 0 else 1.0)
    assert a.hue != "auto"
    columns.append((2 * uniform("hue")[:, 0] - 1) * a.hue if a.hue > 0 else 0.0)
    if ops is not None and strengths is not None:
        wide = 0.99 if a.policy == "trivial" else 0.9
        for column, op in enumerate(("brightness", "contrast", "colour")):
            factors = np.where(ops == OPS.index(op), 1 + strengths * wide, 1.0)
            columns[column] = columns[column] * factors.prod(1)
    if all(isinstance(c, float) for c in columns):
        return None
    n = max(len(c) for c in columns if not isinstance(c, float))
    return np.stack([np.broadcast_to(np.asarray(c), (n,)) for c in columns], 1)


def _amounts(ops: Array, strengths: Array, wide: bool) -> Array:
    """Strengths in the operations' own terms; the weakest leaves the image as it is."""
    factor = 1 + strengths * (0.99 if wide else 0.9)
    kept = 8 - np.rint(strengths * (6 if wide else 4))
    return np.select(
        [ops == SHARPNESS, ops == POSTERIZE, ops == SOLARIZE],
        [factor, kept, 255 * (1 - strengths)],
        0.0,
    )


def _erased(probability: float, size: int, uniform: Any) -> Array:
    """[B, 4]; the first of ten boxes that fits in the input."""
    low, high = ERASED_AREA
    area = (low + (high - low) * uniform("erasing.area", TRIES)) * size * size
    least, most = np.log(ERASED_RATIO)
    ratio = np.exp(least + (most - least) * uniform("erasing.ratio", TRIES))
    h = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    w = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (h < size) & (w < size) & (h > 0) & (w > 0)
    first = fits.argmax(1)
    rows = np.arange(len(first))
    h, w = h[rows, first], w[rows, first]
    at = uniform("erasing.at", 2)
    x = np.floor(at[:, 0] * (size - w + 1)).astype(np.int64)
    y = np.floor(at[:, 1] * (size - h + 1)).astype(np.int64)
    on = fits.any(1) & (uniform("erasing")[:, 0] < probability)
    return np.where(on[:, None], np.stack([x, y, x + w, y + h], 1), 0)


def _mix(
    a: Augmentation, size: int, seed: int, epoch: int, ids: Array, pool: Array, out: Plan
) -> None:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): partner, share, box.

    CutMix's share is recomputed from the box after it is clipped at the border.
    """
    assert a.mixup != "auto"
    assert a.cutmix != "auto"
    u = draws.uniform(seed, epoch, ids, "mix", 5)
    on, which, partner, cx, cy = u.T
    mixed = on < a.mix_probability
    cuts = which < 0.5 if a.mixup > 0 and a.cutmix > 0 else np.full(len(ids), a.cutmix > 0)
    out.partner = pool[np.floor(partner * len(pool)).astype(np.int64)]
    share = np.ones(len(ids))
    for alpha, rows in ((a.mixup, mixed & ~cuts), (a.cutmix, mixed & cuts)):
        if alpha > 0 and rows.any():
            share[rows] = draws.beta(seed, epoch, ids[rows], "mix.share", alpha, alpha)[:, 0]
    half = size * np.sqrt(1 - share) / 2
    edges = [np.rint(c * size + s * half) for s in (-1, 1) for c in (cx, cy)]
    box = np.clip(np.stack(edges, 1), 0, size).astype(np.int64)
    out.cut = np.where((mixed & cuts)[:, None], box, 0)
    covered = (out.cut[:, 2] - out.cut[:, 0]) * (out.cut[:, 3] - out.cut[:, 1])
    out.share = np.where(cuts, 1 - covered / (size * size), share)


def _identities(n: int) -> Array:
    return np.broadcast_to(np.eye(3), (n, 3, 3)).copy()


def _rotations(radians: Array) -> Array:
    out = _identities(len(radians))
    out[:, 0, 0] = out[:, 1, 1] = np.cos(radians)
    out[:, 1, 0] = np.sin(radians)
    out[:, 0, 1] = -out[:, 1, 0]
    return out
