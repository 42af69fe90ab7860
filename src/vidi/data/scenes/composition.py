"""What stands in a scene: its surfaces, where they lie, how they look and how they move.

All of it is drawn by :mod:`vidi.data.draws` from (seed, index), each property under its own name,
and in shares of the scene's shorter side, so that a scene is the same at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vidi.data import geometry
from vidi.data.draws import uniform
from vidi.data.scenes.shapes import CLASSES, VARIANTS
from vidi.data.scenes.textures import CALM, GREY, PATTERNS, PHOTOGRAPHS
from vidi.data.scenes.textures import size as texture_size
from vidi.types import Array

MOST = 32
"""Surfaces of a scene, at most, the background among them."""
TRIES = 16
"""Places that are looked at for an object."""
MARGIN = 0.04
"""An object's centre is at least this share of the scene's sides away from its border."""
LONE_MARGIN = 0.4
"""A single object's is this share of its own longer side away: hardly any of it is cut off."""
DEGREE = math.pi / 180


@dataclass(frozen=True)
class Difficulty:
    """``objects``: their number, from and to. ``sides``: an object's longer side, from and to, as a
    share of the scene's shorter one; ``lone`` of the only object, where there is one.
    ``touching``: the share of objects that are put where they overlap another. ``photographs``:
    the share of backgrounds and of objects that are photographs. ``shift``: how far the background
    and an object move, at most, as a share of the diagonal; ``turn`` in degrees and ``zoom``
    likewise. ``slant``: how far an object is sheared and stretched."""

    objects: tuple[int, int]
    sides: tuple[float, float]
    lone: tuple[float, float]
    touching: float
    photographs: tuple[float, float]
    shift: tuple[float, float]
    turn: tuple[float, float]
    zoom: tuple[float, float]
    slant: float


DIFFICULTIES = {
    "easy": Difficulty(
        objects=(1, 4), sides=(0.2, 0.5), lone=(0.4, 0.7), touching=0.2, photographs=(0.0, 0.0),
        shift=(0.01, 0.06), turn=(0, 5), zoom=(0, 0.05), slant=0.05,
    ),
    "default": Difficulty(
        objects=(3, 12), sides=(0.04, 0.5), lone=(0.25, 0.6), touching=0.7,
        photographs=(1.0, 0.4), shift=(0.03, 0.1), turn=(3, 20), zoom=(0.04, 0.12), slant=0.2,
    ),
    "hard": Difficulty(
        objects=(8, 24), sides=(0.03, 0.5), lone=(0.1, 0.4), touching=0.95, photographs=(1.0, 0.8),
        shift=(0.07, 0.2), turn=(6, 45), zoom=(0.08, 0.25), slant=0.35,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Surface:
    """The background (``kind`` -1) or an object. Matrices are float64 [3, 3].

    ``pose``: the shape's square to the scene in the first frame. ``texture``: which one; ``cloth``
    maps its pixels to the scene. ``colours``: float32 [3, 4] or [3, 2], texture values (RGB or
    grey, and 1) to RGB. ``motion``: the scene in the first frame to the scene in the second.
    """

    kind: int
    variant: int
    pose: Array
    texture: int
    cloth: Array
    colours: Array
    motion: Array


def lone_classes(seed: int, indices: Array) -> Array:
    """The class of each scene with one object, int64 [N], for ``indices`` int64 [N].

    Of every ten scenes, from the first on, each shows another class.
    """
    tens, place = np.divmod(np.asarray(indices, np.int64), len(CLASSES))
    found, row = np.unique(tens, return_inverse=True)
    orders = np.argsort(uniform(seed, 0, found, "lone class", len(CLASSES)), axis=1, kind="stable")
    return np.asarray(orders[row, place])


def compose(
    seed: int, index: int, size: tuple[int, int], difficulty: Difficulty, lone: bool
) -> list[Surface]:
    """The surfaces of a scene of ``size`` (h, w), from the background to the nearest object."""
    count = 1
    if not lone:
        fewest, most = difficulty.objects
        u = uniform(seed, 0, np.array([index * MOST]), "count")[0, 0]
        count = fewest + int(u * (most - fewest + 1))
    ids = index * MOST + np.arange(count + 1)

    def draw(name: str, n: int = 1) -> Array:
        return uniform(seed, 0, ids, name, n)

    kinds = _choice(draw("class")[:, 0], len(CLASSES))
    if lone:
        kinds[1:] = lone_classes(seed, np.array([index]))
    variants = _choice(draw("variant")[:, 0], VARIANTS)
    low, high = difficulty.lone if lone else difficulty.sides
    # Between evenly spread sides and evenly spread logarithms: of tiny ones a few are enough.
    sides = low * (high / low) ** (draw("side")[:, 0] ** 0.8) * min(size)
    margin = LONE_MARGIN * sides[1] if lone else MARGIN * min(size)
    places = margin + draw("place", 2 * TRIES).reshape(-1, TRIES, 2) * (
        np.array([size[1], size[0]]) - 2 * margin
    )
    centres = _centres(draw("touching")[:, 0] < difficulty.touching, places, sides)
    textures = _textures(draw("photograph")[:, 0], draw("texture")[:, 0], difficulty)
    forms, cloths, colours = draw("form", 4), draw("cloth", 4), draw("colours", 8)
    turns, shifts, zooms = draw("turn")[:, 0], draw("shift", 2), draw("zoom")[:, 0]

    middle = np.array([size[1] / 2, size[0] / 2])
    found: list[Surface] = []
    for k in range(count + 1):
        centre, far = (middle, 0) if k == 0 else (centres[k], 1)
        motion = _motion(turns[k], shifts[k], zooms[k], centre, size, difficulty, far)
        found.append(
            Surface(
                kind=-1 if k == 0 else int(kinds[k]),
                variant=int(variants[k]),
                pose=np.eye(3) if k == 0 else _pose(forms[k], centre, sides[k], difficulty.slant),
                texture=int(textures[k]),
                cloth=_cloth(
                    cloths[k], int(textures[k]), centre, max(size) if k == 0 else sides[k]
                ),
                colours=_colours(colours[k], int(textures[k])),
                # Objects move with the background, and on it.
                motion=motion if k == 0 else found[0].motion @ motion,
            )
        )
    return found


def _choice(u: Array, n: int) -> Array:
    return np.asarray((u * n).astype(np.int64))


def _textures(photograph: Array, u: Array, difficulty: Difficulty) -> Array:
    share = np.full(len(u), difficulty.photographs[1])
    share[0] = difficulty.photographs[0]
    patterns = len(PHOTOGRAPHS) + _choice(u, len(PATTERNS))
    patterns[0] = len(PHOTOGRAPHS) + len(PATTERNS) - CALM + _choice(u[:1], CALM)[0]
    return np.where(photograph < share, _choice(u, len(PHOTOGRAPHS)), patterns)


def _centres(touching: Array, places: Array, sides: Array) -> Array:
    """Centres, float64 [n + 1, 2], out of ``places`` [n + 1, TRIES, 2].

    Each object takes the first place where it overlaps an earlier one, if ``touching``, or else
    where it overlaps none; the last place if there is no such.
    """
    centres = np.zeros((len(sides), 2))
    for k in range(1, len(sides)):
        away = np.hypot(*(places[k][:, None] - centres[None, 1:k]).transpose(2, 0, 1))
        # As if all were discs, somewhat smaller than the square around them.
        overlap = (0.45 * (sides[k] + sides[1:k]) - away) / np.minimum(sides[k], sides[1:k])
        most = overlap.max(1, initial=-1)
        # Of two that overlap, the farther one should still be seen.
        good = (most > 0.15) & (most < 0.7) if touching[k] else most <= 0
        centres[k] = places[k][int(np.argmax(good)) if good.any() else TRIES - 1]
    return centres


def _pose(u: Array, centre: Array, side: float, slant: float) -> Array:
    """The shape's square to the scene: stretched, sheared, turned, scaled, put in its place."""
    stretch = 1 + slant * u[1]  # of the one side or the other
    thin = (1, 1 / stretch) if u[2] < 0.5 else (1 / stretch, 1)
    lean = slant * (u[3] - 0.5)
    longer = max(thin[0] + abs(lean) * thin[1], thin[1])
    scale = side / 2 / longer
    return geometry.compose(
        geometry.scaling(*thin),
        geometry.shear(lean, 0),
        geometry.rotation(2 * math.pi * u[0]),
        geometry.scaling(scale, scale),
        geometry.translation(*centre),
    )


def _cloth(u: Array, texture: int, centre: Array, side: float) -> Array:
    """The texture's pixels to the scene: a part of it, turned, lies on the surface."""
    h, w = texture_size(texture)
    if texture < len(PHOTOGRAPHS):  # mostly upright, as photographs are
        share, turn = 0.3 + 0.5 * u[0], 30 * DEGREE * (u[1] - 0.5)
    else:
        share, turn = 0.4 + 0.8 * u[0], 2 * math.pi * u[1]
    scale = side / (share * min(h, w))
    return geometry.compose(
        geometry.translation(-w * (0.3 + 0.4 * u[2]), -h * (0.3 + 0.4 * u[3])),
        geometry.rotation(turn),
        geometry.scaling(scale, scale),
        geometry.translation(*centre),
    )


def _colours(u: Array, texture: int) -> Array:
    """Texture values to RGB: between two colours, or a photograph's own, brighter or darker and
    more or less saturated."""
    if GREY <= texture < len(PHOTOGRAPHS):  # between a dark colour and a light one, both pale
        one, two = 90 * u[6] + 60 * (u[:3] - 0.5), 150 + 90 * u[7] + 60 * (u[3:6] - 0.5)
        return np.stack([(two - one) / 255, one], 1).astype(np.float32)
    if texture >= GREY:
        one, two = 255 * u[:3], 255 * u[3:6]
        # Two colours that differ: of three channels, the one that is nearest is moved on by half.
        c = int(u[6] * 3)
        two[c] = (one[c] + 127.5) % 255
        return np.stack([(two - one) / 255, one], 1).astype(np.float32)
    gain, offset, colour = 0.65 + 0.5 * u[0], 40 * (u[1] - 0.3), 0.4 + 0.9 * u[2]
    grey = np.full((3, 3), 1 / 3)
    mixed = gain * (grey + colour * (np.eye(3) - grey))
    mixed = np.roll(mixed, int(u[3] * 12) if u[3] < 0.25 else 0, 0)  # some in false colours
    return np.concatenate([mixed, np.full((3, 1), offset)], 1).astype(np.float32)


def _motion(
    turn: float,
    shift: Array,
    zoom: float,
    centre: Array,
    size: tuple[int, int],
    difficulty: Difficulty,
    far: int,
) -> Array:
    """About its centre: turned and zoomed, then shifted. ``far``: 0 background, 1 object."""
    reach = difficulty.shift[far] * math.hypot(*size) * (0.15 + 0.85 * shift[0])
    direction = 2 * math.pi * shift[1]
    scale = 1 + difficulty.zoom[far] * (2 * zoom - 1)
    return geometry.compose(
        geometry.translation(*-centre),
        geometry.rotation(difficulty.turn[far] * DEGREE * (2 * turn - 1)),
        geometry.scaling(scale, scale),
        geometry.translation(*centre),
        geometry.translation(reach * math.cos(direction), reach * math.sin(direction)),
    )
