"""The image files in a request's body, however it was sent: as it is, multipart, or JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from vidi.deploy.serving.limits import Budget, Limits, Refused, busy

# What the parser has to say against a body is in our sentence.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

PARTS = 1000
"""Lists, objects and commas in a JSON body: with a list of strings there are few, and a body full
of them would become a hundred times as large."""
EXPECTED = (
    "an image as it is (Content-Type: image/jpeg or the like, or application/octet-stream), "
    "multipart/form-data with files, or application/json with base64"
)

Files = tuple[bytes, ...]
"""One image's file, or the two of a pair."""


async def read(
    chunks: AsyncIterator[bytes], headers: Mapping[str, str], limits: Limits, budget: Budget
) -> bytes:
    """The whole body. Its bytes are counted as they come, and are taken out of ``budget``, which
    gets them back only where this raises.

    Raises :class:`Refused`: too large (413), too slow (408), too many others (429).
    """
    most = limits.body_bytes
    told = headers.get("content-length", "")
    if told.isdecimal() and int(told) > most:  # without reading any of it
        raise _too_large(limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in chunks:
                if size + len(chunk) > most:
                    raise _too_large(limits)
                if not budget.take(len(chunk)):
                    raise busy("Too many large bodies are on their way. Ask again later.", "bodies")
                size += len(chunk)
                parts.append(chunk)
        return b"".join(parts)
    except TimeoutError:
        budget.give_back(size)
        raise Refused(
            408,
            f"The body did not arrive within {limits.body_seconds:g} seconds ({size:,} bytes "
            "did). Send it faster, or send less.",
            "slow",
        ) from None
    except BaseException:
        budget.give_back(size)
        raise


def files(body: bytes, headers: Mapping[str, str], *, pairs: bool, most: int) -> list[Files]:
    """One tuple for each image (of one file) or pair (of two), in order.

    Raises :class:`Refused`: a type that is none of the three (415), what is not of its type (400),
    what holds no images (422), or too many of them (413). It takes seconds for a large body made
    to be slow, so call it in a thread.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "The body is compressed. Send it as it is.", "type")
    kind, options = parse_options_header(headers.get("content-type", ""))
    if kind == b"multipart/form-data":
        found = _multipart(body, options.get(b"boundary", b""), pairs=pairs, most=most)
    elif kind == b"application/json":
        found = _json(body, pairs=pairs)
    elif kind in (b"", b"application/octet-stream") or kind.startswith(b"image/"):
        if pairs:
            raise Refused(
                422,
                "This run looks at pairs of frames, and one body is one image. Send multipart/"
                'form-data with the files "first" and "second".',
                "form",
            )
        found = [(body,)]
    else:
        raise Refused(
            415, f"The Content-Type is none that is read; expected is {EXPECTED}.", "type"
        )
    if len(found) > most:
        raise _too_many(most, pairs=pairs)
    return found


def _json(body: bytes, *, pairs: bool) -> list[Files]:
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > PARTS:
        raise Refused(413, f"The JSON has more than {PARTS} parts; {_form(pairs)}", "images")
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, f"The body is not JSON, which its Content-Type says; {_form(pairs)}",
                      "form") from None  # fmt: skip
    images = told.get("images") if isinstance(told, dict) else None
    if not isinstance(images, list) or not images:
        raise Refused(422, f"The JSON holds no images; {_form(pairs)}", "form")
    if not pairs:
        return [(_base64(one, pairs=pairs),) for one in images]
    found = []
    for one in images:
        if not isinstance(one, list) or len(one) != 2:
            raise Refused(422, f"A pair of frames is a list of two; {_form(pairs)}", "form")
        found.append(tuple(_base64(frame, pairs=pairs) for frame in one))
    return found


def _form(pairs: bool) -> str:
    one = '["<first frame>", "<second frame>"]' if pairs else '"<image>"'
    return f'expected is {{"images": [{one}, ...]}}, each image a file in base64.'


def _base64(text: Any, *, pairs: bool) -> bytes:
    if not isinstance(text, str):
        raise Refused(422, f"An image in the JSON is no string; {_form(pairs)}", "form")
    if text.startswith("data:"):  # as a browser's canvas gives it
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"An image in the JSON is not base64; {_form(pairs)}", "form") from None


def _multipart(body: bytes, boundary: bytes, *, pairs: bool, most: int) -> list[Files]:
    if not boundary:
        raise Refused(400, "The multipart body's Content-Type names no boundary.", "form")
    sent: list[tuple[str, bytes]] = []

    def on_file(file: Any) -> None:
        if len(sent) >= (2 * most if pairs else most):
            raise _too_many(most, pairs=pairs)
        file.file_object.seek(0)
        sent.append(((file.field_name or b"").decode("latin-1"), file.file_object.read()))

    ended = False

    def on_end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = FormParser(
            "multipart/form-data",
            lambda field: None,  # words beside the files are nobody's
            on_file,
            on_end,
            boundary=boundary,
            config={"MAX_MEMORY_FILE_SIZE": float("inf")},  # it is in memory already
        )
        parser.write(body)
        parser.finalize()
        if not ended:  # which the parser takes for an end
            raise FormParserError
    except (FormParserError, AssertionError):
        raise Refused(
            400,
            "The multipart body is damaged or cut short: it does not end, or a part has no name.",
            "form",
        ) from None
    if not sent:
        raise Refused(
            422,
            "The multipart body holds no file. Give its part a filename, as `curl -F "
            "file=@cat.jpg` does.",
            "form",
        )
    if not pairs:
        return [(data,) for _, data in sent]
    first = [data for name, data in sent if name == "first"]
    second = [data for name, data in sent if name == "second"]
    if not first and not second:  # under other names they are taken as they come
        first, second = [d for _, d in sent[::2]], [d for _, d in sent[1::2]]
    if len(first) != len(second):
        raise Refused(
            422,
            f"There are {len(first)} first and {len(second)} second frames; pairs are expected, in "
            'files named "first" and "second".',
            "form",
        )
    return list(zip(first, second, strict=True))


def _too_large(limits: Limits) -> Refused:
    return Refused(
        413,
        f"The body is larger than {limits.max_body:g} MiB. Send smaller or fewer images.",
        "body",
    )


def _too_many(most: int, *, pairs: bool) -> Refused:
    what = "pairs of frames" if pairs else "images"
    return Refused(413, f"There are more than {most} {what} in one request. Send fewer.", "images")
