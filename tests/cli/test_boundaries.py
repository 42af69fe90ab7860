"""Boundaries from the command line: train, predict, evaluate, and score files of any origin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vidi.data.edges import boundaries
from vidi.data.matfiles import save_mat
from vidi.types import Array

Ask = Callable[..., tuple[int, str, str]]
Page = Callable[[str], list[tuple[str, str]]]
SCENES = "scenes:boundaries,size=32,n=8,val=1,test=2"
H, W = 160, 192
"""Large enough that lines may be a pixel apart: 0.0075 of the diagonal are 1.9."""


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Three photographs in BSDS's layout, split test: a disc each, drawn by two annotators."""
    y, x = np.mgrid[:H, :W]
    for k in range(3):
        parts = [(y - 80) ** 2 + (x - 70 - 20 * k) ** 2 < r * r for r in (50.0, 50.4)]
        segments = np.stack(parts).astype(np.int32)
        cells = np.empty((1, 2), object)
        for a, one in enumerate(boundaries(segments)):
            cells[0, a] = {"Boundaries": one // 255, "Segmentation": segments[a].astype(np.uint16)}
        for folder in ("images/test", "groundTruth/test", "images/train", "groundTruth/train"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        image = np.where(parts[0], 200, 60).astype(np.uint8)
        for split in ("train", "test"):
            Image.fromarray(image).convert("RGB").save(tmp_path / f"data/images/{split}/{k}0.jpg")
            save_mat(tmp_path / f"data/groundTruth/{split}/{k}0.mat", {"groundTruth": cells})
    return tmp_path / "data"


def lines(data: Path, k: int) -> Array:
    """Canny's map, by OpenCV."""
    grey = cv2.imread(str(data / f"images/test/{k}0.jpg"), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    return np.asarray(cv2.Canny(grey, 50, 150))


@pytest.fixture
def maps(truth: Path, tmp_path: Path) -> Path:
    """One prediction of each kind: PNG of 8 and 16 bits, and an array."""
    folder = tmp_path / "maps"
    folder.mkdir()
    Image.fromarray(lines(truth, 0)).save(folder / "00.png")
    cv2.imwrite(str(folder / "10.png"), lines(truth, 1).astype(np.uint16) * 257)
    np.save(folder / "20.npy", lines(truth, 2).astype(np.float64) / 255)
    return folder


def test_predictions_of_any_origin_are_scored(
    ask: Ask, truth: Path, maps: Path, tmp_path: Path
) -> None:
    figure = tmp_path / "curve.png"
    code, out, err = ask("eval", "--predictions", maps, truth, "--figure", figure, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["samples"] == 3
    assert said["split"] == "test"
    assert said["metrics"]["ods"] > 0.95
    with Image.open(figure) as picture:
        assert min(picture.size) > 400


def test_mat_files_and_bare_ground_truth(ask: Ask, truth: Path, maps: Path) -> None:
    (maps / "20.npy").unlink()
    savemat(maps / "20.mat", {"edge": lines(truth, 2) / 255})
    code, out, err = ask("eval", "--predictions", maps, truth / "groundTruth/test", "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["ods"] > 0.95


def test_soft_maps_are_told_of_suppression(ask: Ask, truth: Path, maps: Path) -> None:
    for k in range(3):
        soft = cv2.GaussianBlur(lines(truth, k), (0, 0), 2.0)
        (maps / "20.npy").unlink(missing_ok=True)
        Image.fromarray(np.minimum(255, soft * 4.0).astype(np.uint8)).save(maps / f"{k}0.png")
    code, _, err = ask("eval", "--predictions", maps, truth, "--json")
    assert code == 0
    assert "--suppress" in err
    code, out, err = ask("eval", "--predictions", maps, truth, "--suppress", "--json")
    assert code == 0
    assert "--suppress" not in err
    assert json.loads(out)["metrics"]["ods"] > 0.95


def missing(maps: Path) -> None:
    (maps / "10.png").unlink()


def none(maps: Path) -> None:
    for path in maps.iterdir():
        path.rename(maps / f"other-{path.name}")


def twice(maps: Path) -> None:
    shutil.copy(maps / "00.png", maps / "10.bmp")


def size(maps: Path) -> None:
    Image.new("L", (32, 24)).save(maps / "10.png")


def colour(maps: Path) -> None:
    Image.new("RGB", (64, 48), (200, 10, 10)).save(maps / "10.png")


def damaged(maps: Path) -> None:
    (maps / "10.png").write_bytes((maps / "10.png").read_bytes()[:60])


def out_of_range(maps: Path) -> None:
    np.save(maps / "20.npy", np.full((H, W), 255.0))


def nan(maps: Path) -> None:
    np.save(maps / "20.npy", np.full((H, W), np.nan))


def pickled(maps: Path) -> None:
    np.save(maps / "20.npy", np.array([{}], object), allow_pickle=True)


def other_mat(maps: Path) -> None:
    (maps / "20.npy").unlink()
    savemat(maps / "20.mat", {"something": np.zeros((H, W))})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (missing, "no prediction for 1 of the 3 images"),
        (none, "A prediction has its image's name, as 00.png"),
        (twice, "two predictions called 10"),
        (size, "is 32 × 24 pixels, and its image 192 × 160"),
        (colour, "is in colour"),
        (damaged, "10.png"),
        (out_of_range, "run from 255 to 255; 0 to 1 is expected"),
        (nan, "0 to 1 is expected"),
        (pickled, "cannot be read as an array"),
        (other_mat, "holds no array called prediction"),
    ],
)
def test_bad_predictions_get_a_sentence(
    ask: Ask, truth: Path, maps: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(maps)
    code, _, err = ask("eval", "--predictions", maps, truth)
    assert code == 2
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err


def test_an_empty_ground_truth_gets_a_sentence(ask: Ask, truth: Path, maps: Path) -> None:
    for path in (truth / "groundTruth/test").iterdir():
        cells = np.empty((1, 1), object)
        cells[0, 0] = {"Boundaries": np.zeros((H, W), np.uint8)}
        save_mat(path, {"groundTruth": cells})
    code, _, err = ask("eval", "--predictions", maps, truth)
    assert code == 2
    assert "no boundary pixel" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--flip",), "there is no run"),
        (("--split", "val"), "has no split 'val'"),
        (("--figure", "x.unknown"), "cannot be written"),
    ],
)
def test_options_that_do_not_fit(
    ask: Ask, truth: Path, maps: Path, words: tuple[str, ...], sentence: str
) -> None:
    code, _, err = ask("eval", "--predictions", maps, truth, *words)
    assert code == 2
    assert sentence in " ".join(err.split())


def test_train_evaluate_predict(ask: Ask, truth: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, _, err = ask("train", SCENES, "--run", run, "--length.steps", 2, "--batch-size", 4)
    assert code == 0, err
    assert "hed_small" in err
    for name in ("curves.png", "predictions.png", "precision-recall.png", "evaluation.json"):
        assert (run / name).is_file(), name
    code, out, err = ask("eval", run, "--flip", "--scales", 0.5, 1, "--json")
    assert code == 0, err
    assert set(json.loads(out)["metrics"]) == {"ods", "ois", "ap"}
    found = {}
    for word in ((), ("--thin",)):
        out_folder = tmp_path / f"out{len(word)}"
        code, out, err = ask("predict", run, truth / "images/test", "--out", out_folder, *word)
        assert code == 0, err
        assert sorted(p.name for p in out_folder.glob("*.png")) == ["00.png", "10.png", "20.png"]
        with Image.open(out_folder / "00.png") as picture:
            assert picture.size == (W, H)
            assert picture.mode == "L"
            found[len(word)] = np.asarray(picture)
    assert (found[1] > 0).sum() < (found[0] > 0).sum()
    code, _, err = ask("eval", "--predictions", tmp_path / "out1", truth)
    assert code == 0, err


def test_settings_for_annotators_are_for_boundaries(ask: Ask, tmp_path: Path) -> None:
    code, _, err = ask("train", "digits", "--data.agree", 2, "--run", tmp_path / "run")
    assert code == 2
    assert "are for boundaries" in " ".join(err.split())


def test_the_pages_commands_work(
    run_page: Page, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    assert len(run_page("boundaries")) == 4
    assert Path("curve.png").is_file()
    assert sum(path.suffix == ".png" for path in Path("edges").iterdir()) >= 2
    for path in (*Path("edges").glob("0?.png"), *Path("thin").glob("00.png")):
        with Image.open(path) as picture:
            assert picture.mode == "L" and picture.size == (48, 40)
