"""A tiny run of each task, and of each kind that has no curves, no end or no data any more."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vidi
from vidi import api

HOSTILE = '<img src=x onerror=alert(1)>&"$a_$'
SCENES = {
    "segmentation": "scenes:segmentation,size=48,n=12,val=3,test=3",
    "detection": "scenes:detection,size=64,n=4,val=2,test=2",
    "boundaries": "scenes:boundaries,size=48,n=8,val=2,test=2",
    "flow": "scenes:flow,size=64,n=8,val=2,test=2",
}


def train(data: object, run: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"device": "cpu", "precision": "fp32", "length": {"steps": 2}}
    settings |= {"logging": {"pictures": False, "every": 1}}
    return vidi.train(data, run=run, **settings | changes).path


def digits(run: Path, **changes: Any) -> Path:
    return train("digits", run, **{"model": "mlp", "lr": 0.05, "length": {"steps": 30}} | changes)


def labelled(folder: Path) -> Path:
    """A table of images that are red, striped, both or neither."""
    rng = np.random.default_rng(0)
    rows = ["path,labels"]
    folder.mkdir()
    for i in range(32):
        pixels = rng.integers(0, 90, (16, 16, 3))
        if i & 1:
            pixels[..., 0] += 150
        if i & 2:
            pixels[:, ::4, 1] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
        labels = [name for bit, name in ((1, "red"), (2, "striped")) if i & bit]
        rows.append(f"{i:02}.png,{' '.join(labels)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


def folders(folder: Path) -> Path:
    """A folder per class, of classes and files whose names are markup, quotes and formulas."""
    rng = np.random.default_rng(0)
    for k, name in enumerate((HOSTILE, f"__{HOSTILE[::-1]}")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 150, (16, 16, 3), dtype=np.uint8)
            pixels[..., k] += 100
            Image.fromarray(pixels).save(folder / name / f"{HOSTILE}{i}.png")
    return folder


@contextlib.contextmanager
def within(where: Path) -> Iterator[pytest.MonkeyPatch]:
    """In this folder, with a cache of its own, and on one core."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDI_CACHE", str(where / "cache"))
        patch.chdir(where)
        torch.set_num_threads(1)
        try:
            yield patch
        finally:
            torch.set_num_threads(threads)


class Runs(dict[str, Path]):
    """By what is special about them; each is made when it is first asked for."""

    def __init__(self, where: Path) -> None:
        super().__init__()
        self.where = where

    def __missing__(self, name: str) -> Path:
        with within(self.where) as patch:
            words = ["vidi", "train", "digits", "--model", "mlp", "--run", "digits"]
            patch.setattr("sys.argv", words)
            self[name] = self.made(name)
        return self[name]

    def made(self, name: str) -> Path:
        run = self.where / name
        match name:
            case "classification":
                return digits(run)
            case "probe":
                return train("digits", run, model="mlp", probe=True, length={})
            case "multilabel":
                return train(labelled(self.where / "labelled"), run, model="mlp", image_size=16)
            case "hostile":
                data = folders(self.where / "folders")
                return train(data, run, model="resnet20", image_size=16)
            case "gone":
                shutil.copytree(self["multilabel"], run)
                text = (run / "recipe.json").read_text()
                (run / "recipe.json").write_text(text.replace("labelled", "vanished"))
                return run
            case "ensemble":
                return api.ensemble([self["classification"], self["probe"]], device="cpu").save(run)
            case "interrupted":
                return interrupted(self["classification"], run)
            case "begun":
                interrupted(self["classification"], run)
                for lost in ("best.safetensors", "metrics.jsonl", "vitals.jsonl"):
                    (run / lost).unlink()
                return run
        return train(SCENES[name], run)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("reported"))


class Pages(dict[str, str]):
    """The reports of the runs; each is written when it is first asked for."""

    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self.runs = runs

    def __missing__(self, name: str) -> str:
        run = self.runs[name]
        with within(self.runs.where):
            self[name] = api.run_report(run, device="cpu").html
        return self[name]


@pytest.fixture(scope="session")
def pages(runs: Runs) -> Pages:
    return Pages(runs)


@pytest.fixture
def there(runs: Runs) -> Iterator[None]:
    """In the runs' folder."""
    with within(runs.where):
        yield


@pytest.fixture
def hostile() -> str:
    """What its classes and files are called."""
    return HOSTILE


def interrupted(run: Path, copy: Path) -> Path:
    """The run as if a signal had ended it in its second epoch."""
    shutil.copytree(run, copy)
    (copy / "evaluation.json").unlink()
    rows = (copy / "metrics.jsonl").read_text().splitlines()
    kept = [row for row in rows if '"event": "end"' not in row][:-1]
    kept.append('{"event": "interrupted", "step": 29, "signal": 15}')
    (copy / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    return copy
