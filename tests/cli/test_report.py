"""``vidi report``: what docs/report.md promises, run as it stands; the JSON; what it refuses; and
the page in a browser, offline, as wide as a screen and as a phone."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vidi.cli import main

Ask = Callable[..., tuple[int, str, str]]

PAGE = (Path(__file__).parent.parent.parent / "docs/report.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's commands were run."""
    where = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setenv("VIDI_CACHE", str(where / "cache"))
        found = commands()
        assert len(found) == 6
        for verb, *words in found:
            assert verb == "vidi"
            patch.setattr("sys.argv", ["vidi", *words])
            more = ["--precision", "fp32", "--logging.no-pictures"] if words[0] == "train" else []
            assert main([*words, *more]) == 0
    return where


@pytest.fixture
def here(reported: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(reported)
    return reported


def test_the_pages_commands_leave_reports(here: Path) -> None:
    # The last word has the one that was made without data.
    for name, says in (
        ("runs/digits/report.html", "The data was not opened"),
        ("validation.html", "By class, on validation"),
        ("both.html", "2 runs side by side"),
    ):
        assert says in (here / name).read_text(encoding="utf-8"), name


def test_two_runs_side_by_side(here: Path) -> None:
    text = (here / "both.html").read_text(encoding="utf-8")
    found = re.findall(r'<section id="(.*?)">', text)
    assert found[:3] == ["runs", "differences", "together"]
    first, second = ([s for s in found if s.startswith(f"run-{k}-")] for k in (1, 2))
    assert len(first) == 12 and [s.replace("1", "2", 1) for s in first] == second
    for name in ("digits", "digits-seed1"):
        metrics = json.loads((here / f"runs/{name}/evaluation.json").read_text())["test"]["metrics"]
        assert text.count(f"{metrics['accuracy']:.4f}") >= 2, "beside the other, and by itself"


def test_the_pages_python(here: Path) -> None:
    for block in blocks("python"):
        exec(block, {})
    text = (here / "digits.html").read_text(encoding="utf-8")
    assert '<section id="samples">' in text


def test_json_is_one_object(here: Path, ask: Ask) -> None:
    code, said, _ = ask("report", "runs/digits", "--no-data", "--json", "--out", "a.html")
    assert code == 0
    found = json.loads(said)
    assert found["report"] == "a.html" and Path("a.html").stat().st_size == found["bytes"]
    [run] = found["runs"]
    evaluation = json.loads(Path("runs/digits/evaluation.json").read_text())
    assert run["metrics"] == {split: one["metrics"] for split, one in evaluation.items()}
    assert run["split"] == "test" and run["unfinished"] is None
    assert run["notes"] == ["The data was not opened (--no-data)."]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "Name its folder"),
        (("runs/none",), "is no run"),
        (("runs/digits", "--split", "tset"), "on a split 'tset'"),
        (("runs/digits", "runs/digits"), "is named twice"),
        (("runs/digits", "--out", "mine.html"), "is no report of vidi's; it was not touched"),
        (("runs/digits", "--out", "runs"), "is a folder"),
        (("runs/digits", "--out", "mine.html/it.html"), "mine.html is a file, and"),
    ],
)
def test_what_it_refuses(words: tuple[str, ...], says: str, here: Path, ask: Ask) -> None:
    (here / "mine.html").write_text("<p>mine</p>")
    code, _, errors = ask("report", *words)
    assert code == 2 and says in errors and "Traceback" not in errors
    assert (here / "mine.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(scheme: str, here: Path) -> None:
    """Offline: nothing is said on the console, all pictures are there, and nothing sticks out at
    the width of a phone."""
    chromium = os.environ.get("VIDI_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on the path, and VIDI_CHROMIUM names none")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(offline=True, color_scheme=scheme)
        for name in ("validation.html", "both.html"):
            page = context.new_page()
            said: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("requestfailed", lambda request, said=said: said.append(request.url))
            for width in (1280, 390):
                page.set_viewport_size({"width": width, "height": 844})
                page.goto(f"file://{here / name}")
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{name} is {wide} px wide at {width}"
            assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
            # Letters of drawings are legible: their size on the phone's screen.
            small = page.evaluate(
                "Math.min(...[...document.querySelectorAll('svg text')].map("
                "one => one.getBoundingClientRect().height))"
            )
            assert small > 5
            assert said == []
        browser.close()
