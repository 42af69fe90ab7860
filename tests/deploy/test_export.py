"""``vidi export``: only what answers as the run does is left, whole, and says what it is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vidi
from vidi.deploy import export, torch_files

Ask = Callable[..., tuple[int, str, str]]
PAGE = (Path(__file__).parents[2] / "docs/export.md").read_text(encoding="utf-8")
QUICK: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "batch_size": 4,
    "logging": {"pictures": False},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "digits"
    vidi.train("digits", run=run, model="perceptron", length={"steps": 20}, lr=0.01, **QUICK)
    return run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "scenes"
    data = "scenes:segmentation,size=72,n=8,val=4,test=0"
    vidi.train(data, run=run, model="fcn_small", length={"steps": 2}, lr=0.01, **QUICK)
    return run


def left(folder: Path) -> list[str]:
    """What lies there, but for the tests' own cache."""
    return sorted(p.name for p in folder.iterdir() if p.name != "vidi-cache")


def test_the_command(digits: Path, tmp_path: Path, ask: Ask) -> None:
    out = tmp_path / "deep" / "digits.pt2"
    code, said, errors = ask("export", digits, "--format", "torch", "--out", out, "--images", 20)
    assert code == 0, errors
    assert "image: uint8 [batch, height, width, 3]" in said
    assert "probabilities: float32 [batch, 10]" in said
    assert "0 of 20 labels differ" in said
    assert "20 images of the split val" in errors
    assert sorted(p.name for p in out.parent.iterdir()) == ["MODEL.md", "digits.pt2"]
    said_of_itself = export.read(out).metadata
    assert said_of_itself["classes"] == list("0123456789")
    assert said_of_itself["task"] == "classification"
    assert len(said_of_itself["weights"]["sha256"]) == 64

    before = out.read_bytes()
    code, _, errors = ask("export", digits, "--format", "torch", "--out", out)
    assert code == 2 and "exists already" in errors
    assert out.read_bytes() == before


def test_json(digits: Path, tmp_path: Path, ask: Ask) -> None:
    out = tmp_path / "model.pt2"
    code, said, errors = ask(
        "export", digits, "--format", "torch", "--out", out, "--images", 4, "--json"
    )
    assert code == 0, errors
    told = json.loads(said)
    assert [Path(p).name for p in told["files"]] == ["model.pt2", "MODEL.md"]
    assert all(Path(p).is_file() for p in told["files"])
    assert told["parity"]["samples"] == 4 and told["parity"]["differing"] == 0
    assert left(tmp_path) == ["MODEL.md", "model.pt2"]


def test_maps_take_any_size_and_one_size(scenes: Path, tmp_path: Path) -> None:
    model = vidi.load(scenes, device="cpu")
    heard: list[str] = []
    made = model.export("torch", tmp_path / "any" / "model.pt2", images=2, say=heard.append)
    assert made.metadata["size"] is None and made.metadata["notes"] == []
    assert made.parity.samples == 6, "two, and four of them cropped"
    assert any("4 crops" in note for note in heard)
    one = model.export("torch", tmp_path / "one" / "model.pt2", images=2, size=(40, 56))
    assert one.metadata["size"] == [40, 56]
    assert one.metadata["outputs"]["mask"]["shape"] == ["batch", 40, 56]
    assert "56 × 40" in one.metadata["preparation"]
    image = np.zeros((1, 40, 56, 3), np.uint8)
    assert export.read(one.path).run({"image": image})["mask"].shape == (1, 40, 56)


def test_a_network_that_knows_one_size_alone_is_told(scenes: Path, tmp_path: Path) -> None:
    model = vidi.load(scenes, device="cpu")

    class OneSize(type(model.network)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> Any:
            assert int(x.shape[2]) > 0  # int() settles the size
            return super().forward(x)

    model.network.__class__ = OneSize
    heard: list[str] = []
    made = model.export("torch", tmp_path / "model.pt2", images=2, say=heard.append)
    assert made.metadata["size"] == [72, 72]
    assert made.metadata["inputs"]["image"]["shape"] == ["batch", 72, 72, 3]
    (note,) = made.metadata["notes"]
    assert note in heard and "takes only images of 72 × 72 px" in note


def test_what_answers_otherwise_is_not_left(
    digits: Path, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = torch_files.write

    def swapped(function: Any, *rest: Any) -> set[str]:
        function.image_mean += 10
        return write(function, *rest)

    monkeypatch.setattr(torch_files, "write", swapped)
    out = tmp_path / "new" / "digits.pt2"
    code, said, errors = ask("export", digits, "--format", "torch", "--out", out, "--images", 4)
    assert code == 1 and said == ""
    assert "was not written" in errors and "probabilities differ" in errors
    assert not out.parent.exists()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "onnx", "--out", "model.pt2"), "does not end in .onnx"),
        (("--format", "torch", "--int8"), "int8 is for"),
        (("--format", "onnx", "--images", "0"), "at least 1"),
        (("--format", "onnx", "--image-size", "1", "40"), "at least 2"),
        (("--format", "onnx", "--max-loss", "-1"), "from 0 on"),
        (("--format", "onnx", "--data", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_asked_for(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = ask("export", digits, *words)
    assert code == 2, errors
    assert said in errors
    assert left(tmp_path) == []


def test_where_the_data_is_gone_other_images_do(photos: Path, tmp_path: Path, ask: Ask) -> None:
    run = tmp_path / "run"
    moved = tmp_path / "moved"
    vidi.train(
        str(photos),
        run=run,
        model="perceptron",
        image_size=8,
        length={"steps": 2},
        lr=0.01,
        **QUICK,
    )
    shutil.move(photos, moved)
    out = tmp_path / "out" / "model.pt2"
    code, _, errors = ask("export", run, "--format", "torch", "--out", out)
    assert code == 2 and "--data" in errors and not out.parent.exists()
    Image.open(next(moved.rglob("*.jpg"))).save(tmp_path / "moved" / "one.png")
    code, said, errors = ask(
        "export", run, "--format", "torch", "--out", out, "--data", moved, "--images", 3
    )
    assert code == 0, errors
    assert "0 of 3 labels differ" in said


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_works(photos: Path, tmp_path: Path, ask: Ask, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        line.removeprefix("$ vidi ")
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ vidi ")
    ]
    assert len(commands) >= 4
    for command in commands:
        code, _, errors = ask(*shlex.split(command))
        assert code == 0, f"{command}\n{errors}"
    assert left(tmp_path / "openvino") == ["MODEL.md", "model.bin", "model.xml"]
    assert left(tmp_path / "onnx") == ["MODEL.md", "model.onnx"]
    for code_text in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code_text],
            cwd=tmp_path,
            env={**os.environ, "CI": "true"},  # openvino reports nothing from there
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, code_text + done.stdout + done.stderr
