"""What the device gets of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidi.engine.device import to_device
from vidi.types import Array, Batch, Normalisation

LOOK = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def batch(image: Array | list[Array]) -> Batch:
    n = len(image)
    return Batch(
        inputs={"image": image},
        targets={},
        keys=[str(i) for i in range(n)],
        ids=np.arange(n),
        matrices=np.tile(np.eye(3), (n, 1, 1)),
        sizes=np.ones((n, 2), np.int64),
        valid=np.ones(n, bool),
    )


def plainly(image: Array) -> torch.Tensor:
    """Pixel by pixel and channel by channel, [B, 3, H, W]."""
    mean = torch.tensor(LOOK.mean) * 255
    scale = 1 / (torch.tensor(LOOK.std) * 255)
    x = torch.from_numpy(image.copy()).permute(0, 3, 1, 2).float()
    return (x - mean.view(1, 3, 1, 1)) * scale.view(1, 3, 1, 1)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_are_normalised_as_each_channel_says(channels_last: bool) -> None:
    """To the bit, also where the pixels do not lie in order."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    turned = image.transpose(0, 2, 1, 3)
    for given in (image, turned, image[:, ::2, 1:]):
        before = given.copy()
        found = to_device(batch(given), torch.device("cpu"), LOOK, channels_last).inputs["image"]
        assert torch.equal(found, plainly(given))
        order = torch.channels_last if channels_last else torch.contiguous_format
        assert found.is_contiguous(memory_format=order)
        assert (given == before).all()


def test_images_of_different_sizes_stay_a_list() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (4, w, 3), dtype=np.uint8) for w in (3, 6)]
    found = to_device(batch(images), torch.device("cpu"), LOOK, False).inputs["image"]
    assert len(found) == 2
    for one, image in zip(found, images, strict=True):
        assert torch.equal(one, plainly(image[None]))
