"""Colours, against Pillow and torchvision where they do the same."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vidi.data import augment, photometry
from vidi.recipe import Augmentation
from vidi.types import Array

FILL = (9, 8, 7)


def picture(seed: int = 0, low: int = 0, high: int = 256) -> Array:
    coarse = np.random.default_rng(seed).integers(low, high, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((48, 36), Image.Resampling.BICUBIC)).copy()


def changed(name: str, image: Array, *values: float) -> Array:
    out = image.copy()
    getattr(photometry, name)(out, *values)
    return out


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.3])
def test_brightness_contrast_and_saturation_are_pillows(factor: float) -> None:
    image = picture()
    pil = Image.fromarray(image)
    ways = {
        "brightness": ImageEnhance.Brightness(pil),
        "contrast": ImageEnhance.Contrast(pil),
        "saturation": ImageEnhance.Color(pil),
    }
    for name, way in ways.items():
        found = image.copy()
        photometry.twist(found, **{name: factor})
        difference = np.abs(found.astype(int) - np.asarray(way.enhance(factor)))
        # Pillow rounds its greys, and cuts where we round.
        assert difference.max() <= 2, name


def test_factors_of_one_change_no_bit() -> None:
    image = picture()
    assert np.array_equal(changed("twist", image, 1.0, 1.0, 1.0, 0.0), image)
    assert np.array_equal(changed("sharpness", image, 1.0), image)
    assert np.array_equal(changed("posterize", image, 8), image)
    assert np.array_equal(changed("solarize", image, 256), image)


def test_the_affine_map_is_brightness_then_contrast_then_saturation_then_hue() -> None:
    """One after the other gives the same, where nothing is clipped and but for rounding."""
    image = picture(low=90, high=160)
    steps = image.copy()
    photometry.twist(steps, brightness=1.1)
    photometry.twist(steps, contrast=0.8)
    photometry.twist(steps, saturation=1.2)
    photometry.twist(steps, hue=0.1)
    found = changed("twist", image, 1.1, 0.8, 1.2, 0.1)
    assert np.abs(found.astype(int) - steps).max() <= 3


def test_hue_turns_colours_and_leaves_grey_and_luma() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    assert np.abs(changed("twist", grey, 1, 1, 1, 0.37).astype(int) - grey).max() <= 1
    image = picture(low=80, high=176)
    turned = changed("twist", image, 1, 1, 1, 0.3)
    assert np.abs(turned.astype(int) - image).max() > 20
    assert np.abs(turned @ photometry.GREY - image @ photometry.GREY).max() < 1.5
    back = changed("twist", turned, 1, 1, 1, -0.3)
    assert np.abs(back.astype(int) - image).max() <= 3
    # A third of the circle takes red towards green and not towards blue, or the reverse.
    red = np.array([[[160, 100, 100]]], np.uint8)
    third = changed("twist", red, 1, 1, 1, 1 / 3)[0, 0].astype(int)
    assert third.argmax() in (1, 2)


def test_policy_operations_are_pillows() -> None:
    for seed in range(5):
        image = picture(seed, 30 * seed, 256 - 10 * seed)
        pil = Image.fromarray(image)
        for bits in range(1, 9):
            assert np.array_equal(
                changed("posterize", image, bits), np.asarray(ImageOps.posterize(pil, bits))
            )
        for threshold in (0, 64, 128, 255):
            found = changed("solarize", image, threshold)
            assert np.array_equal(found, np.asarray(ImageOps.solarize(pil, threshold)))
        assert np.array_equal(changed("equalize", image), np.asarray(ImageOps.equalize(pil)))
        stretched = changed("autocontrast", image).astype(int)
        assert np.abs(stretched - ImageOps.autocontrast(pil)).max() <= 1
        for factor in (0.1, 0.6, 1.9):
            sharp = changed("sharpness", image, factor).astype(int)
            assert np.abs(sharp - ImageEnhance.Sharpness(pil).enhance(factor)).max() <= 2


def test_flat_images_survive() -> None:
    flat = np.full((12, 12, 3), 77, np.uint8)
    for name in ("autocontrast", "equalize"):
        assert np.array_equal(changed(name, flat), flat)
    assert np.array_equal(changed("twist", flat, 1, 0.0), flat)
    assert np.array_equal(changed("sharpness", flat, 1.9), flat)
    tiny = np.full((2, 2, 3), 5, np.uint8)
    assert np.array_equal(changed("sharpness", tiny, 0.1), tiny)


def test_apply_writes_in_place_in_a_batch() -> None:
    """Every operation, on a row of a batch: that row changes, its neighbours do not."""
    ids = np.arange(400, dtype=np.int64)
    a = augment.resolve(Augmentation(preset="strong", crop="resize", erasing=0.3, hue=0.1))
    plan = augment.plan(a, 36, 0, 0, ids)
    assert plan.ops is not None
    assert set(range(augment.SHARPNESS, len(augment.OPS))) <= set(plan.ops.ravel())
    square = picture()[:, :36].copy()
    batch = np.stack([square] * 3)
    altered = 0
    for row in range(len(ids)):
        batch[...] = square
        photometry.apply(plan, row, batch[1], FILL)
        assert np.array_equal(batch[0], square)
        assert np.array_equal(batch[2], square)
        single = square.copy()
        photometry.apply(plan, row, single, FILL)
        assert np.array_equal(batch[1], single)
        altered += not np.array_equal(single, square)
    assert altered > 200


def test_erasing_fills() -> None:
    a = augment.resolve(Augmentation(preset="none", erasing=1.0))
    plan = augment.plan(a, 36, 0, 0, np.arange(20, dtype=np.int64))
    assert plan.erased is not None
    for row in range(20):
        image = np.full((36, 36, 3), 100, np.uint8)
        photometry.apply(plan, row, image, FILL)
        x0, y0, x1, y1 = plan.erased[row]
        assert (image[y0:y1, x0:x1] == FILL).all()
        assert (image == FILL).all(2).sum() == (x1 - x0) * (y1 - y0) > 0


def test_both_frames_of_a_pair_change_alike() -> None:
    """What is equal in both stays equal, whatever else the frames hold, and single ones agree."""
    a = augment.resolve(Augmentation(preset="strong", contrast=0.4, hue=0.1, erasing=0.5))
    ids = np.arange(200, dtype=np.int64)
    plan = augment.plan(a, 36, 0, 0, ids)
    assert plan.colour2 is None
    one, other = picture(1)[:, :36].copy(), picture(2, low=100)[:, :36].copy()
    other[10:30, 10:30] = one[10:30, 10:30]
    changed = 0
    for row in range(len(ids)):
        first, second = one.copy(), other.copy()
        photometry.apply_pair(plan, row, first, second, FILL)
        # Sharpness looks one pixel around.
        assert np.array_equal(first[11:29, 11:29], second[11:29, 11:29])
        changed += not np.array_equal(first, one)
        same, single = one.copy(), one.copy()
        photometry.apply_pair(plan, row, first := one.copy(), same, FILL)
        photometry.apply(plan, row, single, FILL)
        assert np.array_equal(first, same)
        # The histogram of both is equalised in other steps than that of one.
        assert plan.ops is not None
        if augment.EQUALIZE not in plan.ops[row]:
            assert np.abs(first.astype(int) - single).max() <= 1
    assert changed > 150


def test_the_second_frame_differs_by_the_stated_amount() -> None:
    a = augment.resolve(Augmentation(preset="none", pair_jitter=0.2))
    plan = augment.plan(a, 36, 0, 0, np.arange(300, dtype=np.int64))
    assert plan.colour is None
    assert plan.colour2 is not None
    assert plan.colour2.shape == (300, 3)
    assert 0.8 <= plan.colour2.min() < 0.82 and 1.18 < plan.colour2.max() <= 1.2
    for row in range(20):
        first, second = picture()[:, :36].copy(), picture()[:, :36].copy()
        expected = second.copy()
        photometry.twist(expected, *plan.colour2[row].tolist())
        photometry.apply_pair(plan, row, first, second, FILL)
        assert np.array_equal(first, picture()[:, :36])
        assert np.array_equal(second, expected)
    # What else is drawn does not change with it.
    both = augment.resolve(Augmentation(preset="photos", pair_jitter=0.2))
    ids = np.arange(30, dtype=np.int64)
    with_it = augment.plan(both, 36, 0, 0, ids)
    without = augment.plan(augment.resolve(Augmentation(preset="photos")), 36, 0, 0, ids)
    assert np.array_equal(with_it.colour, without.colour)
    assert np.array_equal(with_it.after, without.after)


def test_mixing_pixels() -> None:
    one, other = picture(1), picture(2)
    mixed = one.copy()
    photometry.mixup(mixed, other, 0.3)
    assert np.abs(mixed - (0.3 * one + 0.7 * other.astype(float))).max() <= 0.5 + 1e-6
    cut = one.copy()
    photometry.paste(cut, other, (3, 4, 20, 30))
    assert np.array_equal(cut[4:30, 3:20], other[4:30, 3:20])
    cut[4:30, 3:20] = one[4:30, 3:20]
    assert np.array_equal(cut, one)


def test_channels_gamma_and_noise_are_what_they_say() -> None:
    image = picture(low=20, high=200)
    found = image.copy()
    photometry.twist(found, channels=(1.2, 0.5, 1.0))
    assert np.abs(found - np.clip(image * [1.2, 0.5, 1.0], 0, 255)).max() <= 0.5
    for exponent in (0.7, 1.5):
        expected = np.rint(255 * (image / 255) ** exponent)
        assert np.array_equal(changed("gamma", image, exponent), expected)
    assert np.array_equal(changed("gamma", image, 1.0), image)
    flat = np.full((200, 300, 3), 128, np.uint8)
    noise = changed("grain", flat, 0.05, 0.3).astype(float) - 128
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(0.05 * 255, rel=0.02)
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T)[np.triu_indices(3, 1)]).max() < 0.02
    assert np.abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.02
    other = changed("grain", flat, 0.05, 0.31).astype(float) - 128
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.02
    assert np.array_equal(changed("grain", flat, 0.0, 0.3), flat)
    large = changed("grain", np.full((600, 900, 3), 128, np.uint8), 0.05, 0.99).astype(float) - 128
    assert large.std() == pytest.approx(0.05 * 255, rel=0.02)


def test_a_pairs_frames_change_alike_but_for_their_noise() -> None:
    plain = {"pair_jitter": 0.0, "zoom": (1.0, 1.0)}
    for noise in (0.0, 0.04):
        a = augment.resolve(Augmentation(preset="flow", noise=noise, **plain))  # type: ignore[arg-type]
        plan = augment.plan(a, 48, 0, 0, np.arange(20))
        assert plan.gamma is not None and plan.channels is not None
        assert 1 / 1.4 <= plan.gamma.min() < 0.85 and 1.2 < plan.gamma.max() <= 1.4
        differences = []
        for row in range(20):
            first, second = picture(row), picture(row)
            photometry.apply_pair(plan, row, first, second, FILL)
            assert np.abs(first.astype(int) - picture(row)).mean() > 1
            differences.append(np.abs(first.astype(int) - second).mean())
        assert (max(differences) == 0) == (noise == 0)
