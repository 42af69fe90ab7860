"""Proposals: the same every time, kept through a kill, and recall as by hand."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from vidi.data import proposals as p
from vidi.data.dataset import ArrayImages, Dataset, PathTable
from vidi.data.open import open_data
from vidi.data.overlap import iou
from vidi.data.recall import recall, recall_per_class
from vidi.errors import InputError
from vidi.types import Array, Boxes

SQUARE = (60, 12, 130, 45)
"""xyxy of the square in :func:`picture`."""


def picture(seed: int = 0, size: tuple[int, int] = (60, 200)) -> Array:
    """A bright square on a smooth, dark ground."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(0, 60, (4, 5, 3), dtype=np.uint8), size[::-1])
    x0, y0, x1, y1 = SQUARE
    ground[y0:y1, x0:x1] = rng.integers(150, 256, 3)
    return np.asarray(ground)


def folder(where: Path, n: int = 4) -> Dataset:
    table = PathTable()
    for i in range(n):
        Image.fromarray(picture(i)).save(where / f"{i}.png")
    table.extend(f"{i}.png" for i in range(n))
    return Dataset(
        root=str(where),
        format="fake",
        task="detection",
        classes=("square",),
        images=table.images(str(where)),
        labels=None,
        splits={"train": np.arange(n)},
    )


def boxes(xyxy: Any, labels: Any = None, difficult: Any = None, crowd: Any = None) -> Boxes:
    n = len(xyxy)
    return Boxes(
        xyxy=np.array(xyxy, np.float32).reshape(-1, 4),
        labels=np.zeros(n, np.int64) if labels is None else np.array(labels),
        difficult=np.zeros(n, bool) if difficult is None else np.array(difficult),
        crowd=np.zeros(n, bool) if crowd is None else np.array(crowd),
    )


def some_boxes(rng: np.random.Generator, n: int) -> Array:
    low = rng.integers(0, 80, (n, 2))
    return np.concatenate([low, low + rng.integers(1, 60, (n, 2))], 1).astype(np.float32)


# Overlap


def test_iou_equals_torchvisions_and_counting_pixels() -> None:
    rng = np.random.default_rng(1)
    a, b = some_boxes(rng, 30), some_boxes(rng, 20)
    found = iou(a, b)
    theirs = torchvision.ops.box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(found, theirs, atol=1e-6)

    def drawn(box: Array) -> Array:
        canvas = np.zeros((140, 140), bool)
        x0, y0, x1, y1 = box.astype(int)
        canvas[y0:y1, x0:x1] = True
        return canvas

    for i in range(30):
        for j in range(20):
            one, other = drawn(a[i]), drawn(b[j])
            assert found[i, j] == pytest.approx((one & other).sum() / (one | other).sum())


def test_iou_of_boxes_without_area_is_zero_and_of_none_empty() -> None:
    flat = np.array([[5, 5, 5, 9], [9, 9, 2, 2]], np.float32)
    whole = np.array([[0, 0, 10, 10]], np.float32)
    assert (iou(flat, np.concatenate([flat, whole])) == 0).all()
    assert iou(flat[:0], whole).shape == (0, 1)
    assert iou(whole, flat[:0]).shape == (1, 0)


# Recall


def test_recall_in_closed_form() -> None:
    """Shifted copies of a 10 × 10 box: by 1 pixel IoU 90/110, by 2 80/120, by 5 50/150."""
    truth = [boxes([[0, 0, 10, 10]]), boxes([[0, 0, 10, 10], [50, 50, 60, 60]])]
    offered = [
        np.array([[5, 0, 15, 10], [1, 0, 11, 10]], np.float32),
        np.array([[2, 0, 12, 10]], np.float32),
    ]
    found = recall(offered, truth, thresholds=(0.5, 0.6, 0.7, 0.9), counts=(1, 2, 100))
    third = 1 / 3
    expected = [[third, third, 0, 0], [2 * third, 2 * third, third, 0]]
    np.testing.assert_allclose(found.table, [*expected, expected[1]])
    twice = 2 * ((90 / 110 - 0.5) + (80 / 120 - 0.5)) / 3
    np.testing.assert_allclose(found.average, [2 * (80 / 120 - 0.5) / 3, twice, twice])
    np.testing.assert_allclose(found.proposals, [1, 1.5, 1.5])
    assert (found.boxes, found.left_out) == (3, 0)


def test_the_average_is_the_area_under_recall_against_iou() -> None:
    rng = np.random.default_rng(2)
    offered, truth = [some_boxes(rng, 200)], [boxes(some_boxes(rng, 50))]
    fine = tuple(np.linspace(0.5, 1, 5001))
    found = recall(offered, truth, fine, (200,))
    assert found.average[0] == pytest.approx(2 * np.trapezoid(found.table[0], fine), abs=1e-3)
    best = torchvision.ops.box_iou(
        torch.from_numpy(truth[0].xyxy), torch.from_numpy(offered[0])
    ).amax(1)
    assert found.table[0, 0] == pytest.approx(float((best >= 0.5).float().mean()))


def test_perfect_proposals_reach_recall_one_at_every_iou() -> None:
    rng = np.random.default_rng(3)
    truth = [boxes(some_boxes(rng, n) / 7) for n in (5, 0, 9)]
    found = recall([b.xyxy for b in truth], truth)
    assert (found.table[-1] == 1).all()
    assert found.thresholds == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
    assert found.counts[0] == 1 and found.counts[-1] == 10_000
    assert found.table[0, 0] == pytest.approx(2 / 14, abs=0.15)
    assert (np.diff(found.table, axis=0) >= 0).all() and (np.diff(found.table, axis=1) <= 0).all()


def test_difficult_crowd_and_flat_boxes_are_left_out_and_counted() -> None:
    truth = boxes(
        [[0, 0, 10, 10], [50, 50, 60, 60], [70, 0, 80, 9], [5, 5, 5, 9]],
        difficult=[False, True, False, False],
        crowd=[False, False, True, False],
    )
    found = recall([truth.xyxy[:1]], [truth])
    assert (found.table == 1).all()
    assert (found.boxes, found.left_out) == (1, 3)


def test_recall_per_class_and_without_boxes() -> None:
    truth = boxes([[0, 0, 10, 10], [50, 50, 60, 60], [70, 0, 80, 9]], labels=[0, 2, 2])
    offered = np.array([[0, 0, 10, 10], [70, 0, 80, 9]], np.float32)
    whole, by_class = recall_per_class([offered], [truth], ("a", "b", "c"))
    assert whole.table[-1, 0] == pytest.approx(2 / 3)
    assert [by_class[name].boxes for name in "abc"] == [1, 0, 2]
    assert by_class["a"].table[-1, 0] == 1 and by_class["c"].table[-1, 0] == 0.5
    assert np.isnan(by_class["b"].table).all() and np.isnan(by_class["b"].average).all()
    nothing = recall([], [])
    assert (
        nothing.boxes == 0 and np.isnan(nothing.table).all() and np.isnan(nothing.proposals).all()
    )
    empty = recall([np.zeros((0, 4), np.float32)], [boxes([[0, 0, 9, 9]])])
    assert (empty.table == 0).all() and (empty.proposals == 0).all()


# The methods


@pytest.mark.parametrize("method", ["selective-fast", "edge-boxes"])
def test_a_square_is_found(method: Any, tmp_path: Path) -> None:
    """Its box to within what smoothing moves an edge, scaled back to the full image."""
    dataset = folder(tmp_path, 2)
    for found in p.proposals_of(dataset, np.arange(2), method):
        assert found.dtype == np.float32 and found.shape[1] == 4
        best = iou(found, np.array([SQUARE]))
        assert best.max() > 0.93
        assert found[:, [0, 1]].min() >= 0
        assert found[:, 2].max() <= 200 and found[:, 3].max() <= 60
        assert len(np.unique(found, axis=0)) == len(found)


@pytest.mark.parametrize("degrees", [0, 20, 45])
def test_edge_boxes_takes_the_direction_across_the_edges(degrees: int) -> None:
    """One contour: its box comes first, and parts of it hang together with the rest, so few boxes
    around parts have a score. With any other convention of the direction, many do."""
    image = np.full((200, 300, 3), 40, np.uint8)
    cv2.ellipse(image, (140, 100), (90, 50), degrees, 0, 360, (220, 200, 90), -1)
    ys, xs = np.nonzero(image[:, :, 0] > 100)
    truth = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]])
    right = p.edge_boxes(image)
    assert iou(right[:1], truth) > 0.9
    for name, wrong in (
        ("along", lambda angle: angle + np.pi / 2),
        ("y upward", lambda angle: -angle),
        ("from the y axis", lambda angle: np.pi / 2 - angle),
    ):

        def turned(image: Array, wrong: Any = wrong) -> tuple[Array, Array]:
            edges, across = p.gradients(image)
            return edges, np.mod(wrong(across), np.pi)

        assert len(right) < len(p.edge_boxes(image, p.EdgeMap(name, turned))) / 2, name


def test_gradients_are_thin_in_range_and_point_across() -> None:
    image = np.full((60, 80, 3), 30, np.uint8)
    image[:, 40:] = 200
    edges, across = p.gradients(image)
    assert edges.dtype == across.dtype == np.float32
    assert edges.min() == 0 and edges.max() == 1
    assert (np.count_nonzero(edges > 0.1, axis=1) <= 2).all()
    strong = edges > 0.5
    assert set(np.nonzero(strong)[1]) <= {39, 40}
    away = np.minimum(across[strong], np.pi - across[strong])
    assert away.max() < 0.01, "a vertical edge is crossed along x"
    sideways = p.gradients(np.ascontiguousarray(image.transpose(1, 0, 2)))[1]
    assert np.abs(sideways.T[strong] - np.pi / 2).max() < 0.01
    diagonal = np.where(np.add.outer(np.arange(60), np.arange(60)) > 60, 200, 30)
    edges, across = p.gradients(np.repeat(diagonal[:, :, None].astype(np.uint8), 3, 2))
    inner = edges[10:-10, 10:-10] > 0.5
    assert np.abs(across[10:-10, 10:-10][inner] - np.pi / 4).max() < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 9), (20, 300)])
@pytest.mark.parametrize("kind", ["uniform", "noise", "grey"])
@pytest.mark.parametrize("method", ["selective-fast", "edge-boxes"])
def test_odd_images(shape: tuple[int, int], kind: str, method: Any, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    if kind == "uniform":
        image[:] = 77
    if kind == "grey":
        image = image[..., 0]
    dataset = Dataset(
        root="odd",
        format="fake",
        task="detection",
        classes=(),
        images=ArrayImages(image, {"train": 1}),
        labels=None,
        splits={"train": np.arange(1)},
    )
    (found,) = p.proposals_of(dataset, np.arange(1), method, count=50)
    assert found.shape[1] == 4 and len(found) <= 50
    assert (found[:, 2:] > found[:, :2]).all()
    if method == "selective-fast":
        assert len(found), "the whole image at least"
    if len(found):
        assert found.min() >= 0 and (found.max(0)[2:] <= np.array(shape[::-1]) + 1e-3).all()
    (again,) = p.proposals_of(dataset, np.arange(1), method, count=50)
    assert np.array_equal(found, again)


def test_quality_holds_what_fast_finds_in_its_colour_spaces() -> None:
    image = cv2.resize(picture(), (150, 45))
    fast = {tuple(b) for b in p.selective_search(image)}
    quality = {tuple(b) for b in p.selective_search(image, quality=True)}
    assert fast <= quality and len(quality) > len(fast)


@pytest.mark.parametrize(
    ("size", "worked"),
    [
        ((375, 500), (375, 500)),
        ((480, 640), (375, 500)),
        ((333, 500), (333, 500)),
        ((1000, 250), (1000, 250)),
        ((5000, 1), (1000, 16)),
        ((1, 5000), (16, 500)),
    ],
)
def test_the_working_size(size: tuple[int, int], worked: tuple[int, int]) -> None:
    assert p.working_size(size) == worked


# The same every time


def test_selective_searchs_set_is_the_same_though_opencvs_order_is_not() -> None:
    image = picture(5)
    one, other = p.selective_search(image), p.selective_search(image)
    assert np.array_equal(one, other)


def test_the_order_is_drawn_from_seed_and_key() -> None:
    first = p.ranks(1000, "train/1", 0)
    assert sorted(first) == list(range(1000))
    assert np.array_equal(first, p.ranks(1000, "train/1", 0))
    for other in (p.ranks(1000, "train/2", 0), p.ranks(1000, "train/1", 1)):
        assert (first != other).mean() > 0.9
    places = np.mean([p.ranks(1000, f"{k}", 0)[:100].mean() for k in range(50)])
    assert 150 < places < 350, "larger ones first, but not only these"


def test_threads_and_the_cache_change_nothing(tmp_path: Path) -> None:
    dataset, ids = folder(tmp_path), np.array([2, 0, 3, 1])
    one = p.search(dataset, ids, folder=tmp_path / "a", threads=1)
    two = p.search(dataset, ids, folder=tmp_path / "b", threads=2)
    again = p.search(dataset, ids, folder=tmp_path / "a", threads=2)
    assert (one.computed, two.computed, again.computed) == (4, 4, 0)
    for a, b, c in zip(one.boxes, two.boxes, again.boxes, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    assert (again.seconds == one.seconds.astype(np.float32)).all()
    fewer = p.proposals_of(dataset, ids[1:2], count=5, folder=tmp_path / "a")[0]
    assert np.array_equal(fewer, one.boxes[1][:5])
    other = p.proposals_of(dataset, ids[1:2], seed=1, folder=tmp_path / "a")[0]
    assert not np.array_equal(other, one.boxes[1])
    assert {tuple(b) for b in other} == {tuple(b) for b in one.boxes[1]}


def process(tmp_path: Path, *, wait: bool = True) -> Any:
    """Computes the six images' proposals one by one, and prints a line after each."""
    code = f"""
        import hashlib, sys
        import numpy as np
        from vidi.data import proposals as p
        from vidi.data.dataset import Dataset, PathTable
        table = PathTable()
        table.extend(f"{{i}}.png" for i in range(6))
        where = {str(tmp_path)!r}
        dataset = Dataset(root=where, format="fake", task="detection", classes=(), labels=None,
                          images=table.images(where), splits={{"train": np.arange(6)}})
        def told(done, n):
            print(done, flush=True)
        found = p.search(dataset, np.arange(6), threads=1, progress=told)
        print("computed", found.computed)
        print("digest", hashlib.sha256(b"".join(b.tobytes() for b in found.boxes)).hexdigest())
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    return child.communicate()[0] if wait else child


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_computation_goes_on_where_it_was(tmp_path: Path) -> None:
    folder(tmp_path, 6)
    child = process(tmp_path, wait=False)
    for line in child.stdout:
        if line.strip() == "2":
            os.kill(child.pid, signal.SIGKILL)
            break
    child.wait()
    child.stdout.close()
    words = process(tmp_path).split()
    computed = int(words[words.index("computed") + 1])
    assert 2 <= computed <= 4, "at least two were kept, and the one underway may be"
    alone = p.search(folder(tmp_path, 6), np.arange(6), folder=tmp_path / "elsewhere")
    whole = hashlib.sha256(b"".join(b.tobytes() for b in alone.boxes)).hexdigest()
    assert words[-1] == whole, "and another process gives the same"


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    folder(tmp_path, 6)
    children = [process(tmp_path, wait=False) for _ in range(2)]
    digests = [child.communicate()[0].split()[-1] for child in children]
    assert digests[0] == digests[1] and len(digests[0]) == 64
    cache = Path(os.environ["VIDI_CACHE"]) / "proposals"
    assert len([f for f in cache.rglob("*") if f.is_file()]) == 6, "nothing is left lying aside"


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied"])
def test_a_damaged_file_is_computed_anew(harm: str, tmp_path: Path) -> None:
    dataset, ids = folder(tmp_path, 1), np.arange(1)
    (before,) = p.search(dataset, ids, folder=tmp_path / "kept").boxes
    (file,) = (tmp_path / "kept").rglob("*.boxes")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes({"cut": data[:-5], "changed": bytes(data), "emptied": b""}[harm])
    after = p.search(dataset, ids, folder=tmp_path / "kept")
    assert after.computed == 1 and np.array_equal(after.boxes[0], before)
    assert p.search(dataset, ids, folder=tmp_path / "kept").computed == 0


def test_a_changed_image_or_method_is_computed_anew(tmp_path: Path) -> None:
    dataset, ids = folder(tmp_path, 1), np.arange(1)
    assert p.search(dataset, ids).computed == 1
    assert p.search(dataset, ids, "edge-boxes").computed == 1
    named = p.EdgeMap("mine", p.gradients)
    assert p.search(dataset, ids, "edge-boxes", edges=named).computed == 1
    assert p.search(dataset, ids, "edge-boxes", edges=named).computed == 0
    Image.fromarray(picture(9)).save(tmp_path / "0.png")
    later = time.time() + 5
    os.utime(tmp_path / "0.png", (later, later))
    assert p.search(dataset, ids).computed == 1


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    dataset = folder(tmp_path, 2)
    (tmp_path / "file").write_text("no folder")
    found = p.search(dataset, np.arange(2), "edge-boxes", folder=tmp_path / "file")
    assert len(found.boxes[0]) and len(found.boxes[1])
    assert len(found.notes) == 1 and "VIDI_CACHE" in found.notes[0]


def test_unreadable_images_are_listed_when_all_others_are_done(tmp_path: Path) -> None:
    dataset = folder(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"(?s)1 of 3 images .*1\.png"):
        p.search(dataset, np.arange(3), "edge-boxes")
    assert p.search(dataset, np.array([0, 2]), "edge-boxes").computed == 0


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"count": 0}])
def test_wrong_words(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"magic|at least 1"):
        p.search(folder(tmp_path, 1), np.arange(1), **wrong)


def test_attached_proposals_are_fields_of_samples(tmp_path: Path) -> None:
    dataset = folder(tmp_path, 2)
    found = p.proposals_of(dataset, np.array([1]), "edge-boxes", count=7)
    with_them = p.attach(dataset, np.array([1]), found)
    proposals = with_them[1].proposals
    assert proposals is not None and np.array_equal(proposals, found[0])
    assert with_them[0].proposals is None and dataset[1].proposals is None
    assert with_them.fingerprint() != dataset.fingerprint()


@pytest.mark.skipif("VIDI_DATA" not in os.environ, reason="needs real data")
def test_recall_on_blood_cells(real_data: Path) -> None:
    from vidi.data.open import open_data

    dataset = open_data(real_data / "bccd", task="detection", carve_val=False)
    ids = np.arange(4)
    truth = [dataset.annotations(int(i))["boxes"] for i in ids]
    for method, least in (("selective-fast", 0.85), ("edge-boxes", 0.85)):
        offered = p.proposals_of(dataset, ids, method, threads=2)  # type: ignore[arg-type]
        assert recall(offered, truth, counts=(2000,)).table[0, 0] > least


def test_embedded_data_has_one_folder_of_proposals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever one stands, and however many scenes are asked for."""
    few, more = ("scenes:detection,size=32,n=2,val=1,test=0", "scenes:detection,size=32,n=3,val=1")
    first = p.search(open_data(few), np.arange(2), "edge-boxes")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = p.search(open_data(more), np.arange(3), "edge-boxes")
    assert (first.computed, again.computed) == (2, 1)
