"""Folders of images and of edge maps, paired by name: images and edges, with SPLIT above or below.

A map is grey, 0 to 255 (255 = boundary), one for each image. Usual synonyms go (imgs, edge_maps,
boundaries, contours; gt where it holds thin lines), and folders below these, as in BIPED's
imgs/train/rgbr/real and edge_maps/train/rgbr/real.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vidi.data import export
from vidi.data.boxes import lost, some
from vidi.data.dataset import SPLITS, Dataset, FileImages, PathTable
from vidi.data.edges import boundaries
from vidi.data.formats import Fake
from vidi.data.formats.folders import is_image, split_of
from vidi.data.images import MAX_MEGAPIXELS, check_header, read_header
from vidi.data.images import read as read_bytes
from vidi.data.voc_layout import by_stem, find_base, folders_in, names_in
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

TASK = "boundaries"

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "rgb")
EDGES = (
    "edges", "edge", "edge_maps", "edge_map", "edgemaps", "boundaries", "boundary", "contours",
    "contour",
)  # fmt: skip
PERHAPS = ("gt", "groundtruth", "ground_truth")
"""Names that masks go by too: what lies there decides."""
_THICK = 5
"""Boundaries that are drawn by hand are thinner than this many pixels, and regions are not."""


def sniff(source: str) -> str | None:
    base = find_base(source, _is_base)
    if base is None:
        return None
    layout = _layout(os.path.join(source, base))
    assert layout is not None
    images, edges = next(iter(layout.pairs.values()))
    how = ", ".join(layout.pairs) if layout.has_splits else "without splits"
    return f"images and edge maps paired by name ({base}{images} and {base}{edges}; {how})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for maps without an image and two files of one name; when it is
    loaded, for a map that is damaged, in colour, or of another size than its image."""
    base = find_base(source, _is_base)
    assert base is not None
    root = os.path.abspath(source)
    layout = _layout(os.path.join(root, base))
    assert layout is not None
    notes = [f"{source} is {sniff(source)}.", *layout.notes]
    images, maps = PathTable(), PathTable()
    splits: dict[str, Array] = {}
    missing: list[str] = []
    without: list[str] = []
    for split, (place, at) in layout.pairs.items():
        pictures, edges = _tree(root, f"{base}{place}/"), _tree(root, f"{base}{at}/")
        if not pictures.keys() & edges.keys():
            # The folders below may differ, if the names alone tell.
            pictures, edges = _by_name(pictures), _by_name(edges)
        missing += [path for name, path in edges.items() if name not in pictures]
        without += [path for name, path in pictures.items() if name not in edges]
        start = len(images)
        both = [name for name in pictures if name in edges]
        images.extend([pictures[name] for name in both])
        maps.extend([edges[name] for name in both])
        if both:
            splits[split] = np.arange(start, len(images))
    if missing:
        raise InputError(
            f"{source}: {len(missing):,} edge maps have no image of their name: {some(missing)}. "
            "Add the images, or remove the maps."
        )
    if without:
        notes.append(f"{len(without):,} images have no map and were left out: {some(without)}.")
    files = images.images(root)
    return Dataset(
        root=root,
        format="edge_folders",
        task=TASK,
        classes=(),
        images=files,
        labels=None,
        splits=splits,
        notes=notes,
        truth=_Maps(files, maps.images(root)),
    )


class _Maps:
    """The maps, read on demand."""

    def __init__(self, images: FileImages, files: FileImages) -> None:
        self._images = images
        self._files = files

    def fields(self, i: int) -> dict[str, Any]:
        path, (height, width) = self._files.path(i), self._images.size(i)
        edges = read_map(path)
        if edges.shape != (height, width):
            raise InputError(
                f"{path} has {edges.shape[1]} × {edges.shape[0]} pixels, and its image {width} × "
                f"{height}. They should have one size; replace one of them."
            )
        return {"edges": edges[None]}

    def digest(self) -> bytes:
        return self._files.digest()


def read_map(path: str) -> Array:
    """uint8 [H, W] as the file has it. Raises :class:`InputError` for a damaged file, colour,
    transparency, and other than 8 bits."""
    data = read_bytes(path)
    header = read_header(data, path)
    check_header(header, path, MAX_MEGAPIXELS)
    try:
        flags = cv2.IMREAD_UNCHANGED
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise InputError(
            f"{path} is cut short or damaged: of this {header.format} ({header.width} × "
            f"{header.height}, {len(data):,} bytes) not all can be decoded. Fetch it again."
        )
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8:
        raise InputError(f"{path} has {header.depth} bits a channel; 8 are expected. Convert it.")
    if pixels.shape[2] == 4 and (pixels[:, :, 3] < 255).any():
        raise InputError(f"{path} is partly transparent; a grey image is expected. Convert it.")
    if pixels.shape[2] >= 3 and (pixels[:, :, :1] != pixels[:, :, 1:3]).any():
        raise InputError(
            f"{path} is in colour; an edge map is grey, from 0 to 255 = boundary. Convert it."
        )
    return np.ascontiguousarray(pixels[:, :, 0])


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports one map for each image: the mean, where there are several annotators. Raises
    :class:`InputError` for what cannot be read."""
    names = export.names(dataset)
    counts: Counter[str] = Counter()
    for split in (s for s in SPLITS if s in dataset.splits):
        for part in ("images", "edges"):
            (folder / split / part).mkdir(parents=True)
        for i in map(int, dataset.splits[split]):
            export.save_image(dataset, i, folder / split / "images" / names[i])
            fields = dataset.annotations(i)
            edges, segments = fields.get("edges"), fields.get("segments")
            if edges is None and segments is not None:
                edges = boundaries(segments)
            if edges is None or not len(edges):
                raise InputError(f"{dataset.images.key(i)} has no boundaries to be exported.")
            one = np.rint(edges.mean(0)).astype(np.uint8)
            export.save_png(one, folder / split / "edges" / f"{names[i]}.png")
            counts["several"] += len(edges) > 1
            counts["segments"] += segments is not None
    return lost(
        counts,
        {
            "several": "samples have several annotators; this format holds one map, which became "
            "their mean.",
            "segments": "samples have segmentations, which this format cannot hold.",
        },
    )


def fake(folder: Path) -> Fake:
    """Three images in two splits; one of them deeper, as in BIPED."""
    rng = np.random.default_rng(17)
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    for k, (split, below) in enumerate((("train", ""), ("train", "rgbr/real/"), ("test", ""))):
        image = rng.integers(0, 256, (9, 11 + k, 3), dtype=np.uint8)
        edges = rng.integers(0, 256, (1, 9, 11 + k), dtype=np.uint8)
        key = f"imgs/{split}/{below}RGB_{k:03d}.png"
        for path, pixels in ((key, image), (key.replace("imgs", "edge_maps"), edges[0])):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            export.save_png(pixels, folder / path)
        splits[split].append(Sample(key=key, image=image, edges=edges))
    return Fake(str(folder), (), splits)


@dataclass
class _Layout:
    pairs: dict[str, tuple[str, str]]
    """By split, the folders of images and of maps."""
    has_splits: bool = True
    notes: Notes = field(default_factory=list)


def _is_base(folder: str) -> bool:
    return _layout(folder) is not None


def _layout(folder: str) -> _Layout | None:
    """How a folder is to be read, by the names in it; None: not in this format."""
    both = _both(folder)
    if both is not None:
        images, edges = both
        below = _by_split(os.path.join(folder, images))
        if not below:
            return _Layout({"train": both}, has_splits=False)
        maps = _by_split(os.path.join(folder, edges))
        pairs = {s: (f"{images}/{below[s]}", f"{edges}/{maps[s]}") for s in below if s in maps}
        notes = [
            f"{images}/{below[s]} has no maps and was left out." for s in below if s not in maps
        ]
        lone = [f"{edges}/{maps[s]}" for s in maps if s not in below]
        if lone:
            raise InputError(
                f"{folder} holds {some(lone)} and no images for it. Add them, or remove the maps."
            )
        return _Layout(pairs, notes=notes) if pairs else None
    parts = {name: _both(os.path.join(folder, name)) for name in folders_in(folder).values()}
    held = [name for name, inner in parts.items() if inner is not None]
    pairs = {}
    for split, name in _splits_among(folder, held).items():
        images, edges = parts[name] or ("", "")
        pairs[split] = (f"{name}/{images}", f"{name}/{edges}")
    notes = [
        f"{name} has no images and maps and was left out."
        for name, inner in parts.items()
        if inner is None and split_of(name)
    ]
    return _Layout(pairs, notes=notes) if pairs else None


def _both(folder: str) -> tuple[str, str] | None:
    """The folders of images and of maps that lie in a folder."""
    named = folders_in(folder)
    images = next((named[n] for n in IMAGES if n in named), None)
    if images is None:
        return None
    for name in (*EDGES, *PERHAPS):
        if name not in named:
            continue
        first = _first_image(os.path.join(folder, named[name]))
        if first is not None and (name in EDGES or _is_thin(first)):
            return images, named[name]
    return None


def _by_split(folder: str) -> dict[str, str]:
    return _splits_among(folder, list(folders_in(folder).values()))


def _splits_among(folder: str, names: list[str]) -> dict[str, str]:
    """The folders ``names`` by split, those of other names left out."""
    found: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split is None:
            continue
        if split in found:
            raise InputError(
                f"{folder} has two folders for the split {split}: {found[split]} and {name}. Keep "
                "one of them."
            )
        found[split] = name
    return {split: found[split] for split in SPLITS if split in found}


def _first_image(folder: str, depth: int = 4) -> str | None:
    inside = [name for name in names_in(folder) if not name.startswith(".")]
    for name in inside:
        if is_image(name):
            return os.path.join(folder, name)
    below = [os.path.join(folder, name) for name in inside if depth]
    found = (_first_image(path, depth - 1) for path in below if os.path.isdir(path))
    return next(filter(None, found), None)


def _is_thin(path: str) -> bool:
    """Whether a picture is of thin lines on black."""
    try:
        pixels = read_map(path)
    except InputError:
        return False
    on = (pixels > 0).astype(np.uint8)
    left = cv2.erode(on, np.ones((_THICK, _THICK), np.uint8), borderValue=0)
    return bool(0 < on.mean() < 0.5 and left.sum() < 0.05 * on.sum())


def _tree(root: str, at: str, below: str = "", above: tuple[str, ...] = ()) -> dict[str, str]:
    """All images in and below a folder: from their names without suffix (from that folder on) to
    their paths (from ``root`` on)."""
    here = os.path.join(root, at, below)
    real = os.path.realpath(here)
    if real in above:
        raise InputError(f"{here} is a link to a folder that it lies in. Remove it.")
    found = {below + stem: f"{at}{below}{name}" for stem, name in by_stem(here).items()}
    for name in folders_in(here).values():
        found |= _tree(root, at, f"{below}{name}/", (*above, real))
    return found


def _by_name(tree: dict[str, str]) -> dict[str, str]:
    """By names without folders, if these differ."""
    found = {os.path.basename(stem): path for stem, path in tree.items()}
    return found if len(found) == len(tree) else tree
