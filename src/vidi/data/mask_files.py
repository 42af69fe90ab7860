"""Masks as image files: class numbers, colours or black and white, decided by looking at some.

A palette PNG is read by its indices, never by its colours. 255 is ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from vidi.data.class_tables import ClassTable, Tables
from vidi.data.dataset import FileImages
from vidi.data.images import MAX_MEGAPIXELS, check_header, opened, read
from vidi.errors import InputError
from vidi.types import Array, Notes

IGNORED = 255
MOST_LOOKED_AT = 200
"""Masks that are looked at to decide what they hold, evenly spaced."""
MOST_COLOURS = 4096
"""No more are remembered: photographs in a folder of masks have millions."""
MOST_NUMBERS = 16
"""More different values than that, few of their pixels and 255 among them, are soft edges."""
MOST_SHOWN = 10
EXAMPLE = "a classes.txt beside the folders, each line of it a name and its red, green and blue"
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I")
_WEIGHTS = np.array([65536, 256, 1], np.int32)
"""A colour's code is 65536 red + 256 green + blue."""


@dataclass(frozen=True)
class Picture:
    """A mask file as it is stored. ``values``: integers [H, W], or colours as codes."""

    values: Array
    kind: str
    """"palette", "grey" or "colour"; a picture in colour all of whose pixels are grey is grey."""
    palette: Array | None = None
    lossy: bool = False
    alpha: bool = False


@dataclass(frozen=True)
class Rule:
    """From what the files hold to class numbers, uint8 [H, W].

    ``kind``: "index", "colour" or "binary". ``numbers``: uint8 [256], the class of an index, and
    ``known``: bool [256]. ``codes``: int32 [C], colours in ascending order, and ``of_code``: uint8
    [C], their classes.
    """

    kind: str
    classes: tuple[str, ...]
    numbers: Array
    known: Array
    codes: Array
    of_code: Array
    palette: Array | None
    lossy: bool = False
    notes: Notes = field(default_factory=list)

    def apply(self, picture: Picture, path: str) -> Array:
        """Raises :class:`InputError` for what is no class's, with its count."""
        values = picture.values
        if self.lossy and picture.lossy and picture.kind == "grey":
            return np.asarray(values >= 128, np.uint8)
        if picture.kind == "colour" or (self.kind == "colour" and picture.kind == "grey"):
            if self.kind != "colour":
                raise InputError(
                    f"{path} is in colour, and the other masks hold "
                    f"{'0 and 255' if self.kind == 'binary' else 'class numbers'}. Convert it."
                )
            codes = values if picture.kind == "colour" else values.astype(np.int32) * 0x010101
            at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
            strange = self.codes[at] != codes
            if strange.any():
                raise InputError(self._strange(codes[strange], path, "the colours", _colour))
            return np.asarray(self.of_code[at])
        if self.kind == "binary" and picture.kind == "grey":
            strange = (values != 0) & (values != 255)
            if strange.any():
                raise InputError(self._strange(values[strange], path, "the values", str))
            return np.asarray(values == 255, np.uint8)
        low = values if values.dtype == np.uint8 else np.clip(values, 0, 255).astype(np.uint8)
        # By OpenCV's tables: NumPy's look-up takes as long as decoding the file.
        cut = low is not values and (low != values).any()
        if cut or not cv2.LUT(low, self.known.view(np.uint8)).all():
            strange = ~self.known[low] | (low != values)
            raise InputError(self._strange(values[strange], path, "the values", str))
        return np.asarray(cv2.LUT(low, self.numbers))

    def _strange(self, values: Array, path: str, what: str, word: Any) -> str:
        found = np.unique(values).tolist()
        shown = ", ".join(word(v) for v in found[:MOST_SHOWN])
        more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        known = {
            "index": f"there are {len(self.classes)} classes (0 to {len(self.classes) - 1}), and "
            "255 is ignored",
            "binary": "the masks are black and white, 0 and 255",
            "colour": "the table of the classes' colours does not have them",
        }[self.kind]
        return (
            f"{path}: {len(values):,} pixels have {what} {shown}{more}; {known}. Correct the mask, "
            "or name all classes in classes.txt."
        )

    def digest(self) -> bytes:
        text = (self.kind, self.classes, self.lossy, self.known.tobytes(), self.numbers.tobytes())
        return repr((text, self.codes.tolist(), self.of_code.tolist())).encode()


class MaskFiles:
    """Mask files by sample, read on demand. ``files`` lists them in the order of ``images``."""

    def __init__(self, files: FileImages, images: FileImages, rule: Rule) -> None:
        assert len(files) == len(images)
        self.files = files
        self.rule = rule
        self._images = images

    def fields(self, i: int) -> dict[str, Any]:
        path = self.files.path(i)
        picture = load(path, self._images.size(i), self._images.max_megapixels)
        return {"mask": self.rule.apply(picture, path)}

    def digest(self) -> bytes:
        digest = hashlib.blake2b(self.files.digest(), digest_size=16)
        digest.update(self.rule.digest())
        return digest.digest()


def load(
    path: str, size: tuple[int, int] | None = None, max_megapixels: float = MAX_MEGAPIXELS
) -> Picture:
    """A mask file. Raises :class:`InputError` if it cannot be read, or its height and width are not
    ``size``."""
    data = read(path)
    image, header = opened(data, path)
    check_header(header, path, max_megapixels)
    if size is not None and header.size != size:
        raise InputError(
            f"{path} has {header.size[1]} × {header.size[0]} pixels, and its image {size[1]} × "
            f"{size[0]}. A mask has its image's size; replace one of them."
        )
    if header.mode not in _MODES or header.orientation != 1:
        what = (
            f"an image of mode {header.mode}"
            if header.orientation == 1
            else "to be turned, by its EXIF orientation"
        )
        raise InputError(
            f"{path} is {what}; a mask is a PNG of class numbers, of a palette or of colours. Save "
            "it as such."
        )
    try:
        array = np.asarray(image)
        palette = image.getpalette() if image.mode == "P" else None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}).") from error
    lossy = header.format == "JPEG"
    alpha = header.mode in ("LA", "RGBA")
    if header.mode == "P":
        colours = None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)
        return Picture(array, "palette", colours)
    if header.mode == "1":
        return Picture(array.astype(np.uint8) * 255, "grey")
    if header.mode == "LA":
        array = array[:, :, 0]
    if array.ndim == 2:
        # Pillow scales grey of 2 and 4 bits to 8.
        bits = data[24] if header.format == "PNG" and data[25] == 0 else 8
        step = {2: 85, 4: 17}.get(bits, 1)
        return Picture(array if step == 1 else array // step, "grey", lossy=lossy, alpha=alpha)
    red, green, blue = array[:, :, 0], array[:, :, 1], array[:, :, 2]
    if (red == green).all() and (green == blue).all():
        return Picture(red, "grey", lossy=lossy, alpha=alpha)
    codes = array[:, :, :3].astype(np.int32) @ _WEIGHTS
    return Picture(codes, "colour", lossy=lossy, alpha=alpha)


def decide(source: str, files: FileImages, tables: Tables) -> Rule:
    """What the masks hold, by ``MOST_LOOKED_AT`` of them and the tables of classes beside them.

    A mask that cannot be read is passed over; reading it will say why. Raises :class:`InputError`
    where none can be read, and for colours without a table that says whose they are.
    """
    seen = _look(source, files)
    told = f"{seen.count:,} of {len(files):,} masks" if seen.count < len(files) else "all masks"
    notes: Notes = []
    if seen.alpha:
        notes.append(f"{seen.alpha:,} masks (of {told}) have an alpha channel, which is ignored.")
    greys = {v * 0x010101 for v in seen.grey}
    colours = tables.colours
    if seen.codes or (colours is not None and _are_colours(seen, greys, colours)):
        if colours is None:
            shown = ", ".join(_colour(c) for c in sorted(seen.codes)[:MOST_SHOWN])
            raise InputError(
                f"{source}: the masks are in colour ({len(seen.codes):,} colours in {told}, such "
                f"as {shown}), and nothing says which colour is which class. Write {EXAMPLE}."
            )
        if seen.lossy:
            raise InputError(
                f"{source}: the masks are JPEG files in colour, and JPEG changes colours. Save "
                "them as PNG, from where they were drawn."
            )
        return _by_colour(source, colours, told, notes)
    if seen.lossy:
        if not _is_black_and_white(seen):
            raise InputError(
                f"{source}: the masks are JPEG files of class numbers, and JPEG changes numbers. "
                "Save them as PNG, from where they were drawn."
            )
        notes.append(
            "The masks are JPEG files, which blur; a pixel of 128 or more is taken for white."
        )
    names = tables.names or colours
    if _is_binary(source, seen, names, told):
        return _binary(source, names, seen, told, notes)
    return _by_index(source, names, seen, told, notes)


@dataclass
class _Seen:
    """What was found in the masks that were looked at."""

    count: int = 0
    grey: set[int] = field(default_factory=set)
    """Values of pictures in grey; of JPEG files, only those of many pixels."""
    index: set[int] = field(default_factory=set)
    """Values of pictures with a palette."""
    codes: set[int] = field(default_factory=set)
    holders: dict[int, int] = field(default_factory=dict)
    """How many masks hold a value."""
    mixed: int = 0
    """Masks in grey that hold more than 0 and 255."""
    pixels: int = 0
    between: int = 0
    white: int = 0
    """Pixels in grey; those of them that are neither black nor white (of JPEG files, nearly); and
    those that are white."""
    palette: Array | None = None
    lossy: int = 0
    alpha: int = 0

    @property
    def values(self) -> set[int]:
        return self.grey | self.index


def _look(source: str, files: FileImages) -> _Seen:
    seen = _Seen()
    first: InputError | None = None
    for i in np.unique(np.linspace(0, len(files) - 1, MOST_LOOKED_AT).astype(int)).tolist():
        try:
            picture = load(files.path(i))
        except InputError as error:
            first = first or error
            continue
        seen.count += 1
        seen.lossy += picture.lossy
        seen.alpha += picture.alpha
        found = _distinct(picture.values)
        if picture.kind == "colour":
            seen.codes.update(found[: MOST_COLOURS - len(seen.codes)])
            continue
        if picture.kind == "grey":
            edge = 64 if picture.lossy else 0
            between = (picture.values > edge) & (picture.values < 255 - edge)
            seen.mixed += bool(between.any())
            seen.between += int(between.sum())
            seen.white += int((picture.values == 255).sum())
            seen.pixels += between.size
        (seen.index if picture.kind == "palette" else seen.grey).update(found)
        for value in found:
            seen.holders[value] = seen.holders.get(value, 0) + 1
        if seen.palette is None:
            seen.palette = picture.palette
    if not seen.count:
        assert first is not None
        raise InputError(f"{source}: none of the masks that were looked at can be read. {first}")
    return seen


def _distinct(values: Array) -> list[int]:
    if values.dtype == np.uint8:  # ten times faster than sorting
        return [int(v) for v in np.flatnonzero(np.bincount(values.ravel(), minlength=256))]
    return [int(v) for v in np.unique(values)]


def _are_colours(seen: _Seen, greys: set[int], table: ClassTable) -> bool:
    """Whether grey pictures hold the table's colours (a black, a grey, a white) and no numbers."""
    codes = set(_codes(table).tolist())
    return not seen.index and greys <= codes and max(seen.grey, default=0) >= len(table.names)


def _is_black_and_white(seen: _Seen) -> bool:
    return not seen.index and seen.between < seen.pixels / 20 and max(seen.grey, default=0) > 192


def _is_binary(source: str, seen: _Seen, names: ClassTable | None, told: str) -> bool:
    if seen.index or not seen.grey:
        return False
    count = 0 if names is None else len(names.names)
    pure = seen.grey <= {0, 255} and 255 in seen.grey
    if pure and count > 2 and names is not None:
        raise InputError(
            f"{source}: {told} hold nothing but 0 and 255, and {names.file} names {count} classes. "
            "255 means ignored where classes are numbered; write each class's number (0, 1, 2 …) "
            "into the masks, or name only the two."
        )
    # A few spoilt masks, or soft edges from an enlargement, do not make class numbers of it. What
    # is void is less than what has a class; what is white is more than its edges.
    few = seen.mixed <= seen.count / 20 or len(seen.grey) > MOST_NUMBERS
    spoilt = max(seen.grey) == 255 and seen.between < min(seen.white, seen.pixels / 4) and few
    return count <= 2 and (pure or spoilt or bool(seen.lossy))


def _binary(source: str, names: ClassTable | None, seen: _Seen, told: str, notes: Notes) -> Rule:
    if names is None:
        classes: tuple[str, ...] = ("background", "foreground")
    else:
        classes = names.names if len(names.names) == 2 else ("background", *names.names)
    rest = "" if seen.lossy or not seen.mixed else f", {seen.mixed:,} of them other values too"
    note = (
        f"The masks are black and white ({told} hold 0 and 255{rest}): 0 is {classes[0]}, 255 is "
        f"{classes[1]}, and nothing is ignored."
    )
    return _rule("binary", classes, lossy=bool(seen.lossy), notes=[note, *notes])


def _by_colour(source: str, table: ClassTable, told: str, notes: Notes) -> Rule:
    codes = _codes(table)
    classes, of_row, void = table.without_void()
    if void:
        notes = [*notes, f"{', '.join(void)} in {table.file} is no class: it is ignored (255)."]
    order = np.argsort(codes)
    kept = of_row != IGNORED
    assert table.colours is not None
    note = f"The masks are in colour; the classes are those of {table.file}."
    return _rule(
        "colour",
        classes,
        codes=codes[order],
        of_code=of_row[order],
        of_index=of_row,
        palette=table.colours[kept],
        notes=[note, *notes],
    )


def _by_index(source: str, names: ClassTable | None, seen: _Seen, told: str, notes: Notes) -> Rule:
    values = {v for v in seen.values if v != IGNORED}
    if names is None:
        most = max(values, default=0)
        if most > IGNORED:
            raise InputError(
                f"{source}: the masks hold the number {most:,}; class numbers go from 0 to 254, "
                "and 255 is ignored. Number the classes anew, or name them in classes.txt."
            )
        classes = tuple(str(k) for k in range(most + 1))
        notes = [
            f"No classes.txt names the classes, so they are numbers, 0 to {most}: the largest in "
            f"{told}, 255 aside.",
            *notes,
        ]
        return _rule("index", classes, palette=_palette(seen, len(classes)), notes=notes)
    classes, of_row, void = names.without_void()
    notes = [f"The classes are those of {names.file}.", *notes]
    if void:
        notes.append(f"{', '.join(void)} in {names.file} is no class: it is ignored (255).")
    count = len(names.names)
    # One above the last class named is the usual place of what has no class, unless 255 is there.
    if not void and count in values and IGNORED not in seen.values:
        of_row = np.append(of_row, np.uint8(IGNORED))
        notes.append(
            f"The value {count} is one above the last class of {names.file} (in "
            f"{seen.holders[count]:,} of {seen.count:,} masks looked at): it is void, and ignored "
            "(255)."
        )
    palette = (
        names.colours[of_row[:count] != IGNORED]
        if names.colours is not None
        else _palette(seen, len(classes))
    )
    return _rule("index", classes, of_index=of_row, palette=palette, notes=notes)


def _rule(
    kind: str,
    classes: tuple[str, ...],
    *,
    of_index: Array | None = None,
    codes: Sequence[int] | Array = (),
    of_code: Sequence[int] | Array = (),
    palette: Array | None = None,
    lossy: bool = False,
    notes: Iterable[str] = (),
) -> Rule:
    of_row = np.arange(len(classes)) if of_index is None else of_index
    numbers = np.full(256, IGNORED, np.uint8)
    numbers[: len(of_row)] = of_row
    known = np.zeros(256, bool)
    known[: len(of_row)] = True
    known[IGNORED] = True
    return Rule(
        kind,
        classes,
        numbers,
        known,
        np.asarray(codes, np.int32),
        np.asarray(of_code, np.uint8),
        palette,
        lossy,
        list(notes),
    )


def _palette(seen: _Seen, count: int) -> Array | None:
    return seen.palette[:count] if seen.palette is not None and len(seen.palette) >= count else None


def _codes(table: ClassTable) -> Array:
    assert table.colours is not None
    return np.asarray(table.colours.astype(np.int32) @ _WEIGHTS)


def _colour(code: int) -> str:
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})"
