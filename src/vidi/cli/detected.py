"""`vidi predict` for detection: pictures with boxes, and files that other tools read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidi.cli.outputs import free_name, writing_to
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.api import Model
    from vidi.data.detection_files import CocoNumbers
    from vidi.engine.answers import DetectedObjects
    from vidi.types import Detections


@dataclass
class Writer:
    """``kind``: coco, voc, yolo, or None for pictures alone. ``least``: the smallest score that is
    shown; files have all. ``numbers``: the COCO file that numbers images and classes, where it was
    named."""

    model: Model
    folder: Path
    kind: str | None
    least: float
    numbers: str | None
    json_lines: bool
    _coco: CocoNumbers | None = field(default=None, init=False)
    _found: list[tuple[int | str, Detections]] = field(default_factory=list, init=False)
    _unnumbered: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Raises :class:`InputError`, before anything is predicted, for numbers that do not fit."""
        from vidi.data.detection_files import coco_numbers

        data = self.model.description.data
        if self.numbers is not None:
            self._coco = coco_numbers(self.numbers)
        elif self.kind == "coco" and data["format"] == "coco" and os.path.exists(data["root"]):
            self._coco = coco_numbers(data["root"])
        if self._coco is not None:
            missing = [name for name in self.model.classes if name not in self._coco.categories]
            if missing:
                raise InputError(
                    f"{self._coco.path} has no category {missing[0]!r}, which this run knows. Name "
                    "the file of such classes with --numbers."
                )

    def write(self, result: DetectedObjects) -> None:
        """Draw one image's objects, write and print them. Raises :class:`InputError` for an image
        without a number in the file that was named."""
        from vidi.data import detection_files as files
        from vidi.report import contact, detection_pictures, flow_pictures

        classes, stem = self.model.classes, Path(result.path).stem
        said: dict[str, Any] = {}
        with writing_to(self.folder):
            if self.kind == "coco":
                self._found.append((self._number(result.path), result.found))
            self.folder.mkdir(parents=True, exist_ok=True)
            names = self.folder / "classes.txt"
            unnamed = self.kind == "yolo" or (self.kind == "coco" and self._coco is None)
            if unnamed and not names.exists():
                names.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
            picture = free_name(self.folder, stem, ".png")
            drawn = detection_pictures.draw(
                self.model.image(result.path),
                result.found,
                classes,
                contact.colours_of(len(classes)),
                self.least,
            )
            flow_pictures.save(drawn, picture)
            said["picture"] = str(picture)
            if self.kind == "voc":
                path = free_name(self.folder, stem, ".xml")
                name = os.path.basename(result.path)
                files.write_voc(path, name, result.size, result.found, classes)
                said["file"] = str(path)
            if self.kind == "yolo":
                path = free_name(self.folder, stem, ".txt")
                files.write_yolo(path, result.size, result.found)
                said["file"] = str(path)
        self._show(result, said)

    def finish(self) -> None:
        """Write what is one file for all images."""
        from vidi.data import detection_files as files

        if self.kind != "coco" or not self._found:
            return
        if self._coco is None:
            categories = list(range(1, len(self.model.classes) + 1))
            how = (
                "classes are numbered from 1, and images go by the numbers or names of their files"
            )
        else:
            categories = [self._coco.categories[name] for name in self.model.classes]
            how = f"images and classes have the numbers of {self._coco.path}"
            if self._unnumbered:
                how += f"; {self._unnumbered:,} images are not in it and go by their files' names"
        path = self.folder / files.RESULTS
        with writing_to(self.folder):
            files.write_coco(path, self._found, categories)
        print(f"wrote {path}: {how}", file=sys.stderr)

    def _number(self, path: str) -> int | str:
        from vidi.data.detection_files import image_number

        number = None if self._coco is None else self._coco.image(path)
        if number is not None:
            return number
        if self.numbers is not None:
            raise InputError(f"{path} is not among the images of {self.numbers}.")
        self._unnumbered += 1
        return image_number(path)

    def _show(self, result: DetectedObjects, said: dict[str, Any]) -> None:
        found = result.found
        shown = [k for k, score in enumerate(found.scores.tolist()) if score >= self.least]
        if self.json_lines:
            objects = [
                {
                    "class": result.names[k],
                    "score": float(found.scores[k]),
                    "box": found.xyxy[k].tolist(),
                }
                for k in shown
            ]
            head = {"path": result.path, "size": list(result.size), "objects": objects}
            print(json.dumps(head | said, ensure_ascii=False))
            return
        by_class: dict[str, list[float]] = {}
        for k in shown:
            by_class.setdefault(result.names[k], []).append(float(found.scores[k]))
        told = ", ".join(f"{name} {_scores(scores)}" for name, scores in by_class.items())
        least = f"nothing with a score of {self.least:g} or more"
        print(f"{result.path}: {told or least}; {said['picture']}")


def _scores(scores: Sequence[float]) -> str:
    return " ".join(f"{score:.2f}" for score in scores)
