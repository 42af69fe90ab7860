"""From an image's file to its pixels, if it may have so many."""

from __future__ import annotations

import io
import logging
from typing import Any

from vidi.data.images import Header, check_header, decode, read_header
from vidi.deploy.serving.limits import Limits, Refused
from vidi.errors import InputError
from vidi.types import Array

log = logging.getLogger("vidi.serve")

PARTS = 5000
"""How often a header may be read from. Each segment, tag or frame costs a few of them, and what is
done for each may be slow, or the slower the more there were."""


class Parts(io.BytesIO):
    """A file that raises once it was read from too often.

    A GIF has its pixels in pieces of up to 255 bytes, which are read on the way to a second frame.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = PARTS + (len(data) // 50 if data.startswith(b"GIF8") else 0)

    def read(self, *size: Any) -> bytes:
        self.left -= 1
        if self.left < 0:  # no OSError, which would be taken for the end of a TIFF
            raise ValueError("it has too many parts")
        return super().read(*size)


def header(data: bytes, name: str, limits: Limits) -> Header:
    """What the file says of itself, before anything of it is decoded.

    Raises :class:`Refused` for no image or one of too many parts (422), and for too many pixels
    (413). ``name``: what the sentence calls it.
    """
    try:
        found = read_header(Parts(data), name)
        millions = found.width * found.height / 1e6
        if millions > limits.max_megapixels:
            raise Refused(
                413,
                f"{name} has {found.width:,} × {found.height:,} = {millions:,.0f} million pixels; "
                f"at most {limits.max_megapixels:g} million are looked at. Shrink it.",
                "pixels",
            )
        check_header(found, name, limits.max_megapixels)
    except InputError as error:
        raise Refused(422, str(error), "image") from None
    return found


def pixels(data: bytes, name: str, limits: Limits, shorter: int | None) -> Array:
    """uint8 RGB [H, W, 3], upright; shrunk to ``shorter`` as :func:`vidi.data.images.decode` does.

    Raises :class:`Refused` (422) where not all of it can be decoded.
    """
    try:
        return decode(data, name, shorter, limits.max_megapixels)[0]
    except InputError as error:
        raise Refused(422, str(error), "image") from None
    except Exception:  # a decoder fed with damaged bytes raises nearly anything
        log.exception("a decoder failed")
        raise Refused(
            422, f"{name} is damaged: it cannot be decoded. Fetch it again.", "image"
        ) from None


def names(count: int, *, pairs: bool) -> list[tuple[str, ...]]:
    """What sentences call each image: "Image 2 of 3", "The first frame of pair 1 of 2"."""
    if not pairs:
        return [("The image",)] if count == 1 else [(f"Image {i + 1} of {count}",)
                                                    for i in range(count)]  # fmt: skip
    of = [""] if count == 1 else [f" of pair {i + 1} of {count}" for i in range(count)]
    return [(f"The first frame{which}", f"The second frame{which}") for which in of]
