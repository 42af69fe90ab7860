"""The cache gives what a decode gives, whatever happens to it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

import vidi
from vidi.data import cache
from vidi.errors import InputError
from vidi.types import Array

SHORTER = 20


class Files:
    """Images made from their index, standing for files: they count how often they are decoded."""

    def __init__(self, n: int = 40, bad: tuple[int, ...] = ()) -> None:
        self.n = n
        self.bad = bad
        self.decoded: Counter[int] = Counter()
        self.changed: dict[int, int] = {}

    def __len__(self) -> int:
        return self.n

    def key(self, i: int) -> str:
        return f"{i:05}.jpg"

    def size(self, i: int) -> tuple[int, int]:
        return self.load(i, None)[1]

    def digest(self) -> bytes:
        return str(self.n).encode()

    def identity(self, i: int) -> bytes | None:
        return f"/photos/{i:05}.jpg 1234 {self.changed.get(i, 0)}".encode()

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        self.decoded[i] += 1
        if i in self.bad:
            raise InputError(f"{self.key(i)} is no image.")
        rng = np.random.default_rng([i, self.changed.get(i, 0), shorter or 0])
        h, w = (int(v) for v in rng.integers(shorter or 30, 2 * (shorter or 30), 2))
        return rng.integers(0, 256, (h, w, 3), dtype=np.uint8), (3 * h, 3 * w)


class Objects(Files):
    """A user's object: no files."""

    def identity(self, i: int) -> bytes | None:
        return None


class InMemory(Objects):
    """Arrays, of which loading gives views."""

    def __init__(self) -> None:
        super().__init__()
        self.arrays = [Files().load(i, SHORTER) for i in range(self.n)]

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        image, size = self.arrays[i]
        return image[:], size


def made(images: Files, folder: Path, mode: Any = "disk", **more: Any) -> cache.Store:
    name = more.pop("dataset", "/photos")
    return cache.make(images, name, more.pop("shorter", SHORTER), mode, folder=folder, **more)


def check(
    store: cache.Store, images: Files, ids: Any = None, shorter: int | None = SHORTER
) -> None:
    fresh = Files(images.n)
    fresh.changed = images.changed
    for i in range(images.n) if ids is None else ids:
        image, size = store.load(i)
        expected, original = fresh.load(i, shorter)
        assert np.array_equal(image, expected), i
        assert image.dtype == np.uint8
        assert size == original


@pytest.mark.parametrize("mode", ["auto", "memory", "disk", "off"])
@pytest.mark.parametrize("shorter", [SHORTER, None])
def test_cached_equals_uncached(mode: Any, shorter: int | None, tmp_path: Path) -> None:
    images = Files()
    store = made(images, tmp_path, mode, shorter=shorter)
    for _ in range(3):
        check(store, images, shorter=shorter)
        store.flush()
    assert store.notes == []
    # Everything was decoded once, and some before, to estimate how much there is.
    most = 3 if mode == "off" else 2
    assert set(images.decoded.values()) <= set(range(1, most + 1))


def test_the_disk_cache_outlives_its_store(tmp_path: Path) -> None:
    first = Files()
    store = made(first, tmp_path)
    check(store, first)
    del store  # which writes what is left
    second = Files()
    check(made(second, tmp_path), second)
    # Only the few that are looked at for the estimate are decoded again.
    assert sum(second.decoded.values()) <= cache._LOOK


def test_other_sizes_and_datasets_are_kept_apart(tmp_path: Path) -> None:
    for shorter, dataset in ((20, "/a"), (16, "/a"), (20, "/b"), (None, "/a")):
        images = Files()
        check(made(images, tmp_path, shorter=shorter, dataset=dataset), images, shorter=shorter)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    images = Files()
    store = made(images, tmp_path)
    check(store, images)
    store.flush()
    images.changed[7] = 1
    images.decoded.clear()
    check(store, images)
    assert set(images.decoded) == {7}


def test_images_in_memory_are_not_kept_twice(tmp_path: Path) -> None:
    images = InMemory()
    for mode in ("auto", "memory", "disk"):
        store = made(images, tmp_path, mode)
        check(store, images)
        assert all(store.load(i)[0].base is images.arrays[i][0] for i in range(images.n))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mode", "kept"), [("auto", True), ("memory", True), ("disk", False)])
def test_objects_are_kept_in_memory_alone(mode: Any, kept: bool, tmp_path: Path) -> None:
    images = Objects()
    store = made(images, tmp_path, mode)
    check(store, images)
    images.decoded.clear()
    check(store, images)
    assert (not images.decoded) == kept
    assert list(tmp_path.iterdir()) == []


def test_a_first_file_that_is_missing_does_not_end_the_cache(tmp_path: Path) -> None:
    class Dangling(Files):
        def identity(self, i: int) -> bytes | None:
            return None if i == 0 else super().identity(i)

    images = Dangling(bad=(0,))
    store = made(images, tmp_path)
    check(store, images, range(1, 40))
    images.decoded.clear()
    check(store, images, range(1, 40))
    assert not images.decoded


def test_an_unreadable_image_stays_unreadable(tmp_path: Path) -> None:
    for mode in ("memory", "disk", "off"):
        images = Files(bad=(3,))
        store = made(images, tmp_path / mode, mode)
        for _ in range(2):
            with pytest.raises(InputError, match=r"00003\.jpg is no image"):
                store.load(3)
        check(store, images, [2, 4])


def test_auto_takes_memory_for_small_sets_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(made(Files(), tmp_path, "auto"), cache.Memory)
    monkeypatch.setattr(cache, "available_memory", lambda: 100_000)
    assert isinstance(made(Files(), tmp_path, "auto"), cache.Disk)
    monkeypatch.undo()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert isinstance(made(Files(), tmp_path, "auto"), cache.Disk)


def test_a_full_memory_cache_decodes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "available_memory", lambda: 50_000)
    images = Files()
    store = made(images, tmp_path, "memory")
    images.decoded.clear()
    check(store, images)
    check(store, images)
    again = sum(images.decoded.values()) - images.n
    assert 10 < again < images.n
    assert len(store.notes) == 1
    assert "memory cache is full" in store.notes[0]


def test_available_memory_is_plausible() -> None:
    assert 1 << 20 < cache.available_memory() < 1 << 50


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDI_CACHE", "/somewhere/else")
    assert cache.cache_folder() == Path("/somewhere/else")
    monkeypatch.delenv("VIDI_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.cache_folder() == Path("/xdg/vidi")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_folder().parts[-3:] == ("Library", "Caches", "vidi")


def data_file(folder: Path) -> Path:
    (file,) = folder.glob("*/data.mdb")
    return file


def test_a_damaged_record_is_decoded_anew(tmp_path: Path) -> None:
    images = Files()
    store = made(images, tmp_path)
    check(store, images)
    del store
    file = data_file(tmp_path)
    content = bytearray(file.read_bytes())
    pixels = Files().load(11, SHORTER)[0].tobytes()
    at = content.find(pixels[:64])
    assert at > 0
    content[at + 700] ^= 0x10
    file.write_bytes(content)

    images.decoded.clear()
    store = made(images, tmp_path)
    images.decoded.clear()
    check(store, images)
    assert set(images.decoded) == {11}
    assert store.notes == ["The cached 00011.jpg is damaged; it is decoded anew."]
    del store
    # It was mended on the way.
    images.decoded.clear()
    store = made(images, tmp_path)
    images.decoded.clear()
    check(store, images)
    assert not images.decoded
    assert store.notes == []


@pytest.mark.parametrize("how", ["noise", "cut short", "emptied", "nonsense"])
def test_a_damaged_file_is_begun_anew(how: str, tmp_path: Path) -> None:
    images = Files()
    store = made(images, tmp_path)
    check(store, images)
    del store
    file = data_file(tmp_path)
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    file.write_bytes(
        {
            "noise": rng.bytes(len(content)),
            "cut short": content[: len(content) // 3],
            "emptied": b"",
            "nonsense": b"this is no database\n",
        }[how]
    )
    for _ in range(2):
        store = made(images, tmp_path)
        check(store, images)
        assert store.notes == []
        del store
    images.decoded.clear()
    check(made(images, tmp_path), images)
    assert sum(images.decoded.values()) <= cache._LOOK


def test_a_folder_that_cannot_be_used_costs_only_time(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    images = Files()
    store = made(images, in_the_way)
    check(store, images)
    assert len(store.notes) == 1
    assert "There is no cache in" in store.notes[0]
    assert "VIDI_CACHE" in store.notes[0]


def test_the_bound_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WRITE", 8192)
    images = Files(200)
    store = made(images, tmp_path, gb=2e-4)  # 200 kB, and the images take 500 kB
    check(store, images)
    check(store, images)
    store.flush()
    size = data_file(tmp_path).stat().st_size
    assert 100_000 < size < 260_000
    assert len(store.notes) == 1
    assert "--data.cache-gb" in store.notes[0]


def test_unused_caches_make_room(tmp_path: Path) -> None:
    for k, name in enumerate(("/old", "/older", "/recent")):
        images = Files(100)
        store = made(images, tmp_path, dataset=name)
        check(store, images)
        del store
        used = next(f for f in tmp_path.glob("*/used") if f.read_text().startswith(name + "\n"))
        when = time.time() - (1000, 2000, 500)[k]
        os.utime(used, (when, when))
    size = sum(f.stat().st_size for f in tmp_path.glob("*/data.mdb"))
    # Room for three and a bit: the fourth takes the place of the oldest.
    images = Files(100)
    check(made(images, tmp_path, dataset="/new", gb=1.1 * size / 1e9), images)
    left = {f.read_text().split("\n")[0] for f in tmp_path.glob("*/used")}
    assert left == {"/old", "/recent", "/new"}
    data_size = sum(f.stat().st_size for f in tmp_path.glob("*/data.mdb"))
    assert data_size <= 1.1 * size


def test_threads_share_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WRITE", 8192)
    images = Files(120)
    store = made(images, tmp_path)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(3):
                ids = list(range(images.n))
                random.Random(seed).shuffle(ids)
                check(store, images, ids)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.notes == []


def test_two_stores_of_one_dataset_in_one_process(tmp_path: Path) -> None:
    """LMDB would refuse a second opening."""
    one, two = Files(), Files()
    first, second = made(one, tmp_path), made(two, tmp_path)
    check(first, one)
    two.decoded.clear()
    check(second, two)
    assert not two.decoded
    del first
    check(second, two)
    assert second.notes == []


SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
import vidi
from vidi.data import cache
spec = importlib.util.spec_from_file_location("fakes", {here!r})
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)
cache.WRITE = 16384
images = fakes.Files({n})
folder = Path({folder!r})
"""


def python(body: str, folder: Path, n: int = 400) -> subprocess.Popen[str]:
    head = SCRIPT.format(here=__file__, n=n, folder=str(folder))
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once(tmp_path: Path) -> None:
    body = """
    store = fakes.made(images, folder)
    for _ in range(2):
        fakes.check(store, images)
    print(json.dumps(store.notes))
    """
    running = [python(body, tmp_path) for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out) == []
    images = Files(400)
    check(made(images, tmp_path), images)
    assert sum(images.decoded.values()) <= cache._LOOK


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_writer_leaves_a_usable_cache(tmp_path: Path) -> None:
    """Killed again and again at random moments; what had been committed is there and right."""
    body = """
    store = fakes.made(images, folder)
    print("begun", flush=True)
    while True:
        for i in range(len(images)):
            store.load(i)
        images.changed = {k: images.changed.get(k, 0) + 1 for k in range(0, len(images), 2)}
    """
    rng = random.Random(0)
    for _ in range(4):
        process = python(body, tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.1 + 0.2 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        images = Files(400)
        store = made(images, tmp_path)
        check(store, images)
        assert store.notes == []
        del store
    with lmdb.open(str(data_file(tmp_path).parent), readonly=True) as env:
        assert env.stat()["entries"] > 400


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_full_disk_ends_the_adding_and_nothing_else(tmp_path: Path) -> None:
    """Stood for by a limit on the size of files, at which writing fails likewise."""
    body = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    store = fakes.made(images, folder)
    for _ in range(2):
        fakes.check(store, images)
    print(json.dumps([store.notes, sum(images.decoded.values())]))
    """
    process = python(body, tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    notes, decoded = json.loads(out)
    assert len(notes) == 1
    assert "cannot be written to" in notes[0]
    # Some were kept.
    assert 400 < decoded < 780
    images = Files(400)
    check(made(images, tmp_path), images)


def test_what_is_given_cannot_change_what_is_kept(tmp_path: Path) -> None:
    images = Files()
    memory = made(images, tmp_path, "memory")
    image, _ = memory.load(0)
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0] = 0
    disk = made(images, tmp_path)
    disk.load(0)
    disk.flush()
    image, _ = disk.load(0)
    if image.flags.writeable:
        image[...] = 0
    check(disk, images, [0])


def test_scenes_are_drawn_once() -> None:
    """They keep their last few pictures for a moment, which does not make them lie in memory."""
    scenes = vidi.open("scenes:segmentation,size=24,n=40,val=2,test=0")
    assert isinstance(cache.make(scenes.images, "scenes", None), cache.Memory)
    truth = cache.keep_truth(scenes)
    first = truth(3)
    assert truth(3)["mask"] is first["mask"]
    assert not first["mask"].flags.writeable
