"""From a dataclass to a command line (tyro), in the words that people type.

tyro reads ``float | Literal["auto"] | None`` as it is written in Python, ``{None}|FLOAT|{auto}``;
here it is shown as ``FLOAT|auto|none`` and takes ``none``, ``true`` and ``false`` in any case.
"""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """``arguments`` as an instance of the dataclass ``kind``.

    A flag or value that does not fit is answered on stderr, with the nearest that exists, and ends
    the process with code 2; ``--help`` is printed and ends it with code 0.
    """
    registry = ConstructorRegistry()
    registry.primitive_rule(_plain_words)
    start: Any = tyro.MISSING_NONPROP if default is None else default
    told: T = tyro.cli(kind, args=arguments, prog=prog, default=start, registry=registry)
    return told


def _plain_words(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Unions of plain values; every other type is left to tyro."""
    if info.type_origin not in (Union, types.UnionType):
        return None
    options = get_args(info.type)
    counts = tuple(sorted({len(get_args(o)) if get_origin(o) is tuple else 1 for o in options}))
    return PrimitiveConstructorSpec(
        nargs=counts[0] if len(counts) == 1 else counts,
        metavar="|".join(_word(option) for option in sorted(options, key=_is_named)),
        instance_from_str=lambda words: _read(words, options),
        is_instance=lambda value: any(_is(value, option) for option in options),
        str_from_instance=_written,
    )


def _word(option: Any) -> str:
    if option is type(None):
        return "none"
    if option is bool:
        return "true|false"
    if get_origin(option) is Literal:
        return "|".join(str(value) for value in get_args(option))
    if get_origin(option) is tuple:
        return " ".join(_word(inner) for inner in get_args(option))
    return str(option.__name__).upper()


def _is_named(option: Any) -> bool:
    return option is type(None) or get_origin(option) is Literal


def _read(words: list[str], options: tuple[Any, ...]) -> Any:
    # Names before numbers, and text, which anything is, last.
    for option in sorted(options, key=lambda o: (not _is_named(o), o is str)):
        try:
            if get_origin(option) is tuple:
                inner = get_args(option)
                if len(inner) == len(words):
                    return tuple(_scalar(w, i) for w, i in zip(words, inner, strict=True))
            elif len(words) == 1:
                return _scalar(words[0], option)
        except ValueError:
            continue
    wanted = " or ".join(_word(option) for option in options)
    raise ValueError(f"{' '.join(words)!r} is not {wanted}")


def _scalar(word: str, option: Any) -> Any:
    if option is type(None) and word.lower() == "none":
        return None
    if get_origin(option) is Literal and word in get_args(option):
        return word
    if option is bool and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if option is int:
        return int(word)
    if option is float and math.isfinite(float(word)):
        return float(word)
    if option is str:
        return word
    raise ValueError(word)


def _is(value: Any, option: Any) -> bool:
    if option is type(None):
        return value is None
    if get_origin(option) is Literal:
        return value in get_args(option)
    if get_origin(option) is tuple:
        return isinstance(value, tuple)
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, option)


def _written(value: Any) -> list[str]:
    if value is None:
        return ["none"]
    if isinstance(value, bool):
        return [str(value).lower()]
    return [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
