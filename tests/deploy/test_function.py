"""The whole function answers as the run does on an array, and resizes as the loader does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import vidi
from vidi.api import Model
from vidi.data import augment, geometry, images
from vidi.data.augment import Plan
from vidi.deploy import resizing
from vidi.deploy.function import function
from vidi.ops import correlation
from vidi.types import Array

SIZES = [(40, 48), (202, 246), (64, 64), (31, 200), (9, 7), (448, 448), (300, 700)]
QUICK: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "length": {"steps": 2},
    "batch_size": 4,
    "lr": 0.01,
    "logging": {"pictures": False},
}
SCENES = "scenes:{},size=48,n=8,val=4,test=0"


def picture(height: int, width: int, seed: int = 0) -> Array:
    """Patches of colour with soft and hard borders, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 3 + 2, width // 3 + 2, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height)))


def levels(array: Array) -> torch.Tensor:
    return torch.from_numpy(array)[None].permute(0, 3, 1, 2).float()


def check_levels(found: torch.Tensor, right: Array) -> None:
    """Equal, but for a grey level here and there."""
    apart = np.abs(found[0].permute(1, 2, 0).numpy() - right)
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 0.03


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "shorter"), [(32, 48), (64, 96), (224, 336)])
def test_the_centre_is_the_loaders(size: tuple[int, int], side: int, shorter: int) -> None:
    image = picture(*size)
    held = images.shrink(image, size, shorter)
    matrix = augment.matrix(Plan(np.arange(1), side, "centre"), 0, held.shape[:2])
    check_levels(resizing.centred(levels(image), shorter, side), geometry.warp(held, matrix, side))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [8, 32, 100])
def test_the_squashed_image_is_the_loaders(size: tuple[int, int], side: int) -> None:
    image = picture(*size)
    held = images.shrink(image, size, side)
    right = geometry.resize(held, np.empty((side, side, 3), np.uint8))
    if held.shape == right.shape:
        right = held
    check_levels(resizing.squashed(levels(image), side, side), right)


@pytest.mark.parametrize("size", SIZES)
def test_the_shrunk_image_is_the_loaders(size: tuple[int, int]) -> None:
    image = picture(*size)
    check_levels(resizing.shrunk(levels(image), 30), images.shrink(image, size, 30))


@pytest.mark.parametrize("size", [(5, 9), (12, 7)])
@pytest.mark.parametrize(("displacement", "stride"), [(3, 1), (4, 2)])
def test_correlation_by_rows_is_correlation(
    size: tuple[int, int], displacement: int, stride: int
) -> None:
    first, second = torch.randn(2, 2, 6, *size, generator=torch.Generator().manual_seed(0))
    right = correlation.correlation(first, second, displacement=displacement, stride=stride)
    found = correlation._by_rows(first, second, displacement // stride, stride)
    torch.testing.assert_close(found, right)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def digits(runs: Path) -> Model:
    vidi.train("digits", run=runs / "digits", model="mlp", **QUICK)
    return vidi.load(runs / "digits", device="cpu")


@pytest.fixture(scope="module")
def scenes(runs: Path) -> dict[str, Model]:
    found = {}
    for task, model in (
        ("segmentation", "fcn_small"),
        ("boundaries", "hed_small"),
        ("flow", "flownet_small"),
    ):
        vidi.train(SCENES.format(task), run=runs / task, model=model, **QUICK)
        found[task] = vidi.load(runs / task, device="cpu")
    return found


def changed(model: Model, **changes: Any) -> Model:
    """The model as if its run had been told otherwise."""
    recipe = dataclasses.replace(model.recipe, **changes)
    description = dataclasses.replace(model.description, recipe=recipe)
    return dataclasses.replace(model, description=description)


def answered(model: Model, *frames: Array) -> dict[str, Array]:
    whole = function(model)
    with torch.inference_mode():
        found = whole(*(torch.from_numpy(frame)[None] for frame in frames))
    assert list(found) == list(whole.outputs)
    return {name: tensor[0].numpy() for name, tensor in found.items()}


@pytest.mark.parametrize("crop", ["resize", "random-resized"])
@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("size", [(8, 8), (40, 48), (90, 31)])
def test_probabilities_are_the_runs(
    digits: Model, crop: Any, task: Any, size: tuple[int, int]
) -> None:
    augmentation = dataclasses.replace(digits.recipe.augmentation, crop=crop)
    model = changed(digits, augmentation=augmentation, task=task)
    image = picture(*size)
    found = answered(model, image)["probabilities"]
    right = model.predict(image)[0].probabilities
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, right, atol=5e-3)
    assert found.argmax() == right.argmax()
    other = answered(model, np.ascontiguousarray(image[..., ::-1]))["probabilities"]
    assert np.abs(other - right).max() > 10 * np.abs(found - right).max()


@pytest.mark.parametrize("shorter", [0, 33])
@pytest.mark.parametrize("size", [(48, 48), (61, 80)])
def test_answers_for_each_pixel_are_the_runs(
    scenes: dict[str, Model], shorter: int, size: tuple[int, int]
) -> None:
    image, image2 = picture(*size), picture(*size, seed=1)
    for task, model in scenes.items():
        data = dataclasses.replace(model.recipe.data, shorter=shorter)
        model = changed(model, data=data)
        if task == "flow":
            right, found = model.predict([(image, image2)])[0].flow, answered(model, image, image2)
            assert np.linalg.norm(found["flow"] - right, axis=2).mean() < 0.05
        elif task == "segmentation":
            right, found = model.predict(image)[0].mask, answered(model, image)
            assert (found["mask"] != right).mean() < 0.01
        else:
            right, found = model.predict(image)[0].soft, answered(model, image)
            np.testing.assert_allclose(found["boundaries"], right, atol=0.02)
        (one,) = found.values()
        assert one.dtype == right.dtype and one.shape == right.shape
