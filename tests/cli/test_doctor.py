"""`vidi doctor`: text, one JSON object, pictures only where asked, and what its exit code says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vidi.cli import doctor

Ask = Callable[..., tuple[int, str, str]]
PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")


@pytest.fixture
def spoiled(photos: Path) -> Path:
    """A leak between splits, half a JPEG, and an image of one colour."""
    folder = photos.parent / "spoiled"
    for split, first, last in (("train", 0, 8), ("val", 8, 12)):
        for name in ("circles", "stripes"):
            (folder / split / name).mkdir(parents=True)
            for i in range(first, last):
                shutil.copy(photos / name / f"{i:02}.jpg", folder / split / name)
    shutil.copy(photos / "circles" / "01.jpg", folder / "val" / "circles" / "leaked.jpg")
    half = folder / "train" / "circles" / "03.jpg"
    half.write_bytes(half.read_bytes()[:700])
    cv2.imwrite(str(folder / "train" / "stripes" / "blank.png"), np.full((40, 40, 3), 7, np.uint8))
    return folder


def test_the_text_says_all_of_it(spoiled: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(spoiled.parent.rglob("*"))
    code, out, err = ask("doctor", spoiled, "--threads", "2")
    assert (code, err) == (0, "")
    assert f"{spoiled}: classification (folders)" in out
    heads = re.findall(r"^(ERROR|WARNING|INFO) +([a-z-]+) +\((\d+)\)$", out, re.MULTILINE)
    assert heads == [
        ("ERROR", "image-unreadable", "1"),
        ("ERROR", "duplicate-across-splits", "1"),
        ("WARNING", "image-constant", "1"),
    ]
    assert "val/circles/leaked.jpg: is train/circles/01.jpg (train)" in out
    assert "03.jpg is cut short" in out
    assert out.count("  effect: ") == out.count("  do: ") == 3
    assert "error: 2, warning: 1, info: 0" in out
    assert sorted(spoiled.parent.rglob("*")) == before, "nothing is written unless asked"


def test_json_is_one_object(spoiled: Path, ask: Ask) -> None:
    code, out, err = ask("doctor", spoiled, "--json")
    assert (code, err) == (0, "")
    said: dict[str, Any] = json.loads(out)
    assert out.count("\n") == 1
    assert said["task"] == "classification"
    assert said["counts"] == {"error": 2, "warning": 1, "info": 0}
    assert said["statistics"]["samples"] == {"train": 17, "val": 9}
    leak = next(f for f in said["findings"] if f["code"] == "duplicate-across-splits")
    assert leak["samples"][0]["key"] == "val/circles/leaked.jpg"
    assert leak["twins"] == ["train/circles/01.jpg"]
    assert {"severity", "count", "what", "effect", "advice", "samples_total"} <= set(leak)
    assert said["pictures"] == []


def test_pictures_are_written_where_asked(spoiled: Path, ask: Ask, tmp_path: Path) -> None:
    out_dir = tmp_path / "checked" / "here"
    code, out, _ = ask("doctor", spoiled, "--out", out_dir)
    assert code == 0
    names = {p.name for p in out_dir.iterdir()}
    assert names == {
        "audit.json",
        "samples-train.png",
        "samples-val.png",
        "error-duplicate-across-splits.png",
        "warning-image-constant.png",
    }  # an unreadable image has no picture
    for name in names - {"audit.json"}:
        assert f"wrote {out_dir / name}" in out
        assert cv2.imread(str(out_dir / name)).shape[2] == 3
    saved = json.loads((out_dir / "audit.json").read_text())
    assert {Path(p).name for p in saved["pictures"]} == names - {"audit.json"}


def test_clean_data_is_said_to_be_clean(photos: Path, ask: Ask) -> None:
    code, out, _ = ask("doctor", photos)
    assert code == 0
    assert "Nothing was found." in out


def test_what_cannot_be_opened_is_a_finding_and_exit_code_2(ask: Ask, tmp_path: Path) -> None:
    code, out, err = ask("doctor", tmp_path / "nowhere", "--json")
    assert code == 2
    said = json.loads(out)
    assert said["task"] is None
    assert [f["code"] for f in said["findings"]] == ["data-unreadable"]
    assert "nowhere" in said["findings"][0]["what"]
    code, out, err = ask("doctor", tmp_path / "nowhere")
    assert code == 2
    assert "ERROR  data-unreadable" in out
    assert err == ""


def test_what_training_refuses_is_audited(photos: Path, ask: Ask) -> None:
    shutil.rmtree(photos / "stripes")
    code, out, _ = ask("doctor", photos)
    assert code == 0
    assert "ERROR  data-refused" in out
    assert "40 wide" in out or "48 × 40 pixels" in out


@pytest.mark.parametrize("words", [("--threads", "0"), ("--out", "FILE")])
def test_wrong_use(words: tuple[str, ...], photos: Path, ask: Ask) -> None:
    file = photos.parent / "file"
    file.write_text("")
    code, _, err = ask("doctor", photos, *(str(file) if w == "FILE" else w for w in words))
    assert code == 2
    assert err.startswith("vidi: ")


def test_training_prints_the_cheap_part(photos: Path, ask: Ask) -> None:
    for i in range(3, 12):
        (photos / "stripes" / f"{i:02}.jpg").unlink()
    words = ("--model", "perceptron", "--epochs", "1", "--image-size", "16", "--device", "cpu")
    code, _, err = ask("train", photos, "--run", photos.parent / "run", *words)
    assert code == 0, err
    text = " ".join(err.split())
    assert "1 class has fewer than 5 training images: stripes (2)" in text


def test_the_page_names_every_check_and_its_commands_work(
    photos: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    commands = re.findall(r"^\$ vidi (.*)$", PAGE, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        code, _, err = ask(*shlex.split(command))
        assert code == 0, f"{command}\n{err}"
    source = Path(doctor.__file__).parents[1] / "data" / "audit"
    text = "".join(p.read_text() for p in source.glob("*.py"))
    codes = set(re.findall(r'"((?:image|annotation|frames|duplicate|near-duplicate|class|box|mask|'
                           r'flow|edges|data)-[a-z-]+)"', text))  # fmt: skip
    assert len(codes) > 40
    missing = {code for code in codes - {"class-missing"} if f"`{code}`" not in PAGE}
    assert missing == set()
