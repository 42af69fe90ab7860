"""Work that is killed, gone on with, or shared by several processes."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vidi
from tests.processes import Python, pair
from vidi.cli import main, predict, written
from vidi.cli.record import Lines, Record
from vidi.cli.sources import Item
from vidi.engine import distributed

Ask = Callable[..., tuple[int, str, str]]
TORCH = ("--backend", "torch")
"""Where nobody knows how many images there are, another library would be prepared."""
COUNT = 300
"""Of the fixture's images."""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["predict", str(run), str(images), "--out", str(out)]) == 1
    return out


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
    with Python("-m", "vidi", *words, "--batch-size", "4") as killed:
        for _ in range(60):
            assert killed.stdout.readline()
        killed.kill()
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
    (other / "predict.json").write_bytes(b"\xff{}")
    code, _, err = ask("predict", run, images, "--out", other, "--resume")
    assert code == 2 and "predict.json is no JSON" in err
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
    if kind == "coco":  # a copy without hidden files would lack the first images' objects
        (out / ".beside.jsonl").unlink()
        code, _, err = ask(*words, "--out", out, "--resume")
        assert code == 2 and ".beside.jsonl is missing" in err


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
    done = pair("-m", "vidi", *words, "--out", two, "--resume")
    errors = [each.stderr[-2000:] for each in done]
    assert (two / "predictions.jsonl").read_text() == alike, errors
    # One could not be read; of torchrun's processes the first alone may say so.
    assert [each.returncode for each in done] == [1, 0], errors
    left = [k for k in range(5, len(lines)) if (k - 5) // 2 >= (2, 4)[(k - 5) % 2]]
    answered = [lines[k] for k in left if '"error"' not in lines[k]]
    said = [line for each in done for line in each.stdout.splitlines(True)]
    assert sorted(said) == sorted(answered)
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
