"""From an image's file to its pixels, if it may have so many."""

from __future__ import annotations

import logging

from vidi.data.images import Header, check_header, decode, read_header
from vidi.deploy.serving.limits import Limits, Refused
from vidi.errors import InputError
from vidi.types import Array

log = logging.getLogger("vidi.serve")


def header(data: bytes, name: str, limits: Limits) -> Header:
    """What the file says of itself, before anything of it is decoded.

    Raises :class:`Refused` for no image (422) and for too many pixels (413). ``name``: what the
    sentence calls it.
    """
    try:
        found = read_header(data, name)
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
