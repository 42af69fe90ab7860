"""What ``vidi predict`` writes and prints, the words that it takes, and its page."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Ask = Callable[..., tuple[int, str, str]]


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
        "bar = Bar(3, shown=True)\n"
        f"for k in range(1, 4): print({said!r}, flush=True); bar.moved(k)\n"
        "bar.close()\n"
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


def test_the_pages_commands_work(
    run_page: Callable[[str], list[tuple[str, str]]],
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
    printed = [len(out.splitlines()) for out, _ in run_page("predict")]
    assert printed == [100, 102, 2, 100, 0]
    assert {p.name for p in Path("answers").iterdir()} == {
        "001.png", "002.png", "predictions.jsonl", "predict.json"
    }  # fmt: skip
    page = Path(__file__).parents[3] / "docs" / "predict.md"
    text = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    capsys.readouterr()
    exec(compile(text, "docs/predict.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 10
