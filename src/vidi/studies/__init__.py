"""The lecture's claims, each a file that runs: ``vidi study NAME``.

A study is a module of this package. Its docstring's first line is the title, the rest is the claim
in our own words; ``CLAIM`` is the claim's number in the lecture (1 to 17), and::

    def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study

measures it. ``small``: seconds, the same claim at a smaller size, which the tests run. ``full``:
the paper's whole recipe where there is one (else as ever). ``folder``: where a long study keeps
what it has done, so that the next call goes on there; none = a folder of its own, removed after.
Nothing that is reported may be written down beforehand: it is measured, or the study is wrong.

Modules whose name begins with an underscore are no studies but help them.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vidi.errors import InputError

Value = str | float | int | bool


@dataclass(frozen=True)
class Measured:
    """One thing that was measured, and whether it is as the claim says."""

    what: str
    """In words, with the unit: ``"largest difference to autograd"``."""
    value: Value
    expected: str
    """What the claim says, and the tolerance, in words: ``"at most 1e-12"``."""
    holds: bool


@dataclass(frozen=True)
class Table:
    """Numbers that are worth reading, and judged by no tolerance."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Study:
    """What a study measured, and its pictures."""

    measured: tuple[Measured, ...]
    pictures: tuple[tuple[str, Callable[[Path], None]], ...] = ()
    """(caption, function that writes the PNG at that path); the first is what a teacher shows."""
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    """Whole sentences: what was left out, where the lecture's slide slips."""

    @property
    def holds(self) -> bool:
        return bool(self.measured) and all(one.holds for one in self.measured)


def names() -> list[str]:
    """All studies, in the order of the alphabet: ``gradient-descent``, ``momentum`` …"""
    found = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    return sorted(name.replace("_", "-") for name in found)


def find(name: str) -> ModuleType:
    """The study's module. Raises :class:`InputError`, with the nearest, if there is none."""
    name = name.replace("_", "-")
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"There is no study {name!r}.{hint} `vidi list studies` shows all of them."
        )
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def title(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().splitlines()[0].rstrip(".")


def claim(module: ModuleType) -> str:
    """The claim in words: the docstring below its first line."""
    return "\n".join((module.__doc__ or "").strip().splitlines()[1:]).strip()
