"""Boxes where objects may be, without knowing their classes: selective search and EdgeBoxes.

Both come from OpenCV's contrib modules; what is chosen here is written beside it. Images are
brought to a width of 500 pixels first, as R-CNN does (Girshick et al. 2014, section 2.1), and the
boxes back to the image. Proposals are a function of the image, the method, the seed and the
sample's key: the first 200 are the same every time, with any number of threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np

from vidi.data import draws
from vidi.data.dataset import Dataset
from vidi.data.proposal_files import Computed, ProposalFiles
from vidi.data.truth import Truth
from vidi.errors import InputError
from vidi.types import Array, Notes

Method = Literal["selective-fast", "selective-quality", "edge-boxes"]
METHODS: tuple[Method, ...] = get_args(Method)

VERSION = f"1 opencv-{cv2.__version__}"
"""What computes: another version may give other boxes, so its results have other files."""
WIDTH = 500
TALLEST = 1000
"""Beyond this height the image gets narrower than 500, or a strip would take hours."""
SMALLEST = 16
"""Pixels of each side at least, however thin the image."""
SIGMA = 0.8
MOST = 10_000
"""As many boxes EdgeBoxes gives; selective search gives what it finds."""
MOST_SHOWN = 10


@dataclass(frozen=True)
class EdgeMap:
    """Where EdgeBoxes takes its edges from.

    ``of``: uint8 RGB [H, W, 3] to (edges, orientation), float32 [H, W] each: thin edges from 0 to
    1, and the direction across them in radians, [0, π), x to y (which points down). It is called
    from several threads. ``name`` tells it from others in the cache; a network's has its weights'
    hash in it.
    """

    name: str
    of: Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Found:
    """Proposals of some samples. ``boxes``: float32 [P, 4] each, xyxy in pixels of the full image,
    the best first. ``seconds``: float64 [N], what each took of a processor when it was computed
    (that thread's alone). ``computed``: how many were not in the cache. ``notes``: what could not
    be kept."""

    boxes: list[Array]
    seconds: Array
    computed: int
    notes: Notes


def proposals_of(
    dataset: Dataset, ids: Array, method: Method = "selective-fast", **more: Any
) -> list[Array]:
    """:func:`search`'s boxes alone: float32 [P, 4] per sample, at most ``count``, best first."""
    return search(dataset, ids, method, **more).boxes


def search(
    dataset: Dataset,
    ids: Array,
    method: Method = "selective-fast",
    *,
    count: int = 2000,
    seed: int = 0,
    threads: int = 1,
    edges: EdgeMap | None = None,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> Found:
    """The ``count`` best proposals of each sample at ``ids`` (int64 [N]), from the cache where they
    are there, else computed in ``threads`` and kept. What was interrupted goes on where it was.

    ``seed`` draws the order of selective search's boxes; EdgeBoxes' have scores. ``edges``:
    EdgeBoxes' edges, image gradients if there are none. ``progress`` is called with the samples
    done and their number. ``folder``: instead of the user's cache folder.

    Raises :class:`InputError` with the list of the images that cannot be read, when all others are
    done.
    """
    if method not in METHODS:
        raise InputError(f"There is no method {method!r}; there are {', '.join(METHODS)}.")
    if count < 1:
        raise InputError(f"{count} proposals were asked for; at least 1 is needed.")
    chosen = edges if edges is not None else GRADIENTS
    name = f"{method} {chosen.name}" if method == "edge-boxes" else method
    files = ProposalFiles(dataset.root, f"{name}\n{VERSION}", folder)
    wanted = [int(i) for i in ids]
    boxes: list[Array] = [np.zeros((0, 4), np.float32)] * len(wanted)
    seconds = np.zeros(len(wanted))
    bad: dict[int, str] = {}
    fresh = 0

    def work(row: int) -> tuple[int, Array, float, bool]:
        i = wanted[row]
        computed, new = _computed(dataset, i, method, chosen, files)
        ordered = computed.boxes
        if method != "edge-boxes":
            ordered = ordered[ranks(len(ordered), dataset.images.key(i), seed)]
        return row, _scaled(ordered[:count], computed), computed.seconds, new

    pool = ThreadPoolExecutor(max(threads, 1), "vidi-proposals")
    try:
        rows = {pool.submit(work, row): row for row in range(len(wanted))}
        for done, future in enumerate(as_completed(rows), 1):
            try:
                row, boxes[row], seconds[row], new = future.result()
                fresh += new
            except InputError as error:
                bad[rows[future]] = str(error)
            if progress is not None:
                progress(done, len(wanted))
    finally:
        pool.shutdown(cancel_futures=True)  # when interrupted, not after the last image
    if bad:
        shown = [bad[row] for row in sorted(bad)[:MOST_SHOWN]]
        more = [f"… and {len(bad) - MOST_SHOWN:,} more."] if len(bad) > MOST_SHOWN else []
        raise InputError(
            f"{len(bad):,} of {len(wanted):,} images cannot be read, so they have no proposals. "
            "Mend or remove them; the others' are kept.\n"
            + "\n".join(f"  {line}" for line in [*shown, *more])
        )
    return Found(boxes, seconds, fresh, files.notes)


def attach(dataset: Dataset, ids: Array, boxes: Sequence[Array]) -> Dataset:
    """The dataset whose samples at ``ids`` have these ``proposals``; the others have none."""
    held = {int(i): proposed for i, proposed in zip(ids, boxes, strict=True)}
    return dataclasses.replace(dataset, truth=_WithProposals(dataset.truth, held))


class _WithProposals:
    """Another truth's fields, and proposals."""

    def __init__(self, truth: Truth | None, boxes: dict[int, Array]) -> None:
        self._truth = truth
        self._boxes = boxes

    def fields(self, i: int) -> dict[str, Any]:
        fields = {} if self._truth is None else self._truth.fields(i)
        if i in self._boxes:
            fields["proposals"] = self._boxes[i]
        return fields

    def digest(self) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(b"" if self._truth is None else self._truth.digest())
        for i in sorted(self._boxes):
            digest.update(i.to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(self._boxes[i], np.float32).data)
        return digest.digest()


def _computed(
    dataset: Dataset, i: int, method: Method, edges: EdgeMap, files: ProposalFiles
) -> tuple[Computed, bool]:
    """From the file or the image, and whether from the image."""
    identity = dataset.images.identity(i)
    image = None
    if identity is None:  # no file: the pixels themselves tell it from others
        image = dataset.images.load(i, None)[0]
        identity = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        identity += repr(image.shape).encode()
    found = files.get(identity)
    if found is not None:
        return found, False
    if image is None:
        image = dataset.images.load(i, None)[0]
    start = time.thread_time()
    size = (int(image.shape[0]), int(image.shape[1]))
    worked = working_size(size)
    pixels = _resized(image, worked)
    if method == "edge-boxes":
        boxes = edge_boxes(pixels, edges)
    else:
        boxes = selective_search(pixels, quality=method == "selective-quality")
    computed = Computed(boxes, size, worked, time.thread_time() - start)
    files.put(identity, computed)
    return computed, True


def working_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which proposals of an image of this (height, width) are looked for."""
    height, width = size
    tall = (2 * height * WIDTH + width) // (2 * width)
    if tall <= TALLEST:
        return max(SMALLEST, tall), WIDTH
    return TALLEST, max(SMALLEST, (2 * width * TALLEST + height) // (2 * height))


def _resized(image: Array, size: tuple[int, int]) -> Array:
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.resize(image, (size[1], size[0]), interpolation=how))


def _scaled(boxes: Array, computed: Computed) -> Array:
    """Back to the full image, float32 [P, 4]."""
    (height, width), (h, w) = computed.size, computed.worked
    scale = np.array([width / w, height / h] * 2)
    return np.asarray((boxes * scale).astype(np.float32))


def ranks(n: int, key: str, seed: int) -> Array:
    """The order in which a sample's ``n`` boxes of selective search, largest first, are taken:
    int64 [n].

    A box's place is drawn at random, weighted so that larger regions come first, as in the paper
    (section 3.3: a random number times the place in the hierarchy), but from the seed and the
    sample's key. OpenCV does not say the place in the hierarchy; the place by area stands for it,
    since a region contains those that it was merged from. Its square root, because it finds more
    with the first 200 boxes than the place itself does (docs/proposals.md).
    """
    sample = int.from_bytes(hashlib.blake2b(key.encode(errors="surrogateescape")).digest()[:7])
    drawn = draws.uniform(seed, 0, np.array([sample], np.int64), "proposals", n)[0]
    return np.argsort(drawn * np.sqrt(np.arange(1, n + 1)), kind="stable")


def selective_search(image: Array, *, quality: bool = False) -> Array:
    """Uijlings et al. 2013, "Selective search for object recognition": the bounding boxes of all
    regions on the way from small ones to the whole image, merged by several similarities in several
    colour spaces.

    ``image``: uint8 RGB [H, W, 3]. int16 [P, 4], xyxy, without duplicates, the largest first. As in
    table 5: fast has HSV and Lab, k = 50 and 100, two similarities (8 hierarchies); quality five
    colour spaces, k = 50, 100, 150 and 300, four similarities (80). First regions have at least k
    pixels, as in the authors' program. OpenCV's own settings are others, and miss small objects.
    """
    parts: Any = cv2.ximgproc.segmentation
    colour, fill, texture, size = (
        getattr(parts, f"createSelectiveSearchSegmentationStrategy{name}")()
        for name in ("Color", "Fill", "Texture", "Size")
    )
    together = parts.createSelectiveSearchSegmentationStrategyMultiple
    similarities = [together(colour, texture, size, fill), together(texture, size, fill)]
    spaces = [cv2.cvtColor(image, code) for code in (cv2.COLOR_RGB2HSV_FULL, cv2.COLOR_RGB2LAB)]
    if quality:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        total = np.maximum(1, image.sum(axis=2, dtype=np.int32))
        red, green = ((255 * image[:, :, c].astype(np.int32) // total) for c in (0, 1))
        spaces += [
            np.dstack([red, green, grey]).astype(np.uint8),
            np.ascontiguousarray(spaces[0][:, :, 0]),
            grey,
        ]
        similarities += [
            parts.createSelectiveSearchSegmentationStrategyFill(),
            parts.createSelectiveSearchSegmentationStrategySize(),
        ]
    search = parts.createSelectiveSearchSegmentation()
    for space in spaces:
        search.addImage(space)
    for k in (50, 100, 150, 300) if quality else (50, 100):
        graph = parts.createGraphSegmentation()
        graph.setSigma(SIGMA)
        graph.setK(k)
        graph.setMinSize(k)
        search.addGraphSegmentation(graph)
    for similarity in similarities:
        search.addStrategy(similarity)
    # Its order is drawn from an unseeded generator, but the boxes are always the same.
    return _sorted(_xyxy(search.process()))


def edge_boxes(image: Array, edges: EdgeMap | None = None) -> Array:
    """Zitnick & Dollár 2014, "Edge boxes: locating object proposals from edges": boxes by how many
    contours lie wholly within them.

    ``image``: uint8 RGB [H, W, 3]. int16 [P, 4], xyxy, the best first. The paper's parameters (its
    α 0.65, β 0.75); its edges come from structured forests, whose model is not in the package.
    """
    strength, across = (edges if edges is not None else GRADIENTS).of(image)
    search = cv2.ximgproc.createEdgeBoxes(maxBoxes=MOST, alpha=0.65, beta=0.75)
    found, scores = search.getBoundingBoxes(
        np.ascontiguousarray(strength, np.float32), np.ascontiguousarray(across, np.float32)
    )
    boxes = _xyxy(found)
    if not len(boxes):
        return boxes
    # With equal scores, the larger first: OpenCV's own order of those is its sorting's.
    place = np.lexsort((*boxes.T[::-1], -_areas(boxes), -np.ravel(scores)))
    _, first = np.unique(boxes[place], axis=0, return_index=True)
    return np.asarray(boxes[place][np.sort(first)][:MOST])


def gradients(image: Array) -> tuple[Array, Array]:
    """Edges by image gradients, for :class:`EdgeMap`: in Lab, smoothed by σ = 2 pixels, the
    channel with the strongest gradient, thinned, and scaled so that a hundredth of the pixels is at
    1. A gradient below what a faint contour has is never scaled up to a strong one."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32) / 255
    smooth = cv2.GaussianBlur(lab, (0, 0), 2.0)
    dx = cv2.Scharr(smooth, -1, 1, 0, scale=1 / 32)
    dy = cv2.Scharr(smooth, -1, 0, 1, scale=1 / 32)
    strongest = np.hypot(dx, dy).argmax(axis=2)[:, :, None]
    x, y = (np.take_along_axis(d, strongest, axis=2)[:, :, 0] for d in (dx, dy))
    size = np.hypot(x, y)
    across = across_edges(x, y)
    scale = max(float(np.percentile(size, 99)), 0.02)
    return np.minimum(1, thinned(size, across) / scale).astype(np.float32), across


def across_edges(dx: Array, dy: Array) -> Array:
    """The direction of a gradient without its sign: float32 radians in [0, π)."""
    angle = np.mod(np.arctan2(dy, dx), np.pi).astype(np.float32)
    return np.where(angle >= np.float32(np.pi), np.float32(0), angle)


def thinned(strength: Array, across: Array) -> Array:
    """Non-maximum suppression (Canny 1986): 0 where a neighbour across the edge is stronger."""
    height, width = strength.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dx, dy = np.cos(across), np.sin(across)
    kept = np.ones(strength.shape, bool)
    for sign in (1, -1):
        beside = cv2.remap(
            strength,
            x + sign * dx,
            y + sign * dy,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        kept &= strength >= beside
    return np.where(kept, strength, np.float32(0))


GRADIENTS = EdgeMap("gradients-1", gradients)


def _xyxy(rectangles: Any) -> Array:
    """int16 [P, 4] of OpenCV's x, y, width, height."""
    boxes = np.array(rectangles, np.int64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.int16)


def _sorted(boxes: Array) -> Array:
    """Without duplicates, the largest first, equal ones by their coordinates."""
    unique = np.unique(boxes, axis=0)
    return np.asarray(unique[np.argsort(-_areas(unique), kind="stable")])


def _areas(boxes: Array) -> Array:
    sides = boxes[:, 2:].astype(np.int64) - boxes[:, :2]
    return np.asarray(sides.prod(axis=1))
