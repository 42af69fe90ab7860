"""What the tests of ``vidi predict`` share: a run, many tiny images and a video."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.cli import main

QUICK = ["--model", "mlp", "--device", "cpu", "--data.threads", "0", "--data.cache", "off"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "digits", *QUICK, "--epochs", "1", "--run", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 tiny images in two folders; the same names in both, and one that is none."""
    folder = tmp_path_factory.mktemp("images")
    digits = vidi.open("digits")
    for i in range(300):
        path = folder / "ab"[i % 2] / f"{i // 2:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(digits[i].image).save(path)
    (folder / "a" / "005.png").write_text("no image")
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Seven frames, each a little brighter."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    for k in range(7):
        writer.write(np.full((32, 48, 3), 30 * k, np.uint8))
    writer.release()
    return path
