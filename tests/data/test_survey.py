"""The normalisation and sizes that a look at the data gives."""

import numpy as np
import pytest

from vidi.data.dataset import ArrayImages, ObjectImages
from vidi.data.survey import survey
from vidi.errors import InputError


def test_mean_and_deviation_are_the_pixels() -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (50, 6, 9, 3), dtype=np.uint8)
    array[..., 1] //= 2
    found = survey(ArrayImages(array, {"train": 50}), np.arange(10, 40))
    pixels = array[10:40].reshape(-1, 3) / 255
    assert found.normalisation.mean == pytest.approx(pixels.mean(0), abs=1e-4)
    assert found.normalisation.std == pytest.approx(pixels.std(0), abs=1e-4)
    assert (found.shorter, found.longest, found.grey) == (6, 9, False)


def test_grey_is_seen_and_a_constant_has_a_deviation() -> None:
    grey = np.full((4, 5, 5), 100, np.uint8)
    found = survey(ArrayImages(grey, {"train": 4}), np.arange(4))
    assert found.grey and found.normalisation.std == pytest.approx([0.01] * 3)


def test_at_most_a_thousand_are_looked_at_the_same_ones_each_time() -> None:
    seen: list[int] = []

    class Counting:
        def __len__(self) -> int:
            return 3000

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            seen.append(i)
            return np.full((2, 2, 3), i % 256, np.uint8), 0

    images = ObjectImages(Counting(), "train", [0] * 3000)
    first = survey(images, np.arange(3000))
    again = survey(images, np.arange(3000))
    assert len(seen) == 2000 and sorted(seen)[0] == 0 and sorted(seen)[-1] == 2999
    assert first.normalisation == again.normalisation


def test_nothing_readable_is_a_sentence() -> None:
    class Broken:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> tuple[object, int]:
            return "no image", 0

    with pytest.raises(InputError, match="None of the 2"):
        survey(ObjectImages(Broken(), "train", [0, 0]), np.arange(2))
