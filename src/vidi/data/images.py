"""From the bytes of an image file to right RGB, or a sentence that says why not.

OpenCV decodes the usual kinds (twice as fast as Pillow, and it gives nothing at all for half a
file); Pillow reads headers, all but a plain JPEG's, and decodes what OpenCV gets wrong or drops:
palettes with transparency, CMYK, alpha in TIFF, GIF. Orientation, alpha and depth are settled here,
in one place, whichever of them decoded.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vidi.errors import InputError
from vidi.types import Array

# The loader's threads are the parallelism: OpenCV's own would fight them for the cores.
cv2.setNumThreads(1)
# What a decoder has to say against a file is in our sentence.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

MAX_MEGAPIXELS = 100.0

_START = 4096
"""Bytes within which a JPEG's header mostly ends."""

_OPENERS: tuple[tuple[str, Callable[[bytes], bool], Callable[[BinaryIO], Any]], ...] = (
    # By their first bytes, never by the name. Pillow's own search would also try formats that
    # start other programs (EPS), and would see the second picture of a phone's JPEG as a frame.
    ("JPEG", lambda b: b.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    ("PNG", lambda b: b.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    ("WEBP", lambda b: b[:4] == b"RIFF" and b[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    ("GIF", lambda b: b[:6] in (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ("BMP", lambda b: b.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
    ("TIFF", lambda b: b[:4] in (b"II*\0", b"MM\0*"), TiffImagePlugin.TiffImageFile),
    ("PPM", lambda b: b[:1] == b"P" and b[1:2] in b"123456" and b[2:3].isspace(),
     PpmImagePlugin.PpmImageFile),
    ("JPEG2000", lambda b: b.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
     Jpeg2KImagePlugin.Jpeg2KImageFile),
    ("AVIF", lambda b: b[4:12] in (b"ftypavif", b"ftypavis"), AvifImagePlugin.AvifImageFile),
)  # fmt: skip
READABLE = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF"

_TURNED = {
    # EXIF's orientation (Exif 2.32, section 4.6.4, tag 274) to what makes the image upright.
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


# Markers of a JPEG's segments (ITU-T T.81, table B.1).
_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended and progressive."""
_PASSED = (0xE0, 0xE2, 0xED, 0xEE, 0xDB, 0xC4, 0xDD, 0xFE)
"""Of no account here: JFIF, colour profile, Photoshop's and Adobe's notes, tables, restarts,
comment."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its image before it is decoded.

    ``width`` and ``height`` in pixels, before ``orientation`` (EXIF's, 1 to 8) is applied; ``mode``
    in Pillow's terms; ``depth`` in bits per channel.
    """

    width: int
    height: int
    format: str
    mode: str
    depth: int
    frames: int
    orientation: int
    transparent_colour: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        turned = self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)


def read(path: str) -> bytes:
    """The file's bytes. Raises :class:`InputError` if they cannot be had."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(unreadable(path, error)) from error


def unreadable(path: str, error: OSError) -> str:
    """A sentence for a file that could not be opened or read."""
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return f"{path} is a link to {os.readlink(path)}, which does not exist."
        return f"{path} does not exist."
    if isinstance(error, PermissionError):
        return f"{path} may not be read by this user. Change its permissions."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, not an image."
    return f"{path} cannot be read: {error.strerror or error}."


def read_header(source: bytes | BinaryIO, name: str) -> Header:
    """The header of an image file, given as its bytes or as an open file (of which only what is
    needed is read). ``name`` is what errors call it.

    Raises :class:`InputError` where it is no image, or has none.
    """
    if isinstance(source, bytes):
        start = source
    else:
        start = source.read(_START)
        source.seek(0)
    return _simple_jpeg(start) or opened(source, name)[1]


def opened(source: bytes | BinaryIO, name: str) -> tuple[Any, Header]:
    """The image as Pillow opens it, not decoded yet, and its header; errors as above."""
    file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source
    image = _opened(file, name)
    return image, _header(image, name)


def read_file_header(path: str) -> Header:
    """:func:`read_header` of a file. Raises :class:`InputError` too if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return read_header(file, path)
    except OSError as error:
        raise InputError(unreadable(path, error)) from error


def decode(
    data: bytes,
    name: str,
    shorter: int | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> tuple[Array, tuple[int, int]]:
    """The image, uint8 RGB [h, w, 3], upright, and the height and width it has at full size.

    With ``shorter`` it is shrunk (never enlarged) so that its shorter side has that many pixels,
    its aspect kept: by the JPEG's own 1/2, 1/4 or 1/8 decoding as far as that goes, then by
    averaging areas. The result is a function of ``data`` and ``shorter`` alone.

    Grey becomes RGB, CMYK is converted, alpha is laid over white, 16 bits are scaled to 8.

    Raises :class:`InputError`, which says what is wrong with ``name``: empty, no image, cut short
    or damaged, animated, too many pixels, or a depth other than 8 and 16 bits.
    """
    header, image = _simple_jpeg(data), None
    if header is None:
        image, header = opened(data, name)
    check_header(header, name, max_megapixels)
    if header.depth == 16 and header.format in ("PNG", "TIFF"):
        pixels = _deep(data)
    elif header.format in ("JPEG", "PNG", "WEBP", "BMP") and _is_plain(header):
        pixels = _plain(data, header, shorter)
    else:
        pixels = _by_pillow(image, name)
    if pixels is None:
        raise InputError(_damaged(header, data, name))
    return shrink(_TURNED[header.orientation](pixels), header.size, shorter), header.size


def check_header(header: Header, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> None:
    """Raises :class:`InputError` for what is refused before it is decoded."""
    millions = header.width * header.height / 1e6
    if millions > max_megapixels:
        raise InputError(
            f"{name} has {header.width:,} × {header.height:,} = {millions:.0f} million pixels; at "
            f"most {max_megapixels:g} million are decoded. Shrink it, or raise "
            "--data.max-megapixels."
        )
    if header.frames > 1:
        raise InputError(
            f"{name} is a {header.format} with {header.frames} frames; one image a file is "
            "expected. Save the frames as single images."
        )
    if header.depth > 16:
        raise InputError(
            f"{name} has {header.depth} bits a channel (mode {header.mode}), whose scale is not "
            "known; 8 or 16 are expected. Convert it."
        )


def from_pillow(image: Any, name: str) -> Array:
    """A Pillow image as uint8 RGB [H, W, 3], as it stands (an EXIF orientation is not applied).

    Raises :class:`InputError` if it cannot be decoded, or has 32 bits a channel.
    """
    depth = _depth_of_mode(image.mode)
    if depth > 16:
        raise InputError(
            f"{name} is an image of mode {image.mode} ({depth} bits a channel), whose scale is "
            "not known; 8 or 16 bits are expected."
        )
    return np.ascontiguousarray(_by_pillow(image, name))


def from_array(array: Array, name: str) -> Array:
    """An array of the user's as uint8 RGB [H, W, 3].

    Accepted: [H, W], [H, W, 1], [H, W, 3], [H, W, 4] (alpha last) of uint8, uint16, or floating
    point in [0, 1]. Raises :class:`InputError` for anything else.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(
            f"{name} is an array of shape {array.shape}; an image is [H, W], or [H, W, C] with 1, "
            "3 or 4 channels last."
        )
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"{name} holds floating-point values from {low:g} to {high:g}; [0, 1] is expected. "
                "Hand over the image before it is normalised: that is done here."
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{name} is an array of {array.dtype}; uint8, uint16 or floating point in [0, 1] is "
            "expected."
        )
    return _to_rgb8(array)


def shrink(image: Array, full: tuple[int, int], shorter: int | None) -> Array:
    """Shrunk so that the shorter side of what was ``full`` (height, width) is ``shorter``."""
    height, width = full
    side = min(full)
    if shorter is not None and side > shorter:
        # Rounded to the nearest, halves up, in whole numbers: the same on every machine.
        height, width = ((2 * n * shorter + side) // (2 * side) for n in full)
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def _opened(file: BinaryIO, name: str) -> Any:
    start = file.read(16)
    file.seek(0)
    opener = next((o for _, begins, o in _OPENERS if begins(start)), None)
    if opener is None:
        raise InputError(_no_image(start, name))
    try:
        return opener(file)
    except Exception as error:  # a parser fed with damaged bytes raises nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the file's
        raise InputError(f"{name} is damaged: its header cannot be read ({error}).") from error


def _header(image: Any, name: str) -> Header:
    try:
        # Counting a GIF's frames means reading all of it; most have one.
        frames = image.n_frames if getattr(image, "is_animated", False) else 1
        depth = _depth(image)
        # The base class's: a PNG's own would decode the whole image to look for tags behind it.
        # A TIFF's size is that of the upright image, and both decoders turn it themselves.
        orientation = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(0x0112, 1)
        transparent = "transparency" in image.info
    except Exception as error:  # as above
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{name} is damaged: its header cannot be read ({error}).") from error
    width, height = image.size
    return Header(
        width=width,
        height=height,
        format=image.format or "",
        mode=image.mode,
        depth=depth,
        frames=frames,
        orientation=orientation if orientation in _TURNED else 1,
        transparent_colour=transparent,
    )


def _simple_jpeg(data: bytes) -> Header | None:
    """The header of a JPEG in grey or colour that lies as it was seen, as most do, in a tenth of
    the time that Pillow takes; ``None`` for any other file, which Pillow has to look at.

    A JPEG is a row of segments: a marker (two bytes, the first 255), a length that counts itself,
    and what it says (ITU-T T.81, B.1.1). They end where the scan starts.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    found: Header | None = None
    at = 2
    while data[at : at + 1] == b"\xff" and at + 10 < len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return found
        if marker in _FRAMES and found is None:
            depth, components = data[at + 4], data[at + 9]
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            if depth != 8 or components not in (1, 3) or not height or not width:
                return None
            mode = "L" if components == 1 else "RGB"
            found = Header(width, height, "JPEG", mode, 8, 1, 1, False)
        elif marker not in _PASSED:  # among others APP1, which may turn the image
            return None
        at += 2 + length
    return None


def _depth(image: Any) -> int:
    if image.format == "PNG" and image.tile:
        # Pillow opens 16-bit colour as 8-bit; the raw mode tells.
        return 16 if "16" in str(image.tile[0][3]) else 8
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, 8)
        return max(8, *bits) if isinstance(bits, tuple) else max(8, int(bits))
    return _depth_of_mode(image.mode)


def _depth_of_mode(mode: str) -> int:
    return 32 if mode in ("I", "F") else 16 if mode.startswith("I;16") else 8


def _is_plain(header: Header) -> bool:
    """Whether OpenCV's decoding to RGB is right: no alpha, no palette, no inks."""
    return header.mode in ("L", "RGB") and not header.transparent_colour


def _plain(data: bytes, header: Header, shorter: int | None) -> Array | None:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if header.format == "JPEG" and shorter is not None:
        side = min(header.width, header.height)
        # The flags called GRAYSCALE are the bare reduction; those called COLOR contain BGR.
        for factor, reduced in (
            (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
            (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
            (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
        ):
            if side // factor >= shorter:
                flags |= reduced
                break
    decoded = _imdecode(data, flags)
    return None if decoded is None else np.asarray(decoded)


def _deep(data: bytes) -> Array | None:
    decoded = _imdecode(data, cv2.IMREAD_UNCHANGED)
    if decoded is None:
        return None
    channels = decoded[:, :, None] if decoded.ndim == 2 else decoded
    if channels.shape[2] >= 3:  # blue first
        channels = channels[:, :, [2, 1, 0, 3][: channels.shape[2]]]
    return _to_rgb8(channels)


def _imdecode(data: bytes, flags: int) -> Array | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _by_pillow(image: Any, name: str) -> Array:
    try:
        if image.mode.startswith("I;16"):
            return _to_rgb8(np.asarray(image)[:, :, None].astype(np.uint16))
        see_through = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa")
        if image.mode != "RGB" or see_through:
            see_through = see_through or image.mode == "RGBA"
            image = image.convert("RGBA" if see_through else "RGB")
        return _to_rgb8(np.asarray(image))
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise InputError(f"{name} is cut short or damaged ({error}). Fetch it again.") from error


def _to_rgb8(channels: Array) -> Array:
    """[H, W, 1 | 3 | 4] of 8 or 16 bits to uint8 RGB; a fourth channel is alpha, over white."""
    top = int(np.iinfo(channels.dtype).max)
    if channels.shape[2] == 4:
        alpha = channels[:, :, 3:].astype(np.uint64)
        colour = channels[:, :, :3].astype(np.uint64) * alpha + top * (top - alpha)
        channels = ((colour + top // 2) // top).astype(channels.dtype)
    if top > 255:  # the exact inverse of 8 bits written as 16, which is × 257
        channels = ((channels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if channels.shape[2] == 1:
        channels = np.repeat(channels, 3, axis=2)
    return channels


def _no_image(start: bytes, name: str) -> str:
    if not start:
        return f"{name} is empty (0 bytes). Fetch it again, or remove it."
    if start[4:8] == b"ftyp":
        kind = start[8:12].decode("latin-1")
        return f"{name} is a {kind} file (HEIC or video), which is not read. Convert it to JPEG."
    text = all(32 <= b < 127 or b in b"\t\r\n" for b in start)
    begins = repr(start.decode("latin-1")) if text else start[:8].hex(" ")
    return (
        f"{name} is {'text' if text else 'no image known here'}: it begins with {begins}. An image "
        f"({READABLE}) is expected, whatever its name."
    )


def _damaged(header: Header, data: bytes, name: str) -> str:
    ends = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}.get(header.format)
    # Some cameras and servers append to a file, so the end mark need not be the last thing.
    what = "cut short" if ends is not None and ends not in data[-1024:] else "damaged"
    return (
        f"{name} is {what}: of this {header.format} ({header.width} × {header.height}, "
        f"{len(data):,} bytes) not all can be decoded. Fetch it again."
    )
