"""A tiny run of each task, and of each kind that has no curves, no end or no data any more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vidi
from vidi import api

SCENES = {
    "segmentation": "scenes:segmentation,size=48,n=12,val=3,test=3",
    "detection": "scenes:detection,size=64,n=8,val=3,test=3",
    "boundaries": "scenes:boundaries,size=48,n=8,val=2,test=2",
    "flow": "scenes:flow,size=64,n=8,val=2,test=2",
}


def train(data: object, run: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"device": "cpu", "precision": "fp32", "length": {"steps": 4}}
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


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By what is special about them."""
    where = tmp_path_factory.mktemp("reported")
    found: dict[str, Path] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDI_CACHE", str(where / "cache"))
        patch.chdir(where)
        patch.setattr("sys.argv", ["vidi", "train", "digits", "--model", "mlp", "--run", "digits"])
        found["classification"] = digits(where / "digits")
        found["probe"] = train("digits", where / "probe", model="mlp", probe=True, length={})
        for task, data in SCENES.items():
            found[task] = train(data, where / task)
        table = labelled(where / "labelled")
        # Its data goes again before it is reported.
        found["multilabel"] = train(table, where / "multilabel", model="mlp", image_size=16)
        found["gone"] = Path(shutil.copytree(found["multilabel"], where / "gone"))
        text = (found["gone"] / "recipe.json").read_text()
        (found["gone"] / "recipe.json").write_text(text.replace("labelled", "vanished"))
        made = api.ensemble([found["classification"], found["probe"]], device="cpu")
        found["ensemble"] = made.save(where / "ensemble")
        found["interrupted"] = interrupted(found["classification"], where / "interrupted")
        found["begun"] = interrupted(found["classification"], where / "begun")
        (found["begun"] / "best.safetensors").unlink()
        (found["begun"] / "metrics.jsonl").unlink()
        (found["begun"] / "vitals.jsonl").unlink()
    return found


def interrupted(run: Path, copy: Path) -> Path:
    """The run as if a signal had ended it in its second epoch."""
    shutil.copytree(run, copy)
    (copy / "evaluation.json").unlink()
    rows = (copy / "metrics.jsonl").read_text().splitlines()
    kept = [row for row in rows if '"event": "end"' not in row][:-1]
    kept.append('{"event": "interrupted", "step": 29, "signal": 15}')
    (copy / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    return copy
