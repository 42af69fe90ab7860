"""Each kind of bad data gets a sentence that names it, exit code 2, and no traceback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Ask = Callable[..., tuple[int, str, str]]
QUICK = ["--model", "mlp", "--image-size", "16", "--epochs", "1", "--device", "cpu"]
QUICK += ["--logging.no-pictures"]


def empty_file(photos: Path) -> str:
    (photos / "circles" / "00.jpg").write_bytes(b"")
    return "00.jpg"


def truncated(photos: Path) -> str:
    file = photos / "circles" / "01.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    return "01.jpg"


def text_named_jpg(photos: Path) -> str:
    (photos / "stripes" / "02.jpg").write_text("this is no picture\n" * 30)
    return "02.jpg"


def huge(photos: Path) -> str:
    Image.new("1", (14_000, 14_000)).save(photos / "stripes" / "huge.png")
    assert (photos / "stripes" / "huge.png").stat().st_size < 1 << 20
    return "huge.png"


def animated(photos: Path) -> str:
    frames = [Image.new("RGB", (20, 20), (i * 40, 0, 0)) for i in range(4)]
    frames[0].save(photos / "stripes" / "moving.gif", save_all=True, append_images=frames[1:])
    return "moving.gif"


def dangling(photos: Path) -> str:
    (photos / "circles" / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    return "gone.jpg"


def unreadable(photos: Path) -> str:
    (photos / "circles" / "03.jpg").chmod(0)
    if os.access(photos / "circles" / "03.jpg", os.R_OK):
        pytest.skip("this user may read everything")
    return "03.jpg"


def a_folder_in_its_place(photos: Path) -> str:
    (photos / "circles" / "00.jpg").unlink()
    (photos / "circles" / "link.jpg").symlink_to(photos / "stripes")
    return "link.jpg"


@pytest.mark.parametrize(
    "spoil",
    [
        empty_file,
        truncated,
        text_named_jpg,
        huge,
        animated,
        dangling,
        unreadable,
        a_folder_in_its_place,
    ],
    ids=lambda f: f.__name__,
)
def test_a_bad_image_stops_before_training_or_is_skipped_and_listed(
    ask: Ask, photos: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    name = spoil(photos)
    code, out, err = ask("train", photos, *QUICK, "--run", tmp_path / "a", "--json")
    assert code == 2 and out == "" and "Traceback" not in err
    assert name in err and "--bad-images skip" in err
    assert not (tmp_path / "a" / "metrics.jsonl").exists()

    code, out, err = ask("train", photos, *QUICK, "--run", tmp_path / "b", "--bad-images", "skip")
    assert code == 0, err
    assert "1 image" in err and name in err
    assert name in (tmp_path / "b" / "recipe.json").read_text()


def test_all_bad_images_are_listed_at_once(ask: Ask, photos: Path, tmp_path: Path) -> None:
    names = [spoil(photos) for spoil in (empty_file, truncated, text_named_jpg, animated, dangling)]
    code, _, err = ask("train", photos, *QUICK, "--run", tmp_path / "run")
    assert code == 2
    assert "5 images" in err and all(name in err for name in names)


def test_an_image_that_breaks_during_training_stops_the_run_after_the_epoch(
    ask: Ask, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidi.data import check

    real = check.check_images

    def then_break(*args: object, **named: object) -> object:
        report = real(*args, **named)  # type: ignore[arg-type]
        for folder in ("circles", "stripes"):
            for file in sorted((photos / folder).iterdir())[:8]:
                file.write_bytes(b"")
        return report

    monkeypatch.setattr(check, "check_images", then_break)
    words = ["train", photos, *QUICK, "--data.cache", "off", "--batch-size", "4"]
    code, _, err = ask(*words, "--run", tmp_path / "run", "--epochs", "3")
    assert code == 2 and "in epoch 1" in err and "images could not be read" in err


def row_to_nowhere(photos: Path, tmp_path: Path) -> tuple[list[object], str]:
    table = tmp_path / "table.csv"
    table.write_text("path,label\nphotos/circles/00.jpg,a\nphotos/circles/99.jpg,b\n")
    return ["train", table], "line 3: photos/circles/99.jpg"


def differing_classes(photos: Path, tmp_path: Path) -> tuple[list[object], str]:
    root = tmp_path / "split"
    shutil.copytree(photos, root / "train")
    shutil.copytree(photos / "circles", root / "val" / "circles")
    shutil.copytree(photos / "stripes", root / "val" / "dots")
    return ["train", root], "dots"


def one_image(photos: Path, tmp_path: Path) -> tuple[list[object], str]:
    (photos / "lonely").mkdir()
    shutil.copy(photos / "circles" / "00.jpg", photos / "lonely")
    return ["train", photos], "lonely"


def empty_class(photos: Path, tmp_path: Path) -> tuple[list[object], str]:
    (photos / "nothing").mkdir()
    return ["train", photos], "nothing"


def other_model(photos: Path, tmp_path: Path) -> tuple[list[object], str]:
    import torch

    torch.save({"conv9.weight": torch.zeros(3)}, tmp_path / "other.pth")
    return [
        "train",
        photos,
        "--model",
        "resnet20",
        "--weights",
        tmp_path / "other.pth",
    ], "--model, or other weights"


def malicious(photos: Path, tmp_path: Path) -> tuple[list[object], str]:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"weight": Evil()}))
    return ["train", photos, "--model", "resnet20", "--weights", tmp_path / "evil.pth"], "evil.pth"


def run_of_another_file(photos: Path, tmp_path: Path) -> tuple[list[object], str]:
    from safetensors.numpy import save_file

    (tmp_path / "run").mkdir()
    save_file({"w": np.zeros(2)}, tmp_path / "run" / "best.safetensors")
    return ["eval", tmp_path / "run"], "was not written by vidi"


@pytest.mark.parametrize(
    "make",
    [
        row_to_nowhere,
        differing_classes,
        one_image,
        empty_class,
        other_model,
        malicious,
        run_of_another_file,
    ],
    ids=lambda f: f.__name__,
)
def test_bad_data_gets_a_sentence(
    ask: Ask,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Path], tuple[list[object], str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    words, named = make(photos, tmp_path)
    code, out, err = ask(*words)
    assert code == 2, err
    assert out == "" and "Traceback" not in err
    assert named in " ".join(err.split())
    assert not (tmp_path / "owned").exists(), "code in a file was run"
    assert not list(tmp_path.glob("runs/*/recipe.json")), "no run is begun"
