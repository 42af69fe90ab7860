"""Tiles give the whole image's result: the same logits and labels, at every pixel."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.errors import InputError
from vidi.ops import receptive, tiles
from vidi.types import Array


def normalise(pixels: Array) -> Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 64 - 2)


def noise(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Cropped(nn.Module):
    """Layers, after a border of zeros, whose map is cut to the image's size."""

    def __init__(self, *layers: nn.Module, border: int = 0, offset: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.border, self.offset = border, offset

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(F.pad(x, (self.border,) * 4))
        rows, columns = (slice(self.offset, self.offset + n) for n in x.shape[2:])
        out: Tensor = y[:, :, rows, columns]
        return out


class Skips(nn.Module):
    """Two resolutions that meet, as in FCN-16s: a pooled path with dilation, and a fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.coarse = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1)
        self.score = nn.Conv2d(6, 5, 1)
        self.last = nn.ConvTranspose2d(5, 5, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.norm(self.fine(x)).relu()
        coarse = self.up(self.coarse(F.max_pool2d(fine, 2, ceil_mode=True)).relu())
        joined = self.score(fine) + coarse[..., : fine.shape[2], : fine.shape[3]]
        out: Tensor = self.last(joined)[..., : x.shape[2], : x.shape[3]]
        return out


class Lopsided(nn.Module):
    """Sees one row up and one column left, five rows down and five columns right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (1, 5, 1, 5)))
        return out


class Context(nn.Module):
    """Each pixel's logits depend on the mean of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        out: Tensor = y * y.mean((2, 3), keepdim=True)
        return out


class Corners(nn.Module):
    """Upsampled with corners aligned, so that its grid stretches with the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), x.shape[2:], mode="bilinear", align_corners=True)


def bilinear(factor: int) -> nn.Module:
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)


# Name: network, stride, how far it sees beyond a cut at a multiple of the stride, by hand.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "one": (lambda: nn.Conv2d(3, 4, 1), 1, 0),
    "dilated": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3, padding=3, dilation=3),
        ),
        1,
        1 + 3,
    ),
    # The first cell's five rows begin two before the cut; rows up to its centre's next see it.
    "strided": (lambda: Cropped(nn.Conv2d(3, 4, 5, 4, 2), bilinear(4)), 4, 4 + 2),
    # The first convolution's row beyond the cut is within a pool's cell, which the second's sees.
    "pooled": (
        lambda: Cropped(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(6, 4, 3, padding=1),
            nn.Upsample(scale_factor=2),
        ),
        2,
        2 + 2,
    ),
    "lopsided": (Lopsided, 1, 5),
    "skips": (Skips, 4, -1),
    # As FCN-32s in the paper, at a sixteenth of its stride: a border of zeros, then offsets.
    "border": (
        lambda: Cropped(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(4, ceil_mode=True),
            nn.Conv2d(6, 6, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 8, 4),
            border=13,
            offset=5,
        ),
        4,
        -1,
    ),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(7)
    network = NETWORKS[name][0]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_equal_the_whole_image(name: str) -> None:
    """Logits and labels, everywhere, for sizes of any remainder, with several tiles each way."""
    network = made(name)
    field = receptive.measure(network)
    for height, width in ((197, 131), (128, 196), (70, 303)):
        image = noise(height, width)
        with torch.inference_mode():
            whole = network(normalise(image))
        got = tiles.predict_tiled(network, image, normalise, tile=100, reduce=lambda y: y)
        assert len(tiles.lay(height, width, field, 100).tiles) > 2
        np.testing.assert_allclose(got, whole.numpy(), rtol=1e-4, atol=2e-5)
        notes: list[str] = []
        classes = tiles.predict_tiled(network, image, normalise, tile=100, notes=notes)
        assert classes.dtype == np.uint8 and classes.shape == (height, width)
        assert (classes == whole[0].numpy().argmax(0)).mean() > 0.9999  # ties, within noise
        assert notes == []


@pytest.mark.parametrize("name", [n for n, (_, _, reach) in NETWORKS.items() if reach >= 0])
def test_the_field_is_what_the_layers_say(name: str) -> None:
    _, stride, reach = NETWORKS[name]
    field = receptive.measure(made(name))
    assert field.stride == stride
    assert field.reach == (reach, reach)


@pytest.mark.parametrize("name", NETWORKS)
def test_less_overlap_than_the_field_is_too_little(name: str) -> None:
    """The measured reach is needed, not only enough: a cut one pixel nearer shows."""
    network = made(name)
    field = receptive.measure(network)
    assert field.reach is not None
    s, reach = field.stride, field.reach[0]
    image = normalise(noise(40 * s + 64, 64))
    worst = []
    with torch.inference_mode():
        whole = network(image)
        for start, stop in ((8 * s, image.shape[2]), (0, image.shape[2] // s * s - 8 * s)):
            part = network(image[:, :, start:stop])
            apart = (part - whole[:, :, start:stop]).abs().amax((0, 1, 3)) > 2e-5
            rows = apart.nonzero().flatten()
            inner = [int(r) + 1 if start else len(apart) - int(r) for r in rows]
            worst.append(max(inner, default=0))
    assert max(worst) == reach


def test_the_field_does_not_depend_on_the_weights() -> None:
    """Networks begin with scores of zero, and a ReLU may be shut: what they will see is found."""
    network = made("skips")
    expected = receptive.measure(network)
    other = made("skips")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    got = receptive.measure(other)
    assert (got.stride, got.reach) == (expected.stride, expected.reach)


def test_a_module_is_measured_once_and_left_as_it_was() -> None:
    network = made("skips")
    network.train()
    network.norm.eval()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = receptive.measure(network)
    assert receptive.measure(network) is first
    assert network.training and not network.norm.training  # type: ignore[union-attr]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1, 0.75])
def test_mirrors_and_scales_averaged_by_the_caller(scale: float) -> None:
    """A function that averages over mirrors and sizes is tiled as a network is."""
    network = made("skips")

    def averaged(x: Tensor) -> Tensor:
        resized = x
        if scale != 1:
            resized = F.interpolate(x, scale_factor=scale, mode="bilinear")
        y = network(resized).softmax(1) + network(resized.flip(3)).flip(3).softmax(1)
        return y if scale == 1 else F.interpolate(y, scale_factor=1 / scale, mode="bilinear")

    field = receptive.measure(averaged)
    assert field.stride == (4 if scale == 1 else 16)
    image = noise(160, 183 if scale == 1 else 320)
    with torch.inference_mode():
        whole = averaged(normalise(image))[0].numpy()
    got = tiles.predict_tiled(
        averaged, image, normalise, tile=130, field=field, reduce=lambda y: y[0]
    )
    np.testing.assert_allclose(got, whole, atol=2e-5)


def test_an_image_that_fits_is_one_call() -> None:
    sizes = []

    def network(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape[2:]))
        return x

    image = noise(33, 47)
    got = tiles.predict_tiled(network, image, normalise, tile=47)
    assert sizes == [(33, 47)]
    np.testing.assert_array_equal(got, image.argmax(2))
    tiles.predict_tiled(network, image, normalise)
    assert sizes == [(33, 47)] * 2


def test_many_classes_have_numbers_of_four_bytes() -> None:
    logits = torch.zeros(1, 300, 4, 5)
    logits[0, 299] = 1
    got = tiles.labels(logits)
    assert got.dtype == torch.int32 and (got == 299).all()


@pytest.mark.parametrize(
    ("network", "words"),
    [(Context(), "sees the whole image"), (Corners(), "depend on the image's size")],
)
def test_what_differs_from_the_whole_image_is_told(network: nn.Module, words: str) -> None:
    notes: list[str] = []
    got = tiles.predict_tiled(network, noise(150, 90), normalise, tile=64, notes=notes)
    assert got.shape == (150, 90)
    assert len(notes) == 1 and words in notes[0]


def test_a_field_too_large_for_the_tile_is_capped_and_told() -> None:
    network = nn.Conv2d(3, 4, 3, padding=40, dilation=40).eval()
    notes: list[str] = []
    image = noise(200, 150)
    got = tiles.predict_tiled(network, image, normalise, tile=100, notes=notes)
    assert "overlap by 30 pixels, and the network sees 40" in notes[0]
    with torch.inference_mode():
        whole = network(normalise(image))[0].numpy().argmax(0)
    assert 0.3 < (got == whole).mean() < 1
    del notes[:]
    got = tiles.predict_tiled(network, image, normalise, tile=140, notes=notes)
    assert notes == []
    assert (got == whole).mean() > 0.9999


def test_tiles_too_small_for_the_stride_are_refused() -> None:
    with pytest.raises(InputError, match="steps of 4: take at least 32"):
        tiles.predict_tiled(made("strided"), noise(90, 90), normalise, tile=20)


def test_kept_parts_cover_each_pixel_once() -> None:
    for height, width, stride, side, reach in product(
        (65, 333), (64, 1000), (1, 8), (64, 100), (0, 3, 11, 500)
    ):
        field = receptive.Field(stride, (reach, reach), ((1.0, 0.0, 0.0),))
        count = np.zeros((height, width), int)
        plan = tiles.lay(height, width, field, side)
        for tile in plan.tiles:
            count[tile.kept] += 1
            for kept, seen, length in zip(tile.kept, tile.seen, count.shape, strict=True):
                assert seen.start % stride == 0 and (length - seen.stop) % stride == 0
                assert seen.stop - seen.start <= side
                needed = min(reach, int(side * tiles.LARGEST_SHARE))
                assert kept.start - seen.start >= needed or seen.start == 0
                assert seen.stop - kept.stop >= needed or seen.stop == length
        assert (count == 1).all()


@pytest.mark.parametrize("name", ["strided", "skips", "border"])
def test_the_memory_of_maps_is_foretold(name: str) -> None:
    """Also where the network enlarges its image, and another step is the worst at small sizes."""
    network = made(name)
    field = receptive.measure(network)
    for height, width in ((40, 64), (300, 420), (1000, 36)):
        with receptive._Watch() as watch, torch.inference_mode():
            network(torch.zeros(1, 3, height, width))  # made within, so it counts
        assert max(watch.course) == pytest.approx(field.memory(height, width), rel=0.05)
        assert field.width(height, field.memory(height, width)) in (width - 1, width)


def test_memory_is_bounded_by_the_tile() -> None:
    """The result and a tile are there, never the whole image's maps nor its floats."""
    network = made("skips")
    field = receptive.measure(network)
    image = noise(1400, 1800)
    with receptive._Watch() as watch:
        tracemalloc.start()
        tiles.predict_tiled(network, image, normalise, tile=256, field=field)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < image.size / 3 + 2**21 + 4 * 3 * 256**2
    assert max(watch.course) < 1.5 * field.memory(256, 256)


def test_tiles_are_chosen_by_memory() -> None:
    field = receptive.Field(32, (200, 200), ((500.0, 0.0, 0.0), (100.0, 1e4, 1e6)))
    plan = tiles.lay(4000, 6000, field)
    assert plan.complete
    for tile in plan.tiles:
        rows, columns = (s.stop - s.start for s in tile.seen)
        assert field.memory(rows, columns) <= tiles.MEMORY
    assert plan.computed < 3.5 * 4000 * 6000
    # An image that fits is one tile; a narrow one is cut along its length alone.
    assert len(tiles.lay(900, 1300, field).tiles) == 1
    narrow = tiles.lay(300, 40_000, field)
    assert all(tile.seen[0] == slice(0, 300) for tile in narrow.tiles)
    assert len(narrow.tiles) < 20
    upright = tiles.lay(40_000, 300, field)
    assert all(tile.seen[1] == slice(0, 300) for tile in upright.tiles)
    assert len(upright.tiles) == len(narrow.tiles)
