"""Masks from folder to pictures, by the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

Ask = Callable[..., tuple[int, str, str]]
Page = Callable[[str], list[tuple[str, str]]]
PAGE = (Path(__file__).parents[2] / "docs" / "segmentation.md").read_text(encoding="utf-8")
QUICK = ("--length.steps", 6, "--image-size", 32, "--batch-size", 4, "--data.threads", 0)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_pages_commands_work(
    run_page: Page, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    assert len(run_page("segmentation")) == 4
    run = Path("runs/scenes")
    for name in ("predictions.png", "curves.png", "confusion.png"):
        assert (run / name).is_file(), name
    assert {p.name for p in Path("masks").glob("*.png")} == {
        f"0{i}{end}.png" for i in range(2) for end in ("", "-picture")
    }
    with Image.open("masks/00.png") as mask, Image.open("photos/circles/00.jpg") as photo:
        assert mask.mode == "P" and mask.size == photo.size
    (code,) = blocks("python")
    exec(compile(code, "docs/segmentation.md", "exec"), {})


def binary(folder: Path, *, sizes: tuple[tuple[int, int], ...] = ((40, 50), (36, 64))) -> Path:
    """Bright discs on a dark ground, their masks 0 and 255."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3), ("test", 3)):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True)
        for i in range(count):
            h, w = sizes[i % len(sizes)]
            y, x = np.mgrid[:h, :w]
            there = (x - rng.uniform(min(12, w / 2), max(w - 12, w / 2))) ** 2 + (
                y - rng.uniform(min(12, h / 2), max(h - 12, h / 2))
            ) ** 2 < 80
            pixels = rng.integers(0, 80, (h, w, 3)) + 150 * there[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / "images" / f"{i}.jpg")
            mask = Image.fromarray((255 * there).astype(np.uint8))
            mask.save(folder / split / "masks" / f"{i}.png")
    return folder


def test_masks_of_0_and_255_are_learned_and_said(ask: Ask, tmp_path: Path) -> None:
    data, run = binary(tmp_path / "discs"), tmp_path / "run"
    settings = ("--length.steps", 60, *QUICK[2:], "--augmentation.zoom", 0.8, 1.2)
    code, out, err = ask("train", data, "--run", run, "--json", *settings)
    assert code == 0, err
    assert "255" in err, "what 255 is taken for is said"
    found = json.loads(out)
    assert found["test_metrics"]["miou"] > 0.8
    assert set(found["metrics"]) == {"miou", "pixel_accuracy", "mean_accuracy", "fw_iou"}

    code, out, err = ask("predict", run, data / "test/images", "--out", tmp_path / "out", "--json")
    assert code == 0, err
    for line, size in zip(map(json.loads, out.splitlines()), ((40, 50), (36, 64)), strict=False):
        with Image.open(line["mask"]) as mask:
            assert mask.size == size[::-1]
        assert sum(line["shares"].values()) == pytest.approx(1)
        assert Path(line["picture"]).is_file()
    assert len(out.splitlines()) == 3
    code, _, err = ask("predict", run, data / "test/images", "--out", tmp_path / "out")
    assert code == 2 and "not empty" in err, "nothing is overwritten"


def test_a_class_without_a_pixel_is_named(ask: Ask, tmp_path: Path) -> None:
    data = binary(tmp_path / "discs")
    for path in data.rglob("*.png"):
        with Image.open(path) as mask:
            Image.fromarray(np.asarray(mask) // 255).save(path)
    (data / "classes.txt").write_text("ground\ndisc\nunicorn\n", encoding="utf-8")
    code, _, err = ask("train", data, "--run", tmp_path / "run", *QUICK)
    assert code == 0, err
    assert "unicorn, which will not be learned" in err
    code, out, _ = ask("eval", tmp_path / "run")
    assert code == 0 and "unicorn" in out


def test_a_mask_of_another_size_stops_before_training(ask: Ask, tmp_path: Path) -> None:
    data = binary(tmp_path / "discs")
    Image.new("L", (10, 10)).save(data / "train/masks/3.png")
    code, _, err = ask("train", data, "--run", tmp_path / "run", *QUICK)
    assert code == 2
    assert ("3.png" in err and "10" in err and "50" in err) or "64" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--augmentation.mixup", 0.2), "mix labels of whole images"),
        (("--augmentation.crop", "pad"), "crop zoom or whole"),
        (("--model", "resnet18"), "fcn_small"),
        (("--data.balance", "sampler"), "sampler"),
        (("--augmentation.zoom", 2, 1), "augmentation.zoom"),
    ],
    ids=str,
)
def test_what_makes_no_sense_for_masks_is_refused(
    ask: Ask, tmp_path: Path, flags: tuple[object, ...], said: str
) -> None:
    data = "scenes:segmentation,size=32,n=8,val=2,test=0"
    code, _, err = ask("train", data, "--run", tmp_path / "run", *QUICK, *flags)
    assert code == 2 and said in err, err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--augmentation.crop", "zoom"), "labels per pixel"),
        (("--data.shorter", 100), "labels per pixel"),
        (("--optimiser.sum-pixels",), "labels per pixel"),
        (("--model", "fcn_small"), "classification"),
    ],
    ids=str,
)
def test_what_is_for_masks_is_refused_elsewhere(
    ask: Ask, tmp_path: Path, flags: tuple[object, ...], said: str
) -> None:
    code, _, err = ask("train", "digits", "--run", tmp_path / "run", *flags)
    assert code == 2 and said in err, err


def twice(num_classes: int) -> nn.Module:
    class Twice(nn.Module):
        """Scores at twice the image's size, which no segmentation takes."""

        def __init__(self) -> None:
            super().__init__()
            self.score = nn.ConvTranspose2d(3, num_classes, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.score(x)
            return out

    return Twice()


def test_a_network_of_the_wrong_output_is_refused(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nets", __import__("sys").modules[__name__])
    data = "scenes:segmentation,size=32,n=8,val=2,test=0"
    code, _, err = ask("train", data, "--run", tmp_path / "run", "--model", "nets:twice", *QUICK)
    assert code == 2 and "64" in err and "32" in err, err


def test_images_of_a_few_pixels_get_a_crop_that_holds_them(ask: Ask, tmp_path: Path) -> None:
    data = binary(tmp_path / "tiny", sizes=((12, 13),))
    code, _, err = ask("train", data, "--run", tmp_path / "run", "--length.steps", 2)
    assert code == 0, err
    assert "crops of 17 px" in err
