"""Batches under matrices against the same on the CPU by OpenCV and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vidi.data import annotations
from vidi.data import geometry as g
from vidi.ops import warp
from vidi.types import Array, Boxes

H, W = 48, 64
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def matrices(n: int, zoom: float = 0.4, seed: int = 0) -> Array:
    """Turns, shears, shifts, mirrors, zooms of up to e^zoom either way."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        turn = g.rotation(rng.uniform(-math.pi, math.pi))
        scale = g.scaling(*np.exp(rng.uniform(-zoom, zoom, 2)))
        mirror = g.flip(W) if rng.random() < 0.5 else np.eye(3)
        middle = g.about(
            (W / 2, H / 2), g.compose(turn, scale, g.shear(*rng.uniform(-0.2, 0.2, 2)))
        )
        out.append(g.compose(mirror, middle, g.translation(*rng.uniform(-5, 5, 2))))
    return np.stack(out)


def upright(n: int, size: tuple[int, int], seed: int = 0) -> Array:
    """What random resized crops and flips give, crops that reach over the border too."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        x, y = rng.integers(-8, 24, 2).tolist()
        w, h = rng.integers(12, 50, 2).tolist()
        m = g.crop((x, y, x + w, y + h), size)
        m = g.compose(m, g.flip(size[1])) if rng.random() < 0.5 else m
        out.append(g.compose(m, g.vertical_flip(size[0])) if rng.random() < 0.3 else m)
    return np.stack(out)


def noise(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, H, W, 3), dtype=np.uint8)


def channels_first(images: Array) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def test_the_constants_are_those_of_the_data() -> None:
    assert (warp.WHOLE, warp.BLUR) == (g.WHOLE, g.BLUR)
    assert warp.MIN_VISIBLE == annotations.MIN_VISIBLE
    assert (warp.SMALLEST, warp.VALID) == (annotations.SMALLEST, annotations.VALID)


KINDS = {
    "turned": matrices(8, 0.35),
    "shrunk": matrices(8, 0.2, 1) @ g.about((W / 2, H / 2), g.scaling(0.4, 0.5)),
    "cut": upright(16, (32, 40)),
    "mixed": np.concatenate(
        [matrices(3), upright(3, (32, 40)), matrices(2, 0.1) @ g.scaling(0.3, 0.3)]
    ),
    "half pixels": np.stack([g.translation(0.5, 0.25), g.crop((1.5, 2, 30.5, 31), (32, 40))]),
    "out of sight": np.stack([g.translation(900, 0), g.scaling(0.1, 0.1) @ g.translation(900, 0)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_equal_opencv(kind: str, device: str) -> None:
    m, size, fill = KINDS[kind], (32, 40), (9, 200, 70)
    images = noise(len(m))
    expected = np.stack(
        [g.warp(image, one, size, fill) for image, one in zip(images, m, strict=True)]
    )
    found = warp.images(channels_first(images).to(device), torch.from_numpy(m), size, fill)
    assert found.dtype == torch.uint8
    assert found.shape == (len(m), 3, *size)
    apart = np.abs(found.cpu().permute(0, 2, 3, 1).numpy().astype(int) - expected)
    # Both round to whole levels, and OpenCV rounds the shrunk image as well.
    assert apart.max() <= (2 if kind in ("shrunk", "mixed") else 1)
    assert np.quantile(apart, 0.99) <= 1


def test_floats_are_not_rounded(device: str) -> None:
    m = KINDS["turned"]
    images = channels_first(noise(len(m))).to(device)
    levels = warp.images(images, torch.from_numpy(m), (30, 30), (5, 6, 7))
    real = warp.images(
        images.float() / 255, torch.from_numpy(m), (30, 30), [5 / 255, 6 / 255, 7 / 255]
    )
    assert real.dtype == torch.float32
    assert (real * 255 - levels.float()).abs().max() <= 0.5 + 1e-3


def test_identity_crops_and_mirrors_are_exact(device: str) -> None:
    images = channels_first(noise(4)).to(device)
    m = np.stack([np.eye(3), g.translation(-3, -5), g.flip(W), g.vertical_flip(H)])
    found = warp.images(images, torch.from_numpy(m), (H, W))
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1, :, : H - 5, : W - 3], images[1, :, 5:, 3:])
    assert not found[1, :, H - 5 :].any()
    assert torch.equal(found[2], images[2].flip(-1))
    assert torch.equal(found[3], images[3].flip(-2))


def test_gradients_reach_the_image() -> None:
    images = torch.rand(2, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    m = torch.from_numpy(np.stack([g.rotation(0.1), g.crop((1, 1, 5, 6), (4, 4))]))
    assert torch.autograd.gradcheck(lambda x: warp.images(x, m, (4, 4)), images)


@pytest.mark.parametrize("kind", ["turned", "cut", "mixed"])
def test_masks_equal_numpy_but_for_ties(kind: str, device: str) -> None:
    m, size = KINDS[kind], (32, 40)
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.int32):
        masks = rng.integers(0, 3, (len(m), H, W)).astype(dtype)
        masks[:, : H // 2] *= rng.integers(0, 80, (len(m), H // 2, W), dtype=dtype)
        found = warp.masks(torch.from_numpy(masks).to(device), torch.from_numpy(m), size)
        y, x = np.mgrid[: size[0], : size[1]] + 0.5
        for mine, mask, one in zip(found.cpu().numpy(), masks, m, strict=True):
            q = g.apply(np.linalg.inv(one), np.stack([x.ravel(), y.ravel()], 1))
            clear = (np.abs(q - np.rint(q)) > 1e-4).all(1).reshape(size)
            expected = g.labels(mask, one, size, 255)
            assert mine.dtype == dtype
            assert clear.any()
            assert np.array_equal(mine[clear], expected[clear])


@pytest.mark.parametrize("apart", [False, True])
def test_flow_equals_numpy(apart: bool, device: str) -> None:
    n, size = 8, (40, 50)
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 5, (n, H, W, 2)).astype(np.float32)
    valid, occluded = rng.random((n, H, W)) > 0.02, rng.random((n, H, W)) < 0.3
    flow[~valid] = math.nan
    m1 = matrices(n)
    m1[0], m1[1] = np.eye(3), g.flip(W)
    m2 = matrices(n, seed=5) if apart else m1
    found = warp.flows(
        torch.from_numpy(flow).permute(0, 3, 1, 2).to(device),
        torch.from_numpy(m1),
        size,
        valid=torch.from_numpy(valid).to(device),
        occluded=torch.from_numpy(occluded).to(device),
        matrices2=torch.from_numpy(m2) if apart else None,
    )
    assert found[2] is not None
    mine = found[0].permute(0, 2, 3, 1).cpu().numpy()
    for k in range(n):
        f, v, o = annotations.warp_flow(
            flow[k], valid[k], occluded[k], m1[k], size, matrix2=m2[k] if apart else None
        )
        assert v.any() and o is not None
        assert np.array_equal(found[1][k].cpu().numpy(), v)
        assert np.abs(mine[k] - f).max() < 1e-3
        assert (found[2][k].cpu().numpy() != o).mean() < 2e-3  # a target on the very border


def test_flow_without_validity_and_occlusion(device: str) -> None:
    flow = torch.ones(2, 2, H, W, device=device)
    m = torch.from_numpy(np.stack([np.eye(3), g.flip(W)]))
    moved, valid, occluded = warp.flows(flow, m, (H, W))
    assert occluded is None
    assert valid.all()
    assert torch.equal(moved[0], flow[0])
    assert (moved[1, 0] == -1).all()
    assert (moved[1, 1] == 1).all()


def test_boxes_equal_numpy(device: str) -> None:
    rng = np.random.default_rng(0)
    m = np.concatenate([matrices(6), upright(6, (40, 50))])
    corner = rng.uniform(-10, 50, (len(m), 30, 2))
    xyxy = np.concatenate([corner, corner + rng.uniform(-2, 25, corner.shape)], 2)
    xyxy = xyxy.astype(np.float32)
    found, kept = warp.boxes(torch.from_numpy(xyxy).to(device), torch.from_numpy(m), (40, 50))
    no = np.zeros(30, bool)
    assert 0.1 < kept.float().mean() < 0.9
    for k in range(len(m)):
        given = Boxes(xyxy=xyxy[k], labels=np.arange(30), difficult=no, crowd=no)
        expected = annotations.warp_boxes(given, m[k], (40, 50))
        assert np.flatnonzero(kept[k].cpu().numpy()).tolist() == expected.labels.tolist()
        if len(expected):
            mine = found[k].cpu().numpy()[kept[k].cpu().numpy()]
            assert np.abs(mine - expected.xyxy).max() < 1e-4
    assert warp.boxes(torch.zeros(2, 0, 4), torch.eye(3).expand(2, 3, 3), (4, 4))[1].shape == (2, 0)


def test_a_batch_equals_its_singles(device: str) -> None:
    m = torch.from_numpy(KINDS["mixed"])
    images = channels_first(noise(len(m))).to(device)
    masks = images[:, 0]
    flow = images[:, :2].float()
    boxes = torch.rand(len(m), 5, 4) * 20 + torch.tensor([0, 0, 20, 20])
    size = (32, 40)
    together = (
        warp.images(images, m, size),
        warp.masks(masks, m, size),
        *warp.flows(flow, m, size)[:2],
        *warp.boxes(boxes, m, size),
    )
    for k in range(len(m)):
        one = slice(k, k + 1)
        alone = (
            warp.images(images[one], m[one], size),
            warp.masks(masks[one], m[one], size),
            *warp.flows(flow[one], m[one], size)[:2],
            *warp.boxes(boxes[one], m[one], size),
        )
        for whole, part in zip(together, alone, strict=True):
            if whole.dtype.is_floating_point:
                assert torch.allclose(whole[one], part, atol=1e-4)
            else:
                assert (whole[one].int() - part.int()).abs().max() <= int(
                    whole.dtype == torch.uint8
                )
