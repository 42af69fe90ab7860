"""Geometry is one matrix: every crop, resize, flip, scale, rotation and shift, applied once.

A matrix is float64 [3, 3] and maps source coordinates (x, y, 1) to target coordinates. Pixel i
covers [i, i + 1) and its centre is i + 1/2; conversions to OpenCV, which puts the centre of pixel i
at i, happen where OpenCV is called.
"""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np

from vidi.types import Array

WHOLE = 1e-6
"""A source box counts as whole pixels when it is within this many pixels of them."""
BLUR = 1.5
"""Bilinear interpolation alone serves shrinking up to this factor. Beyond it the source is shrunk
first, by areas: bilinear interpolation would pass over pixels, and the result would flicker."""

QUICK = 2.0
"""Up to this factor bilinear interpolation looks at every pixel, though not at all of them alike.
"""

LONGEST = 32_767
"""OpenCV looks pixels up only in images whose sides are shorter than this."""

ELSEWHERE = (np.dtype(np.uint32), np.dtype(np.int64), np.dtype(np.uint64))
"""Types that it does not know; of int64 it gives other numbers, and no error."""

NEIGHBOURS = sorted(itertools.product((-1, 0, 1), repeat=2), key=lambda at: at != (0, 0))
"""A pixel and the eight about it, (y, x), itself first."""


def translation(x: float, y: float) -> Array:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def scaling(x: float, y: float) -> Array:
    return np.array([[x, 0, 0], [0, y, 0], [0, 0, 1]], np.float64)


def rotation(radians: float) -> Array:
    """About the origin; from the x axis towards the y axis, which looks clockwise."""
    c, s = math.cos(radians), math.sin(radians)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float64)


def shear(x: float, y: float) -> Array:
    """x' = x + ``x`` y, and y' = y + ``y`` x."""
    return np.array([[1, x, 0], [y, 1, 0], [0, 0, 1]], np.float64)


def crop(box: tuple[float, float, float, float], size: tuple[int, int]) -> Array:
    """The matrix that maps the box (x0, y0, x1, y1) to a whole target of ``size`` (h, w)."""
    x0, y0, x1, y1 = box
    sx, sy = size[1] / (x1 - x0), size[0] / (y1 - y0)
    return np.array([[sx, 0, -x0 * sx], [0, sy, -y0 * sy], [0, 0, 1]], np.float64)


def flip(width: int) -> Array:
    """Left-right, of an image that wide."""
    return np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]], np.float64)


def vertical_flip(height: int) -> Array:
    return np.array([[1, 0, 0], [0, -1, height], [0, 0, 1]], np.float64)


def compose(*matrices: Array) -> Array:
    """One matrix that does all, the first one first."""
    out = np.eye(3)
    for m in matrices:
        out = m @ out
    return out


def about(centre: tuple[float, float], matrix: Array) -> Array:
    """The same map with its origin at ``centre`` (x, y)."""
    x, y = centre
    return compose(translation(-x, -y), matrix, translation(x, y))


def apply(matrix: Array, points: Array) -> Array:
    """Where the matrix takes ``points``, [N, 2] of (x, y)."""
    moved = np.c_[points, np.ones(len(points))] @ matrix.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def hulls(matrix: Array, xyxy: Array) -> Array:
    """The boxes about boxes whose corners the matrix moved: float64 [N, 4], from [N, 4]."""
    x, y = xyxy[:, [0, 2, 0, 2]].astype(np.float64), xyxy[:, [1, 1, 3, 3]].astype(np.float64)
    corners = apply(matrix, np.stack([x.ravel(), y.ravel()], 1)).reshape(-1, 4, 2)
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def affine(matrix: Array) -> bool:
    """Whether the matrix keeps parallels, which all do that augmentation makes."""
    return bool((matrix[2] == (0, 0, 1)).all())


def upright(matrix: Array) -> bool:
    """Whether the matrix keeps the sides of boxes upright: no shear, and only quarter turns."""
    a, b, c, d = matrix[:2, :2].ravel().tolist()
    straight: bool = (b == 0 and c == 0) or (a == 0 and d == 0)
    return straight and affine(matrix)


def shifts(matrix: Array) -> bool:
    """Whether the matrix moves by whole pixels and does nothing else."""
    return copies(matrix) and matrix[0, 0] > 0 and matrix[1, 1] > 0


def copies(matrix: Array) -> bool:
    """Whether the matrix moves by whole pixels and mirrors, and does nothing else."""
    (a, b, tx), (c, d, ty), _ = matrix.tolist()
    off = abs(abs(a) - 1) + abs(abs(d) - 1) + abs(b) + abs(c)
    off += abs(tx - round(tx)) + abs(ty - round(ty))
    return affine(matrix) and bool(off < WHOLE)


def shrinkage(matrix: Array) -> tuple[float, float]:
    """How many source pixels, along x and along y, go into one of the target."""
    shrink_x = 1 / max(1e-9, math.hypot(matrix[0, 0], matrix[1, 0]))
    shrink_y = 1 / max(1e-9, math.hypot(matrix[0, 1], matrix[1, 1]))
    return shrink_x, shrink_y


def sources(matrix: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Where the target's pixel centres come from: x and y, float32 [h, w], as OpenCV counts (the
    centre of pixel i at i), for an affine matrix."""
    h, w = size
    back = np.linalg.inv(matrix)
    u, v = np.arange(w) + 0.5, np.arange(h) + 0.5
    x = np.add.outer(back[0, 1] * v + (back[0, 2] - 0.5), back[0, 0] * u)
    y = np.add.outer(back[1, 1] * v + (back[1, 2] - 0.5), back[1, 0] * u)
    return x.astype(np.float32), y.astype(np.float32)


def nearest(array: Array, matrix: Array, size: tuple[int, int], outside: int) -> Array:
    """The map under the affine matrix, [h, w], from [H, W] of any type: of each target pixel the
    value of the source pixel that its centre lies in; ``outside`` beyond the source."""
    h, w = size
    height, width = array.shape
    back = np.linalg.inv(matrix)
    if back[0, 1] == 0 and back[1, 0] == 0:
        # Rows and columns are looked up separately: quick, and what augmentation mostly is.
        columns = np.floor(back[0, 0] * (np.arange(w) + 0.5) + back[0, 2]).astype(np.int64)
        rows = np.floor(back[1, 1] * (np.arange(h) + 0.5) + back[1, 2]).astype(np.int64)
        inner_x = np.flatnonzero((columns >= 0) & (columns < width))
        inner_y = np.flatnonzero((rows >= 0) & (rows < height))
        seen: Array = array.take(rows[inner_y], 0).take(columns[inner_x], 1)
        if len(inner_x) == w and len(inner_y) == h:
            return seen
        out = np.full((h, w), outside, array.dtype)
        if seen.size:
            out[inner_y[0] : inner_y[-1] + 1, inner_x[0] : inner_x[-1] + 1] = seen
        return out
    return _looked_up(array, *sources(matrix, size), outside)


def _looked_up(array: Array, x: Array, y: Array, outside: int) -> Array:
    """The values of [H, W] at the pixels nearest to these points, as :func:`sources` has them."""
    height, width = array.shape
    if max(array.shape + x.shape) >= LONGEST or array.dtype in ELSEWHERE:
        i, j = np.floor(x + 0.5).astype(np.int64), np.floor(y + 0.5).astype(np.int64)
        there = (i >= 0) & (i < width) & (j >= 0) & (j < height)
        found = array[np.clip(j, 0, height - 1), np.clip(i, 0, width - 1)]
        return np.where(there, found, array.dtype.type(outside))
    plain = array.view(np.uint8) if array.dtype == bool else array
    # By remap and not by warpAffine, which places samples up to 1/32 of a pixel off.
    moved = cv2.remap(
        plain, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=outside
    )
    return np.asarray(moved.view(array.dtype))


def labels(array: Array, matrix: Array, size: tuple[int, int], outside: int) -> Array:
    """The map of classes, objects or segments under the affine matrix, [h, w], from [H, W] of any
    integer type; ``outside`` beyond the source.

    A pixel gets the label that most of the source has about the pixel's centre: the 3 × 3 source
    pixels there vote, with the weights of the quadratic B-spline. So outlines become finer than the
    source's pixels, whose stairs :func:`nearest` would copy aslant; what is a pixel or two wide
    gets thinner. Under an upright matrix stairs stay level, and the nearest pixel, which is much
    quicker, is taken.
    """
    if upright(matrix):
        return nearest(array, matrix, size, outside)
    x, y = sources(matrix, size)
    moved = _looked_up(array, x, y, outside)
    # Where all four neighbours share a pixel's label, it wins wherever in the pixel the point is.
    rim = np.zeros(array.shape, bool)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = array[here] != array[there]
        rim[here] |= differ
        rim[there] |= differ
    at = np.flatnonzero(_looked_up(rim, x, y, 0))
    if len(at):
        moved.put(at, _elected(array, x.take(at), y.take(at)))
    return moved


def _elected(array: Array, x: Array, y: Array) -> Array:
    """The label with the most votes about each of these points within the map, [N]."""
    height, width = array.shape
    column, row = (np.floor(p + 0.5).astype(np.int64) for p in (x, y))
    off_x, off_y = x - column, y - row
    columns = {d: np.clip(column + d, 0, width - 1) for d in (-1, 0, 1)}
    rows = {d: np.clip(row + d, 0, height - 1) * width for d in (-1, 0, 1)}
    around = np.stack([array.take(rows[dy] + columns[dx]) for dy, dx in NEIGHBOURS])
    votes = np.stack([_share(off_y, dy) * _share(off_x, dx) for dy, dx in NEIGHBOURS])
    # More than half are enough, and mostly they are the nearest pixel's.
    open_ = np.flatnonzero(((around == around[0]) * votes).sum(0) <= 0.5)
    elected = around[0]
    around, votes = around.take(open_, 1), votes.take(open_, 1)
    sums = votes.copy()
    for one, other in itertools.combinations(range(len(NEIGHBOURS)), 2):
        agree = around[one] == around[other]
        sums[one] += agree * votes[other]
        sums[other] += agree * votes[one]
    # Of equals the first, which is the nearest pixel.
    elected[open_] = np.take_along_axis(around, sums.argmax(0)[None], 0)[0]
    return np.asarray(elected)


def _share(off: Array, side: int) -> Array:
    """The quadratic B-spline's weight of the pixel itself (``side`` 0) and of the ones before and
    after it (-1, 1), for points that lie this far (-0.5 to 0.5) from the pixel's centre."""
    return 0.75 - off * off if side == 0 else 0.5 * (0.5 + side * off) ** 2


def warp(
    image: Array,
    matrix: Array,
    size: int | tuple[int, int],
    fill: tuple[int, int, int] | None = (0, 0, 0),
    *,
    out: Array | None = None,
    quick: bool = False,
) -> Array:
    """The image under the matrix: uint8 [h, w, 3], from uint8 [H, W, 3].

    ``size``: (h, w), or one side of a square. ``fill``: RGB of what lies outside the source;
    ``None``: the source mirrored about the centres of its outermost pixels, as often as it takes
    (NumPy's "reflect"). ``out``: where to write the result, instead of a new array.

    Where the matrix maps a box of whole source pixels to the target, straight or mirrored, the box
    is cut out and resized: by areas along an axis that shrinks, bilinearly along one that grows,
    and copied where it does neither. Any other matrix is bilinear interpolation at the mapped-back
    pixel centres, after shrinking the source by areas where the matrix shrinks it by more than
    :data:`BLUR`. Where pixels are not just copied, the image runs into ``fill``, if there is one,
    over a pixel's width.

    ``quick``: boxes of which no axis shrinks by more than :data:`QUICK` are bilinear as well, in a
    sixth of the time; for training, whose images are drawn at random anyway.
    """
    h, w = (size, size) if isinstance(size, int) else size
    if out is None:
        out = np.empty((h, w, 3), np.uint8)
    (a, b, tx), (c, d, ty), bottom = matrix.tolist()
    if b == 0 and c == 0 and a != 0 and d != 0 and bottom == [0, 0, 1]:
        x0, x1 = -tx / a, (w - tx) / a
        y0, y1 = -ty / d, (h - ty) / d
        whole = round(x0), round(y0), round(x1), round(y1)
        off = abs(x0 - whole[0]) + abs(y0 - whole[1]) + abs(x1 - whole[2]) + abs(y1 - whole[3])
        if off < WHOLE and whole[0] != whole[2] and whole[1] != whole[3]:
            _cut(image, whole, fill, out, quick)
            return out
    _interpolate(image, matrix, fill, out)
    return out


def _cut(
    image: Array,
    box: tuple[int, int, int, int],
    fill: tuple[int, int, int] | None,
    out: Array,
    quick: bool,
) -> None:
    """The pixels of the box resized into ``out``; its ends are swapped where it is mirrored."""
    height, width = image.shape[:2]
    x0, x1 = sorted((box[0], box[2]))
    y0, y1 = sorted((box[1], box[3]))
    mirror = (box[0] > box[2]) + 2 * (box[1] > box[3])
    cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    same = out.shape[0] == y1 - y0 and out.shape[1] == x1 - x0
    if (cx0, cy0, cx1, cy1) == (x0, y0, x1, y1):
        part = image[y0:y1, x0:x1]
    elif fill is None:
        image, left, top = _mirrored(image, (x0, y0, x1, y1))
        part = image[y0 + top : y1 + top, x0 + left : x1 + left]
    else:
        part = out if same and not mirror else np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        part[...] = fill
        if cx0 < cx1 and cy0 < cy1:
            part[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0] = image[cy0:cy1, cx0:cx1]
        if part is out:
            return
    if not mirror:
        if same:
            out[...] = part
        else:
            resize(part, out, quick)
        return
    straight = part if same else resize(part, np.empty_like(out), quick)
    cv2.flip(straight, (1, 0, -1)[mirror - 1], dst=out)


def resize(image: Array, out: Array, quick: bool = False) -> Array:
    """The whole image resized into ``out``: by areas where it shrinks, bilinearly as it grows.
    ``quick``: see :func:`warp`."""
    (h, w), (oh, ow) = image.shape[:2], out.shape[:2]
    if quick and h <= QUICK * oh and w <= QUICK * ow:
        return cv2.resize(image, (ow, oh), dst=out, interpolation=cv2.INTER_LINEAR)
    # OpenCV takes areas only where neither axis grows, so an image that does both takes two steps.
    if oh <= h and ow <= w:
        return cv2.resize(image, (ow, oh), dst=out, interpolation=cv2.INTER_AREA)
    if oh < h or ow < w:
        image = cv2.resize(image, (min(w, ow), min(h, oh)), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (ow, oh), dst=out, interpolation=cv2.INTER_LINEAR)


def _interpolate(
    image: Array, matrix: Array, fill: tuple[int, int, int] | None, out: Array
) -> None:
    h, w = out.shape[:2]
    if fill is None:
        image, left, top = _mirrored(image, _in_sight(matrix, (h, w)))
        matrix = matrix @ translation(-left, -top)
        fill = (0, 0, 0)  # of which nothing is in sight
    plain = affine(matrix)
    if plain:
        image, matrix = _preshrunk(image, matrix, (h, w))
    half = translation(0.5, 0.5)
    centred = translation(-0.5, -0.5) @ matrix @ half
    if plain:
        cv2.warpAffine(
            image,
            centred[:2],
            (w, h),
            dst=out,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )
    else:
        cv2.warpPerspective(
            image,
            centred,
            (w, h),
            dst=out,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )


def _mirrored(image: Array, box: tuple[int, int, int, int]) -> tuple[Array, int, int]:
    """The image with as much of its mirror image about it as the box (x0, y0, x1, y1) holds, and
    how many columns and rows that is on the left and at the top."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    top, bottom, left, right = (max(0, n) for n in (-y0, y1 - height, -x0, x1 - width))
    wide = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_REFLECT_101)
    return wide, left, top


def _in_sight(matrix: Array, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The source pixels (x0, y0, x1, y1) that the target shows, and so many about them that no
    edge of theirs is seen: twice the factor by which the matrix shrinks, and one."""
    h, w = size
    corners = apply(np.linalg.inv(matrix), np.array([[0, 0], [w, 0], [0, h], [w, h]], np.float64))
    margin = 2 * np.array(shrinkage(matrix)) + 1
    x0, y0 = np.floor(corners.min(0) - margin).astype(int).tolist()
    x1, y1 = np.ceil(corners.max(0) + margin).astype(int).tolist()
    return x0, y0, x1, y1


def _preshrunk(image: Array, matrix: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """The part of the image that the target shows, shrunk, and the matrix from there.

    Untouched where nothing shrinks by more than :data:`BLUR`. A perspective has no one factor, and
    is not looked at.
    """
    shrink_x, shrink_y = shrinkage(matrix)
    if shrink_x <= BLUR and shrink_y <= BLUR:
        return image, matrix
    height, width = image.shape[:2]
    x0, y0, x1, y1 = _in_sight(matrix, size)
    x0, y0, x1, y1 = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
    if x0 >= x1 or y0 >= y1:
        return image, matrix  # nothing of the image is in sight
    nw = max(1, round((x1 - x0) / max(1.0, shrink_x)))
    nh = max(1, round((y1 - y0) / max(1.0, shrink_y)))
    small = resize(image[y0:y1, x0:x1], np.empty((nh, nw, 3), np.uint8))
    return small, matrix @ np.linalg.inv(crop((x0, y0, x1, y1), (nh, nw)))
