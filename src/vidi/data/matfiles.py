"""MATLAB's .mat files, version 5: numbers, cells and structs. Read here, and written by scipy.

scipy's reader believes what a file says of itself: one wrong byte can end the process (a type of
element that there is not), and a few bytes that declare a cell array of 10^9 would take 8 GB. Here
everything is measured against the bytes that are there. "MAT-File Format" (The MathWorks, 2019),
chapter 1.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vidi.data.images import read
from vidi.errors import InputError

MAX_BYTES = 1 << 30
"""What a file may hold after it has been expanded."""
_HEADER = 128
_DEEPEST = 8
_MATRIX, _COMPRESSED = 14, 15
_STORED = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
"""Types of elements; whole numbers of a larger type are stored as the smallest that holds them."""
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)
_LOGICAL, _COMPLEX = 0x0200, 0x0800
_WRITTEN = b"MATLAB 5.0 MAT-file, written by vidi"


def load_mat(path: str, name: str) -> Any:
    """The variable ``name`` of a .mat file: numbers as an array, of the type in which they are
    stored; a cell array as an object array of them; a struct as a dict, and an array of structs as
    an object array; characters as ``None``.

    Raises :class:`InputError` for another version (7.3, which is HDF5), a damaged file or one cut
    short, a declared size that the file cannot hold, and where there is no such variable.
    """
    data = read(path)
    order = _byte_order(path, data)
    body = memoryview(_expanded(path, data, order))
    names, at = [], 0
    try:
        while at < len(body):
            kind, content, at = _element(body, at, order)
            if kind == _MATRIX:
                names.append(_start(content, order)[3])
                if names[-1] == name:
                    return _value(content, order, _DEEPEST)
    except (struct.error, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}. Fetch it again.") from error
    raise InputError(f"{path} holds no {name}, but {', '.join(sorted(names)) or 'nothing'}.")


def save_mat(path: str | Path, variables: dict[str, Any]) -> None:
    """Arrays, object arrays (cells) and dicts (structs) as a .mat file, always the same bytes."""
    import scipy.io  # only here: reading does without, and starts sooner

    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables, do_compression=True)
    # scipy writes the time into the first 116 bytes, which are a text.
    Path(path).write_bytes(_WRITTEN.ljust(116) + buffer.getvalue()[116:])


def _byte_order(path: str, data: bytes) -> str:
    """ "<" or ">", if it is a file of version 5."""
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[512:520] == b"\x89HDF\r\n\x1a\n":
        raise InputError(
            f"{path} is a MATLAB file of version 7.3 (HDF5), which is not read. In MATLAB, save it "
            "with -v7."
        )
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or struct.unpack(f"{order}H", data[124:126])[0] != 0x0100:
        begins = repr(data[:12])[1:]
        raise InputError(
            f"{path} is no MATLAB file of version 5, 6 or 7: it has {len(data):,} bytes and begins "
            f"with {begins}. In MATLAB, save it with -v7."
        )
    return order


def _expanded(path: str, data: bytes, order: str) -> bytes:
    """The elements behind the header, none of them compressed."""
    parts: list[bytes] = []
    left, at = MAX_BYTES, _HEADER
    while at < len(data):
        if at + 8 > len(data):
            raise InputError(_cut(path, len(data), at + 8))
        kind, size = struct.unpack_from(f"{order}II", data, at)
        end = at + 8 + size
        if end > len(data):
            raise InputError(_cut(path, len(data), end))
        if kind == _COMPRESSED:
            inflate = zlib.decompressobj()
            try:
                part = inflate.decompress(data[at + 8 : end], left + 1)
            except zlib.error as error:
                raise InputError(f"{path} is damaged ({error}). Fetch it again.") from error
            if len(part) <= left and not inflate.eof:
                raise InputError(f"{path} is damaged: its data ends too early. Fetch it again.")
        else:
            part = data[at:end]
        left -= len(part)
        if left < 0:
            raise InputError(
                f"{path} has {len(data):,} bytes and expands to more than {MAX_BYTES:,}, which no "
                "annotation of an image does. It is not read."
            )
        parts.append(part)
        at = end
    return b"".join(parts)


def _cut(path: str, there: int, expected: int) -> str:
    return (
        f"{path} is cut short: it declares {expected:,} bytes or more, and has {there:,}. Fetch it "
        "again."
    )


def _element(data: memoryview, at: int, order: str) -> tuple[int, memoryview, int]:
    """(type, content, where the next one begins) of the element at ``at``."""
    if at + 8 > len(data):
        raise ValueError("an element ends too early")
    kind, size = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:  # up to four bytes lie within the tag
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise ValueError(f"a small element declares {size} bytes")
        return kind, data[at + 4 : at + 4 + size], at + 8
    start = at + 8
    if start + size > len(data):
        raise ValueError(f"an element declares {size:,} bytes where {len(data) - start:,} are left")
    return kind, data[start : start + size], min(len(data), start + -(-size // 8) * 8)


def _start(data: memoryview, order: str) -> tuple[int, int, tuple[int, ...], str, int]:
    """(class, flags, sides, name, where its content begins) of an array."""
    _, flags, at = _element(data, 0, order)
    (word,) = struct.unpack_from(f"{order}I", flags)
    _, sizes, at = _element(data, at, order)
    sides = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    _, name, at = _element(data, at, order)
    return word & 0xFF, word & ~0xFF, sides, bytes(name).decode("latin-1"), at


def _value(data: memoryview, order: str, depth: int) -> Any:
    """What an array holds; ValueError says what not to believe."""
    if not len(data):  # MATLAB's [] in a cell
        return np.zeros((0, 0))
    if not depth:
        raise ValueError("its cells lie too deep in one another")
    kind, flags, sides, name, at = _start(data, order)
    name = name or "an array in it"
    count, shape = math.prod(sides), " × ".join(f"{side:,}" for side in sides)
    if kind == _CHAR:
        return None
    if kind in _NUMBERS and not flags & _COMPLEX:
        stored, content, _ = _element(data, at, order)
        if stored not in _STORED:
            raise ValueError(f"{name} holds numbers of the type {stored}, which there is not")
        numbers = np.frombuffer(content, np.dtype(order + _STORED[stored]))
        if min(sides, default=0) < 0 or count != len(numbers):
            raise ValueError(f"{name} declares {shape} elements, and {len(numbers):,} are there")
        numbers = numbers.reshape(sides, order="F")
        return numbers != 0 if flags & _LOGICAL else numbers
    if kind not in (_CELL, _STRUCT):
        raise ValueError(
            f"{name} is sparse, complex, an object or of an unknown class ({kind}); numbers, cells "
            "and structs are expected"
        )
    fields = [""]
    if kind == _STRUCT:
        fields, at = _field_names(data, at, order)
    # An array takes at least the 8 bytes of its tag.
    if min(sides, default=0) < 0 or count * len(fields) > (len(data) - at) // 8:
        raise ValueError(f"{name} declares {shape} elements in {len(data):,} bytes")
    found = np.empty(count, object)
    for k in range(count):
        held = {}
        for field in fields:
            inner, content, at = _element(data, at, order)
            if inner != _MATRIX:
                raise ValueError(f"{name} holds an element of type {inner} where an array belongs")
            held[field] = _value(content, order, depth - 1)
        found[k] = held if kind == _STRUCT else held[""]
    return found[0] if kind == _STRUCT and count == 1 else found.reshape(sides, order="F")


def _field_names(data: memoryview, at: int, order: str) -> tuple[list[str], int]:
    """The names of a struct's fields, and where the values begin."""
    _, content, at = _element(data, at, order)
    (length,) = struct.unpack(f"{order}i", content)
    _, content, at = _element(data, at, order)
    if length < 1 or not len(content):
        raise ValueError("a struct in it has no fields")
    text = bytes(content)
    names = [text[k : k + length] for k in range(0, len(text), length)]
    return [name.split(b"\0")[0].decode("latin-1") for name in names], at
