"""`vidi predict` for detection: pictures with boxes, and files that other tools read."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidi.cli.written import Places, pixels
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.api import Model
    from vidi.data.detection_files import CocoNumbers
    from vidi.engine.answers import DetectedObjects
    from vidi.types import Detections

_FILES = {None: {}, "coco": {}, "voc": {"file": ".xml"}, "yolo": {"file": ".txt"}}


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
    _coco: CocoNumbers | None = field(default=None, init=False)

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

    def files(self, stem: str, mark: str) -> dict[str, str]:
        ends = {"picture": ".png", **_FILES[self.kind]}
        return {kind: f"{stem}{mark}{end}" for kind, end in ends.items()}

    def write(self, answer: DetectedObjects, image: Any, places: Places) -> dict[str, Any]:
        """Raises :class:`InputError` for an image without a number in the file that was named."""
        from vidi.data import detection_files as files
        from vidi.report import contact, detection_pictures, flow_pictures

        classes, found = self.model.classes, answer.found
        if self.keeps:
            self._number(answer.path)
        self._name_classes()
        drawn = detection_pictures.draw(
            pixels(self.model, image),
            found,
            classes,
            contact.colours_of(len(classes)),
            self.least,
        )
        flow_pictures.save(drawn, places.part["picture"])
        if self.kind == "voc":
            name = os.path.basename(answer.path)
            files.write_voc(places.part["file"], name, answer.size, found, classes)
        if self.kind == "yolo":
            files.write_yolo(places.part["file"], answer.size, found)
        return {
            "path": answer.path,
            "size": list(answer.size),
            "objects": [
                {"class": answer.names[k], "score": score, "box": found.xyxy[k].tolist()}
                for k, score in enumerate(found.scores.tolist())
                if score >= self.least
            ],
            **places.said,
        }

    def text(self, said: dict[str, Any]) -> str:
        by_class: dict[str, list[float]] = {}
        for one in said["objects"]:
            by_class.setdefault(one["class"], []).append(one["score"])
        told = ", ".join(f"{name} {_scores(scores)}" for name, scores in by_class.items())
        least = f"nothing with a score of {self.least:g} or more"
        return f"{said['path']}: {told or least}; {said['picture']}"

    @property
    def keeps(self) -> bool:
        return self.kind == "coco"

    def beside(self, answer: DetectedObjects) -> dict[str, Any] | None:
        """All objects of an image as its part of COCO's results, which are one file for all."""
        if not self.keeps:
            return None
        number, known = self._number(answer.path)
        found = answer.found
        return {
            "image": number,
            "known": known,
            "xyxy": found.xyxy.tolist(),
            "labels": found.labels.tolist(),
            "scores": found.scores.tolist(),
        }

    def finish(self, beside: Iterable[Any]) -> None:
        """Write what is one file for all images."""
        from vidi.data import detection_files as files

        rows = (row for row in beside if row is not None)
        first = next(rows, None)
        if first is None:
            return
        if self._coco is None:
            categories = list(range(1, len(self.model.classes) + 1))
            how = (
                "classes are numbered from 1, and images go by the numbers or names of their files"
            )
        else:
            categories = [self._coco.categories[name] for name in self.model.classes]
            how = f"images and classes have the numbers of {self._coco.path}"
        others = 0

        def found() -> Iterator[tuple[int | str, Detections]]:
            nonlocal others
            for row in itertools.chain([first], rows):
                others += not row["known"]
                yield row["image"], _detections(row)

        path = self.folder / files.RESULTS
        part = self.folder / f".{files.RESULTS}.part"
        files.write_coco(part, found(), categories)
        os.replace(part, path)
        if others and self._coco is not None:
            how += f"; {others:,} images are not in it and go by their files' names"
        print(f"wrote {path}: {how}", file=sys.stderr)

    def _name_classes(self) -> None:
        """Numbers in files that nothing else explains are explained by a classes.txt."""
        path = self.folder / "classes.txt"
        unnamed = self.kind == "yolo" or (self.kind == "coco" and self._coco is None)
        if unnamed and not path.exists():
            lines = "".join(f"{name}\n" for name in self.model.classes)
            path.write_text(lines, encoding="utf-8")

    def _number(self, path: str) -> tuple[int | str, bool]:
        """The image's number, and whether a COCO file gave it."""
        from vidi.data.detection_files import image_number

        number = None if self._coco is None else self._coco.image(path)
        if number is not None:
            return number, True
        if self.numbers is not None:
            raise InputError(f"{path} is not among the images of {self.numbers}.")
        return image_number(path), False


def _detections(row: dict[str, Any]) -> Detections:
    import numpy as np

    from vidi.types import Detections

    return Detections(
        xyxy=np.array(row["xyxy"], np.float32).reshape(-1, 4),
        labels=np.array(row["labels"], np.int64),
        scores=np.array(row["scores"], np.float32),
    )


def _scores(scores: Sequence[float]) -> str:
    return " ".join(f"{score:.2f}" for score in scores)
