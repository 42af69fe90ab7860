"""Detection from the command line: train, evaluate, predict, files of other tools, score files."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.data.formats import coco
from vidi.data.open import open_data

Ask = Callable[..., tuple[int, str, str]]
Page = Callable[[str], list[tuple[str, str]]]
SCENES = "scenes:detection,size=64,n=8,val=2,test=3"
FEW: dict[str, Any] = {
    "data": {"cache": "off"},
    "batch_size": 4,
    "length": {"steps": 2},
    "detection": {"least_score": 0.0},  # it is sure of nothing yet
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A network that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("detection")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDI_CACHE", str(folder / "cache"))
        vidi.train(SCENES, run=folder / "run", **FEW)
        yield folder / "run"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in COCO's format, whose category numbers have gaps."""
    folder = tmp_path_factory.mktemp("images") / "data"
    folder.mkdir()
    coco.write(open_data("scenes:detection,size=64x48,n=1,val=1,test=4", carve_val=False), folder)
    for path in (folder / "annotations").iterdir():
        said = json.loads(path.read_text())
        for item in [*said["categories"], *said["annotations"]]:
            name = "id" if "name" in item else "category_id"
            item[name] = 10 * item[name] + 3
        path.write_text(json.dumps(said))
    return folder


@pytest.fixture(scope="module")
def own(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose truth is what the run itself finds: it is right now and then."""
    folder = tmp_path_factory.mktemp("own") / "data"
    shutil.copytree(images, folder)
    model = vidi.load(run)
    path = folder / "annotations" / "instances_test.json"
    said = json.loads(path.read_text())
    number = {one["name"]: one["id"] for one in said["categories"]}
    said["annotations"] = []
    for image in said["images"]:
        (result,) = model.predict(folder / "test" / image["file_name"])
        for k in range(0, len(result.names), 4):
            x0, y0, x1, y1 = result.found.xyxy[k].tolist()
            # Some are of another class than the one they are taken for.
            name = model.classes[0] if k % 12 == 0 else result.names[k]
            said["annotations"].append(
                {"id": len(said["annotations"]) + 1, "image_id": image["id"], "iscrowd": 0,
                 "category_id": number[name], "bbox": [x0, y0, x1 - x0, y1 - y0],
                 "area": (x1 - x0) * (y1 - y0)}
            )  # fmt: skip
    path.write_text(json.dumps(said))
    return folder


def test_training_leaves_pictures_and_the_score(ask: Ask, run: Path) -> None:
    for name in ("curves.png", "predictions.png", "precision-recall.png", "errors.png",
                 "evaluation.json", "best.safetensors"):  # fmt: skip
        assert (run / name).is_file(), name
    recipe = json.loads((run / "recipe.json").read_text())["recipe"]
    assert recipe["model"] == "faster_rcnn_small"
    assert recipe["data"]["proposals"] == "network"
    assert recipe["augmentation"]["preset"] == "boxes"
    code, out, err = ask("eval", run, "--json")
    assert code == 0, err
    said = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert said["split"] == "test" and said["samples"] == 3
    assert {"map", "map50", "map_voc07", "map_small", "recall100"} <= set(said["metrics"])


def test_the_table_per_class_and_the_errors(
    ask: Ask, run: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    figure = tmp_path / "curve.png"
    words = ("eval", run, own, "--split", "test")
    code, out, err = ask(*words, "--errors", "--figure", figure)
    assert code == 0, err
    assert figure.stat().st_size > 10_000
    lines = out.splitlines()
    head = next(line for line in lines if line.startswith("class"))
    assert head.split() == ["class", "objects", "detections", "ap", "ap50", "voc07", "recall"]
    rows = [line.split() for line in lines if re.match(r"\w+ +\d+ +\d+ +", line)]
    classes = open_data(SCENES).classes
    assert [row[0] for row in rows] == [*classes, *classes], "one of scores, one of errors"
    assert [row[1] for row in rows[:10]] == [row[1] for row in rows[10:]], "as many objects"
    assert "AP50 would gain without: " in out
    code, out, err = ask(*words, "--errors", "--json")
    said = json.loads(out)
    assert [row["class"] for row in said["errors"]] == list(classes)
    assert set(said["gains"]) > {"missed", "background"}
    assert said["metrics"]["map50"] > 0.02
    assert all(value >= 0 for value in said["gains"].values())
    code, _, err = ask(*words, "--figure", tmp_path / "no" / "curve.png")
    assert code == 2
    assert "cannot be written" in err


def test_objects_are_printed_and_drawn(ask: Ask, run: Path, images: Path, tmp_path: Path) -> None:
    out_folder = tmp_path / "out"
    words = ("predict", run, images / "test", "--out", out_folder)
    code, out, err = ask(*words, "--json", "--least", 0)
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 4
    model = vidi.load(run)
    for line in lines:
        assert line["size"] == [64, 48] or line["size"] == [48, 64]
        (result,) = model.predict(line["path"])
        assert [o["class"] for o in line["objects"]] == list(result.names)
        np.testing.assert_array_equal(
            np.array([o["box"] for o in line["objects"]], np.float32), result.found.xyxy
        )
        scores = [o["score"] for o in line["objects"]]
        assert scores == sorted(scores, reverse=True)
        height, width = line["size"]
        for x0, y0, x1, y1 in result.found.xyxy:
            assert 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height
        with Image.open(line["picture"]) as picture:
            assert picture.size == (10 * width, 10 * height)
    said = {"predict.json", "predictions.jsonl"}
    assert len({p.name for p in out_folder.iterdir()} - said) == 4, "pictures, and nothing else"

    shutil.rmtree(out_folder)
    code, out, err = ask(*words, "--least", 0.99)
    assert code == 0, err
    assert out.count("nothing with a score of 0.99 or more") == 4
    best = lines[0]["objects"][0]
    code, out, err = ask(
        "predict", run, lines[0]["path"], "--least", best["score"] - 1e-4, "--out", tmp_path / "a"
    )
    assert f"{best['class']} {best['score']:.2f}" in out


def test_tiles_of_large_images(ask: Ask, run: Path, images: Path, tmp_path: Path) -> None:
    """Each has proposals of its own."""
    path = next((images / "test").iterdir())
    words = ("predict", run, path, "--tile", 48, "--least", 0, "--json")
    code, out, err = ask(*words, "--out", tmp_path / "a")
    assert code == 0, err
    model = vidi.load(run)
    (result,) = model.predict(path, tile=48, overlap=12)
    (said,) = (json.loads(line) for line in out.splitlines())
    found = np.array([o["box"] for o in said["objects"]], np.float32)
    np.testing.assert_array_equal(found, result.found.xyxy)
    (whole,) = model.predict(path)
    assert len(result.found) != len(whole.found)
    code, out, err = ask("eval", run, images, "--split", "test", "--tile", 48, "--json")
    assert code == 0, err
    expected = model.evaluate(images, split="test", tile=48).metrics
    assert json.loads(out)["metrics"]["map"] == pytest.approx(expected["map"])


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_files_are_scored_as_the_run_itself(
    kind: str, ask: Ask, run: Path, own: Path, tmp_path: Path
) -> None:
    code, out, err = ask("eval", run, own, "--split", "test", "--json", "--errors")
    assert code == 0, err
    expected = json.loads(out)
    made = tmp_path / "made"
    numbers = ("--numbers", own / "annotations" / "instances_test.json")
    more = numbers if kind == "coco" else ()
    code, _, err = ask("predict", run, own / "test", "--out", made, "--format", kind, *more)
    assert code == 0, err
    code, out, err = ask(
        "eval", "--predictions", made, own, "--split", "test", "--json", "--errors"
    )
    assert code == 0, err
    said = json.loads(out)
    assert said["samples"] == expected["samples"] == 4
    assert said["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    assert said["gains"] == pytest.approx(expected["gains"], abs=1e-6)
    assert said["errors"] == expected["errors"]
    code, out, err = ask(
        "eval", "--predictions", made, own, "--split", "test", "--figure", tmp_path / "a.svg"
    )
    assert code == 0, err
    assert "against" in out and (tmp_path / "a.svg").is_file()


def test_coco_results_have_the_numbers_of_a_file(
    ask: Ask, run: Path, images: Path, tmp_path: Path
) -> None:
    numbers = images / "annotations" / "instances_test.json"
    truth = json.loads(numbers.read_text())
    words = ("predict", run, images / "test", "--format", "coco")
    code, _, err = ask(*words, "--numbers", numbers, "--out", tmp_path / "a")
    assert code == 0, err
    assert "have the numbers of" in err
    results = json.loads((tmp_path / "a" / "detections.json").read_text())
    assert {row["image_id"] for row in results} <= {image["id"] for image in truth["images"]}
    assert {row["category_id"] % 10 for row in results} == {3}
    assert not (tmp_path / "a" / "classes.txt").exists()
    code, _, err = ask(*words, "--out", tmp_path / "b")
    assert code == 0, err
    assert "classes are numbered from 1" in err
    names = (tmp_path / "b" / "classes.txt").read_text().split()
    assert names == list(open_data(SCENES).classes)
    results = json.loads((tmp_path / "b" / "detections.json").read_text())
    stems = {path.stem for path in (images / "test").iterdir()}
    assert {str(row["image_id"]) for row in results} <= stems | {str(int(s)) for s in stems
                                                                 if s.isdigit()}  # fmt: skip

    elsewhere = images / "annotations" / "instances_val.json"
    code, _, err = ask(*words, "--numbers", elsewhere, "--out", tmp_path / "c")
    assert code == 1
    assert "is not among the images of" in " ".join(err.split())
    spoiled = tmp_path / "few.json"
    spoiled.write_text(numbers.read_text().replace('"circle"', '"disc"'))
    code, _, err = ask(*words, "--numbers", spoiled, "--out", tmp_path / "d")
    assert code == 2
    assert "has no category 'circle'" in " ".join(err.split())


def test_voc_files_are_what_voc_reads(ask: Ask, run: Path, images: Path, tmp_path: Path) -> None:
    code, _, err = ask("predict", run, images / "test", "--format", "voc", "--out", tmp_path / "a")
    assert code == 0, err
    files = sorted((tmp_path / "a").glob("*.xml"))
    assert len(files) == 4
    for file in files:
        root = ElementTree.parse(file).getroot()
        assert (images / "test" / str(root.findtext("filename"))).is_file()
        assert len(root.findall("object")) == len(root.findall("object/score"))
        for side in root.findall("object/bndbox/xmin"):
            assert float(side.text or "0") >= 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("predict", "{run}", "{images}", "--numbers", "a.json"), "--numbers is for --format coco"),
        (("predict", "{run}", "{images}", "--heatmap"), "are for classification"),
        (("predict", "{run}", "{images}", "--thin"), "--thin is for boundaries"),
        (("predict", "{run}", "{images}", "--scales", 0.5, 1), "several scales"),
        (("predict", "{run}", "{images}", "--pair", "a", "b"), "--pair is for flow"),
        (("predict", "{run}", "{images}", "--tile", 8), "at least 32 are expected"),
        (("predict", "{run}", "{images}", "--tile", 64, "--overlap", 40), "half a tile, 32"),
        (("predict", "{run}", "{images}", "--overlap", 8), "there are no tiles"),
        (("predict", "{run}", "nowhere.png"), "nowhere.png"),
        (("predict", "{run}", "{images}", "--format", "coco", "--numbers", "no.json"), "no COCO"),
        (("eval", "--predictions", "{images}/test", "{images}", "--errors"), "no detections"),
        (("eval", "--predictions", "no.json", "{images}"), "no.json"),
        (("eval", "{run}", "--suppress"), "--suppress is for --predictions"),
        (("eval", "{run}", "--tile", 8), "at least 32 are expected"),
        (("eval", "--predictions", "no.json", "{images}", "--tile", 64), "leave out --flip"),
    ],
)
def test_words_that_do_not_fit(
    ask: Ask,
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[Any, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = [str(word).format(run=run, images=images) for word in words]
    code, _, err = ask(*said)
    assert code == 2
    assert sentence in " ".join(err.split())
    assert not list(tmp_path.glob("predictions*"))


def test_words_of_detection_for_another_run(ask: Ask, photos: Path, tmp_path: Path) -> None:
    vidi.train(photos, run=tmp_path / "run", length={"steps": 1}, data={"cache": "off"})
    for words in (("--least", 0.1), ("--format", "yolo"), ("--numbers", "a.json")):
        code, _, err = ask("predict", tmp_path / "run", photos, *words)
        assert code == 2
        assert "are for detection; this run's task is classification" in " ".join(err.split())
    for verb in (("predict", tmp_path / "run", photos), ("eval", tmp_path / "run")):
        code, _, err = ask(*verb, "--tile", 64)
        assert code == 2
        assert "Tiles are for detection; this run's task is classification" in " ".join(err.split())
    code, _, err = ask("eval", tmp_path / "run", "--errors")
    assert code == 2
    assert "--errors is for detection" in err


PAGE = (Path(__file__).parents[2] / "docs" / "detection.md").read_text(encoding="utf-8")


def test_the_pages_commands_work(
    run_page: Page, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(images / "test", tmp_path / "street")
    shutil.copy(next((images / "test").iterdir()), tmp_path / "street" / "0001.png")
    assert len(run_page("detection")) >= 5


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S))
def test_the_pages_python_works(
    code: str, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(images / "test", tmp_path / "street")
    shutil.copy(next((images / "test").iterdir()), tmp_path / "street" / "0001.png")
    exec(compile(code, "docs/detection.md", "exec"), {})


def test_every_network_is_on_the_page() -> None:
    from vidi import models

    ours = {name for name in models.names() if "rcnn" in name}
    assert ours <= set(re.findall(r"`(\w+)`", PAGE))
