"""A sample's annotations under a matrix, against slices, closed forms and slow references."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
import pytest

from vidi.data import annotations, edges
from vidi.data import geometry as g
from vidi.types import Array, Boxes, Sample

H, W = 40, 56


def random_matrix(rng: np.random.Generator, size: tuple[int, int] = (H, W)) -> Array:
    """Any turn, a little shear and shift, zoom by up to 1.5 either way, sometimes mirrored."""
    h, w = size
    turn = g.rotation(rng.uniform(-math.pi, math.pi))
    zoom = np.exp(rng.uniform(-0.4, 0.4, 2))
    middle = g.compose(turn, g.scaling(*zoom), g.shear(*rng.uniform(-0.3, 0.3, 2)))
    shift = g.translation(*(rng.uniform(-0.1, 0.1, 2) * (w, h)))
    mirror = g.flip(w) if rng.random() < 0.5 else np.eye(3)
    return g.compose(mirror, g.about((w / 2, h / 2), middle), shift)


MATRICES = [random_matrix(np.random.default_rng(k)) for k in range(12)]


def boxes(xyxy: Any, instances: Any = None) -> Boxes:
    xyxy = np.asarray(xyxy, np.float32).reshape(-1, 4)
    n = len(xyxy)
    return Boxes(
        xyxy=xyxy,
        labels=np.arange(n, dtype=np.int64) + 3,
        difficult=np.arange(n) % 2 == 1,
        crowd=np.arange(n) % 3 == 1,
        instances=None if instances is None else np.asarray(instances, np.int64),
    )


def made(seed: int = 0, size: tuple[int, int] = (H, W)) -> Sample:
    """A sample with every field, whose flow and boxes lie within the image."""
    rng = np.random.default_rng(seed)
    h, w = size
    corner = rng.uniform(2, (w / 2, h / 2), (5, 2))
    xyxy = np.concatenate([corner, corner + rng.uniform(4, min(h, w) / 2 - 4, (5, 2))], 1)
    segments = np.zeros((2, h, w), np.int32)
    segments[0, 5:20, 8:30], segments[1, 10:, 20:] = 4, 9
    noise = rng.integers(0, 256, (2, h, w, 3), dtype=np.uint8)
    return Sample(
        key="train/a",
        image=noise[0],
        image2=noise[1],
        label=7,
        boxes=boxes(xyxy),
        proposals=xyxy[:3].astype(np.float32),
        mask=rng.integers(0, 9, (h, w), dtype=np.uint8),
        instances=rng.integers(0, 900_000, (h, w), dtype=np.int32),
        flow=rng.uniform(-1, 1, (h, w, 2)).astype(np.float32),
        flow_valid=np.ones((h, w), bool),
        occluded=rng.random((h, w)) < 0.2,
        edges=edges.boundaries(segments),
        segments=segments,
    )


def equal(one: Sample, other: Sample, but: tuple[str, ...] = ()) -> None:
    for field in dataclasses.fields(Sample):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, Boxes):
            for part in ("xyxy", "labels", "difficult", "crowd"):
                assert np.array_equal(getattr(mine, part), getattr(theirs, part)), part
        elif field.name not in but:
            assert np.array_equal(mine, theirs), field.name
            assert getattr(mine, "dtype", None) == getattr(theirs, "dtype", None), field.name


def test_identity_changes_nothing() -> None:
    sample = made()
    equal(annotations.warp_sample(sample, np.eye(3), (H, W)), sample)
    # Lines that do not follow from the segments are copied, too.
    drawn = dataclasses.replace(sample, edges=np.full((2, H, W), 77, np.uint8))
    equal(annotations.warp_sample(drawn, np.eye(3), (H, W)), drawn)


def test_what_is_not_annotated_stays_so() -> None:
    bare = Sample(key="a", image=made().image)
    moved = annotations.warp_sample(bare, MATRICES[0], (20, 20))
    for field in dataclasses.fields(Sample):
        if field.name not in ("key", "image"):
            assert getattr(moved, field.name) is None


@pytest.mark.parametrize("mirror", ["no", "x", "y", "both"])
def test_whole_pixel_crops_and_mirrors_are_slices(mirror: str) -> None:
    sample = made(1)
    sample = dataclasses.replace(sample, occluded=np.zeros((H, W), bool))
    x0, y0, h, w = 3, 5, 28, 44
    matrix, s = g.translation(-x0, -y0), np.s_[y0 : y0 + h, x0 : x0 + w]
    signs = np.ones(2, np.float32)

    def turned(a: Array, axes: tuple[int, int] = (0, 1)) -> Array:
        if mirror in ("x", "both"):
            a = np.flip(a, axes[1])
        return np.flip(a, axes[0]) if mirror in ("y", "both") else a

    xyxy = sample.boxes.xyxy - np.array([x0, y0, x0, y0], np.float32)  # type: ignore[union-attr]
    if mirror in ("x", "both"):
        matrix, signs[0] = g.compose(matrix, g.flip(w)), -1
        xyxy[:, [0, 2]] = w - xyxy[:, [2, 0]]
    if mirror in ("y", "both"):
        matrix, signs[1] = g.compose(matrix, g.vertical_flip(h)), -1
        xyxy[:, [1, 3]] = h - xyxy[:, [3, 1]]
    moved = annotations.warp_sample(sample, matrix, (h, w))
    for name in ("image", "image2", "mask", "instances"):
        assert np.array_equal(getattr(moved, name), turned(getattr(sample, name)[s])), name
    assert moved.segments is not None and moved.edges is not None and moved.boxes is not None
    assert sample.segments is not None and sample.edges is not None and sample.flow is not None
    segments = turned(sample.segments[:, *s], (1, 2))
    assert np.array_equal(moved.segments, segments)
    if mirror == "no":
        assert np.array_equal(moved.edges, sample.edges[:, *s])
    else:
        assert np.array_equal(moved.edges, edges.boundaries(segments))
        # The line lies on the other side of the same boundary, so at most a pixel off.
        near = cv2.dilate(turned(sample.edges[:, *s], (1, 2))[0], np.ones((3, 3), np.uint8))
        assert (near[moved.edges[0] > 0] > 0).all()
    assert np.array_equal(moved.flow, turned(sample.flow[s]) * signs)
    clipped = np.clip(xyxy, 0, [w, h, w, h])
    kept = np.prod(clipped[:, 2:] - clipped[:, :2], 1) > 0.5 * np.prod(xyxy[:, 2:] - xyxy[:, :2], 1)
    assert kept.all()
    assert np.abs(moved.boxes.xyxy - clipped).max() < 1e-5
    # What went on to be seen and does not now is hidden now, and nothing else.
    y, x = np.mgrid[:h, :w] + 0.5
    target = np.stack([x, y], 2) + moved.flow
    out = ((target < 0) | (target >= (w, h))).any(2)
    first_out = ((np.stack(np.meshgrid(np.arange(W), np.arange(H)), 2) + 0.5 + sample.flow) < 0) | (
        (np.stack(np.meshgrid(np.arange(W), np.arange(H)), 2) + 0.5 + sample.flow) >= (W, H)
    )
    assert np.array_equal(moved.occluded, out & ~turned(first_out.any(2)[s]))


@pytest.mark.parametrize("k", range(6))
def test_mask_is_the_pixel_under_the_centre(k: int) -> None:
    sample, size = made(k), (34, 50)
    moved = annotations.warp_sample(sample, MATRICES[k], size)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    p = g.apply(np.linalg.inv(MATRICES[k]), np.stack([x.ravel(), y.ravel()], 1))
    i, j = np.floor(p).astype(int).T
    inside = (i >= 0) & (i < W) & (j >= 0) & (j < H)
    clear = (np.abs(p - np.rint(p)) > 1e-4).all(1).reshape(size)
    assert clear.mean() > 0.99
    for name, outside in (("mask", 255), ("instances", 0), ("occluded", None)):
        source = getattr(sample, name)
        expected = np.where(inside, source[j.clip(0, H - 1), i.clip(0, W - 1)], outside or 0)
        found = getattr(moved, name)
        assert found.dtype == source.dtype
        if outside is not None:
            assert np.array_equal(found[clear], expected.reshape(size)[clear]), name
        else:  # may be more, where the target leaves the image
            assert found[clear & (expected.reshape(size) > 0)].all()


def test_mask_follows_the_image() -> None:
    """An image that shows its own mask, at some distance from the masks' borders."""
    y, x = np.mgrid[:90, :120]
    mask = ((x // 40) + 3 * (y // 45)).astype(np.uint8)
    image = np.repeat(mask[..., None] * np.uint8(40), 3, 2)
    for k in range(6):
        m = random_matrix(np.random.default_rng(k), (90, 120))
        moved = annotations.warp_sample(Sample(key="a", image=image, mask=mask), m, (80, 100))
        assert moved.mask is not None
        flat = cv2.dilate(moved.mask, np.ones((5, 5))) == cv2.erode(moved.mask, np.ones((5, 5)))
        flat &= moved.mask != 255
        assert flat.mean() > 0.1
        assert np.abs(moved.image[flat][:, 0] - moved.mask[flat] * 40.0).max() <= 1


@pytest.mark.parametrize("k", range(8))
def test_classes_stay_with_their_objects_under_a_turn(k: int) -> None:
    """Where objects of one class touch, they split the class's votes."""
    rng = np.random.default_rng(k)
    instances = rng.integers(0, 3, (12, 12)).astype(np.int32)
    mask = (instances > 0).astype(np.uint8)
    m = g.about((6, 6), g.rotation(rng.uniform(-3, 3)))
    sample = Sample(key="a", image=np.zeros((12, 12, 3), np.uint8), mask=mask, instances=instances)
    moved = annotations.warp_sample(sample, m, (12, 12))
    assert moved.mask is not None and moved.instances is not None
    assert moved.mask.dtype == np.uint8 and moved.instances.dtype == np.int32
    inside = moved.mask != 255
    assert inside.mean() > 0.5
    assert np.array_equal(moved.mask[inside] == 1, moved.instances[inside] > 0)
    alone = g.labels(mask, m, (12, 12), 255)
    assert (alone != moved.mask).any()  # which the mask by itself would not do


def test_lines_of_one_pixel_keep_their_boxes_under_a_turn() -> None:
    """A vote thins them, but they are in sight."""
    instances = np.zeros((40, 40), np.int32)
    instances[np.arange(12) + 14, np.arange(12) + 14] = 1
    given = boxes(np.array([[14, 14, 26, 26]]), instances=np.array([1]))
    for angle in np.linspace(0.05, 3, 40):
        m = g.about((20, 20), g.rotation(angle))
        moved = g.labels(instances, m, (40, 40), 0)
        found = annotations.warp_boxes(given, m, (40, 40), instances=instances, moved=moved)
        assert len(found) == 1, angle
        half = g.compose(m, g.translation(-20, 0))
        moved = g.labels(instances, half, (40, 40), 0)
        if g.nearest(instances, half, (40, 40), 0).sum() >= 5:
            found = annotations.warp_boxes(given, half, (40, 40), instances=instances, moved=moved)
            assert len(found) == 1, angle


def test_boxes_become_the_box_about_their_moved_sides() -> None:
    rng = np.random.default_rng(3)
    for matrix in MATRICES:
        corner = rng.uniform(0, 30, (6, 2))
        given = np.concatenate([corner, corner + rng.uniform(3, 20, (6, 2))], 1)
        # A target so far off and large that nothing is clipped.
        m = g.compose(matrix, g.translation(500, 500))
        found = annotations.warp_boxes(boxes(given), m, (1000, 1000)).xyxy
        t = np.linspace(0, 1, 101)
        for box, (x0, y0, x1, y1) in zip(found, given, strict=True):
            along_x, along_y = x0 + (x1 - x0) * t, y0 + (y1 - y0) * t
            sides = [np.stack([along_x, np.full(101, y)], 1) for y in (y0, y1)]
            sides += [np.stack([np.full(101, x), along_y], 1) for x in (x0, x1)]
            p = g.apply(m, np.concatenate(sides))
            assert np.abs(box - [*p.min(0), *p.max(0)]).max() < 1e-3


def test_square_under_an_eighth_of_a_turn() -> None:
    m = g.about((20, 20), g.rotation(math.pi / 4))
    found = annotations.warp_boxes(boxes([15, 15, 25, 25]), m, (40, 40))
    r = 5 * math.sqrt(2)
    assert np.abs(found.xyxy - [20 - r, 20 - r, 20 + r, 20 + r]).max() < 1e-4


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-30, 10, 10, 20], [0, 10, 10, 20]),  # a quarter is left
        ([-31, 10, 10, 20], None),  # less
        ([30, 30, 70, 50], [30, 30, 56, 40]),  # a third of it
        ([-20, -20, -5, -5], None),
        ([10, 10, 11, 30], [10, 10, 11, 30]),
        ([10, 10, 10.9, 30], None),  # thinner than a pixel
        ([10, 10, 10, 30], None),  # no area
        ([20, 20, 10, 10], None),  # inverted
        ([math.nan, 10, 20, 20], None),
        ([-100, -100, 200, 200], None),  # larger than the target, and a fortieth of it in sight
    ],
)
def test_boxes_are_clipped_and_kept_or_dropped(box: list[float], expected: Any) -> None:
    found = annotations.warp_boxes(boxes(box), np.eye(3), (H, W))
    assert found.xyxy.tolist() == ([] if expected is None else [expected])
    assert found.xyxy.dtype == np.float32
    assert len(found.labels) == len(found.difficult) == len(found.crowd) == len(found.xyxy)


def test_flags_and_labels_go_along() -> None:
    given = boxes([[1, 1, 9, 9], [100, 1, 120, 9], [2, 2, 9, 9], [3, 3, 9, 9]], [5, 6, 7, 8])
    found = annotations.warp_boxes(given, np.eye(3), (H, W))
    assert found.labels.tolist() == [3, 5, 6]
    assert found.difficult.tolist() == [False, False, True]
    assert found.crowd.tolist() == [False, False, False]
    assert found.instances is not None
    assert found.instances.tolist() == [5, 7, 8]
    none = annotations.warp_boxes(boxes([]), MATRICES[0], (H, W))
    assert none.xyxy.shape == (0, 4)


def test_smaller_shares_are_kept_on_demand() -> None:
    given = boxes([-90, 10, 10, 20])
    assert len(annotations.warp_boxes(given, np.eye(3), (H, W))) == 0
    kept = annotations.warp_boxes(given, np.eye(3), (H, W), min_visible=0.1)
    assert kept.xyxy.tolist() == [[0, 10, 10, 20]]


def ellipses(size: tuple[int, int]) -> Sample:
    """Three ellipses with their tight boxes, and a fourth box whose object is not in the map."""
    instances = np.zeros(size, np.int32)
    cv2.ellipse(instances, (30, 30), (20, 10), 30, 0, 360, 70_000, -1)
    cv2.ellipse(instances, (80, 60), (15, 25), 0, 0, 360, 2, -1)
    cv2.ellipse(instances, (40, 75), (12, 6), -40, 0, 360, 9, -1)
    values = [70_000, 2, 9, 0]
    tight = [bounds(instances == v) for v in values[:3]]
    found = boxes([*tight, [10.0, 10.0, 30.5, 20.25]], values)
    image = np.zeros((*size, 3), np.uint8)
    return Sample(key="a", image=image, boxes=found, instances=instances)


def bounds(mask: Array) -> list[float]:
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("k", range(6))
def test_boxes_are_tight_about_turned_objects(k: int) -> None:
    sample = ellipses((100, 120))
    m = random_matrix(np.random.default_rng(k), (100, 120))
    moved = annotations.warp_sample(sample, m, (160, 160), min_visible=0)
    assert moved.boxes is not None and moved.boxes.instances is not None
    assert sample.boxes is not None and moved.instances is not None
    hull = annotations.warp_boxes(sample.boxes, m, (160, 160), min_visible=0)
    for box, value in zip(moved.boxes.xyxy, moved.boxes.instances, strict=True):
        if value == 0:
            assert (hull.xyxy == box).all(1).any()
        else:
            assert box.tolist() == bounds(moved.instances == value)
    area = np.prod(moved.boxes.xyxy[:, 2:] - moved.boxes.xyxy[:, :2], 1).sum()
    assert area < 0.9 * np.prod(hull.xyxy[:, 2:] - hull.xyxy[:, :2], 1).sum()


def test_a_cut_object_is_boxed_by_what_is_left_of_it() -> None:
    """An L whose foot alone is in sight: the clipped box would be ten times as high."""
    instances = np.zeros((60, 60), np.int32)
    instances[5:55, 10:16] = instances[50:55, 10:40] = 1
    sample = Sample(
        key="a",
        image=np.zeros((60, 60, 3), np.uint8),
        boxes=boxes([[10.2, 5.1, 39.9, 55]], [1]),
        instances=instances,
    )
    whole = annotations.warp_sample(sample, g.translation(-8, -2), (58, 52)).boxes
    assert whole is not None
    assert np.abs(whole.xyxy - [2.2, 3.1, 31.9, 53]).max() < 1e-5  # as annotated: not cut
    cut = annotations.warp_sample(sample, g.translation(-17, -2), (58, 43)).boxes
    assert cut is not None
    assert cut.xyxy.tolist() == [[0, 48, 23, 53]]
    # 115 of 420 pixels are left; of the box it would be three quarters.
    assert len(annotations.warp_sample(sample, g.translation(-22, -2), (58, 38)).boxes or []) == 0


def test_proposals_are_clipped_and_keep_their_number() -> None:
    given = np.array([[-5, 5, 10, 10], [100, 100, 120, 120], [1, 2, 3, 4]], np.float32)
    sample = dataclasses.replace(made(), proposals=given)
    moved = annotations.warp_sample(sample, g.scaling(2, 1), (H, W)).proposals
    assert moved is not None
    assert moved.tolist() == [[0, 5, 20, 10], [56, 40, 56, 40], [2, 2, 6, 4]]
    assert moved.dtype == np.float32


def affine_flow(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Array]:
    """A matrix near the identity and the flow that is its motion, float32 [H, W, 2]."""
    a = np.eye(3)
    a[:2] += rng.uniform(-1, 1, (2, 3)) * ([0.05, 0.05, 3], [0.05, 0.05, 3])
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    p = np.stack([x.ravel(), y.ravel()], 1)
    return a, (g.apply(a, p) - p).reshape(*size, 2).astype(np.float32)


@pytest.mark.parametrize("k", range(8))
def test_affine_flow_against_its_closed_form(k: int) -> None:
    """Where x goes to A x, p = M1 x goes to M2 A M1⁻¹ p."""
    rng = np.random.default_rng(k)
    a, flow = affine_flow(rng, (H, W))
    m1, m2 = MATRICES[k], MATRICES[(k + 1) % 12]
    size = (34, 50)
    found, valid, occluded = annotations.warp_flow(flow, None, None, m1, size, matrix2=m2)
    assert occluded is None
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    p = np.stack([x.ravel(), y.ravel()], 1)
    expected = (g.apply(m2 @ a @ np.linalg.inv(m1), p) - p).reshape(*size, 2)
    assert valid.mean() > 0.3
    assert np.abs(found - expected)[valid].max() < 1e-3
    assert not found[~valid].any()
    # Valid is what lies within the outermost centres of the source.
    q = g.apply(np.linalg.inv(m1), p)
    within = ((q >= 0.5) & (q <= (W - 0.5, H - 0.5))).all(1).reshape(size)
    near = (np.abs(q - 0.5) < 1e-3).any(1) | (np.abs(q - (W - 0.5, H - 0.5)) < 1e-3).any(1)
    assert np.array_equal(valid[~near.reshape(size)], within[~near.reshape(size)])


def test_frames_that_move_apart_give_flow() -> None:
    """No motion, but the second frame was shifted and turned more than the first."""
    still = np.zeros((H, W, 2), np.float32)
    shift = g.translation(3, -2)
    moved = annotations.warp_flow(still, None, None, np.eye(3), (H, W), matrix2=shift)
    assert (moved[0] == (3, -2)).all()
    same = annotations.warp_flow(still, None, None, MATRICES[0], (H, W), matrix2=MATRICES[0])
    assert not same[0].any()
    turn = annotations.warp_flow(
        np.full((H, W, 2), (2, 0), np.float32),
        None,
        None,
        g.about((28, 20), g.rotation(0.5)),
        (H, W),
    )
    expected = (2 * math.cos(0.5), 2 * math.sin(0.5))
    assert np.abs(turn[0][turn[1]] - expected).max() < 1e-5


def test_unknown_flow_does_not_spread() -> None:
    """Holes of NaN and 1e9: what would touch them is not valid, and all else is untouched."""
    flow = np.full((H, W, 2), 2, np.float32)
    valid = np.ones((H, W), bool)
    flow[10, 12], flow[20:24, 30:34] = math.nan, 1e9
    valid[10, 12] = valid[20:24, 30:34] = False
    m = g.about((W / 2, H / 2), g.compose(g.rotation(0.3), g.scaling(1.3, 1.3)))
    found, now, _ = annotations.warp_flow(flow, valid, None, m, (H, W))
    assert np.isfinite(found).all()
    linear = m[:2, :2] @ (2, 2)
    assert np.abs(found[now] - linear).max() < 1e-4
    y, x = np.mgrid[:H, :W] + 0.5
    q = g.apply(np.linalg.inv(m), np.stack([x.ravel(), y.ravel()], 1)) - 0.5
    i, j = np.floor(q).astype(int).T
    padded = np.pad(valid, 60)
    all_four = np.ones(H * W, bool)
    for dy in (0, 1):
        for dx in (0, 1):
            all_four &= padded[j + dy + 60, i + dx + 60]
    assert np.array_equal(now.ravel(), all_four)
    # At whole pixels only the pixel itself counts.
    kept = annotations.warp_flow(flow, valid, None, g.translation(1, 2), (H, W))[1]
    assert np.array_equal(kept[2:, 1:], valid[:-2, :-1])


def test_a_pixel_whose_target_is_cut_off_is_occluded_and_still_valid() -> None:
    flow = np.full((H, W, 2), (6, 0), np.float32)
    known = np.zeros((H, W), bool)
    known[:, -6:] = True  # leave the second frame
    half = annotations.warp_flow(flow, None, known, np.eye(3), (H, 30))
    assert half[1].all()
    assert half[2] is not None
    assert np.array_equal(half[2], np.arange(30)[None].repeat(H, 0) >= 24)
    # A second frame that was moved the other way loses no one.
    back = annotations.warp_flow(
        flow, None, known, np.eye(3), (H, 30), matrix2=g.translation(-6, 0)
    )
    assert back[2] is not None
    assert not back[2].any()
    assert not back[0].any()
    # One that was moved on loses six columns more.
    on = annotations.warp_flow(flow, None, known, np.eye(3), (H, W), matrix2=g.translation(6, 0))
    assert on[2] is not None
    assert np.array_equal(on[2], np.arange(W)[None].repeat(H, 0) >= W - 12)
    # The data did not call these pixels occluded, and the matrix does not either.
    unsaid = annotations.warp_flow(flow, None, np.zeros((H, W), bool), np.eye(3), (H, W))
    assert unsaid[2] is not None
    assert not unsaid[2].any()


@pytest.mark.parametrize("k", range(6))
def test_there_and_back(k: int) -> None:
    """By M and its inverse: boxes and flow within 1e-3 px, masks but for their rims."""
    rng = np.random.default_rng(k)
    m = random_matrix(rng, (120, 160))
    middle = g.compose(m, g.translation(200, 200))
    back = np.linalg.inv(middle)
    sample = ellipses((120, 160))
    _, flow = affine_flow(rng, (120, 160))
    sample = dataclasses.replace(sample, flow=flow, mask=(sample.instances > 0).astype(np.uint8))
    there = annotations.warp_sample(sample, middle, (600, 600))
    again = annotations.warp_sample(there, back, (120, 160))
    assert sample.mask is not None and again.mask is not None
    assert again.flow is not None and again.flow_valid is not None
    assert again.flow_valid[5:-5, 5:-5].all()
    assert np.abs(again.flow - flow)[again.flow_valid].max() < 1e-3
    both = (sample.mask == 1) & (again.mask == 1)
    assert both.sum() / ((sample.mask == 1) | (again.mask == 1)).sum() > 0.9
    # Boxes without an object in the map, by a matrix that keeps them upright.
    upright = g.compose(g.scaling(*rng.uniform(0.6, 2, 2)), g.translation(*rng.uniform(0, 9, 2)))
    given = boxes(made(k).boxes.xyxy)  # type: ignore[union-attr]
    out = annotations.warp_boxes(given, upright, (400, 400))
    home = annotations.warp_boxes(out, np.linalg.inv(upright), (H, W))
    assert np.abs(home.xyxy - given.xyxy).max() < 1e-3


def test_shrunk_images_meet_annotations_of_full_size() -> None:
    y, x = np.mgrid[:80, :120]
    mask = ((x > 60) & (y > 30)).astype(np.uint8)
    image = np.repeat(mask[..., None] * np.uint8(200), 3, 2)
    small = cv2.resize(image, (60, 40), interpolation=cv2.INTER_AREA)
    m = g.compose(g.crop((20, 10, 100, 70), (45, 60)), g.about((30, 22), g.rotation(0.2)))
    out = np.empty((45, 60, 3), np.uint8)
    sample = Sample(key="a", image=small, image2=small, mask=mask)
    moved = annotations.warp_sample(sample, m, (45, 60), full=(80, 120), out=out)
    assert moved.image is out
    assert moved.mask is not None
    inside = moved.mask != 255
    wrong = (moved.image[..., 0] > 100) != (moved.mask == 1)
    assert wrong[inside].mean() < 0.02


def test_each_frame_moves_by_its_own_matrix() -> None:
    sample = made()
    m1, m2 = g.translation(-3, 0), g.translation(0, -4)
    out = np.empty((20, 20, 3), np.uint8)
    moved = annotations.warp_sample(sample, m1, (20, 20), matrix2=m2, out2=out)
    assert moved.image2 is out
    assert sample.image2 is not None
    assert np.array_equal(moved.image, sample.image[:20, 3:23])
    assert np.array_equal(out, sample.image2[4:24, :20])


def test_what_lies_outside() -> None:
    moved = annotations.warp_sample(made(), g.translation(10, 0), (H, W), fill=(1, 2, 3))
    assert (moved.image[:, :10] == (1, 2, 3)).all()
    assert (moved.image2[:, :10] == (1, 2, 3)).all()  # type: ignore[index]
    assert (moved.mask[:, :10] == 255).all()  # type: ignore[index]
    for name in ("instances", "flow", "flow_valid", "occluded"):
        assert not getattr(moved, name)[:, :10].any(), name
    assert (moved.segments[:, :, :10] == -1).all()  # type: ignore[index]
    assert not moved.edges[:, :, :10].any()  # type: ignore[index]
