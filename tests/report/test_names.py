"""Names from outside are drawn as they stand, whatever they are made of."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from vidi.doctor import Finding, Series
from vidi.doctor.slices import Slice, Slices
from vidi.engine.heatmaps import HeatMap
from vidi.ops.detection_errors import KINDS
from vidi.report import (
    boundary_pictures,
    contact,
    detection_pictures,
    doctor,
    flow_pictures,
    heatmap,
    names,
    overlay,
    pictures,
    slices,
)
from vidi.types import Sample

GREY = np.full((24, 24, 3), 128, np.uint8)
NONE = np.zeros((24, 24), np.uint8)
MANY = [f"c{k}" for k in range(pictures.NAMED)]


def confusion(name: str, path: Path) -> None:
    pictures.confusion(np.eye(2, dtype=np.int64), [name, "b"], path)


def confusion_of_many(name: str, path: Path) -> None:
    counts = np.ones((len(MANY) + 1,) * 2, np.int64)
    pictures.confusion(counts, [name, *MANY], path)


def predictions(name: str, path: Path) -> None:
    pictures.predictions([GREY], ["b"], [(name, 0.5)], path)


def truths(name: str, path: Path) -> None:
    pictures.predictions([GREY], [name], [("b", 0.5)], path)


def precision_recall(name: str, path: Path) -> None:
    rows = [{"class": name, "ap50": 0.5}]
    curves = [{"recall": [0.0, 1.0], "precision": [1.0, 0.5]}]
    detection_pictures.precision_recall(rows, curves, path)


def errors(name: str, path: Path) -> None:
    row = dict.fromkeys(("objects", "missed", *KINDS), 1)
    detection_pictures.errors([{"class": name, **row}], {"missed": 0.1}, path)


def boundaries(name: str, path: Path) -> None:
    points = [{"recall": 0.2, "precision": 0.9}, {"recall": 0.8, "precision": 0.5}]
    best = {"f": 0.6, "recall": 0.8, "precision": 0.5}
    boundary_pictures.precision_recall({name: {"curve": points, "ods_at": best}}, path)


def outlines(name: str, path: Path) -> None:
    boundary_pictures.sheet([GREY], [NONE[None]], [NONE / 255], path, titles=[name])


def captions(name: str, path: Path) -> None:
    contact.sheet([Sample(key="a", image=GREY)], [name], [], path)


def classes_of_masks(name: str, path: Path) -> None:
    contact.sheet([Sample(key="a", image=GREY, mask=NONE)], ["a"], [name], path)


def segmentations(name: str, path: Path) -> None:
    palette = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    overlay.segmentation_sheet([GREY], [NONE], [NONE], [name, "b"], palette, path)


def flows(name: str, path: Path) -> None:
    still = np.zeros((24, 24, 2), np.float32)
    sample = Sample(key="a", image=GREY, image2=GREY, flow=still)
    flow_pictures.sheet([(sample, still)], path, titles=[name])


def heat(name: str, path: Path) -> None:
    found = HeatMap("a.png", name, 0.5, GREY, np.full((2, 2), 0.5, np.float32), 8, 8.0, 16)
    heatmap.draw(found, path)


def parts(name: str, path: Path) -> None:
    row = Slice("class", name, 9, 0.5, 0.4, 0.6, 0.7, 0.1)
    slices.draw(Slices("val", "accuracy", False, 9, 0.6, (row,)), path)


def findings(name: str, path: Path) -> None:
    series = Series((0.0, 1.0), {"share": (0.1, 0.9)}, "class", "share", names=(name, "b"))
    doctor.draw(Finding("code", "note", "What.", ("Evidence.",), "Do.", series=series), path)


DRAWINGS = [
    *(confusion, confusion_of_many, predictions, truths, precision_recall, errors, boundaries),
    *(outlines, captions, classes_of_masks, segmentations, flows, heat, parts, findings),
]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_every_drawing_says_the_name(draw: Callable[[str, Path], None], tmp_path: Path) -> None:
    r"""No formula, which ``$a_$`` would be, and a wrong one; no bytes that SVG cannot have; and
    where the name is in a legend, a _ in front does not leave it out."""
    name = "__<$a_$>\udcff"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(name, tmp_path / "it.svg")
    svg = (tmp_path / "it.svg").read_text(encoding="utf-8")
    assert html.escape("__<$a_$>?", quote=False) in svg


@pytest.mark.parametrize("name", ["a", "ä é", "$", r"\$x$", "$$", "a_b"])
def test_what_can_be_written_stays(name: str, tmp_path: Path) -> None:
    assert names.readable(name) == name
    figure = Figure()
    figure.text(0, 0, names.plain(name))
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(tmp_path / "it.svg")
    assert f">{name}</text>" in (tmp_path / "it.svg").read_text(encoding="utf-8")
