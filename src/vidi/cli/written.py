"""What `vidi predict` writes and prints of each answer, by task.

A writer says which files an answer gets, writes them, and gives what is said of it, an object for
JSON, from which the line that people read is made.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.api import Model
    from vidi.engine.answers import BoundaryMap, Prediction, Segmentation
    from vidi.engine.heatmaps import HeatMap

SHEET = 24
"""Heat maps on the sheet."""


@dataclass(frozen=True)
class Places:
    """Where an answer's files are written, by kind (``part``), and what they are called once they
    are whole (``said``)."""

    part: dict[str, Path]
    said: dict[str, str]


class Writer(Protocol):
    def files(self, stem: str, mark: str) -> dict[str, str]:
        """The names of an answer's files, by kind; ``mark`` tells those of one stem apart."""

    def write(self, answer: Any, image: Any, places: Places) -> dict[str, Any]:
        """Write its files and give what is said of it. ``image``: the path, or the pixels. An
        "error" in it is a sentence on what could not be drawn. Raises :class:`InputError` where
        there is nothing to say, and OSError where the folder cannot be written to."""

    def text(self, said: dict[str, Any]) -> str:
        """The line that people read."""

    @property
    def keeps(self) -> bool:
        """Whether something is kept of each answer until the end."""

    def beside(self, answer: Any) -> Any:
        """That, an object for JSON."""

    def finish(self, beside: Iterable[Any]) -> None:
        """Called after the last one, with what was kept of each, in order."""


class Writes:
    """A writer that is done with each answer at once."""

    keeps = False

    def beside(self, answer: Any) -> Any:
        return None

    def finish(self, beside: Iterable[Any]) -> None: ...


def pixels(model: Model, image: Any) -> Any:
    """uint8 RGB [H, W, 3], upright, at full size."""
    return model.image(image) if isinstance(image, str | Path) else image


@dataclass
class Classes(Writes):
    """The likeliest ``top`` classes of each image; ``pictures``: with a picture of them."""

    model: Model
    top: int
    pictures: bool = False

    def files(self, stem: str, mark: str) -> dict[str, str]:
        return {"picture": f"{stem}{mark}.png"} if self.pictures else {}

    def write(self, answer: Prediction, image: Any, places: Places) -> dict[str, Any]:
        if self.pictures:
            from vidi.report import drawn, flow_pictures

            picture = drawn.drawn(
                pixels(self.model, image), answer, self.model.classes, top=self.top
            )
            flow_pictures.save(picture, places.part["picture"])
        return self.said(answer) | places.said

    def said(self, answer: Prediction) -> dict[str, Any]:
        likeliest = np.argsort(-answer.probabilities, kind="stable")[: self.top]
        return {
            "path": answer.path,
            "label": answer.label,
            "probability": answer.probability,
            "labels": answer.labels,
            "top": [[self.model.classes[k], float(answer.probabilities[k])] for k in likeliest],
        }

    def text(self, said: dict[str, Any]) -> str:
        top = ", ".join(f"{name} {p:.3f}" for name, p in said["top"])
        picture = said.get("picture", said.get("heatmap"))
        return f"{said['path']}: {top}" + ("" if picture is None else f"; {picture}")


@dataclass
class HeatMaps(Classes):
    """The same, and where a class is (``label``; None: the likeliest): a picture of each image, and
    a sheet of the first 24 that ``folder`` gets."""

    folder: Path = Path()
    label: str | None = None
    enlarge: float = 2.0
    sheet: list[HeatMap] = field(default_factory=list)

    def files(self, stem: str, mark: str) -> dict[str, str]:
        return {"heatmap": f"{stem}{mark}.png"}

    def write(self, answer: Prediction, image: Any, places: Places) -> dict[str, Any]:
        from vidi.report import heatmap

        try:
            with contextlib.redirect_stdout(sys.stderr):
                (found,) = self.model.heatmap(image, label=self.label, enlarge=self.enlarge)
        except InputError as error:
            return self.said(answer) | {"error": str(error)}
        heatmap.draw(found, places.part["heatmap"])
        if len(self.sheet) < SHEET:
            self.sheet.append(found)
        return self.said(answer) | places.said

    def finish(self, beside: Iterable[Any]) -> None:
        from vidi.cli.outputs import free_name
        from vidi.report import heatmap

        if len(self.sheet) > 1:
            heatmap.sheet(self.sheet, path := free_name(self.folder, "heatmaps", ".png"))
            print(f"wrote {path}", file=sys.stderr)


@dataclass
class Masks(Writes):
    """Each image's mask as an index PNG, and a picture of it over the image."""

    model: Model
    top: int

    def files(self, stem: str, mark: str) -> dict[str, str]:
        return {"mask": f"{stem}{mark}.png", "picture": f"{stem}-picture{mark}.png"}

    def write(self, answer: Segmentation, image: Any, places: Places) -> dict[str, Any]:
        from vidi.report import overlay

        palette = self.model.palette
        own = None if palette is None else np.array(palette, np.uint8)
        overlay.save_index_png(places.part["mask"], answer.mask, own)
        overlay.prediction_picture(
            pixels(self.model, image),
            answer.mask,
            self.model.classes,
            overlay.palette(len(self.model.classes), own),
            places.part["picture"],
        )
        return {"path": answer.path, **places.said, "shares": answer.shares}

    def text(self, said: dict[str, Any]) -> str:
        shares = [f"{name} {share:.1%}" for name, share in list(said["shares"].items())[: self.top]]
        return f"{said['path']}: {', '.join(shares)}; {said['mask']}, {Path(said['picture']).name}"


@dataclass
class Maps(Writes):
    """Each image's boundaries as a grey PNG of the image's name, which `vidi eval --predictions`
    reads. ``thin``: after non-maximum suppression. ``pictures``: with a picture of them over the
    image."""

    model: Model
    thin: bool
    pictures: bool

    def files(self, stem: str, mark: str) -> dict[str, str]:
        named = {"map": f"{stem}{mark}.png"}
        return named | ({"picture": f"{stem}-picture{mark}.png"} if self.pictures else {})

    def write(self, answer: BoundaryMap, image: Any, places: Places) -> dict[str, Any]:
        from vidi.report import boundary_pictures, drawn, flow_pictures

        boundary_pictures.save_map(answer.thin if self.thin else answer.soft, places.part["map"])
        if self.pictures:
            picture = drawn.drawn(pixels(self.model, image), answer, ())
            flow_pictures.save(picture, places.part["picture"])
        return {"path": answer.path, **places.said}

    def text(self, said: dict[str, Any]) -> str:
        return f"{said['path']}: {said['map']}" + (
            f", {Path(said['picture']).name}" if "picture" in said else ""
        )
