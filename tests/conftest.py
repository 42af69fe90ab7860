"""What many tests need: a folder of little pictures, the command line, the real data."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidi.data.open import open_data

if os.name != "nt":  # for whichever test is the first to fork
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.preloaded"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's commands take longest by far: first, so that no worker ends with them alone."""
    items.sort(key=lambda item: item.name != "test_the_commands_work")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache of decoded images, nor knows of a torchrun."""
    monkeypatch.setenv("VIDI_CACHE", str(tmp_path / "vidi-cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder per class, 12 JPEG files each: reddish circles on noise, and greenish stripes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    y, x = np.mgrid[:40, :48]
    for name in ("circles", "stripes"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 90, (40, 48, 3))
            if name == "circles":
                cx, cy, r = rng.uniform(14, 34), rng.uniform(14, 26), rng.uniform(7, 12)
                pixels[(x - cx) ** 2 + (y - cy) ** 2 < r * r, 0] += 150
            else:
                pixels[(x + rng.integers(8)) % 8 < 4, 1] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02}.jpg")
    return folder


@pytest.fixture(scope="session")
def propose() -> Callable[[str, Path], str]:
    """Write a file of proposals for all images of some data, and give its path: true boxes moved a
    little, and random ones, the same every time. They cost nothing to compute."""

    def write(data: str, path: Path, count: int = 60) -> str:
        dataset = open_data(data)
        found = {}
        for i in range(len(dataset)):
            rng = np.random.default_rng(i)
            height, width = dataset.images.size(i)
            sides = np.array([width, height] * 2)
            truth = dataset.annotations(i)["boxes"].xyxy.repeat(4, 0)
            near = truth + rng.normal(0, 0.02, truth.shape) * sides
            corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), 1).reshape(-1, 4) * sides
            boxes = np.clip(np.concatenate([near, corners])[:count], 0, sides)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
            found[dataset.images.key(i)] = boxes.round(2).tolist()
        path.write_text(json.dumps(found))
        return str(path)

    return write


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command here: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        from vidi.cli import main

        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def run_page(ask: Callable[..., tuple[int, str, str]]) -> Callable[[str], list[tuple[str, str]]]:
    """Run what a page of docs/ has after ``$ vidi``, one after the other, and give (stdout, stderr)
    of each. None may fail."""

    def run(page: str) -> list[tuple[str, str]]:
        text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text(encoding="utf-8")
        said = []
        for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                code, out, err = ask(*shlex.split(line.removeprefix("$ vidi ")))
                assert code == 0, f"{line}\n{out}{err}"
                said.append((out, err))
        return said

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets that ``VIDI_DATA`` names; without it the test is skipped."""
    folder = os.environ.get("VIDI_DATA")
    if not folder:
        pytest.skip("VIDI_DATA names no folder of real data")
    return Path(folder)
