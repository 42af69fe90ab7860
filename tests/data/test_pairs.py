"""Pairs of frames through augmentation, loader and cache: flow and frames stay together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from vidi.data import augment, cache, flow_layout, geometry
from vidi.data.dataset import FramePairs
from vidi.data.draws import Draws
from vidi.data.formats import flow_folders
from vidi.data.loader import Loader
from vidi.data.open import open_data
from vidi.errors import InputError
from vidi.recipe import Augmentation
from vidi.types import Array, Batch, Encoded, Sample

SIDE = 48
MOTION = geometry.about((20.0, 30.0), geometry.rotation(0.06)) @ geometry.translation(2.25, -1.5)
"""What all pairs here do between their frames."""


def waves(x: Array, y: Array) -> Array:
    """A smooth picture, known at every point: uint8 [..., 3]."""
    parts = [np.sin(x / 5 + k) + np.sin(y / 6 - 2 * k) + np.sin((x + y) / 9) for k in range(3)]
    return np.rint(128 + 40 * np.stack(parts, -1)).astype(np.uint8)


class Frames:
    """Pairs of that picture in motion; with odd ones on request."""

    root = "frames"

    def __init__(self, bad: tuple[int, ...] = (), other_size: tuple[int, ...] = ()) -> None:
        self.images = self
        self.bad, self.other_size = bad, other_size
        at = np.arange(60) + 0.5
        self.x, self.y = np.meshgrid(at, at[:52])

    def key(self, i: int) -> str:
        return f"train/{i:04}"

    def load(self, i: int) -> tuple[Array, tuple[int, int]]:
        return waves(self.x + 3 * i, self.y), self.x.shape

    def load2(self, i: int) -> tuple[Array, tuple[int, int]]:
        if i in self.bad:
            raise InputError(f"The second frame of {self.key(i)} is no image.")
        if i in self.other_size:
            return np.zeros((9, 11, 3), np.uint8), (9, 11)
        back = np.linalg.inv(MOTION)
        x, y = (back[k, 0] * self.x + back[k, 1] * self.y + back[k, 2] for k in range(2))
        return waves(x + 3 * i, y), self.x.shape

    def annotations(self, i: int) -> dict[str, Any]:
        to = [MOTION[k, 0] * self.x + MOTION[k, 1] * self.y + MOTION[k, 2] for k in range(2)]
        flow = np.stack([to[0] - self.x, to[1] - self.y], 2).astype(np.float32)
        return {"flow": flow, "flow_valid": np.ones(self.x.shape, bool)}


def encode(sample: Sample, rng: Draws) -> Encoded:
    assert sample.image2 is not None
    assert sample.flow is not None and sample.flow_valid is not None
    return Encoded(
        {"image": sample.image, "image2": sample.image2},
        {"flow": sample.flow, "known": sample.flow_valid},
    )


GEOMETRY = {
    "brightness": 0.0,
    "contrast": 0.0,
    "channels": 0.0,
    "gamma": 0.0,
    "noise": 0.0,
    "pair_jitter": 0.0,
}


def loader(data: Frames | None = None, *, preset: Any = "flow", **more: Any) -> Loader:
    data = data or Frames()
    fields = more.pop("fields", {})
    options: dict[str, Any] = {
        "load": data.load,
        "load2": data.load2,
        "encode": encode,
        "augmentation": augment.resolve(Augmentation(preset=preset, **fields)),
        "image_size": SIDE,
        "fill": (3, 2, 1),
        "batch_size": 4,
        "train": True,
        "threads": 0,
    }
    return Loader(data, np.arange(12), **(options | more))  # type: ignore[arg-type]


def same(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    for part in ("inputs", "targets"):
        mine, theirs = getattr(one, part), getattr(other, part)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert np.array_equal(mine[name], theirs[name]), name


def test_flow_leads_from_the_first_frame_to_the_second() -> None:
    """Wherever both are in sight, and whatever each frame went through: sampled by scipy at the
    flow's end, the second frame has the first one's colour."""
    checked, apart = 0, []
    fields: dict[str, Any] = GEOMETRY | {"pair_rotation": 6.0, "pair_scale": 0.1, "zoom": (0.9, 2)}
    for batch in loader(fields=fields).epoch(0):
        assert batch.inputs["image2"].dtype == np.uint8
        for row in range(len(batch)):
            first, second = (batch.inputs[name][row] for name in ("image", "image2"))
            flow, known = batch.targets["flow"][row], batch.targets["known"][row]
            y, x = np.mgrid[:SIDE, :SIDE]
            to = [y + flow[..., 1], x + flow[..., 0]]
            # A margin from the borders, where the frames run into the fill.
            inside = known & (np.minimum(*to) > 3) & (np.maximum(*to) < SIDE - 4)
            inside &= (first != (3, 2, 1)).any(2)
            seen = np.stack(
                [map_coordinates(second[..., c].astype(float), to, order=1) for c in range(3)], 2
            )
            fits = np.abs(seen - first).max(2)[inside]
            if len(fits) > 100:
                checked += 1
                # Near a border of the moved image the two cannot agree.
                assert np.percentile(fits, 90) < 6
                apart.append(float(flow[known].std(0).max()))
    assert checked >= 10
    assert max(apart) > 1, "the frames move apart by more than they did"


def test_without_a_relative_move_both_frames_have_one_matrix() -> None:
    plain = GEOMETRY | {"pair_rotation": 0.0, "pair_scale": 0.0, "pair_shift": 0.0}
    data = Frames()
    for batch in loader(data, fields=plain).epoch(0):
        for row, i in enumerate(batch.ids):
            for name, load in (("image", data.load), ("image2", data.load2)):
                image, m = load(int(i))[0], batch.matrices[row]
                expected = geometry.warp(image, m, SIDE, (3, 2, 1), quick=True)
                assert np.array_equal(batch.inputs[name][row], expected)


def test_both_frames_get_the_same_colours() -> None:
    """Of a pair without motion both stay equal, whatever becomes of their colours."""
    data = Frames()
    data.load2 = data.load  # type: ignore[method-assign]
    still = {"noise": 0.0, "pair_jitter": 0.0}
    still |= {"pair_rotation": 0.0, "pair_scale": 0.0, "pair_shift": 0.0}
    coloured = next(loader(data, fields=still).epoch(0)).inputs
    assert np.array_equal(coloured["image"], coloured["image2"])
    plain = next(loader(data, fields={**still, **GEOMETRY}).epoch(0)).inputs
    assert not np.array_equal(coloured["image"], plain["image"])


def test_the_relative_move_is_small_about_the_centre_and_its_own() -> None:
    a = augment.resolve(Augmentation(preset="flow", pair_rotation=10.0, pair_shift=0.0))
    plan = augment.plan(a, 64, 0, 0, np.arange(400))
    assert plan.apart is not None
    centre = plan.apart @ np.array([32.0, 32.0, 1.0])
    assert np.allclose(centre[:, :2], 32)
    angles = np.degrees(np.arctan2(plan.apart[:, 1, 0], plan.apart[:, 0, 0]))
    assert 9 < np.abs(angles).max() <= 10
    assert plan.after is not None
    common = np.degrees(np.arctan2(plan.after[:, 1, 0], plan.after[:, 0, 0]))
    assert abs(np.corrcoef(angles, common)[0, 1]) < 0.2, "drawn apart from the common rotation"
    first = augment.matrix(plan, 3, (100, 120))
    assert np.allclose(
        augment.second(plan, 3, first, (64, 64)) @ np.linalg.inv(first), plan.apart[3]
    )
    alone = augment.plan(augment.resolve(Augmentation(preset="dense")), 64, 0, 0, np.arange(4))
    assert alone.apart is None
    assert augment.second(alone, 0, first, (64, 64)) is first


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_the_starting_step_change_nothing(threads: int) -> None:
    whole = list(loader().epoch(1))
    for start in (0, 2):
        found = list(loader(threads=threads).epoch(1, start_step=start))
        assert len(found) == 3 - start
        for one, other in zip(whole[start:], found, strict=True):
            same(one, other)


def test_processes_share_the_batch() -> None:
    parts = [loader(rank=r, world=2).epoch(0) for r in range(2)]
    for whole, one, two in zip(loader().epoch(0), *parts, strict=True):
        for name in ("image", "image2"):
            joined = np.concatenate([one.inputs[name], two.inputs[name]])
            assert np.array_equal(whole.inputs[name], joined)


def test_evaluation_sees_whole_pairs_as_they_are() -> None:
    data = Frames()
    batch = next(loader(data, train=False, keep_samples=True).epoch(0))
    for row, sample in enumerate(batch.samples):
        assert np.array_equal(batch.inputs["image2"][row], data.load2(row)[0])
        assert sample.image2 is not None
        assert np.array_equal(sample.image2, data.load2(row)[0])
        assert np.array_equal(batch.targets["flow"][row], data.annotations(row)["flow"])


def test_what_cannot_be_read_is_black_in_both_frames_and_named() -> None:
    run = loader(Frames(bad=(5,), other_size=(7,)))
    black = 0
    for batch in run.epoch(0):
        for row, key in enumerate(batch.keys):
            if key in ("train/0005", "train/0007"):
                assert not batch.valid[row]
                assert not batch.inputs["image"][row].any()
                assert not batch.inputs["image2"][row].any()
                black += 1
            else:
                assert batch.valid[row]
    assert black == 2
    assert "second frame" in run.failures["train/0005"]
    assert "is 60 × 52 pixels, and the frame after it 11 × 9" in run.failures["train/0007"]
    failed = loader(Frames(bad=(5,)), train=False, keep_samples=True)
    assert [len(b.inputs["image2"]) for b in failed.epoch(0)] == [4, 4, 4]


def test_the_cache_keeps_both_frames(tmp_path: Path) -> None:
    made = flow_folders.fake(tmp_path / "data")
    dataset = open_data(made.source, task="flow")
    assert dataset.images2 is not None
    frames = FramePairs(dataset.images, dataset.images2)
    n = len(dataset)
    modes: tuple[Any, ...] = ("off", "memory", "disk")
    for mode in modes:
        store = cache.make(frames, dataset.root, None, mode, folder=tmp_path / "cache")
        load2 = cache.seconds(dataset, store.load)
        assert load2 is not None
        for _ in range(2):
            for i in range(n):
                assert np.array_equal(store.load(i)[0], dataset[i].image), mode
                second = dataset[i].image2
                assert second is not None
                assert np.array_equal(load2(i)[0], second), mode
        store.flush()
    shared = [i for i in range(n) if dataset.images2.key(i) in _firsts(dataset)]
    assert shared, "a sequence's inner frames are both first and second"
    i = shared[0]
    j = _firsts(dataset).index(dataset.images2.key(i))
    assert frames.identity(n + i) == frames.identity(j), "and are kept once"


def _firsts(dataset: Any) -> list[str]:
    return [dataset.images.key(i) for i in range(len(dataset))]


def test_successors_go_by_sequence_and_see_gaps() -> None:
    def after(stems: list[str]) -> dict[str, str]:
        return flow_layout.successors("frames", stems).after

    assert after(["9", "10", "8"]) == {"8": "9", "9": "10"}
    assert after(["f0", "f2", "f4", "f8"]) == {"f0": "f2", "f2": "f4"}
    kitti = ["000000_10", "000000_11", "000001_10", "000001_11"]
    assert after(kitti) == {"000000_10": "000000_11", "000001_10": "000001_11"}
    assert after(["left", "right"]) == {"left": "right"}
    assert after(["a1"]) == {}
    assert after(["a1", "b2"]) == {}, "of two sequences"
    assert after([]) == {}


@pytest.mark.parametrize(
    ("stems", "expected", "missing"),
    [
        # What has no number is no frame beside those that have one, and hides no gap.
        (["f1", "f2", "f4", "cover"], {"f1": "f2"}, ["f2"]),
        (["f", "f1", "f2", "g"], {"f1": "f2"}, []),
        # Each sequence has its own step.
        (
            ["a1", "a2", "a3", "b10", "b20", "b30"],
            {"a1": "a2", "a2": "a3", "b10": "b20", "b20": "b30"},
            [],
        ),
        (["a1", "a2", "a5", "b0", "b10", "b30", "b40"],
         {"a1": "a2", "b0": "b10", "b30": "b40"}, ["a2", "b10"]),
        (["x7", "x9", "y1"], {"x7": "x9"}, []),
        # A frame of another sequence between two of one.
        (["a1", "a1_left", "a3", "a4"], {"a3": "a4"}, ["a1"]),
        (["000000_10", "000000_11", "000002_10", "000002_11", "000003_10"],
         {"000000_10": "000000_11", "000002_10": "000002_11"}, []),
        (["8", "9", "10", "12"], {"8": "9", "9": "10"}, ["10"]),
    ],
)  # fmt: skip
def test_gaps_are_told_by_sequence(
    stems: list[str], expected: dict[str, str], missing: list[str]
) -> None:
    found = flow_layout.successors("frames", stems[::-1])
    assert found.after == expected
    assert found.gaps == missing


def test_two_frames_of_one_number_are_told() -> None:
    with pytest.raises(InputError, match="shots: the frames img01 and img1 have the same number"):
        flow_layout.successors("shots", ["img1", "img01", "img2"])
