"""Where images come from: folders, patterns, lists, videos and cameras."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

import vidi
from vidi.cli import flow_frames, sources, written
from vidi.cli.sources import Item, Sources
from vidi.engine import evaluate, streams
from vidi.types import Array

Ask = Callable[..., tuple[int, str, str]]
TORCH = ("--backend", "torch")
"""Where nobody knows how many images there are, another library would be prepared."""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def paths(text: str) -> list[str]:
    return [json.loads(line)["path"] for line in text.splitlines()]


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


def test_patterns_stand_for_folders_too(ask: Ask, run: Path, images: Path) -> None:
    code, out, _ = ask("predict", run, str(images / "[ab]"), "--json")
    assert code == 1
    assert len(out.splitlines()) == 300 - 1, "all but one that is none"


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
        Sources((), str(tmp_path / "pipe")).check(shared=True, resume=False)


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
    before = signal.getsignal(signal.SIGINT)  # which a shell's background jobs ignore
    monkeypatch.setattr(cv2, "VideoCapture", Interrupted)
    monkeypatch.setattr(Camera, "log", [])
    monkeypatch.setattr(written.Classes, "finish", lambda *_: finished.append(True))
    code, out, err = ask("predict", run, "camera:0", "--out", tmp_path / "out", "--json", *TORCH)
    assert code == 0, err
    assert paths(out) == [f"camera:0#{k}" for k in range(1, 4)]
    assert finished == [True] and len(rows(tmp_path / "out")) == 3
    assert Camera.log[-1] == "release"
    assert signal.getsignal(signal.SIGINT) is before


def test_what_several_processes_cannot_share() -> None:
    for words, sentence in (
        (("camera:0",), "cannot share camera:0"),
        (("-",), "cannot share standard input"),
    ):
        with pytest.raises(vidi.InputError, match=sentence):
            Sources(words).check(shared=True, resume=False)
