"""Batches: the same bytes however they are made."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vidi.data import augment, geometry
from vidi.data.annotations import IGNORE
from vidi.data.draws import Draws
from vidi.data.loader import Loader
from vidi.errors import InputError
from vidi.recipe import Augmentation
from vidi.types import Array, Batch, Encoded, Sample

CLASSES = 5


class Fake:
    """The part of a dataset that a loader touches: images of many sizes, made from their index."""

    def __init__(self, sizes: tuple[int, int] = (24, 60), bad: tuple[int, ...] = ()) -> None:
        self.images = self
        self.root = "fake"
        self.sizes = sizes
        self.bad = bad

    def key(self, i: int) -> str:
        return f"train/{i:04}"

    def annotations(self, i: int) -> dict[str, Any]:
        return {"label": i % CLASSES}

    def load(self, i: int) -> tuple[Array, tuple[int, int]]:
        if i in self.bad:
            raise InputError(f"{self.key(i)} is no image.")
        rng = np.random.default_rng(i)
        h, w = rng.integers(*self.sizes, 2)
        return rng.integers(0, 256, (h, w, 3), dtype=np.uint8), (2 * int(h), 2 * int(w))


def encode(sample: Sample, rng: Draws) -> Encoded:
    target = {"label": np.asarray(sample.label, np.int64), "noise": rng.uniform("noise", 2)}
    return Encoded({"image": sample.image}, target)


def loader(n: int = 60, preset: Any = "strong", dataset: Fake | None = None, **more: Any) -> Loader:
    dataset = dataset or Fake()
    fields = more.pop("fields", {})
    defaults: dict[str, Any] = {
        "load": dataset.load,
        "encode": encode,
        "augmentation": augment.resolve(Augmentation(preset=preset, **fields)),
        "image_size": 24,
        "fill": (3, 2, 1),
        "batch_size": 8,
        "train": True,
        "threads": 0,
    }
    ids = more.pop("ids", np.arange(100, 100 + n, dtype=np.int64))
    return Loader(dataset, ids, **(defaults | more))  # type: ignore[arg-type]


def same(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    for name in ("ids", "matrices", "sizes", "valid"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for part in ("inputs", "targets"):
        mine, theirs = getattr(one, part), getattr(other, part)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype
            assert np.array_equal(mine[name], theirs[name]), name


def all_same(one: Iterator[Batch], other: Iterator[Batch]) -> int:
    count = 0
    for a, b in zip(one, other, strict=True):
        same(a, b)
        count += 1
    return count


def joined(parts: list[Batch]) -> Batch:
    def cat(values: list[Any]) -> Any:
        return np.concatenate(values)

    return Batch(
        inputs={k: cat([p.inputs[k] for p in parts]) for k in parts[0].inputs},
        targets={k: cat([p.targets[k] for p in parts]) for k in parts[0].targets},
        keys=[k for p in parts for k in p.keys],
        ids=cat([p.ids for p in parts]),
        matrices=cat([p.matrices for p in parts]),
        sizes=cat([p.sizes for p in parts]),
        valid=cat([p.valid for p in parts]),
    )


PRESETS = pytest.mark.parametrize("preset", ["digits", "small", "photos", "strong"])


@PRESETS
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(preset: str, threads: int) -> None:
    alone, pool = loader(preset=preset), loader(preset=preset, threads=threads, prefetch=2)
    assert all_same(alone.epoch(3), pool.epoch(3)) == 7


@pytest.mark.parametrize("prefetch", [0, 1, 100])
def test_prefetch_changes_nothing(prefetch: int) -> None:
    assert all_same(loader().epoch(0), loader(threads=2, prefetch=prefetch).epoch(0)) == 7


@PRESETS
@pytest.mark.parametrize("start", [0, 1, 4, 6, 7])
def test_an_epoch_resumes_at_any_step(preset: str, start: int) -> None:
    whole = list(loader(preset=preset).epoch(2))[start:]
    rest = list(loader(preset=preset, threads=2).epoch(2, start_step=start))
    assert all_same(iter(whole), iter(rest)) == 7 - start


@PRESETS
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_same_global_batch(preset: str, world: int) -> None:
    one = loader(preset=preset)
    ranks = [loader(preset=preset, rank=r, world=world) for r in range(world)]
    assert {r.steps_per_epoch for r in ranks} == {one.steps_per_epoch}
    for whole, *parts in zip(one.epoch(1), *(r.epoch(1) for r in ranks), strict=True):
        same(whole, joined(list(parts)))


@pytest.mark.parametrize("n", [1, 7, 8, 20, 61])
@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_evaluation_covers_every_sample_once(n: int, world: int) -> None:
    seen: list[int] = []
    for rank in range(world):
        part = loader(n, train=False, rank=rank, world=world)
        batches = list(part.epoch(0))
        assert len(batches) == part.steps_per_epoch
        seen += [int(i) for b in batches for i in b.ids]
    assert sorted(seen) == list(range(100, 100 + n))


def test_evaluation_is_in_order_and_keeps_the_samples_as_loaded() -> None:
    data = Fake()
    run = loader(20, train=False, keep_samples=True, dataset=data, preset="photos")
    batches = list(run.epoch(0))
    assert [len(b) for b in batches] == [8, 8, 4]
    assert [i for b in batches for i in b.ids] == list(range(100, 120))
    for batch in batches:
        for i, sample in zip(batch.ids, batch.samples, strict=True):
            assert sample.key == data.key(int(i))
            assert sample.label == i % CLASSES
            assert np.array_equal(sample.image, data.load(int(i))[0])
    assert not next(loader().epoch(0)).samples


def test_training_order() -> None:
    run = loader(61)
    first = np.concatenate([b.ids for b in run.epoch(0)])
    second = np.concatenate([b.ids for b in run.epoch(1)])
    assert len(first) == 56  # the last five come in other epochs
    assert len(set(first)) == 56
    assert not np.array_equal(first, second)
    assert set(first) != set(second)
    assert not np.array_equal(first, np.concatenate([b.ids for b in loader(61, seed=1).epoch(0)]))
    few = loader(3)
    assert few.steps_per_epoch == 1
    assert sorted(next(few.epoch(0)).ids) == [100, 101, 102]


def test_pixels_labels_matrices_and_sizes_are_the_samples_own() -> None:
    data = Fake()
    for preset in ("none", "small", "digits", "photos"):
        fields = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
        for batch in loader(dataset=data, preset=preset, fields=fields).epoch(0):
            assert batch.inputs["image"].dtype == np.uint8
            assert batch.inputs["image"].shape == (8, 24, 24, 3)
            assert set(batch.targets) == {"label", "noise"}
            for row, i in enumerate(batch.ids):
                image, size = data.load(int(i))
                assert tuple(batch.sizes[row]) == size
                assert batch.keys[row] == data.key(int(i))
                assert batch.targets["label"][row] == i % CLASSES
                # The matrix is from the original's pixels; the loaded image is half its size.
                from_loaded = batch.matrices[row] @ geometry.scaling(2, 2)
                outside = None if preset == "small" else (3, 2, 1)
                expected = geometry.warp(image, from_loaded, 24, outside, quick=True)
                assert np.array_equal(batch.inputs["image"][row], expected)


def test_tasks_draw_by_sample_and_epoch() -> None:
    by_id: list[dict[int, Any]] = []
    for epoch in (0, 0, 1):
        found: dict[int, Any] = {}
        for batch in loader(64, threads=2).epoch(epoch):
            found |= dict(zip(batch.ids.tolist(), batch.targets["noise"].tolist(), strict=True))
        by_id.append(found)
    assert by_id[0] == by_id[1]
    assert all(by_id[0][i] != by_id[2][i] for i in by_id[0])
    assert by_id[0][110] == Draws(0, 0, 110).uniform("noise", 2).tolist()


class Colours(Fake):
    """Each image is one colour, so that a mixed pixel tells what went into it."""

    def load(self, i: int) -> tuple[Array, tuple[int, int]]:
        return np.full((24, 24, 3), i, np.uint8), (24, 24)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("threads", [0, 2])
def test_mixing_is_what_the_targets_say(kind: str, threads: int) -> None:
    data = Colours()
    run = loader(64, "none", data, fields={kind: 1.0, "mix_probability": 0.7}, threads=threads)
    unmixed = 0
    for batch in run.epoch(0):
        assert batch.targets["mix_lambda"].dtype == np.float32
        for row, i in enumerate(batch.ids):
            image = batch.inputs["image"][row].astype(float)
            share = float(batch.targets["mix_lambda"][row])
            if share == 1:
                unmixed += 1
                assert (image == i).all()
                assert batch.targets["mix:label"][row] == batch.targets["label"][row]
                continue
            # mean = share · own + (1 − share) · partner
            partner = (image.mean() - share * i) / (1 - share)
            if kind == "cutmix":
                assert (image == i).mean() == pytest.approx(share, abs=1e-6) or partner == i
                partner = next(iter(set(np.unique(image)) - {i}), i)
            assert 99 < partner < 165 or 1 - share < 0.1
            if 1 - share > 0.3 or kind == "cutmix":
                # Mixup's values are rounded, which blurs the partner's by half a level or two.
                near = {round(partner + d) % CLASSES for d in (-1.7, -1, 0, 1, 1.7)}
                exact = {int(partner) % CLASSES}
                assert batch.targets["mix:label"][row] in (exact if kind == "cutmix" else near)
    assert 8 <= unmixed <= 32


def test_mixing_can_be_one_epoch_of_a_partner_that_is_augmented_as_itself() -> None:
    """A CutMix of everything shows the partner just as it looks in the same epoch, unmixed."""
    plain = loader(64, "small", fields={"crop": "pad"}, batch_size=64)
    mixed = loader(64, "small", fields={"cutmix": 1.0}, batch_size=64)
    (one,), (two,) = list(plain.epoch(0)), list(mixed.epoch(0))
    assert np.array_equal(one.ids, two.ids)
    looks = one.inputs["image"]
    compared = 0
    for row in range(64):
        differs = (looks[row] != two.inputs["image"][row]).any(2)
        if two.targets["mix_lambda"][row] < 0.8 and differs.any():
            ys, xs = np.nonzero(differs)
            box = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            part = two.inputs["image"][row][box]
            assert any(np.array_equal(part, look[box]) for look in looks)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("mode", ["reflect", "mean"])
def test_pad_and_crop_shows_a_window_of_the_padded_image(mode: str) -> None:
    """NumPy's padding, mirrored or not."""
    data = Fake((24, 25))
    fields = {"pad": 5, "pad_mode": mode}
    (batch,) = list(loader(64, "small", data, fields=fields, batch_size=64).epoch(0))
    beyond = 0
    for row, i in enumerate(batch.ids):
        image = data.load(i)[0]
        wide = np.stack(
            [
                np.pad(image[..., c], 5, mode="reflect")
                if mode == "reflect"
                else np.pad(image[..., c], 5, constant_values=(3, 2, 1)[c])
                for c in range(3)
            ],
            axis=2,
        )
        windows = np.lib.stride_tricks.sliding_window_view(wide, (24, 24, 3))[:, :, 0]
        seen = batch.inputs["image"][row]
        same = [(windows == s).all((2, 3, 4)) for s in (seen, seen[:, ::-1])]
        assert sum(map(np.sum, same)) == 1
        beyond += not (same[0] | same[1])[5, 5]
    assert beyond > 50


def test_other_crops_show_the_fill_beyond_the_image() -> None:
    """Whatever pad-and-crop would pad with."""
    fields = {"shift": 0.5, "pad_mode": "reflect"}
    (batch,) = list(loader(64, "digits", fields=fields, batch_size=64).epoch(0))
    filled = (batch.inputs["image"] == (3, 2, 1)).all(3).any((1, 2))
    assert filled.mean() > 0.9


def test_balanced_sampling() -> None:
    """Classes of 50, 8 and 2 samples, drawn equally often; repeats vary."""
    labels = np.repeat([0, 1, 2], [50, 8, 2])
    weights = (1 / np.bincount(labels))[labels]
    data = Fake()
    run = loader(60, "photos", data, balance=weights, batch_size=60)
    for epoch in range(3):
        (batch,) = list(run.epoch(epoch))
        drawn = labels[batch.ids - 100]
        assert np.array_equal(np.bincount(drawn), [20, 20, 20])
        assert set(np.bincount(batch.ids - 100)[50:58]) <= {2, 3}
        assert set(np.bincount(batch.ids - 100)[58:]) == {10}
        last = batch.inputs["image"][batch.ids == 159]
        assert len(np.unique(last.reshape(len(last), -1), axis=0)) == 10
    # The 20 of the 50 are others each time.
    few = [set(next(run.epoch(e)).ids) for e in range(2)]
    assert few[0] != few[1]
    assert all_same(
        run.epoch(4), loader(60, "photos", data, balance=weights, batch_size=60, threads=3).epoch(4)
    )
    assert np.array_equal(
        loader(60, balance=np.full(60, 0.25)).order(0) % 2**40, loader(60).order(0)
    )


@pytest.mark.parametrize("threads", [0, 2])
def test_an_unreadable_image_is_a_blank_invalid_row(threads: int) -> None:
    data = Fake(bad=(103, 110))
    run = loader(32, "photos", data, threads=threads, train=True)
    good = {k: b for b in loader(32, "photos").epoch(0) for k in b.keys}
    for batch in run.epoch(0):
        for row, i in enumerate(batch.ids):
            bad = int(i) in data.bad
            assert batch.valid[row] != bad
            assert bad or batch.targets["label"][row] == i % CLASSES
            theirs = good[batch.keys[row]].inputs["image"][row]
            expected = np.zeros_like(theirs) if bad else theirs
            assert np.array_equal(batch.inputs["image"][row], expected)
    assert run.failures == {
        "train/0103": "train/0103 is no image.",
        "train/0110": "train/0110 is no image.",
    }


def test_an_unreadable_partner_leaves_the_image_unmixed() -> None:
    everything_else = tuple(range(101, 164))
    data = Fake(bad=everything_else)
    run = loader(64, "none", data, fields={"mixup": 1.0}, batch_size=64)
    (batch,) = list(run.epoch(0))
    row = batch.keys.index("train/0100")
    assert batch.valid.sum() == 1
    assert batch.targets["mix_lambda"][row] == 1
    assert batch.targets["mix:label"][row] == 0


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_of_the_tasks_reaches_the_caller(threads: int) -> None:
    def broken(sample: Sample, rng: Draws) -> Encoded:
        if sample.key == "train/0130":
            raise KeyError("boundaries")
        return encode(sample, rng)

    before = threading.active_count()
    with pytest.raises(KeyError, match="boundaries"):
        list(loader(threads=threads, encode=broken).epoch(0))
    assert threading.active_count() == before


@pytest.mark.parametrize("stop", ["close", "break", "throw", "unused"])
def test_stopping_early_leaves_no_thread(stop: str) -> None:
    def slow(i: int) -> tuple[Array, tuple[int, int]]:
        time.sleep(0.001)
        return Fake().load(i)

    before = threading.active_count()
    batches = loader(200, threads=3, prefetch=8, load=slow).epoch(0)
    if stop == "unused":
        del batches
    else:
        next(batches)
        assert threading.active_count() > before
        if stop == "close":
            batches.close()
        elif stop == "throw":
            with pytest.raises(KeyboardInterrupt):
                batches.throw(KeyboardInterrupt())
        else:
            del batches
    assert threading.active_count() == before


def test_no_more_is_prepared_than_asked_for() -> None:
    loaded: list[int] = []

    def counted(i: int) -> tuple[Array, tuple[int, int]]:
        loaded.append(i)
        return Fake().load(i)

    batches = loader(80, "small", threads=2, prefetch=2, load=counted).epoch(0)
    next(batches)
    time.sleep(0.1)
    assert len(loaded) == 3 * 8
    batches.close()


def test_inputs_and_targets_that_the_task_makes() -> None:
    """Several inputs, arrays whose shape differs (a list), and an image that the task changed."""

    def rich(sample: Sample, rng: Draws) -> Encoded:
        n = int(sample.key[-1])
        return Encoded(
            {"image": sample.image[::-1], "small": sample.image[::2, ::2]},
            {"boxes": np.full((n, 4), n, np.float32)},
        )

    for batch, plain in zip(loader(encode=rich).epoch(0), loader().epoch(0), strict=True):
        assert np.array_equal(batch.inputs["image"], plain.inputs["image"][:, ::-1])
        assert np.array_equal(batch.inputs["small"], plain.inputs["image"][:, ::2, ::2])
        assert isinstance(batch.targets["boxes"], list)
        for key, boxes in zip(batch.keys, batch.targets["boxes"], strict=True):
            assert boxes.shape == (int(key[-1]), 4)


def test_batches_do_not_share_memory() -> None:
    kept = list(loader(threads=2).epoch(0))
    assert all_same(iter(kept), loader().epoch(0)) == 7


def test_the_seed_is_the_whole_difference() -> None:
    make: list[Callable[[], Loader]] = [loader, lambda: loader(seed=5)]
    first, second = (next(m().epoch(0)) for m in make)
    assert not np.array_equal(first.inputs["image"], second.inputs["image"])
    none = dataclasses.replace(augment.resolve(Augmentation(preset="none")))
    still = loader(8, augmentation=none), loader(8, augmentation=none, seed=5)
    by_key = [
        dict(zip(b.keys, b.inputs["image"], strict=True)) for b in (next(x.epoch(0)) for x in still)
    ]
    assert all(np.array_equal(by_key[0][k], by_key[1][k]) for k in by_key[0])


class Dense(Fake):
    """Images whose every pixel tells its own class: red is 20 times the mask's number."""

    def load(self, i: int) -> tuple[Array, tuple[int, int]]:
        mask = self.annotations(i)["mask"]
        return np.repeat(20 * mask[..., None], 3, 2), mask.shape

    def annotations(self, i: int) -> dict[str, Any]:
        if i in self.bad:
            raise InputError(f"{self.key(i)} has no mask.")
        rng = np.random.default_rng(i)
        h, w = rng.integers(*self.sizes, 2)
        coarse = rng.integers(0, CLASSES, (-(-h // 6), -(-w // 6)), dtype=np.uint8)
        return {"mask": np.kron(coarse, np.ones((6, 6), np.uint8))[:h, :w]}


def with_mask(sample: Sample, rng: Draws) -> Encoded:
    assert sample.mask is not None
    return Encoded({"image": sample.image}, {"mask": sample.mask})


def dense(dataset: Fake | None = None, **more: Any) -> Loader:
    plain = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0} | more.pop("fields", {})
    return loader(
        preset="dense", dataset=dataset or Dense(), encode=with_mask, fields=plain, **more
    )


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("rotation", [0.0, 30.0])
def test_masks_move_with_their_images(zoom: tuple[float, float], rotation: float) -> None:
    seen, differing = 0, 0
    fields = {"zoom": zoom, "rotation": rotation}
    for batch in dense(fields=fields, fill=(255, 255, 255), threads=2).epoch(0):
        mask, red = batch.targets["mask"], batch.inputs["image"][..., 0]
        assert mask.shape == red.shape == (8, 24, 24)
        known = mask != IGNORE
        seen += known.sum()
        # Where classes or the image's border meet, interpolation mixes their colours.
        differing += (np.abs(red[known] / 20.0 - mask[known]) > 0.5).sum()
        assert known.all() or (red[~known] > 20 * (CLASSES - 1)).mean() > 0.9
    assert seen > 10_000
    still = zoom == (1.0, 1.0) and rotation == 0
    assert differing == 0 if still else 0 < differing < 0.25 * seen


def test_whole_images_are_padded_in_training_and_left_alone_in_evaluation() -> None:
    made = dense(
        fields={"crop": "whole", "flip": 0.0}, padding={"mask": 255}, fill=(9, 9, 9), batch_size=4
    )
    for batch in made.epoch(0):
        images, masks = batch.inputs["image"], batch.targets["mask"]
        sizes = batch.sizes.max(0)
        assert images.shape == (4, *sizes, 3) and masks.shape == (4, *sizes)
        for row, (h, w) in enumerate(batch.sizes):
            inside = np.zeros(masks.shape[1:], bool)
            inside[:h, :w] = True
            assert (masks[row][~inside] == 255).all() and (images[row][~inside] == 9).all()
            assert np.array_equal(images[row, ..., 0][inside], 20 * masks[row][inside])
    for batch in dense(fields={"crop": "whole"}, train=False, keep_samples=True).epoch(0):
        assert isinstance(batch.inputs["image"], list)
        for image, mask, sample in zip(
            batch.inputs["image"], batch.targets["mask"], batch.samples, strict=True
        ):
            assert np.array_equal(image, sample.image)
            assert np.array_equal(mask, sample.mask)


def test_another_sample_stands_in_for_an_unreadable_mask() -> None:
    data = Dense(bad=(100, 104))
    run = dense(data, n=64, threads=2)
    for batch in run.epoch(0):
        assert np.array_equal(batch.valid, [i not in data.bad for i in batch.ids])
        assert not batch.inputs["image"][~batch.valid].any()
    assert set(run.failures) == {"train/0100", "train/0104"}
    with pytest.raises(InputError, match="Not one of 8 samples"):
        list(dense(Dense(bad=tuple(range(100, 108))), n=8).epoch(0))
