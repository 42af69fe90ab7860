"""``vidi predict --heatmap`` end to end, and where its maps lie."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import vidi
from vidi.cli import main
from vidi.engine.heatmaps import HeatMap
from vidi.errors import InputError
from vidi.report import heatmap as report

Ask = Callable[..., tuple[int, str, str]]
Page = Callable[[str], list[tuple[str, str]]]
QUICK = ["--device", "cpu", "--data.threads", "0", "--data.cache", "off", "--precision", "fp32"]


def bright(*, at: tuple[int, int], size: tuple[int, int], disc: bool = True) -> np.ndarray:
    """Grey noise, with a red disc of radius 12 about (y, x) or without."""
    rng = np.random.default_rng(at[0] + at[1])
    pixels = rng.integers(60, 120, (*size, 3))
    y, x = np.mgrid[: size[0], : size[1]]
    if disc:
        pixels[(y - at[0]) ** 2 + (x - at[1]) ** 2 < 144, 0] = 250
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that tells images with a red disc from others, on a folder of 32 px pictures."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("disc", "noise"):
        (folder / name).mkdir()
        for i in range(24):
            at = (int(rng.integers(8, 24)), int(rng.integers(8, 24)))
            picture = bright(at=at, size=(32, 32), disc=name == "disc")
            Image.fromarray(picture).save(folder / name / f"{i:02}.png")
    run = folder / "run"
    words = ["--model", "resnet20", "--image-size", "32", "--epochs", "6", "--batch-size", "16"]
    assert main(["train", str(folder), *QUICK, *words, "--run", str(run)]) == 0
    return run


def test_the_map_is_high_where_the_class_is(run: Path) -> None:
    """On an image four times as large, with the disc in one corner."""
    model = vidi.load(run)
    picture = bright(at=(30, 100), size=(128, 140))
    found = model.heatmap(picture, label="disc", enlarge=4)[0]
    assert found.image.shape == (128, 140, 3)
    assert found.cells.shape[0] >= 20
    over = found.over()
    assert over.shape == (128, 140)
    assert over.dtype == np.float32
    assert 0 <= over.min() <= over.max() <= 1
    inside = over[20:40, 90:110].mean()
    assert inside > over[70:, :70].mean() + 0.2
    assert found.label == "disc"


def unpadded(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


def test_a_cell_has_what_the_classifier_says_of_the_window_about_its_centre(
    run: Path, tmp_path: Path
) -> None:
    """Exactly, for a network without padding."""
    words = {"image_size": 32, "epochs": 2.0, "device": "cpu", "precision": "fp32"}
    other = vidi.train(str(run.parent), model=unpadded, run=tmp_path / "r", **words)
    model = vidi.load(other.path, network=unpadded)
    picture = bright(at=(50, 40), size=(96, 96))
    found = model.heatmap(picture, label="disc", enlarge=3)[0]
    assert (found.stride, found.window) == (4, 32)
    maps, crops = [], []
    for y in (16, 32, 48, 64, 80):
        for x in (16, 32, 48, 64, 80):
            i, j = (y - found.offset) / 4, (x - found.offset) / 4
            maps.append(found.cells[int(i), int(j)])
            assert (i % 1, j % 1) == (0, 0)
            crops.append(picture[y - 16 : y + 16, x - 16 : x + 16])
    disc = model.classes.index("disc")
    said = [p.probabilities[disc] for p in model.predict(crops)]
    assert np.ptp(said) > 1e-3
    assert np.allclose(maps, said, atol=1e-5)


@pytest.mark.parametrize(("cells", "at", "value"), [((1, 1), (5, 7), 0.3), ((3, 4), None, None)])
def test_over_interpolates_between_the_centres(
    cells: tuple[int, int], at: tuple[int, int] | None, value: float | None
) -> None:
    table = np.random.default_rng(0).random(cells).astype(np.float32)
    if value is not None:
        table[:] = value
    found = HeatMap("a", "b", 0.5, np.zeros((40, 48, 3), np.uint8), table, 8, 10.5, 16)
    over = found.over()
    if at is not None:
        assert np.allclose(over, value)
        return
    for i in range(3):
        for j in range(4):  # the centre of pixel 10 is 10.5
            assert over[10 + 8 * i, 10 + 8 * j] == pytest.approx(table[i, j])
    assert over[14, 10] == pytest.approx(table[:2, 0].mean())
    assert over[10, 12] == pytest.approx(0.75 * table[0, 0] + 0.25 * table[0, 1])
    assert over[0, 0] == table[0, 0]
    assert over[39, 47] == table[2, 3]


def test_predict_draws_any_image(
    ask: Ask, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(bright(at=(20, 20), size=(75, 133))).save(folder / "odd.png")
    Image.fromarray(bright(at=(5, 5), size=(9, 13))).save(folder / "tiny.png")
    Image.fromarray(bright(at=(9, 9), size=(40, 33))).convert("L").save(folder / "grey.png")
    Image.fromarray(bright(at=(9, 9), size=(60, 33))).save(folder / "more" / "odd.jpg")
    code, out, err = ask("predict", run, folder, "--heatmap", "--json")
    assert code == 0, err
    rows = {Path(row["path"]).name: row for row in map(json.loads, out.splitlines())}
    assert set(rows) == {"odd.png", "tiny.png", "grey.png", "odd.jpg"}
    pictures = [Path(row["heatmap"]) for row in rows.values()]
    assert sorted(p.name for p in pictures) == ["grey.png", "odd-2.png", "odd.png", "tiny.png"]
    for path in (*pictures, Path("heatmaps/heatmaps.png")):
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 200
            assert picture.convert("RGB").getextrema() != ((255, 255),) * 3
    # A second time, nothing of the first is touched.
    before = {p.name: p.stat().st_mtime_ns for p in Path("heatmaps").iterdir()}
    code, out, _ = ask("predict", run, folder / "odd.png", "--heatmap", "--class", "noise")
    assert code == 0
    assert "heatmaps-2" in out
    assert [p.name for p in Path("heatmaps-2").iterdir()] == ["odd.png"]
    assert before == {p.name: p.stat().st_mtime_ns for p in Path("heatmaps").iterdir()}


def test_what_cannot_be_drawn(ask: Ask, run: Path, tmp_path: Path) -> None:
    Image.fromarray(bright(at=(5, 5), size=(8, 200))).save(tmp_path / "strip.png")
    good = tmp_path / "good.png"
    Image.fromarray(bright(at=(5, 5), size=(30, 30))).save(good)
    out = tmp_path / "out"
    words = [run, tmp_path / "strip.png", good, "--heatmap", "--out", out]
    code, said, err = ask("predict", *words)
    assert code == 1
    assert "strip" in err
    assert len(said.splitlines()) == 2, "each has its prediction"
    assert [p.name for p in out.glob("*.png")] == ["good.png"]
    for more, sentence in {
        ("--heatmap", "--out", out): "not empty",
        ("--heatmap", "--out", good): "is a file",
        ("--heatmap", "--class", "disk"): "disc",
        ("--class", "disc"): "--heatmap",
        ("--heatmap", "--enlarge", 0.5): "0.5",
    }.items():
        code, said, err = ask("predict", run, good, *more)
        assert code == 2, err
        assert said == ""
        assert sentence in err
        assert "Traceback" not in err


def test_a_network_that_cannot_be_converted_ends_with_a_sentence(run: Path) -> None:
    model = vidi.load(run)
    model.network = nn.Sequential(nn.Flatten(2), nn.GRU(1024, 2))
    with pytest.raises(InputError):
        model.heatmap(bright(at=(5, 5), size=(30, 30)))


def test_broad_and_high_images_are_drawn(tmp_path: Path) -> None:
    for size in ((40, 200), (200, 40), (64, 64)):
        image = bright(at=(20, 20), size=size)
        cells = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
        found = HeatMap("a", "a rather long name of a class", 0.5, image, cells, 8, 10, 16)
        report.draw(found, tmp_path / "one.png")
        with Image.open(tmp_path / "one.png") as picture:
            assert 0.2 < picture.width / picture.height < 5
    report.sheet([found] * 30, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.height / picture.width > 0.7, "six rows of four, not eight"


PAGE = (Path(__file__).parents[2] / "docs" / "convolutionalize.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_pages_commands_work(
    run_page: Page, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    assert len(run_page("convolutionalize")) == 3
    assert {p.name for p in Path("heatmaps").iterdir()} == {"00.png", "01.png", "heatmaps.png"}
    assert [p.name for p in Path("where").glob("*.png")] == ["00.png"]


def test_the_pages_python_works(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(compile(code, "docs/convolutionalize.md", "exec"), {})
    assert "[1, 10, 9, 13]" in capsys.readouterr().out
