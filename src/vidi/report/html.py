"""HTML pages that need nothing beside them: frame and style, escaping, tables, pictures within.

What is a plain ``str`` is escaped wherever it is put; what is HTML already is an :class:`Html`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

from vidi.report.names import readable

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5c6773; --line: #e3e7ec;
        --ground: #f5f7f9; --paper: #fff; --blue: #1f6fb4; --green: #2c8a4b; --red: #c8322b;
        --amber: #9a6200; --pale-green: #e7f4ec; --pale-red: #fbeae9; --pale-amber: #fbf1df;
        --pale-blue: #e8f1f9;
        --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e2e7ec; --soft: #98a3af; --line: #2b333c; --ground: #0f1317; --paper: #171c22;
          --blue: #6fb3ec; --green: #67c587; --red: #f2837b; --amber: #e3b052;
          --pale-green: #183324; --pale-red: #3d2020; --pale-amber: #382d17;
          --pale-blue: #172b3c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: var(--ground); font: 16px/1.55 var(--sans); }
main { max-width: 1020px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 21px; line-height: 1.3; margin: 0 0 10px; }
h3 { font-size: 15px; margin: 26px 0 6px; }
p { margin: 0 0 10px; max-width: 78ch; overflow-wrap: break-word; }
pre { margin: 0 0 10px; padding: 10px 14px; background: var(--ground); border-radius: 6px;
      overflow-x: auto; font-size: 14px; }
code { font: 0.92em ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace;
       overflow-wrap: anywhere; }
pre code { overflow-wrap: normal; }
a { color: var(--blue); text-decoration: none; }
a:hover { text-decoration: underline; }
.lead, .small, figcaption { color: var(--soft); }
.small { font-size: 14px; }
nav, section { position: relative; background: var(--paper); border: 1px solid var(--line);
               border-radius: 10px; padding: 24px 28px; margin-top: 24px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; margin: 6px 0 4px; }
th, td { text-align: left; vertical-align: top; padding: 7px 12px 7px 0;
         border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right; }
.numbers td { font-variant-numeric: tabular-nums; }
figure { margin: 20px 0 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: 14px; margin-top: 6px; }
@media (max-width: 640px) { main { padding: 24px 12px 60px; }
  nav, section { padding: 18px 16px; } }
@media print { body { background: #fff; } main { max-width: none; padding: 0; }
  section, figure, tr { break-inside: avoid; } nav, section { border: 0; padding: 0; } }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: str) -> Html:
    """The words, so that a browser shows them as they stand; what is HTML is left as it is."""
    return value if isinstance(value, Html) else Html(escape(value))


def inline(words: str) -> Html:
    """``code``, `code` and *emphasis* as our docstrings and sentences write them."""
    found = re.sub(r"``(.+?)``|`(.+?)`", r"<code>\1\2</code>", escape(words, quote=False))
    return Html(re.sub(r"(?<![\w*])\*(\w[^*]*?\w|\w)\*(?![\w*])", r"<em>\1</em>", found))


def joined(parts: Iterable[str]) -> Html:
    """The parts that are not empty, a line each."""
    return Html("\n".join(text(part) for part in parts if part))


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", caption: str = ""
) -> Html:
    """A table that scrolls in a box of its own where the page is narrow. ``kind``: its class;
    ``numbers`` puts all columns but the first at the right. Without heads it has no head."""
    head = "".join(f'<th scope="col">{text(one)}</th>' for one in heads)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    named = f' aria-label="{escape(caption)}"' if caption else ""
    return Html(
        f'<div class="scroll" tabindex="0" role="region"{named}><table class="{kind}">'
        + (f"<thead><tr>{head}</tr></thead>" if heads else "")
        + f"<tbody>{body}</tbody></table></div>"
    )


def picture(data: bytes, alt: str, *, kind: str = "") -> Html:
    """An image within the page. ``data``: a whole PNG or JPEG file. ``kind``: its class."""
    form = "png" if data.startswith(b"\x89PNG") else "jpeg"
    coded = base64.b64encode(data).decode("ascii")
    classed = f' class="{kind}"' if kind else ""
    return Html(f'<img{classed} alt="{escape(alt)}" src="data:image/{form};base64,{coded}">')


def frame(title: str, body: Iterable[str], *, style: str = "", maker: str = "vidi") -> str:
    """The whole page. ``style``: rules beside :data:`STYLE`. ``maker``: what made it, by which a
    later call knows its own."""
    page = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            f'<meta name="generator" content="{escape(maker)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}{style}</style></head>",
            "<body><main>",
            *(text(part) for part in body),
            "</main></body></html>",
            "",
        ]
    )
    return readable(page)
