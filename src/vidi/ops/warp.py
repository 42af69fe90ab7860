"""Batches under matrices, on their device: images, masks, flow and boxes.

The same as :mod:`vidi.data.geometry` and :mod:`vidi.data.annotations` do on the CPU, by the same
conventions: a matrix is affine, maps source to target coordinates, and pixel i covers [i, i + 1).
Matrices, [B, 3, 3], are worked on in float64 on the CPU, where they are best left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

WHOLE = 1e-6
BLUR = 1.5
MIN_VISIBLE = 0.25
SMALLEST = 1.0
VALID = 1 - 1e-6
NEIGHBOURS = sorted(itertools.product((-1, 0, 1), repeat=2), key=lambda at: at != (0, 0))
"""As in the two modules above, which say why."""


def images(
    images: Tensor,
    matrices: Tensor,
    size: tuple[int, int],
    fill: float | Sequence[float] = 0.0,
) -> Tensor:
    """[B, C, h, w] of the images' type, uint8 or floating point, from [B, C, H, W].

    ``size``: (h, w). ``fill``: the value outside the source, one or a value per channel.

    Boxes of whole source pixels are resized, by areas along an axis that shrinks and bilinearly
    along one that grows; all else is interpolated bilinearly, after shrinking by areas where the
    matrix shrinks by more than :data:`BLUR`. See :func:`vidi.data.geometry.warp`.
    """
    m = _host(matrices)
    real = images.dtype if images.dtype.is_floating_point else torch.float32
    paint = torch.as_tensor(fill, dtype=real, device=images.device).reshape(-1, 1, 1)
    source = images.to(real) - paint
    boxes, cut = _cuts(m, size)
    shrunk = (m[:, :2, :2].norm(dim=1) < 1 / BLUR).any(1) & ~cut
    groups = [(~cut & ~shrunk, _interpolated), (cut, _resized), (shrunk, _shrunk)]
    out = source.new_empty((*source.shape[:2], *size))
    for rows, how in groups:
        arguments = boxes if how is _resized else m
        if rows.all():
            out = how(source, arguments, size)
            break
        if rows.any():
            at = rows.to(source.device)
            out[at] = how(source[at], arguments[rows], size)
    out = out + paint
    if images.dtype.is_floating_point:
        return out
    return out.round().clamp(0, 255).to(images.dtype)


def masks(masks: Tensor, matrices: Tensor, size: tuple[int, int], outside: float = 255) -> Tensor:
    """[B, h, w] of the masks' type, from [B, H, W]: the label that most of the source has about
    each target pixel's centre, and under upright matrices the nearest pixel's; ``outside``
    (ignore) beyond the source. See :func:`vidi.data.geometry.labels`. (A sample's mask and its map
    of instances vote as one on the CPU, so that each class stays with its object.)"""
    m = _host(matrices)
    x, y = _sources(m, size, masks.device)
    found = _nearest(masks, x, y)
    a, b, c, d = m[:, :2, :2].flatten(1).unbind(1)
    upright = ((b == 0) & (c == 0)) | ((a == 0) & (d == 0))
    if not upright.all():
        upright = upright.to(masks.device)[:, None, None]
        found = torch.where(upright, found, _elected(masks, x, y))
    inside = _within(x, y, (masks.shape[1], masks.shape[2]))
    return torch.where(inside, found, torch.full_like(found, outside))


def flows(
    flow: Tensor,
    matrices: Tensor,
    size: tuple[int, int],
    *,
    valid: Tensor | None = None,
    occluded: Tensor | None = None,
    matrices2: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(flow [B, 2, h, w], valid bool [B, h, w], occluded bool [B, h, w] or ``None`` as given).

    ``flow``: floating point [B, 2, H, W], pixels. ``matrices2``: those of the second frames, if
    they have their own. Rules: :func:`vidi.data.annotations.warp_flow`.
    """
    first = _host(matrices)
    second = first if matrices2 is None else _host(matrices2)
    height, width = flow.shape[2:]
    known = flow.new_ones((len(flow), 1, height, width))
    if valid is not None:
        known = valid[:, None].to(flow.dtype)
        flow = torch.where(valid[:, None], flow, flow.new_zeros(()))
    x, y = _sources(first, size, flow.device)
    taken = _bilinear(torch.cat([flow, known], 1), x, y)
    f, now_valid = taken[:, :2], taken[:, 2] >= VALID
    moved = torch.einsum("bij,bjhw->bihw", second[:, :2, :2].to(f), f)
    u, v = _centres(size, flow.device)
    rest = second @ torch.linalg.inv(first) - torch.eye(3, dtype=torch.float64)
    rest[(second == first).flatten(1).all(1)] = 0
    a, b, c = rest[:, :2, :, None, None].to(f).unbind(2)
    moved = (moved + a * u + b * v + c) * now_valid[:, None]
    if occluded is None:
        return moved, now_valid, None
    hidden = _nearest(occluded, x, y) & _within(x, y, (height, width))
    before = _within(x + f[:, 0], y + f[:, 1], (height, width))
    after = _within(u + moved[:, 0], v + moved[:, 1], size)
    return moved, now_valid, hidden | (now_valid & before & ~after)


def boxes(
    xyxy: Tensor,
    matrices: Tensor,
    size: tuple[int, int],
    min_visible: float = MIN_VISIBLE,
) -> tuple[Tensor, Tensor]:
    """(boxes [B, N, 4], clipped; kept, bool [B, N]), from xyxy [B, N, 4] in pixels.

    Rules, where no instance map is known: :func:`vidi.data.annotations.warp_boxes`.
    """
    # Apple's devices have no float64.
    real = torch.float32 if xyxy.device.type == "mps" else torch.float64
    m = _host(matrices).to(xyxy.device, real)
    given = xyxy.to(real)
    corners = torch.stack([given[..., [0, 2, 0, 2]], given[..., [1, 1, 3, 3]]], -1)
    moved = torch.einsum("bij,bnkj->bnki", m[:, :2, :2], corners) + m[:, None, None, :2, 2]
    whole = torch.cat([moved.amin(2), moved.amax(2)], -1)
    h, w = size
    most = torch.tensor([w, h, w, h], dtype=real, device=xyxy.device)
    found = torch.minimum(whole.clamp(min=0), most)
    area = _area(whole)
    share = torch.where(area > 0, _area(found) / area, 0)
    sides = (found[..., 2:] - found[..., :2]).amin(-1)
    kept = (_area(given) > 0) & (share >= min_visible) & (sides > SMALLEST - WHOLE)
    return found.to(xyxy.dtype), kept


def _area(xyxy: Tensor) -> Tensor:
    return (xyxy[..., 2:] - xyxy[..., :2]).clamp(min=0).prod(-1)


def _host(matrices: Tensor) -> Tensor:
    return matrices.detach().to("cpu", torch.float64)


def _centres(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """x [w] and y [h, 1] of the target's pixel centres."""
    u = torch.arange(size[1], device=device) + 0.5
    v = torch.arange(size[0], device=device)[:, None] + 0.5
    return u, v


def _sources(m: Tensor, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the target's pixel centres come from: x and y, float32 [B, h, w]."""
    back = torch.linalg.inv(m).to(device, torch.float32)[..., None, None]
    u, v = _centres(size, device)
    x = back[:, 0, 0] * u + (back[:, 0, 1] * v + back[:, 0, 2])
    y = back[:, 1, 0] * u + (back[:, 1, 1] * v + back[:, 1, 2])
    return x, y


def _nearest(maps: Tensor, x: Tensor, y: Tensor, dx: int = 0, dy: int = 0) -> Tensor:
    """The values [B, h, w] of maps [B, H, W] at the pixels that the points lie in, or the ones
    ``dx`` and ``dy`` beside them; beyond a map its outermost pixels go on."""
    height, width = maps.shape[1:]
    row = (y.floor().long() + dy).clamp(0, height - 1)
    column = (x.floor().long() + dx).clamp(0, width - 1)
    return maps.flatten(1).gather(1, (row * width + column).flatten(1)).reshape(x.shape)


def _elected(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The label with the most votes about each point, [B, h, w], of maps [B, H, W]."""
    off_x, off_y = (p - p.floor() - 0.5 for p in (x, y))
    around = [_nearest(maps, x, y, dx, dy) for dy, dx in NEIGHBOURS]
    votes = [_share(off_y, dy) * _share(off_x, dx) for dy, dx in NEIGHBOURS]
    sums = [vote.clone() for vote in votes]
    for one, other in itertools.combinations(range(len(NEIGHBOURS)), 2):
        agree = around[one] == around[other]
        sums[one] += agree * votes[other]
        sums[other] += agree * votes[one]
    # Of equals the first, which is the nearest pixel.
    winner = torch.stack(sums).argmax(0, keepdim=True)
    return torch.stack(around).gather(0, winner)[0]


def _share(off: Tensor, side: int) -> Tensor:
    return 0.75 - off * off if side == 0 else 0.5 * (0.5 + side * off) ** 2


def _within(x: Tensor, y: Tensor, size: tuple[int, int]) -> Tensor:
    h, w = size
    return (x >= 0) & (x < w) & (y >= 0) & (y < h)


def _bilinear(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[B, C, h, w] of values [B, C, H, W] at points x and y, [B, h, w]; 0 outside.

    Not by ``grid_sample``, whose coordinates run from -1 to 1: in float32 they no longer hit the
    centre of a pixel, and a copy would not be exact.
    """
    (b, c, height, width), (h, w) = values.shape, x.shape[1:]
    flat = values.flatten(2)
    left, top = (x - 0.5).floor(), (y - 0.5).floor()
    right_share, low_share = x - 0.5 - left, y - 0.5 - top
    out = values.new_zeros((b, c, h, w))
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left.long() + dx, top.long() + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (right_share if dx else 1 - right_share) * (low_share if dy else 1 - low_share)
            at = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            found = flat.gather(2, at.reshape(b, 1, h * w).expand(b, c, h * w))
            out += found.reshape(b, c, h, w) * (share * inside).to(values.dtype)[:, None]
    return out


def _interpolated(source: Tensor, m: Tensor, size: tuple[int, int]) -> Tensor:
    return _bilinear(source, *_sources(m, size, source.device))


def _cuts(m: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(xyxy, float64 [B, 4], that each matrix maps to the target, ends swapped where it mirrors;
    whether it is a box of whole pixels, bool [B])."""
    h, w = size
    straight = (m[:, 0, 1] == 0) & (m[:, 1, 0] == 0) & (m[:, 0, 0] != 0) & (m[:, 1, 1] != 0)
    ends = torch.tensor([0.0, 0.0, w, h], dtype=torch.float64)
    shift, scale = m[:, [0, 1, 0, 1], 2], m[:, [0, 1, 0, 1], [0, 1, 0, 1]]
    box = (ends - shift) / scale
    whole = box.round()
    some = (whole[:, 0] != whole[:, 2]) & (whole[:, 1] != whole[:, 3])
    return whole, straight & some & ((box - whole).abs().sum(1) < WHOLE)


def _resized(source: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The boxes' pixels, resized: two products, of rows and of columns."""
    height, width = source.shape[2:]
    rows = _shares(boxes[:, 1], boxes[:, 3], size[0], height, source)
    columns = _shares(boxes[:, 0], boxes[:, 2], size[1], width, source)
    return rows[:, None] @ source @ columns[:, None].mT


def _shares(start: Tensor, end: Tensor, n: int, total: int, like: Tensor) -> Tensor:
    """[B, n, total]: how much of each of ``total`` source pixels goes into each of the ``n`` target
    pixels that share [start, end) evenly; backwards where start > end."""
    low, high = (f(start, end).to(like)[:, None, None] for f in (torch.minimum, torch.maximum))
    step = (high - low) / n
    i = torch.arange(n, device=like.device, dtype=like.dtype)[:, None]
    i = torch.where((start > end).to(like.device)[:, None, None], n - 1 - i, i)
    j = torch.arange(total, device=like.device, dtype=like.dtype)
    edge = low + i * step
    areas = (torch.minimum(edge + step, j + 1) - torch.maximum(edge, j)).clamp(min=0) / step
    # Beyond the box's outermost centres the outermost pixel goes on, as in OpenCV's resize.
    at = (edge + step / 2 - 0.5).clamp(low, high - 1)
    return torch.where(step >= 1, areas, (1 - (at - j).abs()).clamp(min=0))


def _shrunk(source: Tensor, m: Tensor, size: tuple[int, int]) -> Tensor:
    """One by one, since each is shrunk to a size of its own."""
    out = [_shrunk_one(source[k : k + 1], m[k], size) for k in range(len(source))]
    return torch.cat(out)


def _shrunk_one(source: Tensor, m: Tensor, size: tuple[int, int]) -> Tensor:
    """As ``vidi.data.geometry._preshrunk``, which says why."""
    (height, width), (h, w) = source.shape[2:], size
    shrink_x, shrink_y = (1 / max(1e-9, f) for f in m[:2, :2].norm(dim=0).tolist())
    ends = torch.tensor([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1]], dtype=torch.float64)
    corners = ends @ torch.linalg.inv(m).T
    (least_x, least_y, _), (most_x, most_y, _) = corners.amin(0).tolist(), corners.amax(0).tolist()
    x0 = max(0, math.floor(least_x - 2 * shrink_x - 1))
    y0 = max(0, math.floor(least_y - 2 * shrink_y - 1))
    x1 = min(width, math.ceil(most_x + 2 * shrink_x + 1))
    y1 = min(height, math.ceil(most_y + 2 * shrink_y + 1))
    if x0 >= x1 or y0 >= y1:
        return source.new_zeros((*source.shape[:2], h, w))
    nw = max(1, round((x1 - x0) / max(1.0, shrink_x)))
    nh = max(1, round((y1 - y0) / max(1.0, shrink_y)))
    box = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float64)
    small = _resized(source, box, (nh, nw))
    back = torch.eye(3, dtype=torch.float64)
    back[0, 0], back[0, 2] = (x1 - x0) / nw, x0
    back[1, 1], back[1, 2] = (y1 - y0) / nh, y0
    return _interpolated(small, (m @ back)[None], size)
