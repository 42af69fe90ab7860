"""Flow as files: Middlebury's .flo, and KITTI's 16-bit PNG. Both are read and written here.

Flow is float32 [H, W, 2], the motion in x (right) and y (down) in pixels, with its validity, bool
[H, W]; where that is False the flow is 0. A file is believed only where all of it fits together.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np

from vidi.data.images import MAX_MEGAPIXELS, check_header, read, read_header, unreadable
from vidi.errors import InputError
from vidi.types import Array

MAGIC = struct.pack("<f", 202021.25)
"""Also the letters PIEH; Middlebury's check of a .flo and of its byte order."""
UNKNOWN = 1e9
"""A component beyond this in a .flo says that the flow is not known there."""
_HEADER = struct.Struct("<4sii")
_WRITTEN = 1e10
"""What Middlebury writes for it."""

KITTI_STEPS = 64
"""KITTI's PNG counts in 1/64 of a pixel."""
KITTI_ZERO = 1 << 15
KITTI_LOW, KITTI_HIGH = -KITTI_ZERO / KITTI_STEPS, (KITTI_ZERO - 1) / KITTI_STEPS


def read_flo(path: str) -> tuple[Array, Array]:
    """(flow float32 [H, W, 2], valid bool [H, W]) of a .flo (Baker et al. 2011, "A Database and
    Evaluation Methodology for Optical Flow", the colour code's ``flowIO``).

    Raises :class:`InputError` for another magic number, a size that is not the file's, and NaN or
    infinite values, with the pixel.
    """
    try:
        with open(path, "rb") as file:
            there = os.fstat(file.fileno()).st_size
            width, height = _declared(path, file.read(_HEADER.size), there)
            flow = np.fromfile(file, "<f4", 2 * width * height)
    except OSError as error:
        raise InputError(unreadable(path, error)) from error
    flow = flow.astype(np.float32, copy=False).reshape(height, width, 2)
    check_finite(flow, path)
    valid: Array = np.all(np.abs(flow) <= UNKNOWN, axis=2)
    flow[~valid] = 0
    return flow, valid


def write_flo(path: str | Path, flow: Array, valid: Array | None = None) -> None:
    """Flow [H, W, 2] as a .flo; what is not ``valid`` is marked as unknown."""
    height, width = flow.shape[:2]
    values = flow.astype("<f4")
    if valid is not None:
        values[~valid] = _WRITTEN
    Path(path).write_bytes(_HEADER.pack(MAGIC, width, height) + values.tobytes())


def read_kitti(path: str) -> tuple[Array, Array]:
    """(flow float32 [H, W, 2], valid bool [H, W]) of KITTI's PNG: 16 bits, red and green are
    (value - 2^15) / 64 in x and y, blue is 0 where nothing is known (KITTI 2015's devkit, readme).

    Raises :class:`InputError` for what is no PNG of three 16-bit channels, and a damaged one.
    """
    data = read(path)
    header = read_header(data, path)
    if header.format != "PNG" or header.depth != 16 or header.mode != "RGB":
        raise InputError(
            f"{path} is a {header.format} of mode {header.mode} with {header.depth} bits a channel;"
            " KITTI's flow is a PNG of three channels with 16 bits each. A tool for pictures may "
            "have saved it anew, and what it took away cannot be restored: fetch the file again."
        )
    check_header(header, path, MAX_MEGAPIXELS)
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        bgr = None
    if bgr is None or bgr.dtype != np.uint16 or bgr.shape != (header.height, header.width, 3):
        raise InputError(
            f"{path} is cut short or damaged: of this PNG ({header.width} × {header.height}, "
            f"{len(data):,} bytes) not all can be decoded. Fetch it again."
        )
    valid = bgr[:, :, 0] > 0  # OpenCV has blue first
    flow = (bgr[:, :, 2:0:-1].astype(np.float32) - KITTI_ZERO) / KITTI_STEPS
    flow[~valid] = 0
    return flow, valid


def write_kitti(path: str | Path, flow: Array, valid: Array | None = None) -> tuple[int, int]:
    """Flow [H, W, 2] as a file of :func:`kitti_png`. Gives its two numbers."""
    data, rounded, beyond = kitti_png(flow, valid)
    Path(path).write_bytes(data)
    return rounded, beyond


def kitti_png(flow: Array, valid: Array | None = None) -> tuple[bytes, int, int]:
    """Flow [H, W, 2] as KITTI's PNG, rounded to 1/64 pixel.

    With it the numbers of valid pixels that had to be rounded, and of those beyond KITTI's range
    (-512 to 511.98), which are written as not known.
    """
    known = np.ones(flow.shape[:2], bool) if valid is None else np.asarray(valid, bool)
    steps = np.where(known[..., None], flow, 0).astype(np.float64) * KITTI_STEPS + KITTI_ZERO
    whole = np.rint(steps)
    fits = ((whole >= 0) & (whole < 1 << 16)).all(2)
    rounded = known & fits & (whole != steps).any(2)
    kept = known & fits
    bgr = np.zeros((*known.shape, 3), np.uint16)
    bgr[kept, 2], bgr[kept, 1] = whole[kept, 0], whole[kept, 1]
    bgr[..., 0] = kept
    packed = cv2.imencode(".png", bgr)[1].tobytes()
    return packed, int(rounded.sum()), int((known & ~fits).sum())


def check_finite(flow: Array, where: str) -> None:
    """Raises :class:`InputError`, with the first pixel, for NaN and infinite values."""
    bad = ~np.isfinite(flow).all(2)
    if bad.any():
        y, x = (int(k) for k in np.argwhere(bad)[0])
        raise InputError(
            f"{where}: the flow is ({flow[y, x, 0]}, {flow[y, x, 1]}) at x = {x}, y = {y}, and not "
            f"finite at {int(bad.sum()):,} pixels in all. Finite numbers are expected; what is not "
            f"known is marked by a value beyond {UNKNOWN:g}."
        )


def _declared(path: str, header: bytes, there: int) -> tuple[int, int]:
    """Width and height, after the file's size ``there`` (bytes) has been compared with them."""
    if len(header) >= 4 and header[:4] == MAGIC[::-1]:
        raise InputError(f"{path} is a .flo in big-endian byte order; little-endian is expected.")
    if len(header) < _HEADER.size or header[:4] != MAGIC:
        begins = header[:4].hex(" ") or "nothing"
        raise InputError(
            f"{path} is no .flo file: it begins with {begins} and has {there:,} bytes; "
            f"{MAGIC.hex(' ')} (the number 202021.25), the width and the height are expected."
        )
    _, width, height = _HEADER.unpack(header)
    if width < 1 or height < 1:
        raise InputError(f"{path} declares {width} × {height} pixels. Fetch the file again.")
    expected = _HEADER.size + 8 * width * height
    if there != expected:
        what = "cut short" if there < expected else "longer than it should be"
        raise InputError(
            f"{path} is {what}: it declares {width:,} × {height:,} pixels, for which {expected:,} "
            f"bytes are expected, and has {there:,}. Fetch it again."
        )
    return width, height
