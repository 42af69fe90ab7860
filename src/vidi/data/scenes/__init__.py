"""Generated scenes: textured shapes before photographs, in motion; their truth is known exactly.

In the tradition of FlyingChairs (Dosovitskiy et al. 2015, "FlowNet", section 4.2). A scene is a
function of (seed, index) alone, at any size, without files. Shapes hide one another, their borders
are anti-aliased, the background and each shape move by affine maps. One scene gives the class, the
boxes, the masks, the flow with its occlusions, and the boundaries.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from vidi.data.edges import boundaries
from vidi.data.scenes.composition import DIFFICULTIES, Surface, compose, lone_classes
from vidi.data.scenes.drawing import paint, scale_of, trace
from vidi.data.scenes.shapes import CLASSES, area
from vidi.types import Array, Boxes, Sample

__all__ = ["CLASSES", "DIFFICULTIES", "FIELDS", "fields_of", "lone_classes", "render"]

FIELDS = (
    "image", "image2", "label", "boxes", "mask", "instances", "flow", "flow_valid", "occluded",
    "edges", "segments",
)  # fmt: skip
"""What a scene knows of itself: fields of :class:`vidi.types.Sample`."""
SLIVER = 2
"""An object of which less than this many pixels are seen either way has no box: nothing of it can
be told."""
HARDLY_SEEN = 0.2
"""A box is marked difficult if less than this share of its object's area is seen."""


def render(
    seed: int,
    index: int,
    *,
    size: tuple[int, int] = (128, 128),
    difficulty: str = "default",
    lone: bool = False,
    matrix: Array | None = None,
    matrix2: Array | None = None,
    output: tuple[int, int] | None = None,
    fields: Collection[str] = FIELDS,
) -> Sample:
    """A scene of ``size`` (height, width) with those ``fields``, and its image in any case.

    ``difficulty``: one of :data:`DIFFICULTIES`. ``lone``: with one object only. ``matrix`` maps
    the scene, whose corner is (0, 0) and whose units are pixels at ``size``, to the pixels of the
    first frame, and ``matrix2`` (else ``matrix``) to those of the second; both are affine, float64
    [3, 3], and the frames are then of the size ``output`` (else ``size``). What is drawn is the
    scene under the matrix, not its image warped; it goes on beyond its borders.

    Boxes enclose what is seen of an object, tightly; one of which no more than a sliver is seen
    has none. In
    ``instances`` a higher number is nearer. ``mask``: a class's number + 1; 0 = background.
    ``label``: the class of which most is seen in one object; -1 if none is. ``occluded``: the
    point is hidden in the second frame by a nearer object, or out of it.
    """
    found = fields_of(
        seed, index, size=size, difficulty=difficulty, lone=lone, matrix=matrix, matrix2=matrix2,
        output=output, fields={"image", *fields},
    )  # fmt: skip
    return Sample(key=f"{index:06d}", **found)


def fields_of(
    seed: int,
    index: int,
    *,
    size: tuple[int, int],
    difficulty: str,
    lone: bool,
    fields: Collection[str],
    matrix: Array | None = None,
    matrix2: Array | None = None,
    output: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """:func:`render`'s ``fields`` alone: without pictures it takes a part of the time."""
    view = np.eye(3) if matrix is None else np.asarray(matrix, np.float64)
    view2 = view if matrix2 is None else np.asarray(matrix2, np.float64)
    assert all(np.array_equal(v[2], (0, 0, 1)) for v in (view, view2)), "not affine"
    surfaces = compose(seed, index, size, DIFFICULTIES[difficulty], lone)
    frame = size if output is None else output

    out: dict[str, Any] = {}
    detail = min(scale_of(view), scale_of(view2))
    if "image" in fields:
        out["image"] = paint(surfaces, view, frame, second=False, detail=detail)
    if "image2" in fields:
        out["image2"] = paint(surfaces, view2, frame, second=True, detail=detail)
    wanted = set(fields) - {"image", "image2"}
    if not wanted:
        return out
    if lone and wanted == {"label"}:
        return out | {"label": surfaces[1].kind}
    motion = not wanted.isdisjoint(("flow", "flow_valid", "occluded"))
    found = trace(surfaces, view, view2, frame, motion=motion)
    if "label" in wanted:
        out["label"] = _most_seen(surfaces, found.instances)
    if "boxes" in wanted:
        out["boxes"] = _boxes(surfaces, found.instances, scale_of(view) ** 2)
    if "mask" in wanted:
        numbers = np.array([s.kind + 1 for s in surfaces], np.uint8)
        out["mask"] = numbers[found.instances]
    if "instances" in wanted:
        out["instances"] = found.instances
    if "flow" in wanted:
        out["flow"] = found.flow
    if "flow_valid" in wanted:
        out["flow_valid"] = np.ones(frame, bool)
    if "occluded" in wanted:
        out["occluded"] = found.occluded
    if "edges" in wanted:
        out["edges"] = boundaries(found.instances[None])
    if "segments" in wanted:
        out["segments"] = found.instances[None].copy()
    return out


def _most_seen(surfaces: list[Surface], instances: Array) -> int:
    counts = np.bincount(instances.ravel(), minlength=len(surfaces))
    counts[0] = 0
    return surfaces[int(counts.argmax())].kind if counts.any() else -1


def _boxes(surfaces: list[Surface], instances: Array, scale: float) -> Boxes:
    """``scale``: pixels per unit of the scene, squared."""
    from scipy.ndimage import find_objects  # on use: what lists the formats need not wait

    seen = [
        (k, s)
        for k, s in enumerate(find_objects(instances), 1)
        if s is not None and min(side.stop - side.start for side in s) >= SLIVER
    ]
    counts = np.bincount(instances.ravel(), minlength=len(surfaces))
    ids = np.array([k for k, _ in seen], np.int64)
    whole = np.array(
        [area(surfaces[k].kind, surfaces[k].variant) * scale_of(surfaces[k].pose) ** 2 * scale
         for k in ids]
    )  # fmt: skip
    return Boxes(
        xyxy=np.array(
            [(x.start, y.start, x.stop, y.stop) for _, (y, x) in seen], np.float32
        ).reshape(-1, 4),
        labels=np.array([surfaces[k].kind for k in ids], np.int64),
        difficult=counts[ids] < HARDLY_SEEN * whole,
        crowd=np.zeros(len(ids), bool),
        instances=ids,
    )
