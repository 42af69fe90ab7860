"""The pages of docs/: every command on them is run somewhere, every verb and every task has its
page, and the site builds without a warning and without a network."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi import cli, models
from vidi.cli import arguments

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
HERE = (
    "classification",
    "convert",
    "demo",
    "eval",
    "index",
    "list",
    "proposals",
    "python",
    "train",
)
"""The pages whose commands and Python are run here. The others have a test of their own."""
TASKS = ("classification", "detection", "segmentation", "boundaries", "flow")
NAMED = {"ensemble": "ensembles", "study": "studies"}
"""Verbs whose page has another name than theirs."""


def blocks(page: str, language: str) -> list[str]:
    """``language``: a whole word, which more words may follow."""
    pattern = rf"^```{language}(?: [^\n]*)?\n(.*?)^```"
    return re.findall(pattern, PAGES[page], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """What is to be typed after ``$ vidi``, word for word."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [line.removeprefix("$ vidi ") for line in lines if line.startswith("$ vidi ")]


def others(page: str) -> Iterator[list[str]]:
    """The words after ``vidi`` of commands on data that is not here, or that end by a signal."""
    for block in blocks(page, "sh") + (blocks(page, "console") if page == "serve" else []):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|\s)vidi (.*)", line.partition(" #")[0].partition(" |")[0])
            if found and "…" not in line:
                yield shlex.split(found[1])


def ask(*words: str) -> tuple[int, str]:
    """Run a command in this process: its exit code, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = cli.main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, said.getvalue()


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos/``, two classes of 12 images, a run on them, and ``cells/``, objects
    in COCO's format."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for k, name in enumerate(("circles", "stripes")):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            pixels[10:30, 10:35, k] += 120
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i:02}.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VIDI_CACHE", str(folder / "cache"))
        words = "train photos --model mlp --image-size 16 --epochs 2 --run runs/photos"
        for command in (
            words,
            "convert scenes:detection,size=96,n=2,val=1,test=1 --to coco --out cells",
        ):
            code, said = ask(*command.split())
            assert code == 0, said
    return folder


@pytest.fixture(scope="session")
def detector(start: Path) -> Path:
    """Runs that propose regions themselves, for the page that needs them."""
    words = "train cells --model faster_rcnn_small --image-size 64 --length.steps 2"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(start)
        patch.setenv("VIDI_CACHE", str(start / "cache"))
        code, said = ask(*words.split(), "--run", "runs/objects", "--logging.no-pictures")
        assert code == 0, said
    shutil.copytree(start / "runs/objects", start / "runs/cells-faster_rcnn_small")
    return start


@pytest.fixture
def folder(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    for name in ("photos", "runs", "cells"):
        shutil.copytree(start / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in HERE if page in PAGES and commands(page)])
def test_its_commands_work(
    page: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "proposals":
        request.getfixturevalue("detector")
    if page == "list":  # counting all of them takes ten seconds, and has tests of its own
        monkeypatch.setattr(models, "names", lambda: ["mlp", "resnet20"])
    request.getfixturevalue("folder")
    for command in commands(page):
        code, said = ask(*shlex.split(command))
        assert code == 0, f"{page}.md: vidi {command}\n{said}"


@pytest.mark.parametrize(
    "page", [page for page in HERE if page in PAGES and blocks(page, "python")]
)
def test_its_python_works(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in blocks(page, "python"):
        exec(compile(code, f"docs/{page}.md", "exec"), {"__name__": "page"})


def test_every_page_with_commands_is_run_somewhere() -> None:
    """By its own test, with ``run_page`` or by reading its blocks, or here."""
    texts = [p.read_text(encoding="utf-8") for p in TESTS.rglob("test_*.py") if p != Path(__file__)]
    for page in PAGES:
        if not commands(page) or page in HERE:
            continue
        own = [t for t in texts if f"{page}.md" in t and ("console" in t or "$ " in t)]
        own += [t for t in texts if f'run_page("{page}")' in t]
        assert own, f"no test runs the commands of docs/{page}.md: see HERE in this file"


class Read(Exception):
    """A command line was understood."""


@pytest.mark.parametrize("page", [page for page in PAGES if any(others(page))])
def test_what_needs_data_of_ones_own_is_understood(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each verb, flag and value of it exists."""
    monkeypatch.chdir(tmp_path)

    def parse(*given: Any, **named: Any) -> Any:
        arguments.parse(*given, **named)
        raise Read

    for words in others(page):
        verb = cli.ALIASES.get(words[0], words[0])
        assert verb in cli.VERBS, f"{page}.md: vidi {shlex.join(words)}"
        monkeypatch.setattr(importlib.import_module(f"vidi.cli.{verb}"), "parse", parse)
        try:
            code, said = ask(*words)
        except Read:
            continue
        pytest.fail(f"{page}.md: vidi {shlex.join(words)}\n{code}: {said}")


@pytest.mark.parametrize("name", [*TASKS, *(NAMED.get(verb, verb) for verb in cli.VERBS)])
def test_every_task_and_every_verb_has_its_page(name: str) -> None:
    assert name in PAGES
    text = PAGES[name]
    assert commands(name) or any(others(name)), "with a command"
    assert text.startswith("# ") and "\n# " not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "index"])
def test_every_page_is_in_the_index(page: str) -> None:
    trees = "\n".join(blocks("index", r"\{toctree\}")).splitlines()
    assert [re.sub(r".* <(.*)>$", r"\1", line) for line in trees].count(page) == 1
    assert f"({page}.md)" in PAGES["index"], "as a link, too, for readers of the files"


class Sources(HTMLParser):
    """What a page fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        fetched = told.get("src") or (told.get("href") if tag == "link" else None)
        if fetched:
            self.found.append(fetched)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'vidi[docs]'")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*words, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "site")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        sources = Sources()
        sources.feed((tmp_path / "site" / f"{page}.html").read_text(encoding="utf-8"))
        assert sources.found
        assert [url for url in sources.found if "//" in url] == [], "nothing is fetched"
