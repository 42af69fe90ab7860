"""The verbs on real runs: a small network on the embedded digits, and on a folder of pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidi.cli import main

QUICK = ["--model", "mlp", "--device", "cpu", "--data.threads", "0", "--data.cache", "off"]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "digits", *QUICK, "--epochs", "4", "--run", str(run)]) == 0
    return run


Ask = Callable[..., tuple[int, str, str]]


def test_train_leaves_a_whole_run(digits_run: Path) -> None:
    there = {p.name for p in digits_run.iterdir()}
    assert {
        "recipe.json",
        "metrics.jsonl",
        "best.safetensors",
        "last",
        "evaluation.json",
        "curves.png",
        "confusion.png",
    } <= there


def test_train_says_in_json_what_the_run_holds(ask: Ask, tmp_path: Path) -> None:
    run = tmp_path / "r"
    code, out, err = ask("train", "digits", *QUICK, "--epochs", 1, "--run", run, "--json")
    said = json.loads(out)
    assert code == 0
    assert set(said) == {
        "run",
        "epochs",
        "steps",
        "metrics",
        "test_metrics",
        "images_per_second",
    }
    assert said["run"] == str(run)
    assert said["epochs"] == 1
    held = json.loads((run / "evaluation.json").read_text())
    assert held["test"]["metrics"] == said["test_metrics"]
    assert "epoch" in err


def test_train_again_into_the_same_folder_is_refused(ask: Ask, digits_run: Path) -> None:
    code, _, err = ask("train", "digits", *QUICK, "--run", digits_run)
    assert code == 2
    assert "--resume" in err


def test_a_finished_run_can_be_extended(ask: Ask, digits_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "longer"
    shutil.copytree(digits_run, run)
    code, out, _ = ask("train", "--run", run, "--resume", "--epochs", 5, "--json")
    assert code == 0
    assert json.loads(out)["epochs"] == 5


def test_a_resumed_run_keeps_its_model(ask: Ask, digits_run: Path) -> None:
    code, _, err = ask("train", "--run", digits_run, "--resume", "--model", "perceptron")
    assert code == 2
    assert "perceptron" in err


def test_eval_repeats_the_metrics_of_training(ask: Ask, digits_run: Path) -> None:
    code, out, _ = ask("eval", digits_run, "--json")
    said = json.loads(out)
    held = json.loads((digits_run / "evaluation.json").read_text())["test"]
    assert code == 0
    assert set(said) == {"run", "data", "split", "samples", "metrics"}
    assert said["split"] == "test"
    assert said["samples"] == held["samples"]
    assert said["metrics"]["accuracy"] == held["metrics"]["accuracy"]
    assert said["metrics"]["cross_entropy"] == pytest.approx(held["metrics"]["cross_entropy"])


def test_eval_shows_every_class_and_metric(ask: Ask, digits_run: Path) -> None:
    code, out, _ = ask("val", digits_run, "--split", "val", "--flip")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line.strip()]
    for digit in "0123456789":
        assert any(line[0] == digit for line in lines)
    assert {"accuracy", "top5", "cross_entropy", "ece"} <= {line[0] for line in lines}


def test_predict_finds_class_and_probability(ask: Ask, digits_run: Path, tmp_path: Path) -> None:
    import vidi

    digits = vidi.open("digits")
    test = digits.splits["test"][:20]
    for i in test:
        Image.fromarray(digits[int(i)].image).save(tmp_path / f"{i:04}.png")
    code, out, _ = ask("predict", digits_run, tmp_path, "--json", "--top", 3)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [Path(row["path"]).name for row in rows] == sorted(f"{i:04}.png" for i in test)
    for row in rows:
        assert len(row["top"]) == 3
        assert row["top"][0] == [row["label"], pytest.approx(row["probability"])]
        probabilities = [p for _, p in row["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 <= sum(probabilities) <= 1 + 1e-6
    truths = {f"{i:04}.png": digits.classes[int(digits.labels[i])] for i in test}
    right = sum(truths[Path(row["path"]).name] == row["label"] for row in rows)
    assert right >= 14, "a network trained on digits reads most of them from files, too"


def test_predict_goes_on_past_what_it_cannot_read(
    ask: Ask, digits_run: Path, tmp_path: Path
) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(good)
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    words = [tmp_path / "bad.png", good, tmp_path / "none.png", tmp_path / "empty", "no*thing"]
    code, out, err = ask("predict", digits_run, *words, "--json")
    assert code == 1
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(good)]
    for name in ("bad.png", "none.png", "empty", "no*thing"):
        assert name in err


def test_predict_with_nothing_readable_ends_with_2(
    ask: Ask, digits_run: Path, tmp_path: Path
) -> None:
    code, out, err = ask("predict", digits_run, tmp_path / "none.png")
    assert (code, out) == (2, "")
    assert "none.png" in err


def test_a_pattern_is_expanded(ask: Ask, digits_run: Path, tmp_path: Path) -> None:
    for name in ("a1", "a2", "b1"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")
    code, out, _ = ask("predict", digits_run, tmp_path / "a*.png")
    assert code == 0
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        str(tmp_path / "a1.png"),
        str(tmp_path / "a2.png"),
    ]


def test_a_folder_of_photos(ask: Ask, photos: Path, tmp_path: Path) -> None:
    """The main job on JPEG files, from training to prediction."""
    run = tmp_path / "run"
    words = ["--model", "resnet20", "--image-size", 32, "--epochs", 2, "--device", "cpu"]
    code, _, err = ask("train", photos, *words, "--run", run)
    assert code == 0, err
    code, out, _ = ask("predict", run, photos / "circles", "--json")
    assert code == 0
    assert len(out.splitlines()) == 12
    assert {json.loads(line)["label"] for line in out.splitlines()} <= {"circles", "stripes"}


def test_list(ask: Ask) -> None:
    import vidi

    code, out, _ = ask("list", "models")
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert code == 0
    assert list(rows) == vidi.models.names()
    # Table 6 of He et al. 2016: ResNet-20 has 0.27 M parameters.
    assert "270 k" in rows["resnet20"]
    assert "He et al. 2016" in rows["resnet20"]
    assert "61.1 M" in rows["alexnet"]  # torchvision's documentation
    assert "cifar_he2016" in ask("list", "recipes")[1]
    for name in ("folders", "cifar", "idx", "digits"):
        line = next(row for row in ask("list", "formats")[1].splitlines() if row.startswith(name))
        assert len(line.split()) > 2, "a format says what it is"


def test_demo_shows_where_the_pictures_are(ask: Ask, tmp_path: Path) -> None:
    for folder in ("demo-digits", "demo-digits-2"):
        code, out, _ = ask("demo", "--out", tmp_path, "--epochs", 1)
        assert code == 0
        assert "ccuracy" in out
        for name in ("predictions.png", "confusion.png", "curves.png"):
            path = tmp_path / folder / name
            assert str(path) in out
            with Image.open(path) as picture:
                assert picture.width > 300


BROKEN = {
    "empty folder": "train {empty}",
    "one class only": "train {one}",
    "no such folder": "train {nothing}",
    "a file that is no table": "train {text}",
    "no data": "train",
    "unknown model": "train {photos} --model resnet19",
    "misspelt flag": "train {photos} --epoch 3",
    "a value of another kind": "train {photos} --epochs many",
    "impossible image size": "train {photos} --image-size 0",
    "negative epochs": "train {photos} --epochs -1",
    "batch of nothing": "train {photos} --batch-size 0",
    "unknown task": "train {photos} --task clasification",
    "unknown device": "train {photos} --device gpu",
    "weights that are not there": "train {photos} --model mlp --weights no.pth",
    "resume of nothing": "train --resume --run {nothing}",
    "resume without a run": "train --resume",
    "eval of no run": "eval {empty}",
    "predict with no run": "predict {nothing} {photos}/circles/00.jpg",
    "predict of nothing": "predict {nothing}",
    "unknown list": "list modles",
}


@pytest.mark.parametrize("command", BROKEN.values(), ids=BROKEN.keys())
def test_bad_input_gets_a_sentence_and_code_2(
    ask: Ask, command: str, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {name: tmp_path / name for name in ("empty", "one", "nothing", "text", "photos")}
    places["empty"].mkdir()
    (places["one"] / "cats").mkdir(parents=True)
    for name in ("00.jpg", "01.jpg"):
        shutil.copy(photos / "circles" / name, places["one"] / "cats")
    places["text"].write_text("hello")
    code, out, err = ask(*(word.format(**places) for word in command.split()))
    assert code == 2, err
    assert out == ""
    assert len(err.split()) >= 4
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/*/recipe.json")), "no run is begun"
