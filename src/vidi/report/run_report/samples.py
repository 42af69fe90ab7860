"""The samples that the run does best and worst, drawn with their truth and its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import cv2
import numpy as np
from matplotlib.colors import to_hex

from vidi.doctor import hardest
from vidi.ops.suppression import suppress
from vidi.report import boundary_pictures, contact, detection_pictures, flow_pictures, overlay
from vidi.report.html import Html
from vidi.report.run_report.drawing import pixels
from vidi.report.run_report.looked import Looked, Shown
from vidi.report.run_report.page import heading, paragraph, plural, section, split_name
from vidi.report.run_report.subject import Subject
from vidi.tasks import classification, multilabel
from vidi.types import Array

Panels = list[tuple[str, Html]]
"""Pictures of one sample, each with what it is."""


def shown(subject: Subject, looked: Looked | None) -> Html:
    """The section; a sentence where the data is not there."""
    title = f"Best and worst, on {split_name(subject.split)}"
    if looked is None:
        why = " ".join(subject.notes) or "A page about so many runs has no room for them."
        return section("samples", title, paragraph(f"No samples are drawn here. {why}"))
    if not looked.best:
        return section("samples", title, paragraph("There is no sample that could be judged."))
    whole = plural(looked.of, f"{split_name(subject.split)} sample")
    if looked.samples < looked.of:
        whole = f"{looked.samples:,} of the {whole}, chosen at random"
    score = "loss" if looked.score == "loss" else f"{looked.score} of each by itself"
    words = f"By the {score}, of {whole}."
    tiles = subject.task in ("classification", "multilabel")
    several = _Several(subject)
    parts = []
    for name, some in (("Worst", looked.worst), ("Best", looked.best)):
        if not some:
            continue
        if looked.worst:
            parts.append(heading(name))
        if tiles:
            drawn = "".join(_tile(one, subject.classes) for one in some)
            parts.append(Html(f'<div class="tiles">{drawn}</div>'))
        else:
            parts += [several(one, looked.score) for one in some]
    return section("samples", title, paragraph(words), several.legend(), *parts)


def _tile(one: Shown, classes: Sequence[str]) -> Html:
    """A small picture with what it is, and what is said of it."""
    prediction = one.prediction
    if isinstance(prediction, multilabel.Prediction):
        said = _labels(classes, prediction.probabilities >= multilabel.THRESHOLD)
        true = _labels(classes, np.asarray(one.sample.label, bool))
        right, sure = said == true, ""
    else:
        assert isinstance(prediction, classification.Prediction)
        told = hardest.words(prediction, one.sample, tuple(classes))
        true, said = str(told[0]), str(told[1])
        right, sure = said == true, f" {told[2]:.0%}"
    lines = [f"<b>{escape(said)}</b>{sure}"]
    if not right:
        lines = [f'<b class="wrong">{escape(said)}</b>{sure}', f"is {escape(true)}"]
    lines.append(f'<span title="{escape(one.key)}">loss {one.score:.3g}</span>')
    shown = pixels(one.sample.image, f"{one.key}: {true}, predicted {said}", side=280)
    return Html(f"<figure>{shown}<figcaption>{'<br>'.join(lines)}</figcaption></figure>")


def _labels(classes: Sequence[str], there: Array) -> str:
    return ", ".join(name for name, on in zip(classes, there, strict=True) if on) or "none"


class _Several:
    """Draws samples that have several pictures, and the legend of their colours."""

    def __init__(self, subject: Subject) -> None:
        self.task, self.classes = subject.task, subject.classes
        own = subject.description.data.get("palette")
        palette = None if own is None else np.asarray(own, np.uint8)
        self.colours = contact.colours_of(len(self.classes), palette)
        self.bare = contact.bare(self.classes)

    def __call__(self, one: Shown, score: str) -> Html:
        draw: Callable[[Shown], tuple[Panels, str]] = getattr(self, f"_{self.task}")
        panels, more = draw(one)
        told = "".join(
            f"<figure>{shown}<figcaption>{escape(name)}</figcaption></figure>"
            for name, shown in panels
        )
        first = f"<code>{escape(one.key)}</code> · {escape(score)} {one.score:.3f}"
        if more:
            first += f" · {escape(more)}"
        kind = "row pair" if len(panels) == 2 else "row"
        return Html(
            f'<div class="sample"><p>{first}</p>'
            f'<div class="{kind}" style="--across: {len(panels)}">{told}</div></div>'
        )

    def legend(self) -> Html:
        """What the colours mean."""
        entries: list[tuple[str, str]] = []
        if self.task == "segmentation":
            entries = [
                (name, "none" if k == self.bare else to_hex(self.colours[k] / 255))
                for k, name in enumerate(self.classes[: overlay.NAMED])
            ]
            if len(self.classes) > overlay.NAMED:
                entries.append((f"and {len(self.classes) - overlay.NAMED} more", "none"))
        elif self.task == "detection":
            kinds = detection_pictures.KIND_NAMES
            colours = detection_pictures.KIND_COLOURS
            entries = [(name, colours[kind]) for kind, name in kinds.items()]
        rows = "".join(
            f'<li><i style="background: {colour}"></i>{escape(name)}</li>'
            for name, colour in entries
        )
        return Html(f'<ul class="chips">{rows}</ul>') if rows else Html("")

    def _segmentation(self, one: Shown) -> tuple[Panels, str]:
        image, truth, said = one.sample.image, one.sample.mask, one.prediction.mask
        assert truth is not None
        alt = one.key
        # Masks first at full size, so that borders are of the masks themselves.
        return [
            ("image", pixels(image, f"{alt}: the image")),
            ("truth", pixels(self._over(image, truth), f"{alt}: true classes")),
            ("answer", pixels(self._over(image, said), f"{alt}: predicted classes")),
            ("wrong", pixels(overlay.wrong_pixels(image, truth, said), f"{alt}: wrong pixels")),
        ], ""

    def _over(self, image: Array, mask: Array) -> Array:
        return overlay.overlay(image, mask, self.colours, bare=self.bare)

    def _detection(self, one: Shown) -> tuple[Panels, str]:
        sample = one.sample
        truth, told, counts = detection_pictures.judged(
            sample, one.prediction, self.classes, self.colours, sample.image.shape[0]
        )
        return [
            ("truth", pixels(truth, f"{one.key}: true boxes", side=560)),
            ("answer", pixels(told, f"{one.key}: {counts}", side=560)),
        ], counts

    def _boundaries(self, one: Shown) -> tuple[Panels, str]:
        edges, soft = one.sample.edges, one.prediction.soft
        assert edges is not None
        thin = suppress(soft)
        thin = thin / max(1e-6, float(thin.max()))
        paper = boundary_pictures._paper
        return [
            ("image", pixels(one.sample.image, f"{one.key}: the image")),
            (
                f"annotators ({len(edges)})",
                pixels(paper((edges > 0).mean(0)), f"{one.key}: annotators", exact=True),
            ),
            ("answer", pixels(paper(soft), f"{one.key}: how likely each pixel is on a boundary")),
            ("answer, thin", pixels(paper(thin), f"{one.key}: thin lines", exact=True)),
        ], ""

    def _flow(self, one: Shown) -> tuple[Panels, str]:
        (first, _, true, said, error, _), _, most = flow_pictures._line(
            one.sample, one.prediction.flow, ""
        )
        side = max(24, first.shape[1] // 6)
        true = _with_wheel(true, side)
        return [
            ("first frame", pixels(first, f"{one.key}: first frame")),
            ("true flow", pixels(true, f"{one.key}: true flow")),
            ("answer", pixels(said, f"{one.key}: predicted flow")),
            ("error", pixels(error, f"{one.key}: error, black from {most / 4:.3g} pixels on")),
        ], f"full colour at {most:.3g} px, black at an error of {most / 4:.3g} px"


def _with_wheel(flow: Array, side: int) -> Array:
    """The wheel of directions in the lower right corner, where there is room."""
    side = min(side, *flow.shape[:2])
    out = flow.copy()
    disc = flow_pictures.wheel(side)
    at = (np.arange(side) + 0.5) * 2 / side - 1
    inside = np.hypot(*np.meshgrid(at, at)) <= 1
    corner = out[-side:, -side:]
    corner[inside] = disc[inside]
    rim = np.zeros((side, side), np.uint8)
    cv2.circle(rim, (side // 2, side // 2), side // 2 - 1, 1, 1)
    corner[rim > 0] = 255
    return out
