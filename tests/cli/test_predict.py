"""``vidi predict``: where images come from, what it prints, and work that is killed or shared."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import vidi
from vidi.cli import flow_frames, main, predict, sources, written
from vidi.cli.record import Lines, Record
from vidi.cli.sources import Item, Sources
from vidi.data.detection_files import write_coco
from vidi.engine import distributed, evaluate, streams
from vidi.types import Array, Detections

Ask = Callable[..., tuple[int, str, str]]
QUICK = ["--model", "mlp", "--device", "cpu", "--data.threads", "0", "--data.cache", "off"]
TORCH = ("--backend", "torch")
"""Where nobody knows how many images there are, another library would be prepared."""
COUNT = 300
PAGE = (Path(__file__).parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "digits", *QUICK, "--epochs", "1", "--run", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 tiny images in two folders; the same names in both, and one that is none."""
    folder = tmp_path_factory.mktemp("images")
    digits = vidi.open("digits")
    for i in range(COUNT):
        path = folder / "ab"[i % 2] / f"{i // 2:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(digits[i].image).save(path)
    (folder / "a" / "005.png").write_text("no image")
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def paths(text: str) -> list[str]:
    return [json.loads(line)["path"] for line in text.splitlines()]


@pytest.fixture(scope="module")
def whole(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["predict", str(run), str(images), "--out", str(out)]) == 1
    return out


# Sources -----------------------------------------------------------------------------------------


def names(items: Iterator[Item]) -> list[str]:
    return [item.name for item in items]


def test_a_folders_order_is_that_of_its_paths(tmp_path: Path) -> None:
    """As pathlib sorts them; nothing is found twice, and what we write ourselves is not found."""
    rng = np.random.default_rng(0)
    there = set()
    for _ in range(60):
        parts = ["".join(rng.choice(list("aB-. _1"), 3)).strip(". ") or "x" for _ in range(3)]
        folder = tmp_path.joinpath(*parts[: int(rng.integers(0, 3))])
        folder.mkdir(parents=True, exist_ok=True)
        for name in (f"{parts[2]}.png", f"{parts[2]}.txt", ".hidden.png"):
            (folder / name).touch()
    there = {p for p in tmp_path.rglob("*.png") if not p.name.startswith(".")}
    found = Sources((str(tmp_path),))
    assert names(found.items()) == [str(p) for p in sorted(there)]
    assert found.count() == len(there)
    first = sorted(p for p in tmp_path.iterdir() if p.is_dir())[0]
    left = names(Sources((str(tmp_path),), skip=first).items())
    assert left == [str(p) for p in sorted(there) if first not in p.parents]


def test_a_list_on_standard_input(
    ask: Ask, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [images / "b" / "007.png", images / "a" / "000.png", tmp_path / "none.png"]
    text = "\r\n".join(map(str, listed)) + "\n\n" + str(images / "b" / "001.png")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code, out, err = ask("predict", run, "-", "--json", *TORCH)
    assert code == 1
    assert paths(out) == [*map(str, listed[:2]), str(images / "b" / "001.png")]
    assert "none.png does not exist" in err

    (tmp_path / "list.txt").write_text(text)
    words = ("predict", run, images / "a" / "001.png", "--list", tmp_path / "list.txt", "--json")
    code, again, _ = ask(*words)
    assert code == 1
    assert again.splitlines()[1:] == out.splitlines()
    code, out, err = ask("predict", run, "--list", tmp_path / "no.txt")
    assert (code, out) == (2, "")
    assert "no.txt cannot be read" in err


@pytest.mark.skipif(os.name == "nt", reason="named pipes are POSIX's")
def test_a_list_that_is_a_pipe(ask: Ask, run: Path, images: Path, tmp_path: Path) -> None:
    """As the shell's <(find …) is: it is read once."""
    os.mkfifo(tmp_path / "pipe")
    listed = [str(images / "b" / f"00{k}.png") for k in range(3)]
    writing = threading.Thread(
        target=(tmp_path / "pipe").write_text, args=("".join(f"{p}\n" for p in listed),)
    )
    writing.start()
    code, out, err = ask("predict", run, "--list", tmp_path / "pipe", "--json", *TORCH)
    writing.join()
    assert code == 0, err
    assert paths(out) == listed
    with pytest.raises(vidi.InputError, match=r"cannot share .*pipe, which is no file"):
        sources.check((), str(tmp_path / "pipe"), shared=True, resume=False)


def test_no_image_at_all_is_a_sentence(
    ask: Ask, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    code, out, err = ask("predict", run, "--list", tmp_path / "empty.txt")
    assert (code, out) == (2, "") and "empty.txt names no image" in err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, out, err = ask("predict", run, "-", *TORCH)
    assert (code, out) == (2, "") and "Standard input names no image" in err


def test_strange_lines_have_their_errors_in_their_places(
    ask: Ask, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = str(images / "b" / "000.png")
    shutil.copy(good, "~$a.png")
    lines = ["~$a.png", "x\0y.png", "~$none.png", "camera:0", good]
    Path("list.txt").write_text("".join(f"{line}\n" for line in lines))
    code, out, _ = ask("predict", run, "--list", "list.txt", "--out", "~$out", "--json")
    assert code == 1
    assert paths(out) == ["~$a.png", good]
    said = [(one["path"], one.get("error", "")) for one in rows(Path("~$out"))]
    assert [path for path, _ in said] == ["~$a.png", "x\\0y.png", "~$none.png", "camera:0", good]
    assert "holds a NUL" in said[1][1] and "does not exist" in said[2][1]
    assert "on the command line alone" in said[3][1]
    assert names(Sources(("*a.png",)).items()) == ["~$a.png"]
    (answer,) = vidi.load(run).stream(["a\0b"])
    assert isinstance(answer, vidi.InputError) and "NUL" in str(answer)


def test_each_image_once_and_none_of_our_own(
    ask: Ask, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a pattern stands for folders, for what is in them, or for both."""
    monkeypatch.chdir(tmp_path)
    for name in ("p/a.png", "p/q/b.png", "p/q/raw/c.png", "p/q/raw/raw/d.png", "p/clip.mp4/e.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / "b" / "000.png", name)
    every = sorted(map(str, Path("p").rglob("*.png")))
    for pattern in ("p/**", "./p/**", "p/**/*", "p/**/"):
        found = Sources((pattern,))
        assert sorted(names(found.items())) == every, pattern
        assert found.count() == len(every)
    raw = Sources(("p/**/raw",))
    assert names(raw.items()) == ["p/q/raw/c.png", "p/q/raw/raw/d.png"]
    assert Sources(("p/clip.mp4",)).count() == 1
    for pattern in ("p/**", "p/*", "p"):
        found = Sources((pattern,), skip=Path("p/q"))
        assert sorted(names(found.items())) == ["p/a.png", "p/clip.mp4/e.png"], pattern
    code, out, err = ask("predict", run, "p", ".", "--pictures", "--json")
    assert code == 0, err
    assert sorted(paths(out)) == sorted(2 * every)
    assert len([*Path("predictions").iterdir()]) == 2 * len(every)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Seven frames, each a little brighter."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    for k in range(7):
        writer.write(np.full((32, 48, 3), 30 * k, np.uint8))
    writer.release()
    return path


def test_frames_of_a_video(ask: Ask, run: Path, clip: Path, tmp_path: Path) -> None:
    words = ("predict", run, clip, "--every", 3, "--pictures", "--out", tmp_path / "out", "--json")
    code, out, err = ask(*words)
    assert code == 0, err
    said = [json.loads(line) for line in out.splitlines()]
    assert [one["path"] for one in said] == [f"{clip}#{k}" for k in (1, 4, 7)]
    assert [Path(one["picture"]).name for one in said] == [f"clip-00000{k}.png" for k in (1, 4, 7)]
    assert all(Path(one["picture"]).is_file() for one in said)
    assert Sources((str(clip),), every=3).count() == 3
    grey = [int(item.image().mean()) for item in Sources((str(clip),)).items()]
    assert np.allclose(grey, [30 * k for k in range(7)], atol=3)
    (tmp_path / "no.mp4").write_text("text")
    code, out, err = ask("predict", run, tmp_path / "no.mp4", tmp_path / "none.mkv")
    assert (code, out) == (2, "")
    assert "no.mp4 is no video that can be read" in err
    assert "none.mkv does not exist" in err


class Camera:
    """Camera 0 gives five frames, and there is no other. ``log``: what was asked of it."""

    log: ClassVar[list[str]] = []

    def __init__(self, number: int) -> None:
        self.left = 5 if number == 0 else 0

    def isOpened(self) -> bool:
        return self.left > 0

    def get(self, what: int) -> float:
        return -1.0

    def grab(self) -> bool:
        self.left -= 1
        self.log.append("grab")
        return self.left >= 0

    def retrieve(self) -> tuple[bool, Array]:
        return True, np.full((24, 32, 3), (200, 100, 50), np.uint8)

    def release(self) -> None:
        self.log.append("release")


def test_a_camera_is_answered_at_once(
    ask: Ask, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frame's answer is printed before the next is taken."""
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "log", [])
    own = evaluate.answers

    def answers(*given: Any, **views: Any) -> Any:
        Camera.log.append("answer")
        return own(*given, **views)

    monkeypatch.setattr(streams, "answers", answers)
    code, out, err = ask("predict", run, "camera:0", "--json", *TORCH)
    assert code == 0, err
    assert paths(out) == [f"camera:0#{k}" for k in range(1, 6)]
    assert Camera.log == ["grab", "answer"] * 5 + ["release"]
    (item, *_) = Sources(("camera:0",)).items()
    assert item.stem == "camera-0-000001"
    first = next(Sources(("camera:0",)).items()).image()
    assert first[0, 0].tolist() == [50, 100, 200], "red comes first"
    code, out, err = ask("predict", run, "camera:3", *TORCH)
    assert (code, out) == (2, "")
    assert "There is no picture from camera:3" in err
    code, _, err = ask("predict", run, "camera:0", "--out", "x", "--resume")
    assert code == 2 and "does not show the same again" in err


def test_ctrl_c_ends_a_camera_as_a_list_ends(
    ask: Ask, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame that was taken is answered, and what is written at the end is written."""

    class Interrupted(Camera):
        def grab(self) -> bool:
            if self.left == 3:
                signal.raise_signal(signal.SIGINT)
            return super().grab()

    finished: list[bool] = []
    monkeypatch.setattr(cv2, "VideoCapture", Interrupted)
    monkeypatch.setattr(Camera, "log", [])
    monkeypatch.setattr(written.Classes, "finish", lambda *_: finished.append(True))
    code, out, err = ask("predict", run, "camera:0", "--out", tmp_path / "out", "--json", *TORCH)
    assert code == 0, err
    assert paths(out) == [f"camera:0#{k}" for k in range(1, 4)]
    assert finished == [True] and len(rows(tmp_path / "out")) == 3
    assert Camera.log[-1] == "release"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_patterns_stand_for_folders_too(ask: Ask, run: Path, images: Path) -> None:
    code, out, _ = ask("predict", run, str(images / "[ab]"), "--json")
    assert code == 1
    assert len(out.splitlines()) == COUNT - 1


# Answers -----------------------------------------------------------------------------------------


def test_the_same_whatever_the_batch(run: Path, images: Path) -> None:
    """One by one, a few together, paths and arrays between each other, and what is none at all."""
    model = vidi.load(run)
    files = sorted(images.rglob("*.png"))[:40]
    mixed: list[Any] = [*files, np.zeros((9, 9), np.uint8), "none.png", np.zeros((2, 3, 4, 5))]
    mixed.append(files[0])
    alone = [next(model.stream([one])) for one in mixed]
    for batch in (None, 1, 7):
        together = list(model.stream(iter(mixed), batch_size=batch))
        assert len(together) == len(mixed)
        for k, (one, other) in enumerate(zip(alone, together, strict=True)):
            if isinstance(one, vidi.InputError):
                assert isinstance(other, vidi.InputError)
                continue
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
            assert other.path == (str(mixed[k]) if isinstance(mixed[k], Path) else f"image {k}")
        bad = [k for k, one in enumerate(together) if isinstance(one, vidi.InputError)]
        assert bad == [5, 41, 42]
    with pytest.raises(vidi.InputError, match="3 images could not be read"):
        model.predict(mixed)


def test_only_a_few_batches_are_taken_ahead(run: Path) -> None:
    """So that a million images fit into memory."""
    model = vidi.load(run)
    taken = 0

    def endless() -> Iterator[Array]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((8, 8, 3), np.uint8)

    answers = model.stream(endless(), batch_size=4)
    for given in range(1, 50):
        next(answers)
        assert taken <= given + 4 * (streams.AHEAD + 1)
    answers.close()


@pytest.mark.parametrize("kind", ["array", "pillow", "tensor"])
def test_large_images_in_memory_are_not_taken_ahead(
    kind: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "AHEAD_PIXELS", 3 * 100)
    model = vidi.load(run)
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            array = np.zeros((10, 10, 3), np.uint8)
            image = Image.fromarray(array) if kind == "pillow" else array
            yield torch.zeros(3, 10, 10, dtype=torch.uint8) if kind == "tensor" else image

    for asked, expected, why in (
        ({"batch_size": 1, "ahead": 100}, 5, "three, one that is one too many, and the first"),
        ({"ahead": 0}, 4, "a batch of three, and the one that does not fit"),
    ):
        taken = 0
        answers = model.stream(endless(), **asked)
        next(answers)
        answers.close()
        assert taken == expected, why


def test_errors_among_the_sources_come_back_in_their_places(run: Path, images: Path) -> None:
    """At once, rather than with the next image."""
    model = vidi.load(run)
    image = images / "b" / "000.png"
    errors = [vidi.InputError(str(k)) for k in range(40)]
    found = [*model.stream([image, *errors, image])]
    assert found[1:-1] == errors
    assert found[0].path == found[-1].path == str(image)
    taken = 0

    def only_errors() -> Iterator[Any]:
        nonlocal taken
        for error in errors:
            taken += 1
            yield error

    stream = model.stream(only_errors())
    next(stream)
    stream.close()
    assert taken == streams.AHEAD + 1


def test_proposals_are_searched_for_several_images_at_once(
    run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search takes longer than a network, and was for one after the other in one thread."""
    monkeypatch.setattr(streams.defaults, "cores", lambda: 2)
    model = vidi.load(run)
    stream = streams.Stream(model.network, model.recipe, model.classes, model.compute, batch_size=1)
    assert not stream._searchers
    stream._searchers = 2
    both, own = threading.Barrier(2, timeout=20), streams.Stream._begun

    def begun(*given: Any) -> Any:
        both.wait()
        return own(*given)

    monkeypatch.setattr(streams.Stream, "_begun", begun)
    files = [str(path) for path in sorted((images / "b").iterdir())[:6]]
    assert [answer.path for answer in stream.answers(files)] == files
    searching = dataclasses.replace(
        model.recipe, task="detection", data=vidi.Data(proposals="selective-fast")
    )
    monkeypatch.setattr(streams, "make_task", lambda *_: None)
    assert dataclasses.replace(stream, recipe=searching)._searchers == 2


def test_pictures_of_classes(ask: Ask, run: Path, images: Path, tmp_path: Path) -> None:
    """Two images of one name have a picture each."""
    both = [images / "a" / "000.png", images / "b" / "000.png"]
    code, out, err = ask("predict", run, *both, "--pictures", "--out", tmp_path / "out")
    assert code == 0, err
    assert [line.rpartition("; ")[2] for line in out.splitlines()] == [
        str(tmp_path / "out" / name) for name in ("000.png", "000-2.png")
    ]
    for name in ("000.png", "000-2.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100
    assert not list((tmp_path / "out").glob(".*")), "nothing half-made is left"


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX's")
def test_a_long_line_beside_the_bar_is_whole() -> None:
    """JSON that a terminal's width would fold is none any more where it is copied."""
    import pty

    said = json.dumps({"path": "x" * 300, "label": "a label of several words " * 20})
    code = (
        "from vidi.cli.bar import Bar\n"
        "with Bar(3, shown=True) as bar:\n"
        f"    for k in range(1, 4): print({said!r}, flush=True); bar.moved(k)\n"
    )
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # its end
        while data := os.read(master, 1 << 16):
            shown += data
    os.close(master)
    assert child.wait(60) == 0
    assert shown.decode().count(said) == 3


# Killed and gone on with -------------------------------------------------------------------------


def test_every_answer_is_a_line(whole: Path, images: Path) -> None:
    said = rows(whole)
    assert [one["path"] for one in said] == [str(p) for p in sorted(images.rglob("*.png"))]
    (bad,) = (one for one in said if "error" in one)
    assert set(bad) == {"path", "error"} and bad["path"].endswith("005.png")
    assert {p.name for p in whole.iterdir()} == {"predict.json", "predictions.jsonl"}


def test_killed_and_gone_on_with(
    ask: Ask, run: Path, images: Path, whole: Path, tmp_path: Path
) -> None:
    """Each image has one answer, in its place, and none is predicted twice."""
    out = tmp_path / "out"
    words = ["predict", str(run), str(images), "--out", str(out), "--pictures"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "vidi", *words, "--batch-size", "4"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert killed.stdout is not None
    for _ in range(60):
        assert killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = (out / "predictions.jsonl").read_bytes()
    count = before.count(b"\n")
    assert 60 <= count < COUNT
    # As if it had been in the middle of a line, and of a picture.
    with open(out / "predictions.jsonl", "ab") as file:
        file.write(b'{"path": "half')
    later = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}
    code, _, err = ask(*words, "--resume", "--top", 3)
    assert code == 2 and "top (was 5, now 3)" in err
    code, said, err = ask(*words, "--resume", "--json")
    assert code == 1, err
    assert len(said.splitlines()) == COUNT - count - (b'"error"' not in before)
    assert (out / "predictions.jsonl").read_bytes().startswith(before)
    found, expected = rows(out), rows(whole)
    assert [one["path"] for one in found] == [one["path"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.get("label") == other.get("label")
    pictures = [one["picture"] for one in found if "picture" in one]
    assert len(set(pictures)) == COUNT - 1
    assert {p.name for p in out.iterdir()} == {
        "predict.json", "predictions.jsonl", *(Path(p).name for p in pictures)
    }  # fmt: skip
    redone = [name for name, at in later.items() if (out / name).stat().st_mtime_ns != at]
    assert len(redone) <= 1, "the one whose picture was there and whose line was not"
    code, said, err = ask(*words, "--resume")
    assert (code, said) == (1, ""), "all is done, and one could not be read"
    assert f"1 could not be read or drawn; {COUNT - 1} were predicted" in err


def test_a_folder_that_was_begun_otherwise(
    ask: Ask, run: Path, images: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    code, _, err = ask("predict", run, images, "--out", out)
    assert code == 2 and "is not empty" in err and "--resume" in err
    code, _, err = ask("predict", run, images / "b", "--out", out, "--resume")
    assert code == 2 and "Line 1 of" in err and "is now" in err
    code, _, err = ask("predict", run, images / "a", "--out", out, "--resume")
    assert code == 2 and "has more answers than there are images now" in err
    other = tmp_path / "other"
    shutil.copytree(run, other)
    weights = (other / "best.safetensors").read_bytes()
    (other / "best.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    code, _, err = ask("predict", other, images, "--out", out, "--resume")
    assert code == 2 and "weights (was " in err and "run (was " in err
    code, _, err = ask("predict", run, images, "--resume")
    assert code == 2 and "Name it with --out" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    code, _, err = ask("predict", run, images, "--out", tmp_path / "mine", "--resume")
    assert code == 2 and "holds no predict.json" in err
    assert rows(out) == rows(whole)


@pytest.mark.parametrize("resume", [False, True])
def test_killed_before_the_first_answer_it_begins_again(
    resume: bool, ask: Ask, run: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (".predict.lock", ".predict.json.part", "predictions.0.1-of-2.jsonl"):
        (out / name).touch()
    words = ["predict", run, images / "b" / "000.png", "--out", out, *["--resume"] * resume]
    code, _, err = ask(*words)
    assert code == 0, err
    assert len(rows(out)) == 1
    assert {p.name for p in out.iterdir()} == {"predict.json", "predictions.jsonl"}


def test_it_goes_on_with_the_library_that_it_began_with(
    ask: Ask, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever arithmetic of it was the fastest this time."""
    asked, own = [], vidi.api.load

    def load(path: str, *, backend: str, **more: Any) -> Any:
        asked.append(backend)
        return own(path, **more)

    monkeypatch.setattr(vidi.api, "load", load)
    words = ["predict", run, images / "b" / "000.png", "--out", tmp_path / "out"]
    for name, more in (("openvino bf16", ()), ("openvino fp32", ("--resume",))):
        monkeypatch.setattr(vidi.Model, "backend", name)
        code, _, err = ask(*words, *more)
        assert code == 0, err
    assert asked == ["auto", "openvino"]
    settings = json.loads((tmp_path / "out" / "predict.json").read_text())
    precision = own(run).compute.precision
    assert (settings["backend"], settings["precision"]) == ("openvino", precision)
    monkeypatch.setattr(vidi.Model, "backend", "torch")
    code, _, err = ask(*words, "--resume")
    assert code == 2 and "backend (was " in err


class Bare(written.Writes):
    """A writer of one picture an image."""

    def files(self, stem: str, mark: str) -> dict[str, str]:
        return {"picture": f"{stem}{mark}.png"}

    def write(self, answer: Any, image: Any, places: written.Places) -> dict[str, Any]:
        places.part["picture"].write_text("")
        return {}

    def text(self, said: dict[str, Any]) -> str:
        return ""


def test_two_that_begin_together_do_not_write_over_each_other(tmp_path: Path) -> None:
    """Both found the folder empty; the second one opens it during or after the first one's work."""
    for during in (True, False):
        out = tmp_path / f"out-{during}"
        one, two = (Record(out, True, {}, Bare()) for _ in range(2))
        one.check(), two.check()
        one.open()
        one.add({"path": "a.png", "label": "3"})
        if not during:
            one.close()
        with pytest.raises(vidi.InputError, match="Another process"):
            two.open()
        one.close(), two.close()
        assert [row["path"] for row in rows(out)] == ["a.png"]
        assert not (out / ".predict.lock").exists()
    chosen = Record(tmp_path / "predictions", False, {}, Bare())
    chosen.check()
    (tmp_path / "predictions").mkdir()
    with pytest.raises(vidi.InputError, match="File exists"):
        chosen.open()


def test_names_are_as_long_as_files_may_have(tmp_path: Path) -> None:
    record = Record(tmp_path / "out", True, {}, Bare())
    items = [Item(f"{k}", stem, str) for k, stem in enumerate(["ä" * 127, "a" * 251, "ä" * 126])]
    for _, files in record.left(items):
        with record.places(files) as places:
            record.writer.write(None, None, places)
    assert len([*(tmp_path / "out").glob("*.png")]) == 3
    record.close()


def test_cocos_file_is_written_as_its_rows_come(tmp_path: Path) -> None:
    found = Detections(
        xyxy=np.ones((1, 4), np.float32),
        labels=np.zeros(1, np.int64),
        scores=np.ones(1, np.float32),
    )

    def rows() -> Iterator[tuple[int, Detections]]:
        for k in range(1000):
            yield k, found
        assert (tmp_path / "results.json").stat().st_size > 40_000

    write_coco(tmp_path / "results.json", rows(), [1])
    assert [one["image_id"] for one in json.loads((tmp_path / "results.json").read_text())] == [
        *range(1000)
    ]
    write_coco(tmp_path / "results.json", iter(()), [1])
    assert json.loads((tmp_path / "results.json").read_text()) == []


@pytest.mark.parametrize("kind", ["coco", "flow", "heatmap"])
def test_other_work_goes_on_too(kind: str, ask: Ask, tmp_path: Path) -> None:
    """Cut after any line, it gives in the end what it gives in one go."""
    rng = np.random.default_rng(0)
    (tmp_path / "frames").mkdir()
    for k in range(3):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "frames" / f"shot_{k}.png")
    steps: dict[str, Any] = {
        "batch_size": 4,
        "length": {"steps": 1},
        "data": {"cache": "off", "threads": 0},
    }
    logging = {"logging": {"pictures": False}}
    if kind == "heatmap":
        vidi.train("digits", run=tmp_path / "run", model="resnet20", **{**steps, **logging})
    else:
        more = {"detection": {"least_score": 0.0}} if kind == "coco" else {}
        task = "detection" if kind == "coco" else kind
        vidi.train(
            f"scenes:{task},size=64,n=8,val=2,test=2",
            run=tmp_path / "run",
            **{**steps, **logging, **more},
        )
    asked = {"coco": ["--format", "coco"], "heatmap": ["--heatmap"]}.get(kind, [])
    words = ["predict", tmp_path / "run", tmp_path / "frames", *asked, *TORCH]
    code, _, err = ask(*words, "--out", tmp_path / "whole")
    assert code == 0, err
    expected = rows(tmp_path / "whole")
    for cut in [1] if kind == "heatmap" else range(len(expected)):
        out = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "whole", out)
        for name in ("predictions.jsonl", ".beside.jsonl"):
            if (path := out / name).exists():
                path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:cut]))
        for path in out.glob("detections.json"):
            path.unlink()
        code, _, err = ask(*words, "--out", out, "--resume")
        assert code == 0, err
        found = rows(out)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one["path"] == other["path"] and one.get("path2") == other.get("path2")
        if kind == "coco":
            assert (out / "detections.json").read_bytes() == (
                tmp_path / "whole" / "detections.json"
            ).read_bytes()
        pictures = {p.name for p in (tmp_path / "whole").glob("shot*.*")}
        assert {p.name for p in out.glob("shot*.*")} == pictures


def test_an_undecodable_frame_costs_its_own_pairs(
    monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    own = sources._frame

    def frame(video: Any, name: str) -> Any:
        if name.endswith("#3"):
            raise vidi.InputError(f"The frame {name} cannot be decoded.")
        return own(video, name)

    monkeypatch.setattr(sources, "_frame", frame)
    found = [*flow_frames.pairs(Sources((str(clip),)), None)]
    named = [
        (item.name.rpartition(" ")[2], (item.name2 or "").rpartition(" ")[2]) for item in found
    ]
    assert named == [("1", "2"), (f"{clip}#3", ""), ("4", "5"), ("5", "6"), ("6", "7")]


def test_nothing_is_left_where_nothing_could_be_read(ask: Ask, run: Path, tmp_path: Path) -> None:
    code, out, err = ask("predict", run, tmp_path / "a.png", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "a.png does not exist" in err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to(
    ask: Ask, run: Path, images: Path, tmp_path: Path
) -> None:
    """Ends the work at once: what is not written would be lost."""
    (tmp_path / "file").touch()
    code, out, err = ask("predict", run, images, "--out", tmp_path / "file" / "out")
    assert (code, out) == (2, "")
    assert "cannot be written to" in err
    assert len(err.splitlines()) == 1


def test_half_a_line_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = Lines(path)
    for k in range(5):
        lines.add(f"ä{k}")
    lines.close()
    data = path.read_bytes()
    ends = [k + 1 for k, byte in enumerate(data) if byte == 10]
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        count = sum(end <= cut for end in ends)
        assert [*Lines(path).read()] == [f"ä{k}\n" for k in range(count)]
        lines.cut(count)
        lines.add("next")
        lines.close()
        assert [*Lines(path).read()] == [*(f"ä{k}\n" for k in range(count)), "next\n"]


# Several processes -------------------------------------------------------------------------------


def shared(*words: object) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vidi"]
    return subprocess.run(
        [sys.executable, *launch, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_two_processes_write_what_one_does(
    run: Path, images: Path, tmp_path: Path, ask: Ask
) -> None:
    """After an interruption in each of them, too; names of files do not depend on who comes
    first."""
    few = tmp_path / "few"
    shutil.copytree(images, few, ignore=shutil.ignore_patterns("0[1-9]*", "1*"))
    words = ("predict", run, few, "--pictures", "--json", "--batch-size", 1)
    one, two = tmp_path / "one", tmp_path / "two"
    code, _, _ = ask(*words, "--out", one)
    assert code == 1
    alike = (one / "predictions.jsonl").read_text().replace(str(one), str(two))

    # As if both had been killed: 5 images were done before, then 2 and 4 by each.
    two.mkdir()
    shutil.copy(one / "predict.json", two)
    lines = alike.splitlines(keepends=True)
    (two / "predictions.jsonl").write_text("".join(lines[:5]))
    for rank, many in ((0, 2), (1, 4)):
        part = two / f"predictions.5.{rank}-of-2.jsonl"
        part.write_text("".join(lines[5 + rank :: 2][:many]) + '{"path')
    (two / "predictions.0.1-of-2.jsonl").write_text(lines[0])
    done = shared(*words, "--out", two, "--resume")
    assert (two / "predictions.jsonl").read_text() == alike, done.stderr[-2000:]
    assert done.returncode == 1, "one could not be read"
    left = [k for k in range(5, len(lines)) if (k - 5) // 2 >= (2, 4)[(k - 5) % 2]]
    answered = [lines[k] for k in left if '"error"' not in lines[k]]
    assert sorted(done.stdout.splitlines(True)) == sorted(answered)
    assert {p.name for p in two.iterdir()} >= {"predict.json", "predictions.jsonl"}
    assert not list(two.glob("predictions.*-of-*")) and not list(two.glob(".*"))
    for k in left:
        if "picture" in (said := json.loads(lines[k])):
            name = Path(said["picture"]).name
            assert (two / name).read_bytes() == (one / name).read_bytes()


def test_processes_that_saw_different_images_put_nothing_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for stems in (["a", "b", "c"], ["a", "b", "c"], ["a", "ab", "b", "c"]):
        record = Record(tmp_path / "out", True, {}, Bare(), rank=1, world=2)
        assert len([*record.left(Item(f"{s}.png", s, str) for s in stems)]) == len(stems) // 2
        seen.append(record.seen)
    assert seen[0] == seen[1] != seen[2]
    record = Record(tmp_path / "out", True, {}, Bare(), rank=0, world=2)
    record.open()
    record.add({"path": "a.png", "label": "3"})
    monkeypatch.setattr(
        distributed, "gathered", lambda share: [(1, 0, 0, seen[0]), (1, 0, 0, seen[2])]
    )
    with pytest.raises(vidi.InputError, match="did not see the same images"):
        predict._end(record, predict.Predict(run="run", sources=()))
    record.close()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "predict.json", "predictions.0.0-of-2.jsonl"
    }  # fmt: skip


def test_what_several_processes_cannot_share(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, sentence in (
        (("camera:0",), "cannot share camera:0"),
        (("-",), "cannot share standard input"),
    ):
        with pytest.raises(vidi.InputError, match=sentence):
            sources.check(words, shared=True, resume=False)


# Words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--top", 0), "--top is 0"),
        (("--every", 0), "--every is 0"),
        (("--batch-size", 0), "--batch-size is 0"),
        (("--device", "gpu"), "device"),
        (("--class", "3"), "say --heatmap"),
        (("--heatmap", "--pictures"), "say one of them"),
        (("--thin",), "--thin is for boundaries"),
    ],
)
def test_words_that_do_not_fit(
    ask: Ask, run: Path, images: Path, words: tuple[Any, ...], sentence: str
) -> None:
    code, out, err = ask("predict", run, images, *words)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())


# The page ----------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_pages_commands_work(
    ask: Ask,
    run: Path,
    images: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "runs/digits")
    shutil.copytree(images / "b", "photos", ignore=shutil.ignore_patterns("1*"))
    Path("new.txt").write_text("photos/001.png\nphotos/002.png\n")
    commands = [line.removeprefix("$ vidi ") for b in blocks("console") for line in b.splitlines()]
    printed = []
    for command in commands:
        code, out, err = ask(*shlex.split(command))
        assert code == 0, f"{command}\n{err}"
        printed.append(len(out.splitlines()))
    assert printed == [100, 102, 2, 100, 0]
    assert {p.name for p in Path("answers").iterdir()} == {
        "001.png", "002.png", "predictions.jsonl", "predict.json"
    }  # fmt: skip
    (text,) = blocks("python")
    capsys.readouterr()
    exec(compile(text, "docs/predict.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 10
