"""``vidi predict``: where images come from, what it prints, and work that is killed or shared."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.cli import main, sources
from vidi.cli.record import Lines
from vidi.cli.sources import Item, Sources
from vidi.engine import evaluate, streams
from vidi.types import Array

Ask = Callable[..., tuple[int, str, str]]
QUICK = ["--model", "mlp", "--device", "cpu", "--data.threads", "0", "--data.cache", "off"]
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
    code, out, err = ask("predict", run, "-", "--json")
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
    code, out, err = ask("predict", run, "camera:0", "--json")
    assert code == 0, err
    assert paths(out) == [f"camera:0#{k}" for k in range(1, 6)]
    assert Camera.log == ["grab", "answer"] * 5 + ["release"]
    (item, *_) = Sources(("camera:0",)).items()
    assert item.stem == "camera-0-000001"
    first = next(Sources(("camera:0",)).items()).image()
    assert first[0, 0].tolist() == [50, 100, 200], "red comes first"
    code, out, err = ask("predict", run, "camera:3")
    assert (code, out) == (2, "")
    assert "There is no picture from camera:3" in err
    code, _, err = ask("predict", run, "camera:0", "--out", "x", "--resume")
    assert code == 2 and "does not show the same again" in err


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


def test_large_arrays_are_not_taken_ahead(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "AHEAD_PIXELS", 3 * 100)
    model = vidi.load(run)
    taken = 0

    def endless() -> Iterator[Array]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((10, 10, 3), np.uint8)

    answers = model.stream(endless(), batch_size=1, ahead=100)
    next(answers)
    assert taken == 5, "three, the one that is one too many, and the first"
    answers.close()


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
    shutil.copytree(images, few, ignore=shutil.ignore_patterns("0[3-9]*", "1*"))
    words = ("predict", run, few, "--pictures", "--json", "--batch-size", 1)
    one, two = tmp_path / "one", tmp_path / "two"
    code, expected, _ = ask(*words, "--out", one)
    assert code == 1
    expected = expected.replace(str(one), str(two))
    done = shared(*words, "--out", two)
    assert done.stdout == expected, done.stderr[-2000:]
    alike = (one / "predictions.jsonl").read_text().replace(str(one), str(two))
    assert (two / "predictions.jsonl").read_text() == alike
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    for path in one.glob("*.png"):
        assert (two / path.name).read_bytes() == path.read_bytes()

    # As if both had been killed: 5 images were done before, then 3 and 7 by each.
    lines = alike.splitlines(keepends=True)
    (two / "predictions.jsonl").write_text("".join(lines[:5]))
    for rank, many in ((0, 3), (1, 7)):
        part = two / f"predictions.5.{rank}-of-2.jsonl"
        part.write_text("".join(lines[5 + rank :: 2][:many]) + '{"path')
    (two / "predictions.0.1-of-2.jsonl").write_text(lines[0])
    done = shared(*words, "--out", two, "--resume")
    assert (two / "predictions.jsonl").read_text() == alike, done.stderr[-2000:]
    new = [*lines[5::2][3:], *lines[6::2][7:]]
    assert sorted(done.stdout.splitlines(True)) == sorted(n for n in new if '"error"' not in n)
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}


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
