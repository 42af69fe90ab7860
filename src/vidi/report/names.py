"""Names that come from outside, of classes, files and runs, as they may be written and drawn."""

from __future__ import annotations


def readable(words: str) -> str:
    """The words with a ? for each byte that was no UTF-8: a file's name may hold such bytes, which
    no page, drawing or JSON can."""
    return words.encode("utf-8", "replace").decode("utf-8")


def plain(words: str) -> str:
    """As matplotlib draws the words as they stand: a $ begins no formula, and a _ in front does not
    hide a line from its legend."""
    shown = readable(words).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
