"""One answer, of any task, drawn over its image: what a person looks at.

Tiny images are enlarged and those of more than 1600 pixels a side are shrunk, so that letters and
lines are read without zooming. What is said in words stands in a white band below the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from vidi.engine.answers import BoundaryMap, DetectedObjects, Prediction, Segmentation
from vidi.engine.flow_fields import FlowField
from vidi.ops.suppression import suppress
from vidi.report import contact, detection_pictures, flow_pictures, overlay
from vidi.report.contact import colours_of, flow_colours
from vidi.report.detection_pictures import LEAST, Colour, fitting, font_of, legible, rgb
from vidi.report.pictures import BLUE, RED
from vidi.types import Array

Answer = Prediction | Segmentation | BoundaryMap | DetectedObjects | FlowField

NARROWEST = 360
"""Pixels of a band's width, at least: a narrower image has white at its right."""
PALE = 0.5
"""The share of white over an image on which lines are drawn."""
INK, SOFT_INK, TRACK = (40, 40, 40), (172, 178, 187), (236, 238, 241)


def drawn(
    image: Array,
    answer: Answer,
    classes: Sequence[str],
    palette: Array | Sequence[Sequence[int]] | None = None,
    *,
    least: float = LEAST,
    top: int = 5,
) -> Array:
    """The picture of an answer, uint8 [h, w, 3].

    ``image``: the image that it is about (of a pair the first), uint8 [H, W, 3]. ``palette``: the
    classes' own colours, [K, 3]. ``least``: the smallest score of an object that is shown. ``top``:
    of how many classes an image's probabilities are shown.
    """
    own = None if palette is None else np.asarray(palette, np.uint8)
    match answer:
        case Prediction():
            return _classified(image, answer, classes, top)
        case Segmentation():
            return _segmented(image, answer.mask, classes, overlay.palette(len(classes), own))
        case BoundaryMap():
            return _outlined(image, answer.soft)
        case DetectedObjects():
            return _detected(image, answer, classes, colours_of(len(classes), own), least)
        case FlowField():
            return _moving(answer.flow)


def _classified(image: Array, answer: Prediction, classes: Sequence[str], top: int) -> Array:
    """A bar for each of the likeliest classes; what the image is said to have is blue."""
    picture, _ = legible(image)
    width = max(NARROWEST, picture.shape[1])
    size = _letters(width)
    font = font_of(size)
    likeliest = np.argsort(-answer.probabilities, kind="stable")[:top].tolist()
    names = [fitting(classes[k], font, int(0.45 * width)) for k in likeliest]
    left = size + round(max(font.getlength(name) for name in names)) + size
    right = width - size - round(font.getlength("100.0%")) - size
    band = Image.new("RGB", (width, 2 * size * len(names) + size), "white")
    pen = ImageDraw.Draw(band)
    for row, (k, name) in enumerate(zip(likeliest, names, strict=True)):
        share = float(answer.probabilities[k])
        y = (2 * row + 1) * size + size // 2
        pen.text((size, y), name, font=font, fill=INK, anchor="lm")
        bar = (left, y - size // 2, right, y + size // 2)
        pen.rectangle(bar, fill=TRACK)
        if end := round(share * (right - left)):
            colour = rgb(BLUE) if classes[k] in answer.labels else SOFT_INK
            pen.rectangle((left, bar[1], left + end, bar[3]), fill=colour)
        pen.text((width - size, y), f"{share:.1%}", font=font, fill=INK, anchor="rm")
    return _below(picture, band)


def _segmented(image: Array, mask: Array, classes: Sequence[str], colours: Array) -> Array:
    """The mask over the image, and the classes that occur with their shares."""
    picture, _ = legible(image)
    bare = contact.bare(classes)
    fitted = overlay.nearest(mask, *picture.shape[:2])
    painted = overlay.overlay(picture, fitted, colours, bare=bare)
    rows = overlay.legend(mask, classes)
    entries: list[tuple[str, Colour | None]] = [
        (f"{name} {share:.1%}", (255, 255, 255) if k == bare else rgb(colours[k]))
        for k, name, share in rows[: overlay.NAMED]
    ]
    if len(rows) > overlay.NAMED:
        entries.append((f"and {len(rows) - overlay.NAMED} more", None))
    return _below(painted, _legend(entries, max(NARROWEST, picture.shape[1])))


def _outlined(image: Array, soft: Array) -> Array:
    """Red lines over the pale image, the fainter, the less sure. The map is made thin at the size
    that is shown, or lines of large images would fall between the pixels."""
    picture, scale = legible(image)
    size = (picture.shape[1], picture.shape[0])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    thin = suppress(cv2.resize(soft, size, interpolation=how))
    line = np.clip(cv2.dilate(thin, np.ones((2, 2), np.uint8)), 0, 1)[..., None]
    pale = (1 - PALE) * picture + PALE * 255
    return np.asarray(np.rint((1 - line) * pale + line * rgb(RED)), np.uint8)


def _detected(
    image: Array,
    answer: DetectedObjects,
    classes: Sequence[str],
    colours: Array,
    least: float,
) -> Array:
    """Boxes with names and scores; where there is none, words say so."""
    picture = detection_pictures.draw(image, answer.found, classes, colours, least)
    if (answer.found.scores >= least).any():
        return picture
    entry = (f"nothing with a score of {least:g} or more", None)
    return _below(picture, _legend([entry], max(NARROWEST, picture.shape[1])))


def _moving(flow: Array) -> Array:
    """The flow in colours, and below it the wheel that explains them. Motion is in pixels of the
    image itself, however large that is shown."""
    most = flow_pictures.full(flow)
    field, _ = legible(flow)
    width = max(NARROWEST, field.shape[1])
    size = _letters(width)
    wheel = flow_pictures.wheel(6 * size)
    band = Image.new("RGB", (width, 7 * size), "white")
    band.paste(Image.fromarray(wheel), (size // 2, size // 2))
    pen, font, x = ImageDraw.Draw(band), font_of(size), 8 * size
    pen.text((x, 2.6 * size), "from its centre: where to", font=font, fill=INK, anchor="lm")
    pen.text((x, 4.4 * size), f"at its rim: {most:.3g} pixels", font=font, fill=INK, anchor="lm")
    return _below(flow_colours(field, largest=most), band)


# Bands -------------------------------------------------------------------------------------------


def _letters(width: int) -> int:
    """The height of letters, in pixels, that is read on a picture of this width."""
    return int(np.clip(width / 44, 13, 26))


def _legend(entries: Sequence[tuple[str, Colour | None]], width: int) -> Image.Image:
    """Texts, each behind a swatch of its colour, in as many lines as they take."""
    size = _letters(width)
    font = font_of(size)
    placed = []
    x, y = size, size // 2
    for text, colour in entries:
        swatch = 0 if colour is None else round(1.5 * size)
        text = fitting(text, font, width - 2 * size - swatch)
        wide = swatch + round(font.getlength(text))
        if x + wide > width - size and x > size:
            x, y = size, y + 2 * size
        placed.append((x, y, swatch, text, colour))
        x += wide + 2 * size
    band = Image.new("RGB", (width, y + round(2.5 * size)), "white")
    pen = ImageDraw.Draw(band)
    for x, y, swatch, text, colour in placed:
        if colour is not None:
            box = (x, y + size // 2, x + size, y + size // 2 + size)
            pen.rectangle(box, fill=colour, outline=SOFT_INK)
        pen.text((x + swatch, y + size), text, font=font, fill=INK, anchor="lm")
    return band


def _below(picture: Array, band: Image.Image) -> Array:
    """The band below the picture, which is as wide as it or less."""
    more = band.width - picture.shape[1]
    wide = np.pad(picture, ((0, 0), (0, more), (0, 0)), constant_values=255)
    return np.concatenate([wide, np.asarray(band)])
