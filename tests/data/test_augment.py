"""Presets, plans and their matrices."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vidi.data import augment, draws, geometry
from vidi.errors import InputError
from vidi.recipe import Augmentation
from vidi.types import Array

IDS = np.arange(500, dtype=np.int64)


def resolved(preset: Any = "none", **fields: Any) -> Augmentation:
    return augment.resolve(Augmentation(preset=preset, **fields))


def made(a: Augmentation, size: int = 32, ids: Array = IDS, epoch: int = 0) -> augment.Plan:
    return augment.plan(a, size, 0, epoch, ids, IDS)


def test_presets_fill_every_auto_and_keep_what_was_given() -> None:
    for name in augment.PRESETS:
        a = resolved(name, longest=100)  # a function of the image size, which no preset knows
        assert "auto" not in dataclasses.asdict(a).values(), name
        assert augment.resolve(a) == a
        assert resolved(name, longest=100, rotation=33.0) == dataclasses.replace(a, rotation=33.0)
    assert set(augment.PRESETS) == {
        "none",
        "digits",
        "small",
        "photos",
        "strong",
        "dense",
        "flow",
        "boxes",
    }
    assert resolved("digits").flip == 0
    assert (resolved("small").pad, resolved("small").pad_mode) == (2, "reflect")


@pytest.mark.parametrize(
    "field",
    [
        {"flip": 1.5},
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.5, 0.2)},
        {"crop_area": (0.5, 1.2)},
        {"crop_ratio": (0.5, math.inf)},
        {"hue": 0.6},
        {"pad": -1},
        {"rotation": math.nan},
        {"rand_magnitude": 31.0},
        {"mixup": -0.1},
        {"pair_jitter": 1.2},
    ],
    ids=str,
)
def test_impossible_values_are_named(field: dict[str, Any]) -> None:
    name, value = next(iter(field.items()))
    with pytest.raises(InputError) as error:
        resolved("photos", **field)
    assert f"augmentation.{name} is {value}" in str(error.value)


def test_unchosen_preset_is_an_error() -> None:
    with pytest.raises(InputError, match=r"preset is still auto"):
        augment.resolve(Augmentation())


@pytest.mark.parametrize("preset", list(augment.PRESETS))
def test_a_batch_is_planned_as_its_singles(preset: str) -> None:
    """And so as any process's share of it, bit for bit."""
    a = resolved(preset, rand_ops=2)
    whole = made(a, 64)
    for k in range(60):
        single = made(a, 64, IDS[k : k + 1])
        for f in dataclasses.fields(augment.Plan):
            one, many = getattr(single, f.name), getattr(whole, f.name)
            if isinstance(one, np.ndarray):
                assert np.array_equal(one[0], many[k]), (f.name, k)
        shape = (48 + k, 100)
        assert np.array_equal(augment.matrix(single, 0, shape), augment.matrix(whole, k, shape))


def test_epochs_differ() -> None:
    a = resolved("photos")
    first, second = made(a, epoch=0), made(a, epoch=1)
    assert first.at is not None
    assert second.at is not None
    assert not np.isclose(first.at, second.at).any()


def test_evaluation_draws_nothing() -> None:
    for preset in augment.PRESETS:
        a = resolved(preset)
        one = augment.plan(a, 32, 0, 0, IDS, IDS, train=False)
        matrices = [augment.matrix(one, row, (40, 60)) for row in range(20)]
        assert all(np.array_equal(m, matrices[0]) for m in matrices)
        assert one.colour is None
        assert one.ops is None
        assert one.erased is None
        assert one.partner is None


def test_evaluation_geometry() -> None:
    """Random resized crops are evaluated as in the papers: shorter side 256, centre 224."""
    photos = augment.plan(resolved("photos"), 224, 0, 0, IDS[:1], train=False)
    exact = augment.matrix(photos, 0, (256, 340))
    assert np.array_equal(exact, geometry.translation(-58, -16))
    box = np.linalg.inv(augment.matrix(photos, 0, (512, 1000)))
    assert np.allclose(geometry.apply(box, np.array([[0, 0], [224, 224]])), [[276, 32], [724, 480]])
    small = augment.plan(resolved("small"), 32, 0, 0, IDS[:1], train=False)
    assert np.array_equal(augment.matrix(small, 0, (32, 32)), np.eye(3))
    assert np.allclose(augment.matrix(small, 0, (64, 96)), geometry.scaling(1 / 3, 1 / 2))


def boxes(plan: augment.Plan, shape: tuple[int, int]) -> Array:
    """x0, y0, x1, y1 of each crop, in source pixels."""
    corners = np.array([[0, 0], [plan.size, plan.size]], float)
    return np.array(
        [
            geometry.apply(np.linalg.inv(augment.matrix(plan, r, shape)), corners).ravel()
            for r in range(len(plan.ids))
        ]
    )


@pytest.mark.parametrize("shape", [(100, 150), (192, 192), (300, 60)])
def test_random_resized_crop_is_distributed_as_in_torchvision(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    a = resolved(crop="random-resized", crop_area=(0.25, 1.0))
    found = boxes(made(a, 64), shape)
    assert np.abs(found - np.rint(found)).max() < 1e-9
    assert found.min() >= -1e-9
    assert found[:, 2].max() <= shape[1] + 1e-9
    assert found[:, 3].max() <= shape[0] + 1e-9
    torch.manual_seed(0)
    blank = torch.zeros(3, *shape)
    theirs = np.array(
        [
            transforms.RandomResizedCrop.get_params(blank, [0.25, 1.0], [3 / 4, 4 / 3])
            for _ in range(len(IDS))
        ]
    )  # top, left, height, width
    ours = np.stack(
        [found[:, 1], found[:, 0], found[:, 3] - found[:, 1], found[:, 2] - found[:, 0]], 1
    )
    for name, x, y in zip(("top", "left", "height", "width"), ours.T, theirs.T, strict=True):
        assert stats.ks_2samp(x, y).pvalue > 1e-3, name


def test_a_crop_that_never_fits_is_the_largest_of_an_allowed_ratio() -> None:
    a = resolved(crop="random-resized", crop_area=(0.9, 1.0))
    assert np.allclose(boxes(made(a, ids=IDS[:20]), (10, 400)), [193, 0, 206, 10], atol=1)
    assert np.allclose(boxes(made(a, ids=IDS[:20]), (400, 12)), [0, 192, 12, 208])


def test_pad_and_crop_takes_every_place_equally_often() -> None:
    found = boxes(made(resolved("small", flip=0.0, pad=4)), (32, 32))
    for column in found.T[:2]:
        places, counts = np.unique(column, return_counts=True)
        assert np.array_equal(places, np.arange(-4, 5))
        assert stats.chisquare(counts).pvalue > 1e-3
    # At another size the same shift of the input, to the nearest source pixel.
    doubled = boxes(made(resolved("small", flip=0.0, pad=4)), (64, 64))
    assert np.allclose(doubled[:, :2], 2 * found[:, :2])


def test_flip_probability_and_composition() -> None:
    a = resolved("small", flip=0.3)
    flipped = np.array([augment.matrix(made(a), r, (32, 32))[0, 0] < 0 for r in range(len(IDS))])
    assert stats.binomtest(int(flipped.sum()), len(IDS), 0.3).pvalue > 1e-3
    straight = made(dataclasses.replace(a, flip=0.0))
    for row in range(20):
        crop = augment.matrix(straight, row, (32, 32))
        expected = geometry.compose(crop, geometry.flip(32)) if flipped[row] else crop
        assert np.allclose(augment.matrix(made(a), row, (32, 32)), expected)


def test_rotation_scale_and_shift_stay_within_their_bounds_and_fill_them() -> None:
    a = resolved(rotation=20.0, scale=0.25, shift=0.1)
    plan = made(a, 100)
    assert plan.after is not None
    angle = np.degrees(np.arctan2(plan.after[:, 1, 0], plan.after[:, 0, 0]))
    zoom = np.hypot(plan.after[:, 0, 0], plan.after[:, 1, 0])
    centre = np.array([geometry.apply(m, np.array([[50.0, 50.0]]))[0] for m in plan.after])
    assert stats.kstest(angle, stats.uniform(-20, 40).cdf).pvalue > 1e-3
    log = np.log(zoom) / np.log(1.25)
    assert stats.kstest(log, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    for column in centre.T:
        assert stats.kstest(column, stats.uniform(40, 20).cdf).pvalue > 1e-3


def test_turning_one_thing_on_changes_no_other() -> None:
    plain, more = made(resolved("small")), made(resolved("small", erasing=0.5, brightness=0.3))
    assert plain.at is not None
    assert more.at is not None
    assert np.array_equal(plain.at, more.at)
    assert np.array_equal(plain.after, more.after)  # type: ignore[arg-type]


def test_trivial_augment_draws_all_operations_alike() -> None:
    ids = np.arange(7000, dtype=np.int64)
    a = resolved(policy="trivial")
    ops, strengths = augment._policy(a, lambda n, k=1: draws.uniform(0, 0, ids, n, k))
    assert ops is not None
    assert strengths is not None
    assert stats.chisquare(np.bincount(ops[:, 0], minlength=14)).pvalue > 1e-3
    assert len(np.unique(np.abs(strengths))) == 31
    assert strengths[~augment._SIGNED[ops]].min() >= 0
    assert (strengths[augment._SIGNED[ops]] < 0).mean() == pytest.approx(0.5, abs=0.05)
    plan = made(a, 128, ids)
    assert plan.after is not None
    assert plan.colour is not None
    assert plan.ops is not None
    # Each image is changed by its one operation only.
    moved = (plan.after != np.eye(3)).any((1, 2))
    coloured = (plan.colour != [1, 1, 1, 0]).any(1)
    other = plan.ops[:, 0] > 0
    assert ((moved.astype(int) + coloured + other) <= 1).all()
    assert (moved & ~np.isin(ops[:, 0], range(1, 6))).sum() == 0
    assert (coloured & ~np.isin(ops[:, 0], (6, 7, 8))).sum() == 0
    assert np.array_equal(other, ops[:, 0] >= augment.SHARPNESS)


def test_rand_augment_strength() -> None:
    plan = made(resolved(policy="rand", rand_ops=1, rand_magnitude=30.0), 331)
    assert plan.after is not None
    assert plan.amounts is not None
    assert plan.ops is not None
    shifts = np.unique(
        np.abs(plan.after[:, 0, 2][(plan.after[:, :2, :2] == np.eye(2)).all((1, 2))])
    )
    assert np.allclose(shifts, [0, 150])
    shears = plan.after[:, 0, 1][plan.after[:, 0, 0] == 1]
    assert np.abs(shears).max() == pytest.approx(0.3)
    assert set(plan.amounts[plan.ops == augment.POSTERIZE]) == {4}
    assert set(plan.amounts[plan.ops == augment.SOLARIZE]) == {0}
    weak = made(resolved(policy="rand", rand_ops=2, rand_magnitude=0.0), 32)
    assert np.array_equal(weak.after, np.broadcast_to(np.eye(3), (len(IDS), 3, 3)))  # type: ignore[arg-type]
    assert weak.colour is not None
    assert (weak.colour == [1, 1, 1, 0]).all()


def test_erased_boxes() -> None:
    plan = made(resolved(erasing=0.4), 100)
    assert plan.erased is not None
    x0, y0, x1, y1 = plan.erased.T
    on = x1 > x0
    assert stats.binomtest(int(on.sum()), len(IDS), 0.4).pvalue > 1e-3
    area = ((x1 - x0) * (y1 - y0))[on] / 100**2
    assert area.min() > 0.015
    assert area.max() < 0.34
    assert plan.erased.min() >= 0
    assert plan.erased.max() <= 100


def test_mixing() -> None:
    a = resolved(mixup=0.2, cutmix=1.0, mix_probability=0.8)
    pool = IDS[100:]
    plan = augment.plan(a, 64, 0, 0, IDS, pool)
    assert plan.partner is not None
    assert plan.share is not None
    assert plan.cut is not None
    assert np.isin(plan.partner, pool).all()
    x0, y0, x1, y1 = plan.cut.T
    cut = (x1 - x0) * (y1 - y0) > 0
    # The share is that of the pixels, exactly.
    assert np.array_equal(plan.share[cut], (1 - (x1 - x0) * (y1 - y0) / 64**2)[cut])
    mixup = ~cut & (plan.share < 1)
    assert stats.binomtest(int(mixup.sum()), len(IDS), 0.4).pvalue > 1e-3
    assert stats.kstest(plan.share[mixup], stats.beta(0.2, 0.2).cdf).pvalue > 1e-3
    assert plan.share.min() >= 0
    assert plan.share.max() <= 1
    assert augment.plan(a, 64, 0, 0, IDS).partner is None
    assert not augment.mixes(resolved("photos"))
    assert augment.mixes(a)
    assert not augment.mixes(dataclasses.replace(a, mix_probability=0.0))


def test_only_one_kind_of_mixing() -> None:
    only_cut = made(resolved(cutmix=1.0))
    assert only_cut.cut is not None
    assert only_cut.share is not None
    covered = np.prod(only_cut.cut[:, 2:] - only_cut.cut[:, :2], 1)
    assert np.array_equal(only_cut.share, 1 - covered / 32**2)
    only_mixup = made(resolved(mixup=1.0))
    assert only_mixup.cut is not None
    assert not only_mixup.cut.any()


@pytest.mark.parametrize("shape", [(40, 50), (20, 100), (16, 16)])
def test_zoom_keeps_proportions_and_reaches_all_of_the_image(shape: tuple[int, int]) -> None:
    h, w = shape
    plan = made(resolved("dense", flip=0.0, zoom=(0.5, 2.0)))
    assert plan.zooms is not None
    assert stats.kstest(np.log2(plan.zooms), "uniform", (-1, 2)).pvalue > 1e-3
    boxes = []
    for row in range(len(IDS)):
        m = augment.matrix(plan, row, shape)
        assert m[0, 0] == m[1, 1], "nothing is squashed"
        assert m[0, 0] == pytest.approx(plan.zooms[row], rel=1 / 16)
        boxes.append(geometry.hulls(np.linalg.inv(m), np.array([[0, 0, 32, 32]]))[0])
    found = np.array(boxes)
    assert np.abs(found - found.round()).max() < 1e-6, "whole pixels"
    for low, high, side in ((found[:, 0], found[:, 2], w), (found[:, 1], found[:, 3], h)):
        small = high - low <= side
        assert (low[small] > -1e-6).all() and (high[small] < side + 1e-6).all()
        assert (low[~small] < 1e-6).all() and (high[~small] > side - 1e-6).all()
        assert low.min() < 1 and high.max() > side - 1


def test_whole_images_are_mirrored_and_turned_about_their_own_centre() -> None:
    plan = made(resolved("dense", crop="whole", flip=1.0))
    m = augment.matrix(plan, 0, (20, 50))
    assert np.array_equal(m, geometry.flip(50))
    plan = made(resolved("none", crop="whole", rotation=30.0))
    for row in range(20):
        m = augment.matrix(plan, row, (20, 50))
        assert geometry.apply(m, np.array([[25.0, 10.0]])) == pytest.approx(np.array([[25, 10]]))


@pytest.mark.parametrize("crop", ["zoom", "whole"])
def test_evaluation_of_labels_per_pixel_sees_the_image_as_it_is(crop: Any) -> None:
    plan = augment.plan(resolved("dense", crop=crop), 32, 0, 0, IDS, train=False)
    assert plan.crop == "whole"
    assert np.array_equal(augment.matrix(plan, 3, (20, 50)), np.eye(3))


@pytest.mark.parametrize(
    ("shape", "longest", "wanted"),
    [
        ((480, 640), 1000, (600, 800)),  # the shorter side decides
        ((300, 900), 1000, (333, 1000)),  # the longer one would be too long
        ((900, 300), 1000, (1000, 333)),
        ((600, 600), 1000, (600, 600)),
        ((1, 4000), 1000, (1, 1000)),
    ],
)
def test_shorter_brings_the_shorter_side_to_the_image_size(
    shape: tuple[int, int], longest: int, wanted: tuple[int, int]
) -> None:
    """600 and 1000 are Fast R-CNN's (section 5.2). Proportions stay, to a pixel."""
    a = resolved("none", crop="shorter", longest=longest)
    for train in (False, True):
        plan = augment.plan(a, 600, 0, 0, np.arange(1), train=train)
        assert augment.target(plan, shape) == wanted
        matrix = augment.matrix(plan, 0, shape)
        corner = matrix @ [shape[1], shape[0], 1]
        assert corner[:2] == pytest.approx(wanted[::-1]) and matrix[:2, 2].tolist() == [0, 0]


def test_boxes_zooms_and_mirrors_about_the_centre_of_the_input() -> None:
    a = resolved("boxes", longest=100, scale=0.25, flip=0.5)
    plan = augment.plan(a, 60, 0, 0, np.arange(200))
    zooms = []
    for row in range(200):
        matrix = augment.matrix(plan, row, (60, 90))
        assert matrix @ [45, 30, 1] == pytest.approx([45, 30, 1])
        zooms.append(matrix[0, 0])
    assert 0.8 <= np.abs(zooms).min() < 0.85 and 1.2 < np.abs(zooms).max() <= 1.25
    assert 60 < (np.array(zooms) < 0).sum() < 140
