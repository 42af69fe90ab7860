"""One matrix for all that is annotated: a sample's image and labels move together.

Coordinates are those of :mod:`vidi.data.geometry`: pixel i covers [i, i + 1). The matrices here are
affine. The same on a device, for batches of tensors, is :mod:`vidi.ops.warp`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np

from vidi.data import edges, geometry
from vidi.types import Array, Boxes, Sample

IGNORE = 255
"""The class of what lies outside the source."""
MIN_VISIBLE = 0.25
"""Less than this share of an object in sight, and its box is dropped. A quarter of an object often
tells its class; what is less is mostly background, and a box of it teaches the wrong thing."""
SMALLEST = 1.0
"""A box has at least this many pixels on either side."""
VALID = 1 - 1e-6
"""Interpolated validity from here on counts as all valid: float32 leaves no more of rounding."""


def warp_sample(
    sample: Sample,
    matrix: Array,
    size: tuple[int, int],
    *,
    matrix2: Array | None = None,
    fill: tuple[int, int, int] | None = (0, 0, 0),
    min_visible: float = MIN_VISIBLE,
    full: tuple[int, int] | None = None,
    out: Array | None = None,
    out2: Array | None = None,
    quick: bool = False,
) -> Sample:
    """The sample under the matrix, all of it; fields that are ``None`` stay so.

    ``matrix``: from the pixels of the original image to those of the target, which is ``size``
    (h, w). ``matrix2``: that of the second frame, if it has its own. ``fill``: RGB of what lies
    outside an image, ``None`` its mirror image. ``min_visible``: see :func:`warp_boxes`. ``full``:
    height and width of the original, in whose pixels the annotations are, where the images are
    shrunk copies. ``out``, ``out2``: where to write the images, uint8 [h, w, 3]. ``quick``: of the
    images, see :func:`vidi.data.geometry.warp`.

    - image, image2: :func:`vidi.data.geometry.warp`, the only one that looks at areas;
    - mask, instances: :func:`vidi.data.geometry.labels`, the two as one, so that a class stays
      with its object; outside, a mask is 255 (ignore) and instances are 0;
    - boxes: :func:`warp_boxes`; proposals: the boxes about their moved corners, clipped to the
      target, in their number and order (one that is out of sight has no area);
    - flow, flow_valid, occluded: :func:`warp_flow`;
    - edges, segments: :func:`vidi.data.edges.warp`;
    - key and label as they are.

    Nothing changes under the identity, save that boxes and proposals beyond the image are clipped
    and flow that is not valid is 0; a crop of whole pixels or a mirror moves everything exactly.
    """
    assert geometry.affine(matrix)
    full = sample.image.shape[:2] if full is None else full
    second = matrix if matrix2 is None else matrix2
    changed: dict[str, Any] = {}
    changed["image"] = _image(sample.image, matrix, size, full, fill, out, quick)
    if sample.image2 is not None:
        changed["image2"] = _image(sample.image2, second, size, full, fill, out2, quick)
    changed["mask"], changed["instances"] = _labels(sample.mask, sample.instances, matrix, size)
    if sample.boxes is not None:
        changed["boxes"] = warp_boxes(
            sample.boxes,
            matrix,
            size,
            instances=sample.instances,
            moved=changed.get("instances"),
            min_visible=min_visible,
        )
    if sample.proposals is not None:
        moved = _clipped(geometry.hulls(matrix, sample.proposals), size)
        changed["proposals"] = moved.astype(np.float32)
    if sample.flow is not None:
        names = ("flow", "flow_valid", "occluded")
        fields = warp_flow(
            sample.flow, sample.flow_valid, sample.occluded, matrix, size, matrix2=matrix2
        )
        changed |= dict(zip(names, fields, strict=True))
    changed["edges"], changed["segments"] = edges.warp(sample.edges, sample.segments, matrix, size)
    return dataclasses.replace(sample, **changed)


def _labels(
    mask: Array | None, instances: Array | None, matrix: Array, size: tuple[int, int]
) -> tuple[Array | None, Array | None]:
    # The nearest pixel, which an upright matrix takes, is the same one for both anyway.
    if mask is not None and instances is not None and not geometry.upright(matrix):
        both = geometry.labels(instances.astype(np.int64) << 8 | mask, matrix, size, IGNORE)
        return (both & 255).astype(mask.dtype), (both >> 8).astype(instances.dtype)
    return (
        None if mask is None else geometry.labels(mask, matrix, size, IGNORE),
        None if instances is None else geometry.labels(instances, matrix, size, 0),
    )


def _image(
    image: Array,
    matrix: Array,
    size: tuple[int, int],
    full: tuple[int, int],
    fill: tuple[int, int, int] | None,
    out: Array | None,
    quick: bool,
) -> Array:
    h, w = image.shape[:2]
    if (h, w) != full:
        matrix = matrix @ geometry.scaling(full[1] / w, full[0] / h)
    return geometry.warp(image, matrix, size, fill, out=out, quick=quick)


def warp_boxes(
    boxes: Boxes,
    matrix: Array,
    size: tuple[int, int],
    *,
    instances: Array | None = None,
    moved: Array | None = None,
    min_visible: float = MIN_VISIBLE,
) -> Boxes:
    """The boxes under the matrix, those that remain, in their order.

    ``instances``: int32 [H, W], the map that ``boxes.instances`` refers to, and ``moved`` the same
    under the matrix.

    A box becomes the box about its moved corners, clipped to the target. Where the instance map
    knows its object, the matrix turns or shears, or the target cuts the box, it becomes the tight
    box of the object's moved pixels instead: corners say too much of a turned object, and nothing
    of which part of a cut one is left.

    A box is kept if at least ``min_visible`` of it remains in sight: of the unclipped box's area,
    or of the object's pixels where the box was taken from those. It is dropped, too, if a side is
    shorter than a pixel, or if it had no area before. ``difficult`` and ``crowd`` go along.
    """
    xyxy = boxes.xyxy.astype(np.float64)
    whole = geometry.hulls(matrix, xyxy)
    found = _clipped(whole, size)
    area = _area(whole)
    share = np.divide(_area(found), area, out=np.zeros(len(area)), where=area > 0)
    if boxes.instances is not None and instances is not None and moved is not None:
        looked = boxes.instances > 0
        if geometry.upright(matrix):
            looked &= np.abs(found - whole).max(1, initial=0) > geometry.WHOLE
        grown = abs(float(np.linalg.det(matrix[:2, :2])))
        # A vote makes what is thin thinner, and may leave none of it: it is in sight all the same.
        sight = moved if geometry.upright(matrix) else geometry.nearest(instances, matrix, size, 0)
        for n in np.flatnonzero(looked):
            value = int(boxes.instances[n])
            pixels = cv2.countNonZero(cv2.inRange(instances, value, value))
            if not pixels:  # hidden as a whole, so that the map does not tell
                continue
            seen, here = (cv2.inRange(m, value, value) for m in (sight, moved))
            share[n] = cv2.countNonZero(seen) / (pixels * grown)
            x, y, w, h = cv2.boundingRect(here if here.any() else seen)
            found[n] = x, y, x + w, y + h
    sides = (found[:, 2:] - found[:, :2]).min(1, initial=np.inf)
    # Rounding may leave a side of one pixel a little shorter.
    kept = (_area(xyxy) > 0) & (share >= min_visible) & (sides > SMALLEST - geometry.WHOLE)
    return Boxes(
        xyxy=found[kept].astype(np.float32),
        labels=boxes.labels[kept],
        difficult=boxes.difficult[kept],
        crowd=boxes.crowd[kept],
        instances=None if boxes.instances is None else boxes.instances[kept],
    )


def _clipped(xyxy: Array, size: tuple[int, int]) -> Array:
    h, w = size
    return np.clip(xyxy, 0, [w, h, w, h])


def _area(xyxy: Array) -> Array:
    """0 where a side is not longer than 0."""
    return np.asarray(np.prod(np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0), 1))


def warp_flow(
    flow: Array,
    valid: Array | None,
    occluded: Array | None,
    matrix: Array,
    size: tuple[int, int],
    *,
    matrix2: Array | None = None,
) -> tuple[Array, Array, Array | None]:
    """(flow float32 [h, w, 2], valid bool [h, w], occluded bool [h, w] or ``None`` as given).

    ``flow``: float32 [H, W, 2]; ``valid``, ``occluded``: bool [H, W], ``None`` = all valid, not
    known. ``matrix`` moves the first frame and ``matrix2`` (else the same one) the second: where x
    went to x + f, M1 x goes to M2 (x + f), so f'(M1 x) = M2 (x + f) - M1 x.

    The flow is taken at the mapped-back centres of the target's pixels, between the four
    neighbours, and is valid where all of them (that have any weight) are; elsewhere it is 0.
    Occlusion is that of the nearest pixel; and a pixel that was in sight in the second frame, and
    whose target ``matrix2`` takes out of it, is now occluded, its flow still valid: nothing
    of it is left to see, but where it went is known. Where occlusion was not known it stays so.
    """
    second = matrix if matrix2 is None else matrix2
    assert geometry.affine(matrix)
    assert geometry.affine(second)
    (h, w), (height, width) = size, flow.shape[:2]
    # Validity is interpolated beside the flow; OpenCV 5 takes the points of one, three and four
    # channels as they are, those of two to the nearest 1/32.
    known = np.ones((height, width, 3), np.float32)
    known[..., :2] = flow
    if valid is not None:
        known[~valid] = 0  # the flow there may be NaN, or huge
    x, y = geometry.sources(matrix, size)
    taken = cv2.remap(known, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    f, now_valid = taken[..., :2], taken[..., 2] >= VALID
    linear = second[:2, :2].astype(np.float32)
    moved = f.copy() if np.array_equal(linear, np.eye(2)) else f @ linear.T
    if not np.array_equal(second, matrix):
        # M2 x - M1 x, as a function of M1 x.
        rest = second @ np.linalg.inv(matrix) - np.eye(3)
        u, v = np.arange(w) + 0.5, np.arange(h) + 0.5
        for k in range(2):
            apart = np.add.outer(rest[k, 1] * v + rest[k, 2], rest[k, 0] * u)
            moved[..., k] += apart.astype(np.float32)
    moved[~now_valid] = 0
    if occluded is None:
        return moved, now_valid, None
    hidden = geometry.nearest(occluded, matrix, size, 0)
    before = _within(x + f[..., 0], y + f[..., 1], (height, width))
    u, v = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    after = _within(u + moved[..., 0], v + moved[..., 1], size)
    return moved, now_valid, hidden | (now_valid & before & ~after)


def _within(x: Array, y: Array, size: tuple[int, int]) -> Array:
    """Whether the points, as OpenCV counts, lie in an image of that size (h, w)."""
    h, w = size
    return np.asarray((x >= -0.5) & (x < w - 0.5) & (y >= -0.5) & (y < h - 0.5))
