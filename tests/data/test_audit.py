"""A corpus of planted faults: each is found, named by its samples, and alone; clean data is clean.

The clean data are scenes, whose truth is exact, made small; a fault is a function that spoils some
samples and says which.
"""

from __future__ import annotations

import dataclasses
import os
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vidi.data import audit as audits
from vidi.data.audit import audit, duplicates, images, opened
from vidi.data.audit.alignment import look_at_flow
from vidi.data.audit.finding import Finding
from vidi.data.dataset import ArrayImages, Dataset
from vidi.data.images import shrink
from vidi.data.open import open_data
from vidi.data.truth import BoxTable
from vidi.errors import InputError
from vidi.types import Array, Boxes, Sample

TASKS = ("classification", "multilabel", "detection", "segmentation", "flow", "boundaries")
TRAIN, VAL = 20, 10
"""Samples 0 to 19 are training, 20 to 29 validation."""


class Pictures:
    """Images in memory, of any sizes; an error in the place of one is raised."""

    has_headers = False

    def __init__(self, arrays: list[Any]) -> None:
        self.arrays = arrays
        self.loaded = 0

    def __len__(self) -> int:
        return len(self.arrays)

    def key(self, i: int) -> str:
        return f"sample/{i:03d}"

    def identity(self, i: int) -> bytes | None:
        return None

    def size(self, i: int) -> tuple[int, int]:
        return self.load(i, None)[1]

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        self.loaded += 1
        image = self.arrays[i]
        if isinstance(image, str):
            raise InputError(image)
        size = (image.shape[0], image.shape[1])
        return shrink(image, size, shorter), size

    def digest(self) -> bytes:
        return b""


class Fields:
    """Annotations in memory, whatever they are."""

    def __init__(self, samples: list[Sample]) -> None:
        names = ("boxes", "mask", "flow", "flow_valid", "occluded", "edges")
        self.of = [{n: getattr(s, n) for n in names if getattr(s, n) is not None} for s in samples]

    def fields(self, i: int) -> dict[str, Any]:
        return dict(self.of[i])

    def digest(self) -> bytes:
        return b""


@cache
def clean(task: str) -> tuple[tuple[str, ...], list[Sample]]:
    """(classes, samples) without a fault."""
    drawn = {"multilabel": "classification"}.get(task, task)
    source = open_data(f"scenes:{drawn},size=96,n={TRAIN},val={VAL},test=0,seed=3")
    samples = list(source)
    if task == "classification":
        samples = [dataclasses.replace(s, label=i % 2) for i, s in enumerate(samples)]
        return ("cat", "dog"), samples
    if task == "multilabel":
        # Both, one or the other.
        two = ((1, 0), (0, 1), (1, 1))
        samples = [
            dataclasses.replace(s, label=np.array(two[i % 3])) for i, s in enumerate(samples)
        ]
        return ("cat", "dog"), samples
    if task == "detection":
        return ("cell", "disc"), [
            dataclasses.replace(
                s,
                boxes=boxes([(10, 12, 34, 40), (50, 48, 80, 90), (20 + i, 60, 40 + i, 88)],
                            [0, 1, i % 2]),
            )
            for i, s in enumerate(samples)
        ]  # fmt: skip
    if task == "segmentation":
        return ("ground", "thing", "other"), [
            dataclasses.replace(s, mask=np.where(s.mask > 0, 1 + s.mask % 2, 0).astype(np.uint8))
            for s in samples
            if s.mask is not None
        ]
    return (), samples


def boxes(xyxy: Any, labels: Any) -> Boxes:
    n = len(labels)
    no = np.zeros(n, bool)
    rows = np.array(xyxy, np.float32).reshape(-1, 4)
    return Boxes(xyxy=rows, labels=np.array(labels, np.int64), difficult=no, crowd=no)


def dataset(task: str, samples: list[Any], classes: tuple[str, ...] | None = None) -> Dataset:
    """``samples``: the first 20 are training. The image of one may be a text: why it is
    unreadable."""
    labels = None
    if task in ("classification", "multilabel"):
        labels = np.array([s.label for s in samples]).astype(
            np.int64 if task == "classification" else bool
        )
    return Dataset(
        root="corpus",
        format="test",
        task=task,
        classes=clean(task)[0] if classes is None else classes,
        images=Pictures([s.image for s in samples]),
        images2=Pictures([s.image2 for s in samples]) if task == "flow" else None,
        labels=labels,
        splits={"train": np.arange(TRAIN), "val": np.arange(TRAIN, len(samples))},
        truth=None if labels is not None else Fields(samples),
    )


def told(found: tuple[Finding, ...]) -> dict[str, str]:
    """What is more than information, by code."""
    return {f.code: f.severity for f in found if f.severity != "info"}


# --- the corpus -------------------------------------------------------------------------------

Spoil = Callable[[list[Any]], list[int]]


def each(rows: list[int], **fields: Callable[[Any], Any]) -> Spoil:
    """Replace fields of the samples at ``rows`` by a function of the sample."""

    def spoil(samples: list[Any]) -> list[int]:
        for i in rows:
            new = {name: make(samples[i]) for name, make in fields.items()}
            samples[i] = dataclasses.replace(samples[i], **new)
        return rows

    return spoil


def copied(to: int, of: int, change: Callable[[Array], Array] = np.copy, **fields: Any) -> Spoil:
    """The picture of one sample in the place of another's."""

    def spoil(samples: list[Any]) -> list[int]:
        kept = {"label": samples[of].label, **fields}
        samples[to] = dataclasses.replace(samples[to], image=change(samples[of].image), **kept)
        return [to]

    return spoil


def relabelled(label: Callable[[int], Any]) -> Spoil:
    def spoil(samples: list[Any]) -> list[int]:
        for i in range(len(samples)):
            samples[i] = dataclasses.replace(samples[i], label=label(i))
        return []

    return spoil


def box(row: tuple[float, ...], label: int = 0) -> Callable[[Any], Boxes]:
    """The sample's boxes and one more."""
    return lambda s: boxes([*s.boxes.xyxy, row], [*s.boxes.labels, label])


def jpeg(image: Array, quality: int = 40) -> Array:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def half(image: Array) -> Array:
    return cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)


def blurred(mask: Array) -> Array:
    """As masks get when they are shrunk with interpolation."""
    return np.asarray(cv2.GaussianBlur(mask * 40, (5, 5), 2))


def speck(s: Any) -> Array:
    mask = np.zeros_like(s.mask)
    mask[3, 3:6] = 1
    return mask


def filled(s: Any) -> Array:
    edges = np.zeros_like(s.edges)
    edges[:, 10:70, 10:70] = 255
    return edges


def kitti8(s: Any) -> Array:
    """A 16-bit KITTI PNG, read at 8 bits, by KITTI's formula or none."""
    stored = (np.rint(s.flow * 64) + 2**15).astype(np.uint16)
    return (stored >> 8).astype(np.float32)


ALL = list(range(TRAIN + VAL))

CORPUS: dict[str, tuple[str, str, str, Spoil]] = {
    # name: task, code, severity, fault
    "unreadable": ("classification", "image-unreadable", "error",
        each([4, 21], image=lambda s: f"{s.key} is cut short.")),
    "one colour": ("classification", "image-constant", "warning",
        each([5, 22], image=lambda s: np.full((60, 50, 3), 128, np.uint8))),
    "12 bits of 16": ("classification", "image-narrow", "warning",
        each([7], image=lambda s: (s.image // 17).astype(np.uint8))),
    "an icon": ("classification", "image-tiny", "warning",
        each([8], image=lambda s: half(s.image)[::4, ::4])),
    "a banner": ("classification", "image-aspect", "warning",
        each([9], image=lambda s: s.image[:18])),
    "a huge one": ("classification", "image-huge", "warning",
        each([10], image=lambda s: np.kron(s.image, np.ones((6, 6, 1), np.uint8)))),
    "leaked": ("classification", "duplicate-across-splits", "error", copied(24, 3)),
    "twice": ("classification", "duplicate-within-split", "warning", copied(12, 3)),
    "two labels": ("classification", "duplicate-conflict", "error", copied(24, 3, label=0)),
    "leaked, compressed": ("classification", "near-duplicate-across-splits", "warning",
        copied(25, 3, jpeg)),
    "leaked, at half size": ("classification", "near-duplicate-across-splits", "warning",
        copied(26, 4, half)),
    "leaked, brighter": ("classification", "near-duplicate-across-splits", "warning",
        copied(27, 5, lambda a: np.clip(a * 1.2 + 10, 0, 255).astype(np.uint8))),
    "twice, compressed": ("classification", "near-duplicate-within-split", "info",
        copied(13, 4, jpeg)),
    "two labels, compressed": ("classification", "near-duplicate-conflict", "warning",
        copied(14, 3, jpeg, label=0)),
    "no class in val": ("classification", "class-missing-val", "warning",
        relabelled(lambda i: i % 2 if i < TRAIN else 0)),
    "no class in train": ("classification", "class-missing-train", "error",
        relabelled(lambda i: 0 if i < TRAIN else i % 2)),
    "no class at all": ("classification", "class-never", "warning", relabelled(lambda i: 1)),
    "a rare class": ("classification", "class-few", "warning",
        relabelled(lambda i: int(i in (1, 7, 22)))),
    "an uneven class": ("classification", "class-imbalance", "warning",
        relabelled(lambda i: int(i in (1, 22)))),
    "a label that no image has": ("multilabel", "class-never", "warning",
        relabelled(lambda i: np.array([1, 0]))),
    "not a number": ("detection", "box-nan", "error",
        each([2], boxes=box((10, float("nan"), 30, 30)))),
    "unknown class": ("detection", "box-class", "error", each([2], boxes=box((9, 9, 30, 30), 2))),
    "inverted": ("detection", "box-inverted", "error", each([2, 23], boxes=box((30, 9, 10, 30)))),
    "no area": ("detection", "box-no-area", "error", each([2], boxes=box((10, 9, 10, 30)))),
    "a point": ("detection", "box-no-area", "error", each([2], boxes=box((10, 9, 11, 10)))),
    "shares": ("detection", "box-scale", "error",
        each(ALL, boxes=lambda s: boxes(s.boxes.xyxy / 96, s.boxes.labels))),
    "outside": ("detection", "box-outside", "error", each([3], boxes=box((120, 9, 150, 30)))),
    "over the edge": ("detection", "box-over-edge", "warning",
        each([3], boxes=box((70, 9, 110, 30)))),
    "tiny": ("detection", "box-tiny", "warning", each([3, 4], boxes=box((10, 9, 13, 12)))),
    "the whole image": ("detection", "box-whole", "warning",
        each(ALL[:6], boxes=box((0, 0, 96, 96)))),
    "boxed twice": ("detection", "box-duplicate", "warning",
        each([5], boxes=box((10.2, 12, 34, 40), 0))),
    "boxed as two": ("detection", "box-conflict", "warning",
        each([5], boxes=box((10.2, 12, 34, 40), 1))),
    "no box": ("detection", "image-without-box", "info", each([6], boxes=lambda s: boxes([], []))),
    "interpolated": ("segmentation", "mask-values", "error",
        each([1, 21], mask=lambda s: blurred(s.mask))),
    "a class too many": ("segmentation", "mask-values", "error",
        each([1], mask=lambda s: np.where(s.mask == 2, 3, s.mask))),
    "negative": ("segmentation", "mask-values", "error",
        each([1], mask=lambda s: s.mask.astype(np.int32) - 1)),
    "0 and 255": ("segmentation", "mask-binary", "error",
        each(ALL, mask=lambda s: np.where(s.mask > 0, 255, 0).astype(np.uint8))),
    "one of 0 and 255": ("segmentation", "mask-binary", "warning",
        each([8], mask=lambda s: np.where(s.mask > 0, 255, 0).astype(np.uint8))),
    "ignored": ("segmentation", "mask-ignored", "warning",
        each([9], mask=lambda s: np.full_like(s.mask, 255))),
    "nearly empty": ("segmentation", "mask-nearly-empty", "warning", each([9], mask=speck)),
    "empty": ("segmentation", "mask-one-value", "info",
        each([9], mask=lambda s: np.zeros_like(s.mask))),
    "of another size": ("segmentation", "annotation-unreadable", "error",
        each([9], mask=lambda s: s.mask[:-1])),
    "flow not a number": ("flow", "flow-nan", "error",
        each([0], flow=lambda s: np.where(np.eye(96)[..., None] > 0, np.nan, s.flow))),
    "unknown flow as 1e9": ("flow", "flow-absurd", "error",
        each([0], flow=lambda s: np.where(np.eye(96)[..., None] > 0, 2e9, s.flow))),
    "no flow": ("flow", "flow-constant", "warning", each([1], flow=lambda s: 0 * s.flow)),
    "in [-1, 1]": ("flow", "flow-scale", "error", each([2, 24], flow=lambda s: s.flow / 48)),
    "in shares": ("flow", "flow-scale", "error", each([2, 24], flow=lambda s: s.flow / 96)),
    "backward": ("flow", "flow-scale", "error", each([2, 24], flow=lambda s: -s.flow)),
    "y before x": ("flow", "flow-scale", "error", each([2], flow=lambda s: s.flow[..., ::-1])),
    "8 bits": ("flow", "flow-scale", "error", each([3], flow=kitti8)),
    "8 bits by the formula": ("flow", "flow-scale", "error",
        each([3], flow=lambda s: (kitti8(s) - 2**15) / 64)),
    "rounded": ("flow", "flow-whole", "warning", each([4], flow=lambda s: np.rint(s.flow))),
    "hardly valid": ("flow", "flow-invalid", "warning",
        each([5], flow_valid=lambda s: np.arange(96 * 96).reshape(96, 96) % 150 == 0)),
    "mirrored flow": ("flow", "flow-no-better", "warning",
        each([6], flow=lambda s: s.flow[::-1, ::-1] * 1.7 + 9)),
    "slow": ("flow", "flow-still", "info",
        each([7], flow=lambda s: s.flow / 300, image2=lambda s: s.image)),
    "frames of two sizes": ("flow", "frames-size", "error",
        each([8], image2=lambda s: s.image2[:-2])),
    "inverted edges": ("boundaries", "edges-inverted", "error",
        each([3, 25], edges=lambda s: 255 - s.edges)),
    "regions": ("boundaries", "edges-filled", "warning", each([4], edges=filled)),
    "0 and 1": ("boundaries", "edges-scale", "error", each([5], edges=lambda s: s.edges // 255)),
    "no edges": ("boundaries", "edges-empty", "warning", each([5], edges=lambda s: 0 * s.edges)),
    "an idle annotator": ("boundaries", "edges-annotator", "info",
        each([6], edges=lambda s: np.concatenate([s.edges, 0 * s.edges]))),
    "edges of another size": ("boundaries", "annotation-unreadable", "error",
        each([7], edges=lambda s: s.edges[:, 1:])),
}  # fmt: skip

ALSO = {
    "no class in train": {"class-never"},
    "an uneven class": {"class-few"},
    "two labels": {"duplicate-across-splits"},
    "0 and 255": {"class-never"},
    "negative": {"mask-values"},
    "8 bits by the formula": {"flow-absurd"},
    "8 bits": {"flow-absurd", "flow-whole"},
}
"""What such a fault is besides."""


def test_there_are_enough_faults_in_every_task() -> None:
    assert len(CORPUS) >= 25
    assert {task for task, *_ in CORPUS.values()} == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_clean_data_gives_no_alarm(task: str) -> None:
    found = audit(dataset(task, clean(task)[1]), threads=2)
    assert told(found.findings) == {}
    assert found.statistics["samples"] == {"train": TRAIN, "val": VAL}


@pytest.mark.parametrize("name", CORPUS)
def test_a_planted_fault_is_found_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, code, severity, spoil = CORPUS[name]
    monkeypatch.setattr(images, "LARGE", 200_000)
    _, samples = clean(task)
    before = audit(dataset(task, samples), threads=1)
    assert before.find(code) is None
    spoiled = list(samples)
    rows = spoil(spoiled)
    found = audit(dataset(task, spoiled), threads=1)
    finding = found.find(code)
    assert finding is not None, told(found.findings)
    assert finding.severity == severity
    assert set(told(found.findings)) - {code} <= ALSO.get(name, set())
    if rows:
        assert [key for key, _ in finding.samples] == [f"sample/{i:03d}" for i in rows]
        assert finding.of == len(rows)
    assert finding.count > 0
    assert finding.what.endswith(".") and finding.effect.endswith(".")
    assert finding.advice.endswith(".")
    assert not set("{}[]|") & set(finding.sentence.replace("[0, 1]", ""))


# --- details of single checks ------------------------------------------------------------------


def test_the_reading_that_fits_is_named() -> None:
    sample = clean("flow")[1][3]
    assert sample.flow is not None
    assert sample.occluded is not None
    for flow, named in (
        (sample.flow / 48, "half the image's sides"),
        (sample.flow / 96, "in shares of the image's sides"),
        (-sample.flow, "sign"),
        (sample.flow[..., ::-1], "x and y"),
        (kitti8(sample), "upper 8 bits"),
    ):
        look = look_at_flow(flow, None, sample.occluded, sample.image, sample.image2)
        assert named in look.better
        assert look.better_ratio < 0.5
    look = look_at_flow(sample.flow, None, sample.occluded, sample.image, sample.image2)
    assert look.ratio is not None
    assert look.ratio < 0.3


def test_each_box_is_told_once() -> None:
    """A point outside the image is no area, and no second fault."""
    samples = list(clean("detection")[1])
    samples[0] = dataclasses.replace(samples[0], boxes=box((200, 200, 200, 200))(samples[0]))
    assert set(told(audit(dataset("detection", samples), threads=1).findings)) == {"box-no-area"}


def test_crowds_may_lie_upon_boxes() -> None:
    samples = list(clean("detection")[1])
    one = box((10, 12, 34, 40))(samples[0])
    crowd = np.array([False] * 3 + [True])
    samples[0] = dataclasses.replace(samples[0], boxes=dataclasses.replace(one, crowd=crowd))
    assert told(audit(dataset("detection", samples), threads=1).findings) == {}


def test_a_border_of_255_is_no_binary_mask() -> None:
    samples = list(clean("segmentation")[1])
    mask = np.zeros((96, 96), np.uint8)
    mask[:, 0], mask[40:60, 40:60] = 255, 1
    samples[0] = dataclasses.replace(samples[0], mask=mask)
    assert told(audit(dataset("segmentation", samples), threads=1).findings) == {}


def test_annotations_that_differ_conflict_for_boxes_too() -> None:
    samples = list(clean("detection")[1])
    samples[3] = dataclasses.replace(samples[3], image=samples[2].image)
    found = audit(dataset("detection", samples), threads=1)
    assert set(told(found.findings)) == {"duplicate-conflict", "duplicate-within-split"}
    samples[3] = samples[2]
    found = audit(dataset("detection", samples), threads=1)
    assert set(told(found.findings)) == {"duplicate-within-split"}


def test_the_candidates_are_those_of_all_pairs() -> None:
    """The bands find every pair of hashes that differ in at most 5 bits; against all pairs."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for k in range(100):  # some are near to others, by 1 to 5 bits
        flips = rng.choice(64, 1 + k % 5, replace=False)
        mask = np.uint64(sum(1 << int(b) for b in flips))
        hashes[200 + k] = hashes[k] ^ mask
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = {(int(a), int(b)) for a, b in np.argwhere(apart <= 5) if a < b}
    assert len(expected) >= 100
    got: set[tuple[int, int]] = set()
    for start, bits in duplicates.BANDS:
        band = (hashes >> np.uint64(start)) & np.uint64((1 << bits) - 1)
        for value in np.unique(band):
            for pairs in duplicates._within(hashes, np.flatnonzero(band == value)):
                got |= {(int(a), int(b)) for a, b in pairs}
    assert expected <= got
    assert sum(bits for _, bits in duplicates.BANDS) == 64


def test_a_film_costs_no_square_of_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 equal hashes make 8 pairs a frame in each band, not 4.5 million; what is not compared
    is said."""
    hashes = np.full(3000, 12345, np.uint64)
    pairs = np.concatenate(duplicates._within(hashes, np.arange(3000)))
    assert len(pairs) <= 3000 * duplicates.NEAREST
    samples = list(clean("classification")[1])
    for i in range(1, 20):
        samples[i] = dataclasses.replace(samples[i], image=samples[0].image.copy())
        samples[i].image[i, i] ^= 255
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 40)
    found = audit(dataset("classification", samples), threads=1)
    limit = found.find("near-duplicate-limit")
    assert limit is not None
    assert limit.count > 40
    within = found.find("near-duplicate-within-split")
    assert within is not None
    assert within.of > 10


def test_small_images_are_compared_by_their_pixels_only() -> None:
    """Digits of 8 × 8 pixels look alike when they are not."""
    found = audit(open_data("digits"), threads=2)
    assert told(found.findings) == {}
    assert not any("near" in f.code for f in found.findings)


def test_the_result_does_not_depend_on_the_threads() -> None:
    samples = list(clean("classification")[1])
    for name in ("leaked", "twice, compressed", "12 bits of 16", "unreadable"):
        CORPUS[name][3](samples)
    one, three = (audit(dataset("classification", samples), threads=n) for n in (1, 3))
    assert one == three


def test_nothing_is_changed(photos: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in photos.rglob("*") if p.is_file()}
    audit(open_data(photos, carve_val=False), threads=2)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before}
    assert {p for p in photos.rglob("*") if p.is_file()} == set(before)


def test_memory_stays_flat() -> None:
    """Images are not kept: 120 of 0.75 MB take less than 40 of them."""

    class Many(Pictures):
        def __init__(self) -> None:
            super().__init__([None] * 120)

        def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
            image = np.full((500, 500, 3), i % 251, np.uint8)
            image[i % 500] = 255
            return shrink(image, (500, 500), shorter), (500, 500)

    data = dataclasses.replace(
        dataset("classification", clean("classification")[1]),
        images=Many(),
        labels=np.arange(120) % 2,
        splits={"train": np.arange(120)},
    )
    tracemalloc.start()
    audit(data, threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 750_000


# --- the cheap part, and opening ----------------------------------------------------------------


def test_the_cheap_part_loads_nothing() -> None:
    data = dataset("detection", clean("detection")[1])
    assert isinstance(data.truth, Fields)
    table = BoxTable.of([fields["boxes"] for fields in data.truth.of])
    table.xyxy[4] = (30, 9, 10, 30)
    table.xyxy[7] = (500, 500, 520, 520)
    data = dataclasses.replace(data, truth=table)
    assert isinstance(data.images, Pictures)
    assert set(told(audit(data, cheap=True).findings)) == {"box-inverted"}
    sizes = np.full((TRAIN + VAL, 2), 96)
    found = audit(data, cheap=True, sizes=sizes)
    assert set(told(found.findings)) == {"box-inverted", "box-outside"}
    assert data.images.loaded == 0
    whole = told(audit(data, threads=1).findings)
    assert whole == told(found.findings), "the whole audit says the same of boxes"


def test_training_is_warned_by_the_cheap_part() -> None:
    samples = list(clean("classification")[1])
    CORPUS["an uneven class"][3](samples)
    notes = audits.warnings(dataset("classification", samples))
    assert len(notes) == 2
    assert any("19 times the training images" in note for note in notes)
    assert audits.warnings(dataset("classification", clean("classification")[1])) == []
    # What a split lacks, opening it has said.
    CORPUS["no class in val"][3](samples)
    assert audits.warnings(dataset("classification", samples)) == []


def test_what_training_refuses_is_audited_all_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "cats").mkdir(parents=True)
    for i in range(3):
        image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "data" / "cats" / f"{i}.png"), image)
    data, refused = opened(tmp_path / "data")
    assert data is not None
    assert [f.code for f in refused] == ["data-refused"]
    assert "one class only" in refused[0].what
    assert told(audit(data, threads=1).findings) == {"class-few": "warning"}


def test_what_cannot_be_opened_is_a_finding(tmp_path: Path) -> None:
    data, refused = opened(tmp_path / "nowhere")
    assert data is None
    assert [(f.code, f.severity) for f in refused] == [("data-unreadable", "error")]


def test_files_that_are_spoiled(photos: Path) -> None:
    """Half a JPEG, and 12 bits in a 16-bit PNG."""
    victim = photos / "circles" / "03.jpg"
    victim.write_bytes(victim.read_bytes()[:600])
    deep = np.random.default_rng(0).integers(0, 4096, (40, 48), dtype=np.uint16)
    cv2.imwrite(str(photos / "stripes" / "deep.png"), deep)
    found = audit(open_data(photos, carve_val=False), threads=2)
    assert told(found.findings) == {"image-unreadable": "error", "image-narrow": "warning"}
    first, second = found.findings[:2]
    assert [key for key, _ in first.samples] == ["circles/03.jpg"]
    assert [key for key, _ in second.samples] == ["stripes/deep.png"]


def test_images_in_memory() -> None:
    array = np.random.default_rng(0).integers(0, 256, (20, 40, 40), dtype=np.uint8)
    array[7] = array[3]
    data = dataclasses.replace(
        dataset("classification", clean("classification")[1]),
        images=ArrayImages(array, {"train": 10, "val": 10}),
        labels=np.arange(20) % 2,
        splits={"train": np.arange(10), "val": np.arange(10, 20)},
    )
    found = audit(data, threads=2)
    assert told(found.findings) == {"duplicate-within-split": "warning"}


# --- real data ----------------------------------------------------------------------------------

real = pytest.mark.skipif("VIDI_DATA" not in os.environ, reason="VIDI_DATA names no folder")


@real
def test_bccd_has_two_boxes_without_area(real_data: Path) -> None:
    data = open_data(real_data / "bccd", carve_val=False)
    found = audit(data, cheap=True)
    assert told(found.findings) == {"box-no-area": "error"}
    assert found.findings[0].count == 2
    keys = {key for key, _ in found.findings[0].samples}
    assert {k.rsplit("_", 1)[1] for k in keys} == {"00338.jpg", "00343.jpg"}
    # BloodImage_00037 and 00038 show the same cells: a true leak from train to test.
    whole = told(audit(data, threads=2).findings)
    assert whole == {"box-no-area": "error", "near-duplicate-across-splits": "warning"}


@real
def test_imagenette_gives_no_alarm(real_data: Path) -> None:
    assert told(audit(open_data(real_data / "imagenette-small"), threads=2).findings) == {}


@real
def test_camvid_and_bsds_give_no_alarm(real_data: Path) -> None:
    """Every eighth sample: the whole takes some seven seconds each, and gives none either."""
    for name in ("camvid", "bsds500"):
        data = open_data(real_data / name, carve_val=False)
        some = {split: ids[::8] for split, ids in data.splits.items()}
        found = audit(dataclasses.replace(data, splits=some), threads=2)
        assert told(found.findings) == {}, name


@real
def test_real_flow_gives_no_alarm_and_its_misreadings_do(real_data: Path) -> None:
    for name in ("FlyingChairs_release", "KITTI"):
        data = open_data(real_data / "flow" / name, carve_val=False)
        found = audit(data, threads=2)
        assert told(found.findings) == {}, name
        assert found.statistics["flow"]["ratio"] < 0.5
    sample = data[0]
    assert sample.flow is not None
    h, w = sample.image.shape[:2]
    for flow, named in (
        (kitti8(sample), "as the upper 8 bits"),
        ((kitti8(sample) - 2**15) / 64, "formula on the upper 8 bits"),
        (sample.flow / np.array([w, h], np.float32), "in shares of the image's sides"),
        (-sample.flow, "sign"),
    ):
        look = look_at_flow(flow, sample.flow_valid, None, sample.image, sample.image2)
        assert named in look.better
        assert look.better_ratio < 0.6


@real
def test_coco_mini_lacks_classes_and_nothing_else(real_data: Path) -> None:
    """Of 80 classes, 40 images cannot show all: true findings."""
    found = audit(open_data(real_data / "coco-mini", carve_val=False), threads=2)
    assert set(told(found.findings)) == {
        "class-never", "class-few", "class-missing-train", "class-missing-val",
    }  # fmt: skip
