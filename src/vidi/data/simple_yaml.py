"""The little of YAML that a data.yaml is written in, read strictly.

Known keys, at the left margin, hold a word, a list or a mapping, on one line or on indented lines
below; words may be quoted. All other keys are passed over with what is indented below them. What
goes beyond this (anchors, tags, several lines of text) under a known key is an error, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from vidi.errors import InputError

Value = str | list[str] | dict[str, str] | None

_KEY = re.compile(r"""("[^"]*"|'[^']*'|[^\s:#"'\[\]{},&*!|>-][^:#]*?)\s*:(?:\s+(.*)|)$""")
_ITEM = re.compile(r"-(?:\s+(.*)|)$")
_WORD = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,\[\]{}"']*[^,\[\]{}"'\s]|)\s*""")
_MISREAD = frozenset({"|", ">", "|-", ">-", "|+", ">+"})


def read_yaml(text: str, known: Collection[str], name: str) -> dict[str, Value]:
    """The values of the ``known`` keys; None where nothing follows a key.

    ``name`` is what errors call the file. Raises :class:`InputError`, with the line.
    """
    lines = [(n, _uncommented(line)) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(n, line) for n, line in lines if line.strip() and line.strip() not in ("---", "...")]
    found: dict[str, Value] = {}
    at = 0
    while at < len(lines):
        n, line = lines[at]
        at += 1
        where = f"{name}, line {n}"
        match = _KEY.match(line)
        if match is None:
            raise InputError(f"{where}: {line.strip()!r}; a key and a colon are expected.")
        key, rest = _unquoted(match[1], where), (match[2] or "").strip()
        below = at
        # A list may stand below its key without being indented.
        while at < len(lines) and lines[at][1][0] in " \t-":
            at += 1
        if key not in known:
            continue
        if key in found:
            raise InputError(f"{where}: {key} is given a second time. Remove one of them.")
        if rest and below < at and rest[0] in "[{":
            rest = " ".join([rest, *(line.strip() for _, line in lines[below:at])])
        elif rest and below < at:
            raise InputError(f"{where}: text over several lines is not read here; write one line.")
        found[key] = _inline(rest, where) if rest else _block(lines[below:at], name)
    return found


def _block(lines: list[tuple[int, str]], name: str) -> Value:
    """A list or a mapping on lines of their own."""
    items: list[str] = []
    pairs: dict[str, str] = {}
    margin = None
    for n, line in lines:
        where = f"{name}, line {n}"
        indent = len(line) - len(line.lstrip())
        margin = indent if margin is None else margin
        item, pair = _ITEM.match(line.strip()), _KEY.match(line.strip())
        if indent != margin or "\t" in line[:indent] or not (item or pair):
            raise InputError(
                f"{where}: {line.strip()!r}; all items of a list (- name) or of a mapping "
                "(0: name) are expected below one another."
            )
        if item:
            items.append(_word(item[1] or "", where))
        elif pair:
            _add(pairs, _unquoted(pair[1], where), _word(pair[2] or "", where), where)
        if items and pairs:
            raise InputError(f"{where}: a list and a mapping are mixed.")
    return pairs or items or None


def _inline(text: str, where: str) -> Value:
    """What stands behind a key on its line."""
    if text[0] not in "[{":
        return _word(text, where)
    items: list[str] = []
    pairs: dict[str, str] = {}
    end = "]" if text[0] == "[" else "}"
    at = 1
    while True:
        match = _WORD.match(text, at)
        assert match is not None
        at = match.end()
        sign = text[at : at + 1]
        last = sign == end and text[at + 1 :].strip() == ""
        if match[1] and end == "}":
            key, colon, value = match[1].partition(":")
            if match[1][0] in "\"'" and sign == ":":  # a quoted key
                key, colon, value = match[1], ":", ""
                at += 1
            if colon and not value.strip():
                more = _WORD.match(text, at)
                assert more is not None
                value, at = more[1], more.end()
                sign = text[at : at + 1]
                last = sign == end and text[at + 1 :].strip() == ""
            if not colon:
                raise InputError(f"{where}: {text!r}; number: name is expected in braces.")
            _add(pairs, _unquoted(key.strip(), where), _word(value.strip(), where), where)
        elif match[1]:
            items.append(_word(match[1], where))
        elif not last:
            raise InputError(f"{where}: {text!r} is not a list or a mapping that is read here.")
        if last:
            return items if end == "]" else pairs
        if sign != ",":
            raise InputError(f"{where}: {text!r} does not end, or holds lists within lists.")
        at += 1


def _add(pairs: dict[str, str], key: str, value: str, where: str) -> None:
    if key in pairs:
        raise InputError(f"{where}: {key} is given a second time. Remove one of them.")
    pairs[key] = value


def _word(text: str, where: str) -> str:
    if text in _MISREAD or (text and text[0] in "&*!|>@`%[{"):
        raise InputError(f"{where}: {text!r} is YAML beyond what is read here; write a plain word.")
    return _unquoted(text, where)


def _unquoted(text: str, where: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        inner = text[1:-1]
        if re.search(r'\\[^"\\]', inner):
            raise InputError(f'{where}: {text} holds escapes; only \\" and \\\\ are read.')
        return re.sub(r'\\(["\\])', r"\1", inner)
    if text[:1] in ("'", '"'):
        raise InputError(f"{where}: {text} begins with a quote and does not end with it.")
    return text


def _uncommented(line: str) -> str:
    """Without the comment: from a # at the start or after a blank, outside of quotes."""
    quote, escaped = "", False
    for k, sign in enumerate(line):
        if escaped:
            escaped = False
        elif quote:
            escaped = sign == "\\" and quote == '"'
            quote = "" if sign == quote else quote
        elif sign in "\"'" and (k == 0 or line[k - 1] in " \t[{,:"):
            quote = sign
        elif sign == "#" and (k == 0 or line[k - 1] in " \t"):
            return line[:k].rstrip()
    return line.rstrip()
