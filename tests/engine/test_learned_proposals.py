"""What a network proposes by itself: where, in which order, how many, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import vidi
from vidi.api import Model
from vidi.data.open import from_images
from vidi.engine import learned_proposals
from vidi.errors import InputError
from vidi.models.faster_rcnns import FasterRCNN
from vidi.types import Array

OWN = 300
"""As many proposals the network looks at in detection."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """It has learned next to nothing, but its anchors fit, and it is sure of some more than of
    others."""
    folder = tmp_path_factory.mktemp("learned")
    settings: dict[str, Any] = {
        "model": "faster_rcnn_small",
        "data": {"cache": "off"},
        "batch_size": 4,
        "image_size": 64,
        "length": {"steps": 2},
        "precision": "fp32",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDI_CACHE", str(folder / "cache"))
        vidi.train("scenes:detection,size=64,n=8,val=2,test=2", run=folder / "run", **settings)
        yield vidi.load(folder / "run", device="cpu")


def noise(height: int, width: int, seed: int = 0) -> Array:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width], np.uint8)


def said(model: Model, pixels: Array, count: int) -> tuple[Array, Array]:
    """(boxes in the pixels of this input, logits), of the network asked by hand."""
    network = model.network
    assert isinstance(network, FasterRCNN)
    mean, std = (
        torch.tensor(x).view(3, 1, 1)
        for x in (model.compute.normalisation.mean, model.compute.normalisation.std)
    )
    x = ((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std)[None]
    with torch.inference_mode():
        anchored = network.anchored(network.pyramid(x))
        ((boxes, logits),) = network.scored_proposals(anchored, [pixels.shape[:2]], count)
    return boxes.numpy(), logits.numpy()


@pytest.mark.parametrize(
    ("full", "seen"), [((64, 96), (64, 96)), ((192, 160), (77, 64)), ((130, 150), (64, 74))]
)
def test_boxes_are_in_pixels_of_the_full_image(
    full: tuple[int, int], seen: tuple[int, int], model: Model
) -> None:
    """The network sees a side of 64 pixels, the other one rounded: each has a scale of its own."""
    pixels = noise(*full)
    (got,) = model.proposals(pixels, 50)
    small = cv2.resize(pixels, seen[::-1], interpolation=cv2.INTER_AREA)
    boxes, logits = said(model, small, 50)
    scale = np.array([full[1] / seen[1], full[0] / seen[0]] * 2)
    assert got.boxes.dtype == got.scores.dtype == np.float32
    assert len(boxes) == 50
    np.testing.assert_allclose(got.boxes, boxes * scale, atol=1e-3)
    np.testing.assert_allclose(got.scores, 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert (got.boxes >= 0).all() and (got.boxes <= np.array([full[1], full[0]] * 2)).all()
    assert (got.boxes[:, 2:] > got.boxes[:, :2]).all()
    assert got.seconds > 0


def test_the_surest_come_first_and_they_are_those_that_detection_looks_at(model: Model) -> None:
    pixels = noise(64, 80)
    (whole,) = model.proposals(pixels, OWN)
    assert len(whole.boxes) == OWN
    assert (np.diff(whole.scores) <= 0).all() and whole.scores[0] > whole.scores[-1]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    mean, std = model.compute.normalisation.mean, model.compute.normalisation.std
    image = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        regions = model.network(image).regions[:, 1:]
    np.testing.assert_allclose(whole.boxes, regions.numpy(), atol=1e-3)
    for count in (1, 7, 100):
        (fewer,) = model.proposals(pixels, count)
        assert np.array_equal(fewer.boxes, whole.boxes[:count])
        assert np.array_equal(fewer.scores, whole.scores[:count])


def test_more_are_to_be_had_than_detection_looks_at(model: Model) -> None:
    (got,) = model.proposals(noise(128, 128), OWN + 150)
    assert len(got.boxes) == OWN + 150
    assert len(np.unique(got.boxes, axis=0)) == len(got.boxes)
    assert (np.diff(got.scores) <= 0).all()
    assert len(model.proposals(noise(64, 64), 100_000)[0].boxes) > 450


def test_an_image_is_proposed_the_same_alone_and_in_company(model: Model) -> None:
    images = [noise(64, 96, 1), noise(200, 70, 2), noise(64, 96, 3), noise(40, 40, 4)]
    dataset = from_images(images)
    own = (model.network, model.recipe, model.compute, dataset)
    done: list[tuple[int, int]] = []
    one, two = (
        learned_proposals.search(
            *own, np.array([3, 0, 1, 2]), threads=n, progress=lambda k, n: done.append((k, n))
        )
        for n in (1, 2)
    )
    alone = [model.proposals(images[i])[0] for i in (3, 0, 1, 2)]
    for other in (two, alone):
        for a, b in zip(one, other, strict=True):
            assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores)
    assert [p.path for p in one] == [p.path for p in two] == [f"image {i}" for i in (3, 0, 1, 2)]
    assert not np.array_equal(one[1].boxes, one[3].boxes)
    assert done == [(k, 4) for k in (1, 2, 3, 4)] * 2


def test_it_leaves_all_as_it_was(model: Model) -> None:
    threads = torch.get_num_threads()
    model.network.train()
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    try:
        (got,) = model.proposals(noise(64, 64))
        assert model.network.training
        assert torch.get_num_threads() == threads
        assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())
    finally:
        model.network.eval()
    assert np.array_equal(got.boxes, model.proposals(noise(64, 64))[0].boxes)


def test_images_that_cannot_be_read_are_listed(model: Model, tmp_path: Path) -> None:
    Image.fromarray(noise(50, 60)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    with pytest.raises(InputError, match="1 image could not be read and got no proposals") as told:
        model.proposals([tmp_path / "good.png", tmp_path / "bad.png"])
    assert "bad.png" in str(told.value) and "good.png" not in str(told.value)
    (got,) = model.proposals(tmp_path / "good.png")
    assert got.path == str(tmp_path / "good.png")


def test_what_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="0 proposals were asked for"):
        model.proposals(noise(64, 64), 0)
    with pytest.raises(InputError, match="no image to look at"):
        model.proposals([])
    told = vidi.models.fast_rcnn_small(3)
    dataset = from_images([noise(64, 64)])
    with pytest.raises(InputError, match=r"does not propose regions itself.*faster_rcnn_small"):
        learned_proposals.search(told, model.recipe, model.compute, dataset, np.arange(1))
