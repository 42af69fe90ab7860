"""What is predicted together, though some of it cannot be read."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from vidi.errors import InputError

T = TypeVar("T")


def predicted(
    predict: Callable[[Sequence[T]], Sequence[Any]], sources: Sequence[T]
) -> Iterator[tuple[T, Any]]:
    """Each source and its prediction, or the InputError that says why there is none.

    ``predict`` takes them all at once. Where it raises InputError, it gets them one by one: that
    shows which cannot be read, and the others get theirs. What it prints goes to stderr.
    """
    if not sources:
        return
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found: Sequence[Any] = predict(sources)
    except InputError as error:
        if len(sources) == 1:
            yield sources[0], error
        else:
            for source in sources:
                yield from predicted(predict, [source])
        return
    yield from zip(sources, found, strict=True)
