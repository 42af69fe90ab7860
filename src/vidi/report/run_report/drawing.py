"""Pictures within the page: drawings as SVG in the page's colours, pixels as PNG or JPEG."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import cv2
import matplotlib
from matplotlib.axes import Axes

from vidi.report.html import Html, picture
from vidi.report.pictures import STYLE, _figure, _save, fitted
from vidi.types import Array

INK = "#1d2733"
SVG: Any = {
    # Letters stay letters: small, and found by a search in the page.
    "svg.fonttype": "none",
    "svg.hashsalt": "vidi",
    "savefig.transparent": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
THE_PAGES = {
    INK: "currentColor",
    "#222222": "currentColor",
    "#333333": "currentColor",
    "#444444": "currentColor",
    "#e6e8eb": "var(--line)",
    "#1f6fb4": "var(--blue)",
}
"""Colours of a drawing that are the page's, whether that is light or dark."""
ENLARGED = 1.4
"""Pixels per point of a drawing, at most: larger letters would shout."""
TINY = 96
"""Images of no longer side are shown pixel by pixel, and kept without loss."""
QUALITY = 85
"""Of JPEG."""


def drawing(draw: Callable[[Path], None], alt: str, *, adapts: bool = True) -> Html:
    """What ``draw`` writes to a path, as SVG. ``adapts``: whether its ink and lines are the page's;
    else it stays dark on white. ``alt``: what it shows, for who cannot see it."""
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(SVG):
        path = Path(folder) / "it.svg"
        draw(path)
        return _within(path.read_text(encoding="utf-8"), alt, adapts)


def chart(
    draw: Callable[[Axes], None], alt: str, *, size: tuple[float, float] = (4.2, 3.0)
) -> Html:
    """What ``draw`` draws into one panel. ``size``: in inches of 72 points."""

    def write(path: Path) -> None:
        with matplotlib.rc_context(STYLE):
            figure, (axes,) = _figure(*size, 1)
            draw(axes)
            _save(figure, path)

    return drawing(write, alt)


def pixels(image: Array, alt: str, *, side: int = 480, exact: bool = False) -> Html:
    """An image, uint8 RGB [H, W, 3] or grey [H, W], shrunk to a longer side of ``side``. ``exact``:
    without loss, as lines and areas of one colour need."""
    shown = fitted(image, side)
    tiny = max(shown.shape[:2]) <= TINY
    bgr = shown if shown.ndim == 2 else cv2.cvtColor(shown, cv2.COLOR_RGB2BGR)
    if exact or tiny:
        _, packed = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    else:
        _, packed = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return picture(packed.tobytes(), alt, kind="tiny" if tiny else "")


def figure(shown: str, caption: str = "", *, kind: str = "") -> Html:
    """A picture with its caption (HTML)."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return Html(f'<figure class="{kind}">{shown}{below}</figure>')


def _within(svg: str, alt: str, adapts: bool) -> Html:
    """As part of a page: without what belongs to a file, and with names that no other has."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    found = re.search(r'viewBox="([^"]*)"', head)
    assert found is not None
    wide = float(found[1].split()[2]) * ENLARGED
    salt = "g" + hashlib.blake2b(rest.encode(), digest_size=5).hexdigest()
    # In tags only, so that a name that looks like one of their parts stays as it is.
    rest = re.sub(r"<[^>]*>", lambda found: _own(found[0], salt, adapts), rest)
    rest = re.sub(r"\n\s*", "\n", rest)
    kind = "" if adapts else ' class="white"'
    return Html(
        f'<svg{kind} role="img" aria-label="{escape(alt)}" viewBox="{found[1]}" '
        f'style="max-width: {wide:.0f}px">{rest}'
    )


def _own(tag: str, salt: str, adapts: bool) -> str:
    """A tag of a drawing as one of the page's. ``salt``: what its names begin with."""
    # Groups are named for whoever edits the drawing; only what is used needs a name.
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = tag.replace(' id="', f' id="{salt}-').replace("url(#", f"url(#{salt}-")
    tag = tag.replace('xlink:href="#', f'href="#{salt}-').replace("xlink:href", "href")
    tag = re.sub(r"font: ((?:\d+ )?[\d.]+px) [^;\"]+", r"font: \1 var(--sans)", tag)
    if adapts:
        for theirs, own in THE_PAGES.items():
            tag = tag.replace(theirs, own)
        # A legend's ground; white letters stay white.
        tag = re.sub(r'^(<path [^>]*style="fill: )#ffffff', r"\1var(--paper)", tag)
    return tag
