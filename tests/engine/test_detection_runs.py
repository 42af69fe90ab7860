"""Detection from files to a run: what is learned, what is refused, what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vidi
from vidi.engine import propose as engine
from vidi.errors import InputError
from vidi.models import count
from vidi.models.small_fast_rcnns import fast_rcnn_small
from vidi.models.small_faster_rcnns import faster_rcnn_small

Propose = Callable[[str, Path], str]
COUNTS = {"train": 16, "val": 4, "test": 4}


def detector(num_classes: int) -> nn.Module:
    return fast_rcnn_small(
        num_classes,
        stem=(8, 8),
        widths=(8, 16, 16, 16),
        depths=(1, 1, 1, 1),
        merged=16,
        pooled=3,
        hidden=32,
    )


def proposing(num_classes: int) -> nn.Module:
    return faster_rcnn_small(
        num_classes,
        stem=(8, 16),
        widths=(8, 16, 16, 16),
        depths=(1, 1, 1, 1),
        merged=16,
        pooled=3,
        hidden=32,
    )


def squares(folder: Path, empty: tuple[str, ...] = ("train/00", "val/00")) -> Path:
    """Red and green squares on grey noise, in YOLO's layout; some images have none."""
    rng = np.random.default_rng(0)
    for split, images in COUNTS.items():
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for i in range(images):
            w, h = (64, 48) if i % 2 else (48, 56)
            pixels = rng.integers(60, 120, (h, w, 1)).repeat(3, 2)
            lines = []
            if f"{split}/{i:02}" not in empty:
                for k in range(2):
                    side = int(rng.integers(14, 22))
                    x = int(rng.integers(0, w // 2 - side)) + k * w // 2
                    y = int(rng.integers(0, h - side))
                    pixels[y : y + side, x : x + side] = (220, 30, 30) if k else (30, 220, 30)
                    box = (x + side / 2) / w, (y + side / 2) / h, side / w, side / h
                    lines.append(" ".join([str(k), *(f"{v:.6f}" for v in box)]))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / split / f"{i:02}.png")
            (folder / "labels" / split / f"{i:02}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(
        "train: images/train\nval: images/val\ntest: images/test\nnames: [green, red]\n"
    )
    return folder


def train(source: Any, run: Path, proposals: str, **more: Any) -> vidi.Run:
    settings: dict[str, Any] = {
        "model": detector,
        "image_size": 48,
        "batch_size": 4,
        "device": "cpu",
        "precision": "fp32",
        "data": {"threads": 0, "proposals": proposals},
        "logging": {"pictures": False},
        "length": {"steps": 4},
    }
    return vidi.train(str(source), run=run, **{**settings, **more})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return squares(tmp_path / "squares")


def test_learns_what_is_easy_and_tells_it_in_original_pixels(
    tmp_path: Path, data: Path, propose: Propose
) -> None:
    proposals = propose(str(data), tmp_path / "own.json")
    run = train(data, tmp_path / "run", proposals, length={"steps": 160}, logging={})
    assert run.test_metrics is not None
    assert run.metrics["map50"] > 0.9 and run.test_metrics["map50"] > 0.9
    for name in ("predictions.png", "precision-recall.png", "errors.png", "curves.png"):
        with Image.open(run.path / name) as picture:
            assert min(picture.size) > 100
    evaluation = json.loads((run.path / "evaluation.json").read_text())["test"]
    assert [row["class"] for row in evaluation["per_class"]] == ["green", "red"]

    model = vidi.load(run.path, network=detector)
    assert model.evaluate().metrics == pytest.approx(run.test_metrics, abs=1e-6, nan_ok=True)
    dataset = vidi.open(str(data))
    with pytest.raises(InputError, match=r"own\.json has no proposals for 1 of 1"):
        model.predict(data / "images" / "test" / "01.png")
    # The same through a method that proposes for any image.
    again = vidi.recipe.replace(model.recipe, {"data.proposals": "edge-boxes"})
    object.__setattr__(model.description, "recipe", again)
    (found,) = model.predict(data / "images" / "test" / "01.png")
    assert found.size == (48, 64) and len(found.names) == len(found.found)
    truth = dataset[int(dataset.splits["test"][1])].boxes
    assert truth is not None and (found.found.scores >= 0.01).all()


def test_a_folded_network_is_saved(tmp_path: Path, data: Path, propose: Propose) -> None:
    """Of use without the statistics of its targets, which are one and nought then."""
    run = train(data, tmp_path / "run", propose(str(data), tmp_path / "own.json"))
    network: Any = vidi.load(run.path, network=detector).network
    assert (network.delta_std == 1).all() and (network.delta_mean == 0).all()


def test_a_truncated_svd_is_a_run_of_its_own(tmp_path: Path, data: Path, propose: Propose) -> None:
    run = train(data, tmp_path / "run", propose(str(data), tmp_path / "own.json"))
    model = vidi.load(run.path, network=detector)
    whole = model.compressed([32, 32])
    assert whole.evaluate().metrics == pytest.approx(
        model.evaluate().metrics, abs=1e-5, nan_ok=True
    )
    small = model.compressed([2])
    assert count.parameters(small.network) < count.parameters(model.network)
    path = small.save(tmp_path / "small")
    again = vidi.load(path, network=detector)
    for name, tensor in small.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
    same = pytest.approx(small.evaluate().metrics, abs=0, nan_ok=True)
    assert again.evaluate().metrics == same
    with pytest.raises(InputError, match="compressed weights"):
        vidi.train(run=path, resume=True, model=detector)
    for ranks, said in (([], "given are 0"), ([1, 2, 3], "given are 3"), ([99], "rank 99")):
        with pytest.raises(InputError, match=said):
            model.compressed(ranks)
    with pytest.raises(InputError, match="exists already"):
        small.save(path)
    with pytest.raises(InputError, match="compressed already"):
        again.compressed([2])


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_any_object_is_refused(
    tmp_path: Path, propose: Propose, split: str
) -> None:
    empty = tuple(f"{split}/{i:02}" for i in range(COUNTS[split]))
    folder = squares(tmp_path / "bare", empty)
    with pytest.raises(InputError, match=f"Not one image of the split {split}"):
        train(folder, tmp_path / "run", propose(str(folder), tmp_path / "own.json"))


def test_a_class_without_boxes_is_told(
    tmp_path: Path, data: Path, propose: Propose, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "labels" / "train").iterdir():
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line for line in lines if line.startswith("0")))
    run = train(data, tmp_path / "run", propose(str(data), tmp_path / "own.json"))
    assert "no box of training is red, which will not be learned" in capsys.readouterr().err
    assert np.isfinite(run.metrics["map50"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"augmentation": {"crop": "zoom"}}, "preset boxes"),
        ({"augmentation": {"preset": "photos"}}, "preset boxes"),
        ({"augmentation": {"mixup": 0.2}}, "Mixup"),
        ({"detection": {"background_iou": (0.5, 0.1)}}, "smaller one first"),
        ({"detection": {"nms": 1.5}}, "--detection.nms"),
        ({"data": {"proposals": "none"}}, "--data.proposals"),
        ({"data": {"balance": "weights"}}, "--data.balance"),
        ({"model": "resnet18"}, "resnet18 is for classification"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, data: Path, propose: Propose, change: dict[str, Any], said: str
) -> None:
    proposals = propose(str(data), tmp_path / "own.json")
    with pytest.raises(InputError, match=said):
        train(data, tmp_path / "run", proposals, **change)


def test_what_is_for_detection_is_refused_elsewhere(tmp_path: Path, photos: Path) -> None:
    for change in (
        {"detection": {"most": 3}},
        {"data": {"proposals": "edge-boxes"}},
        {"augmentation": {"crop": "shorter"}},
        {"augmentation": {"preset": "boxes"}},
    ):
        with pytest.raises(InputError, match="are for detection"):
            vidi.train(str(photos), run=tmp_path / "run", **change)


def test_other_proposals_are_another_run(tmp_path: Path, data: Path, propose: Propose) -> None:
    path = tmp_path / "own.json"
    proposals = propose(str(data), path)
    train(data, tmp_path / "run", proposals)
    lists = json.loads(path.read_text())
    first = next(iter(lists))
    lists[first][0][0] += 1
    path.write_text(json.dumps(lists))
    with pytest.raises(InputError, match="not those that this run was begun with"):
        train(data, tmp_path / "run", proposals, resume=True, length={"steps": 8})


def test_any_size_of_image_is_seen(tmp_path: Path) -> None:
    """Smaller than the network's stride, a strip, one that is all alike: boxes and no NaN."""
    scenes = "scenes:detection,size=48,n=4,val=2,test=0"  # whose proposals are soon computed
    run = train(scenes, tmp_path / "run", "edge-boxes")
    model = vidi.load(run.path, network=detector)
    shapes = ((3, 5), (1, 1), (300, 8), (64, 64))
    images = [np.zeros((h, w, 3), np.uint8) for h, w in shapes]
    for found, (h, w) in zip(model.predict(images), shapes, strict=True):
        assert found.size == (h, w) and np.isfinite(found.found.xyxy).all()
        assert (found.found.xyxy <= [w, h, w, h]).all()


# The network proposes


def test_who_proposes_learns_what_is_easy_too(tmp_path: Path, data: Path) -> None:
    """Nothing is computed before training, and the recipe says who proposed."""
    run = train(data, tmp_path / "run", "auto", model=proposing, length={"steps": 120})
    assert run.test_metrics is not None
    assert run.metrics["map50"] > 0.9 and run.test_metrics["map50"] > 0.9
    model = vidi.load(run.path, network=proposing)
    assert model.recipe.data.proposals == "network"
    assert model.description.data["proposals"] is None
    assert model.recipe.detection.anchor_iou == (0.3, 0.7)
    assert model.evaluate().metrics == pytest.approx(run.test_metrics, abs=1e-6, nan_ok=True)
    dataset = vidi.open(str(data))
    (found,) = model.predict(data / "images" / "test" / "01.png")
    truth = dataset[int(dataset.splits["test"][1])].boxes
    assert truth is not None
    sure = found.found.xyxy[found.found.scores > 0.5]
    assert len(sure) == len(truth.labels) and np.abs(sure.sum(0) - truth.xyxy.sum(0)).max() < 8


def test_anchors_are_fitted_to_boxes_as_the_network_sees_them(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The squares have 14 to 21 pixels a side at 48, and twice as many at 96."""
    fitted = []
    for size in (48, 96):
        run = train(
            data, tmp_path / str(size), "auto", model=proposing, image_size=size,
            length={"steps": 1},
        )  # fmt: skip
        network: Any = vidi.load(run.path, network=proposing).network
        fitted.append(network.sides.view(12, 2).numpy())
        told = ", ".join(f"{w:.0f}×{h:.0f}" for w, h in fitted[-1])
        assert f"anchors: {told} px, fitted to" in " ".join(capsys.readouterr().err.split())
    # Images of 48 × 56 and 64 × 48: a shorter side of 48 leaves them as they are.
    assert fitted[0].min() > 13 and fitted[0].max() < 22
    assert (np.diff(fitted[0].prod(1)) >= 0).all()
    assert fitted[1] == pytest.approx(2 * fitted[0], rel=1e-3)


def test_weights_come_with_the_anchors_that_they_know(tmp_path: Path, data: Path) -> None:
    first = train(data, tmp_path / "first", "auto", model=proposing, length={"steps": 2})
    before: Any = vidi.load(first.path, network=proposing).network
    other = tmp_path / "other"
    squares(other)
    again = train(
        other, tmp_path / "again", "auto", model=proposing, length={"steps": 1}, image_size=64,
        weights=str(first.path),
    )  # fmt: skip
    after: Any = vidi.load(again.path, network=proposing).network
    assert torch.equal(after.sides, before.sides)


def test_who_proposes_is_settled_by_the_network(
    tmp_path: Path, data: Path, propose: Propose
) -> None:
    own = propose(str(data), tmp_path / "own.json")
    for asked in ("selective-fast", "edge-boxes", own):
        with pytest.raises(InputError, match="proposes its regions itself"):
            train(data, tmp_path / "run", asked, model=proposing)
    with pytest.raises(InputError, match="does not propose regions"):
        train(data, tmp_path / "run", "network")


def test_a_dataset_whose_network_proposes_is_left_alone(data: Path) -> None:
    dataset = vidi.open(str(data))
    recipe = vidi.recipe.replace(vidi.recipe.Recipe(), {"data.proposals": "network"})
    assert engine.attach(dataset, np.arange(4), recipe) is dataset
    assert "proposals" not in dataset.annotations(0)
    assert engine.settled("network") == "network"


@pytest.mark.parametrize("name", ["anchors", "anchor_iou"])
def test_anchors_that_make_no_sense_are_refused(tmp_path: Path, data: Path, name: str) -> None:
    wrong: dict[str, Any] = {"anchors": 0, "anchor_iou": (0.7, 0.3)}
    with pytest.raises(InputError, match=f"--detection.{name.replace('_', '-')}"):
        train(data, tmp_path / "run", "auto", model=proposing, detection={name: wrong[name]})


def test_any_size_of_image_is_proposed_on(tmp_path: Path, data: Path) -> None:
    run = train(data, tmp_path / "run", "auto", model=proposing)
    model = vidi.load(run.path, network=proposing)
    shapes = ((3, 5), (1, 1), (300, 8), (64, 64))
    images = [np.zeros((h, w, 3), np.uint8) for h, w in shapes]
    for found, (h, w) in zip(model.predict(images, flip=True), shapes, strict=True):
        assert found.size == (h, w) and np.isfinite(found.found.xyxy).all()
        assert (found.found.xyxy <= [w, h, w, h]).all()
