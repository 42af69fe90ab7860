"""Where a verb writes what it made, never over what is there; tables, metrics as JSON, counts as
words."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vidi.errors import InputError


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """A name in the folder that nothing has: with -2, -3 … where the plain one is taken."""
    path, number = folder / f"{stem}{suffix}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON, which has no NaN: None where there is no value."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written to: {error.strerror or error}. Make room, or give --out "
            "another place."
        ) from error


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a table. ``left``: so many columns are of words, the others of numbers."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for k, head in enumerate(heads):
        shown.add_column(head, justify="left" if k < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    Console(highlight=False, markup=False).print(shown)


def amount(count: int) -> str:
    """Three digits and a unit: 11.7 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return str(count)
