"""Predictions from tiles: equal to those of the whole image where a network sees no border, and
better where it sees too little."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import vidi
from vidi.api import Model
from vidi.data import augment
from vidi.engine import tiled
from vidi.engine.evaluate import Compute
from vidi.engine.run import Description
from vidi.errors import InputError
from vidi.models.small_fast_rcnns import fast_rcnn_small
from vidi.models.small_faster_rcnns import faster_rcnn_small
from vidi.ops import box_tiles
from vidi.recipe import Recipe
from vidi.types import Array, Normalisation

CLASSES = ("red", "green")


class Blobs(nn.Module):
    """Proposes the boxes about what is red, and about what is green; it is as sure of one as its
    box is full. A function of the pixels alone, at any place."""

    proposes = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, image: Tensor, regions: Tensor | None = None) -> Any:
        assert regions is None and len(image) == 1
        pixels = image[0].permute(1, 2, 0).numpy()
        self.seen.append(pixels.shape[:2])
        rows, logits = [[0, 0, 0, 1, 1]], [[9.0, 0.0, 0.0]]  # a corner, sure to be background
        for k in range(2):
            there = (pixels[:, :, k] > 0.6).astype(np.uint8)
            _, _, found, _ = cv2.connectedComponentsWithStats(there, connectivity=4)
            for x, y, w, h, area in found[1:].tolist():
                rows.append([0, x, y, x + w, y + h])
                logits.append([0.0, -9.0, -9.0])
                logits[-1][1 + k] = 4.0 * area / (w * h)
        return FasterOutputs(torch.tensor(logits), torch.tensor(rows, dtype=torch.float32))


@dataclasses.dataclass
class FasterOutputs:
    logits: Tensor
    regions: Tensor
    deltas: None = None
    scores: None = None


def model(network: nn.Module, *, image_size: int = 64, crop: Any = "shorter", **more: Any) -> Model:
    """A run of that network, as if it had been trained."""
    recipe = vidi.recipe.replace(
        Recipe(task="detection", model="ours", image_size=image_size, batch_size=4),
        {
            "data": {"proposals": "network", "threads": 0},
            "augmentation": {"preset": "none", "crop": crop, "longest": 10 * image_size},
            **more,
        },
    )
    recipe = dataclasses.replace(recipe, augmentation=augment.resolve(recipe.augmentation))
    plain = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    compute = Compute(torch.device("cpu"), "fp32", False, plain)
    return Model(Path("ours"), Description(recipe, CLASSES, plain, {}), network.eval(), compute)


def picture(
    size: tuple[int, int], n: int, side: tuple[int, int], seed: int = 0
) -> tuple[Array, Array]:
    """(uint8 [h, w, 3], the boxes of its red and green ellipses [n, 4]), none touching another."""
    rng = np.random.default_rng(seed)
    pixels, truth = np.zeros((*size, 3), np.uint8), np.zeros((0, 4))
    while len(truth) < n:
        w, h = rng.integers(*side, 2)
        x, y = rng.integers(0, size[1] - w), rng.integers(0, size[0] - h)
        near = pixels[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2]
        if near.any():
            continue
        v, u = np.mgrid[:h, :w] + 0.5
        inside = (u / w - 0.5) ** 2 + (v / h - 0.5) ** 2 <= 0.25
        pixels[y : y + h, x : x + w, len(truth) % 2] = 255 * inside
        v, u = np.nonzero(inside)
        truth = np.r_[truth, [[x + u.min(), y + v.min(), x + u.max() + 1, y + v.max() + 1]]]
    return pixels, truth


def rows(found: Any) -> Array:
    """[D, 6] in one order: boxes, labels, scores."""
    d = found.found
    out = np.c_[d.xyxy, d.labels, d.scores]
    return np.asarray(out[np.lexsort(out.T[:4])])


@pytest.mark.parametrize("size", [(300, 400), (50, 400), (130, 64)])
@pytest.mark.parametrize("overlap", [None, 21, 32])
def test_a_local_networks_tiles_equal_the_whole_image(
    size: tuple[int, int], overlap: int | None
) -> None:
    """Objects below the overlap, some of which every border cuts."""
    pixels, truth = picture(size, min(90, size[0] * size[1] // 900), (3, 15))
    network = Blobs()
    seen = model(network, crop="whole")
    (whole,) = seen.predict(pixels)
    assert len(whole.found) == len(truth) > 5
    network.seen.clear()
    (got,) = seen.predict(pixels, tile=64, overlap=overlap)
    assert network.seen[0] == size and set(network.seen[1:]) == {(64, 64)}
    np.testing.assert_allclose(rows(got), rows(whole), atol=1e-4)
    assert (np.diff(got.found.scores) <= 0).all()
    assert got.names == tuple(CLASSES[k] for k in got.found.labels)


def test_small_objects_are_found_in_tiles_and_large_ones_in_the_image() -> None:
    """The network sees images of 64 pixels; these are 384 high."""
    pixels, small = picture((384, 500), 40, (4, 9))
    pixels[:, 300:] = 0
    pixels[50:350, 310:480, 0] = 255
    small = small[small[:, 2] <= 300]
    seen = model(Blobs())
    (whole,) = seen.predict(pixels)
    (got,) = seen.predict(pixels, tile=64, overlap=16)
    assert len(whole.found) < len(small)
    tiny = got.found.xyxy[got.found.xyxy[:, 2] < 300]
    order = np.lexsort(tiny.T)
    full = small[np.lexsort(small.T)]
    assert len(tiny) == len(full)
    np.testing.assert_allclose(tiny[order], full, atol=1e-4)
    large = got.found.xyxy[got.found.xyxy[:, 2] - got.found.xyxy[:, 0] > 150]
    np.testing.assert_allclose(large, [[310, 50, 480, 350]], atol=8)


def small_network() -> Any:
    """Random, and sees 40 pixels either way; it proposes all that it can."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"stem": (8, 8), "widths": (8, 16), "depths": (1, 1), "hidden": 16}
    network = faster_rcnn_small(2, **shape, merged=8, pooled=3)
    network.before = network.after = (100_000, 100_000)
    network.overlap = 0.4
    for layer in (*network.objects, network.cls_score):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        nn.init.normal_(layer.weight, std=1.0)
    for layer in (*network.moves, network.bbox_pred):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        nn.init.normal_(layer.weight, std=0.1)
    return network


def noise(seed: int) -> Array:
    """uint8 [240, 240, 3], in squares of four pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 60, 3), np.uint8)
    return np.asarray(pixels.repeat(4, 0).repeat(4, 1))


def inside(found: Array) -> Array:
    """Rows of :func:`rows` in what only one of the four tiles of 160 pixels sees that an image of
    240 × 240 has: 80 pixels off that tile's inner border, further than :func:`small_network`
    sees."""
    low, high = found[:, :2], found[:, 2:4]
    return np.asarray(found[((high <= 76) | (low >= 164)).all(1)])


def test_a_networks_tiles_equal_the_whole_image_where_it_sees_no_border() -> None:
    """The tiles begin at multiples of its stride, at scale 1."""
    pixels = noise(0)
    seen = model(small_network(), crop="whole", detection={"most": 5000, "least_score": 0.5})
    (whole,) = seen.predict(pixels)
    (got,) = seen.predict(pixels, tile=160, overlap=80)
    expected = inside(rows(whole))
    assert len(expected) > 50
    np.testing.assert_allclose(inside(rows(got)), expected, atol=1e-3)
    np.testing.assert_allclose(inside(rows(got))[:, 5], expected[:, 5], atol=1e-4)


@pytest.mark.parametrize("soft", ["none", "linear", "gaussian"])
def test_what_one_tile_alone_sees_is_as_that_tile_has_it(soft: str) -> None:
    """Overlapping objects included, which soft-NMS leaves, with faded scores."""
    pixels = noise(1)
    network = small_network()
    network.before = network.after = (40, 40)
    seen = model(network, image_size=160, detection={"soft_nms": soft})
    (alone,) = seen.predict(pixels[80:, 80:])
    (got,) = seen.predict(pixels, tile=160, overlap=80)
    moved = inside(rows(alone) + np.array([80, 80, 80, 80, 0, 0]))
    out = rows(got)
    assert len(moved) >= 5
    for row in moved:
        assert np.abs(out - row).max(1).min() < 1e-3, row


def told_network() -> nn.Module:
    """Random, too; it is told where to look."""
    torch.manual_seed(0)
    network = fast_rcnn_small(
        2, stem=(8, 8), widths=(8, 16), depths=(1, 1), merged=8, pooled=3, hidden=16
    )
    nn.init.normal_(network.cls_score.weight, std=1.0)
    return network


@pytest.mark.parametrize(
    ("soft", "crop", "threshold", "pixel"),
    [
        ("none", "shorter", 0.4, 0.5),  # tiles of 64 pixels become 128
        ("linear", "shorter", 0.5, 0.5),
        ("none", "whole", 0.4, 1.0),
    ],
)
def test_what_is_merged_by(
    soft: str, crop: str, threshold: float, pixel: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the run's own suppression, and at the scale of its input."""
    merge, seen = box_tiles.merge, []

    def listening(*told: Any, **options: Any) -> Any:
        seen.append(options)
        return merge(*told, **options)

    monkeypatch.setattr(box_tiles, "merge", listening)
    run = model(Blobs(), image_size=128, crop=crop, detection={"nms": 0.4, "soft_nms": soft})
    run.predict(picture((100, 120), 5, (5, 12))[0], tile=64)
    assert seen == [{"threshold": threshold, "pixel": pixel}]


def test_given_proposals_are_shared_out(tmp_path: Path) -> None:
    """Those of the whole image, from a file; none of two overlaps another."""
    path = tmp_path / "large.png"
    Image.fromarray(noise(0)).save(path)
    given = [[x + 6, y + 4, x + 26, y + 28] for y in range(0, 210, 32) for x in range(0, 210, 32)]
    (tmp_path / "own.json").write_text(json.dumps({str(path): given}))
    own = {"proposals": str(tmp_path / "own.json"), "threads": 0}
    seen = model(told_network(), crop="whole", data=own, detection={"most": 1000})
    (whole,) = seen.predict(path)
    (got,) = seen.predict(path, tile=160, overlap=80)
    assert len(inside(rows(whole))) > 10
    np.testing.assert_allclose(inside(rows(got)), inside(rows(whole)), atol=1e-3)


def test_computed_proposals_are_those_of_each_tile() -> None:
    own = {"proposals": "edge-boxes", "proposal_count": 200, "threads": 0}
    seen = model(told_network(), image_size=160, data=own)
    pixels = cv2.GaussianBlur(noise(0), (0, 0), 4)[:160]
    (alone,) = seen.predict(pixels[:, :160])
    (got,) = seen.predict(pixels, tile=160, overlap=80)
    only = rows(alone)
    only = only[only[:, 2] <= 76]
    assert len(only) >= 3
    for row in only:
        assert np.abs(rows(got) - row).max(1).min() < 1e-3, row


def test_evaluation_tells_whether_tiles_help(tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / "tiny" / part / "train").mkdir(parents=True)
    for i in range(3):
        pixels, truth = picture((240 + 30 * i, 300), 25, (4, 9), seed=i)
        Image.fromarray(pixels).save(tmp_path / "tiny" / "images" / "train" / f"{i}.png")
        h, w = pixels.shape[:2]
        lines = [
            f"{k % 2} {(x0 + x1) / 2 / w:.8f} {(y0 + y1) / 2 / h:.8f} "
            f"{(x1 - x0) / w:.8f} {(y1 - y0) / h:.8f}"
            for k, (x0, y0, x1, y1) in enumerate(truth)
        ]
        (tmp_path / "tiny" / "labels" / "train" / f"{i}.txt").write_text("\n".join(lines))
    (tmp_path / "tiny" / "data.yaml").write_text("train: images/train\nnames: [red, green]\n")
    seen = model(Blobs())
    whole = seen.evaluate(tmp_path / "tiny", split="train")
    got = seen.evaluate(tmp_path / "tiny", split="train", tile=64)
    assert whole.samples == got.samples == 3
    assert whole.metrics["map"] < 0.3
    assert got.metrics["recall100"] == pytest.approx(1)
    # What the whole image takes for one, because it is so small in it, is still there.
    assert got.metrics["map"] > 0.85
    assert got.details["per_class"][0]["objects"] == 39


def test_an_image_that_fits_into_a_tile_is_predicted_whole() -> None:
    pixels, _ = picture((50, 60), 5, (5, 12))
    network = Blobs()
    seen = model(network)
    (whole,) = seen.predict(pixels)
    network.seen.clear()
    (got,) = seen.predict(pixels, tile=60)
    assert len(network.seen) == 1
    assert np.array_equal(rows(got), rows(whole))


def test_one_size_serves_all_tiles_of_a_strip() -> None:
    """A strip lower than a tile is not enlarged: what it lacks is filled up."""
    pixels, truth = picture((20, 300), 6, (5, 12))
    network = Blobs()
    (got,) = model(network, image_size=128).predict(pixels, tile=64)
    assert set(network.seen[1:]) == {(128, 128)}
    assert len(got.found) == len(truth)
    assert (got.found.xyxy[:, 3] <= 20).all()


@pytest.mark.parametrize(
    ("task", "tile", "overlap", "sentence"),
    [
        ("segmentation", 64, None, "are for detection.*segmentation. Segmentation cuts"),
        ("classification", 64, None, "are for detection.*task is classification.$"),
        ("detection", 31, None, "31 pixels; at least 32"),
        ("detection", 64, 33, "0 to half a tile, 32"),
        ("detection", 64, -1, "0 to half a tile"),
        ("detection", None, 8, "there are no tiles"),
    ],
)
def test_tiles_that_cannot_be(
    task: str, tile: int | None, overlap: int | None, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        tiled.settled(task, tile, overlap)


def test_the_usual_overlap_is_a_quarter() -> None:
    assert tiled.settled("detection", 640, None) == 160
    assert tiled.settled("classification", None, None) == 0
