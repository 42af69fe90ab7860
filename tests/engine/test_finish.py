"""What comes after training: R-CNN's fits equal scikit-learn's, and survive any death.

The chain of deaths is real: the child kills itself with SIGKILL before one of its renames, in every
stage; then the run goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.svm import LinearSVC

import vidi
from vidi.engine import finish, region_fits
from vidi.engine.region_files import RegionFiles, Regions
from vidi.engine.region_fits import MinedSvm, Ridge
from vidi.engine.run import RunDirectory
from vidi.engine.signals import Signals
from vidi.models.small_fast_rcnns import fast_rcnn_small
from vidi.report.progress import Silent
from vidi.types import Array, Boxes

# The fits


def clouds(positives: int, negatives: int, d: int = 16) -> tuple[Array, Array]:
    """Two overlapping clouds of features of norm about 20."""
    rng = np.random.default_rng(0)
    near = rng.normal(size=(positives, d)) * 4 + 2.5
    far = rng.normal(size=(negatives, d)) * 4 - 1.5
    return near.astype(np.float32), far.astype(np.float32)


def full(positives: Array, negatives: Array) -> LinearSVC:
    y = np.arange(len(positives) + len(negatives)) < len(positives)
    return LinearSVC(
        loss="hinge",
        C=1e-3,
        class_weight={False: 1, True: 2},
        intercept_scaling=10,
        tol=1e-6,
        max_iter=100_000,
        random_state=1,
    ).fit(np.concatenate([positives, negatives]), y)


def test_mining_in_one_pass_comes_to_the_svm_of_all_negatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(region_fits, "REFIT", 100)
    positives, negatives = clouds(150, 6000)
    mined = MinedSvm(positives)
    for lot in np.split(negatives, 30):
        mined.add(lot)
    line = mined.finish()
    assert line is not None and mined.converged
    expected = full(positives, negatives)
    every = np.concatenate([positives, negatives])
    ours = every @ line.weight + line.bias
    theirs = expected.decision_function(every)
    assert np.abs(ours - theirs).max() < 0.02
    assert ((ours > 0) == (theirs > 0)).mean() > 0.999
    # It was spared most of them, which is what mining is for.
    assert sum(map(len, mined._negatives)) < len(negatives) / 3


def test_what_is_taken_in_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first lot whole, then what lies above -1.0001; what falls below -1.2 goes after a fit."""
    fitted: list[list[float]] = []

    def stand_in(positives: Array, negatives: Array, tolerance: float) -> Any:
        fitted.append(negatives[:, 0].tolist())
        return region_fits.Line(np.ones(1), 0.0), True

    monkeypatch.setattr(region_fits, "svm", stand_in)
    monkeypatch.setattr(region_fits, "REFIT", 2)

    def column(*values: float) -> Array:
        return np.array(values, np.float32)[:, None]

    mined = MinedSvm(column(3.0))
    mined.add(column(-5, -1.1, 0.5))
    np.testing.assert_allclose(fitted, [[-5, -1.1, 0.5]], rtol=1e-6)
    mined.add(column(-1.05, -0.5, -9))  # one is new
    mined.add(column(-0.25))
    assert len(fitted) == 1, "two new ones are not yet more than two"
    mined.add(column(0.0, -3))
    assert len(fitted) == 2 and np.allclose(fitted[1], [-1.1, 0.5, -0.5, -0.25, 0.0])
    mined.add(column(-2, -1))
    mined.finish()
    assert len(fitted) == 3 and fitted[2] == [*fitted[1], -1]


def test_no_negative_is_no_svm() -> None:
    mined = MinedSvm(np.ones((3, 4), np.float32))
    mined.add(np.zeros((0, 4), np.float32))
    assert mined.finish() is None


@pytest.mark.parametrize("d", [7, 1500])
def test_ridge_in_lots_equals_scikit_learns(d: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 5, (400, d)).astype(np.float32)
    y = rng.normal(1, 2, (400, 4)).astype(np.float32) + x[:, :1] * 0.1
    ridge = Ridge(d)
    for lot in np.array_split(np.arange(400), 7):
        ridge.add(x[lot], y[lot])
    weight, bias = ridge.solve(1000.0)
    expected = SklearnRidge(alpha=1000.0).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(weight, expected.coef_, atol=1e-8)
    np.testing.assert_allclose(bias, expected.intercept_, atol=1e-7)


def test_ridge_of_nothing_moves_nothing() -> None:
    weight, bias = Ridge(5).solve()
    assert not weight.any() and not bias.any()


# Regions and their files


def truth(*rows: tuple[float, float, float, float, int], flags: str = "") -> Boxes:
    """``flags``: d = difficult, c = crowd, one letter a row."""
    flags = flags or "." * len(rows)
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Boxes(
        xyxy=table[:, :4].astype(np.float32),
        labels=table[:, 4].astype(np.int64),
        difficult=np.array([f == "d" for f in flags], bool),
        crowd=np.array([f == "c" for f in flags], bool),
    )


PROPOSALS = np.array(
    [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 7], [40, 40, 50, 50], [22, 22, 24, 24]], np.float32
)


def test_near_takes_the_box_of_greatest_overlap_beyond_60_percent() -> None:
    regions = Regions(PROPOSALS, truth((0, 0, 10, 11, 1), (0, 0, 10, 7, 0), (40, 40, 50, 50, 2)))
    rows, objects = regions.near()
    assert rows.tolist() == [0, 1, 2, 3]
    assert objects.tolist() == [0, 1, 1, 2]  # proposal 1: 5/7 of box 1
    hidden = Regions(PROPOSALS, truth((0, 0, 10, 10, 1), (40, 40, 50, 50, 2), flags="dc"))
    assert not len(hidden.near()[0])
    assert not len(Regions(PROPOSALS, truth()).near()[0])


def test_a_negative_is_none_of_the_class_not_even_difficult_or_in_a_crowd() -> None:
    rows = ((0, 0, 10, 10, 0), (40, 40, 50, 50, 0), (20, 20, 60, 60, 1))
    regions = Regions(PROPOSALS, truth(*rows, flags=".dc"))
    np.testing.assert_allclose(regions.overlaps(0)[:5], [1, 0.5, 0.7, 1, 0], atol=1e-12)
    np.testing.assert_allclose(regions.overlaps(1)[:5], [0, 0, 0, 1, 1], atol=1e-12)
    assert not regions.overlaps(2).any()
    assert regions.overlaps(0)[5:].tolist() == [1, 1, 0.0625]  # the true boxes are regions too
    assert regions.examples(0).tolist() == [5]
    assert regions.examples(1).tolist() == []


def test_files_give_what_was_written_in_half_precision(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = RegionFiles(tmp_path)
    regions = Regions(PROPOSALS, truth((0, 0, 10, 10, 3), (1, 2, 9, 9, 0), flags="d."))
    features, near = rng.normal(size=(7, 6)), rng.normal(size=(3, 9))
    features[0, 0] = 1e9
    assert not files.has(12_345)
    files.write(12_345, regions, features, near)
    assert files.has(12_345)
    back = files.regions(12_345)
    assert np.array_equal(back.proposals, PROPOSALS)
    assert np.array_equal(back.truth.xyxy, regions.truth.xyxy)
    assert back.truth.labels.tolist() == [3, 0]
    assert back.truth.difficult.tolist() == [True, False]
    assert files.features(12_345)[0, 0] == np.finfo(np.float16).max
    np.testing.assert_allclose(files.features(12_345)[1:], features[1:], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(files.features(12_345, 5), files.features(12_345)[5:])
    np.testing.assert_allclose(files.near(12_345), near, rtol=1e-3, atol=1e-6)
    files.write(0, Regions(PROPOSALS[:0], truth()), np.zeros((0, 6)), np.zeros((0, 9)))
    assert files.features(0).shape == (0, 6) and files.near(0).shape == (0, 9)


# The stages, on features that no network made


IDS = np.array([3, 4, 6, 9, 11, 12])
NAMES = ("thing", "other", "never", "far")


@pytest.fixture
def files(tmp_path: Path) -> RegionFiles:
    """Six images of 40 proposals and two objects, of the first two classes; the last has a
    difficult one of the third too. Features tell the classes, as far as they are no noise."""
    rng = np.random.default_rng(0)
    files = RegionFiles(tmp_path / "features")
    for i in IDS.tolist():
        rows = [(10, 10, 40, 40, 0), (50, 20, 90, 60, 1)]
        boxes = truth(
            *rows, *([(0, 70, 9, 79, 2)] if i == 12 else []), flags="..d"[: 2 + (i == 12)]
        )
        low = rng.uniform(0, 60, (40, 2))
        proposals = np.concatenate([low, low + rng.uniform(5, 40, (40, 2))], 1)
        proposals[:8] = np.repeat(boxes.xyxy[:2], 4, 0) + rng.normal(0, 1.5, (8, 4))
        regions = Regions(proposals.astype(np.float32), boxes)
        features = rng.normal(0, 1, (len(regions), 8))
        for k in (0, 1):
            features[:, k] += 6 * regions.overlaps(k)
        files.write(i, regions, features, rng.normal(1, 1, (len(regions.near()[0]), 5)))
    return files


def told() -> finish._Told:
    return finish._Told(Silent(), Signals())


def test_the_stage_of_svms_equals_the_fit_in_memory(files: RegionFiles, tmp_path: Path) -> None:
    finish._fit_svms(files, IDS, tmp_path, [0, 1, 2], NAMES, told())
    every = [files.features(i) for i in IDS.tolist()]
    scale = 20 / np.linalg.norm(np.concatenate(every), axis=1).mean()
    for k in (0, 1):
        shown = [files.regions(i) for i in IDS.tolist()]
        positives = [f[r.examples(k)] for f, r in zip(every, shown, strict=True)]
        negatives = [f[r.overlaps(k) < 0.3] for f, r in zip(every, shown, strict=True)]
        expected = full(scale * np.concatenate(positives), scale * np.concatenate(negatives))
        weight, bias = finish._read_fit("svm", tmp_path, k)
        ours = np.concatenate(every) @ weight[0] + bias[0]  # the scale is in the weights
        theirs = expected.decision_function(scale * np.concatenate(every))
        assert np.abs(ours - theirs).max() < 0.05
    weight, bias = finish._read_fit("svm", tmp_path, 2)
    assert not weight.any() and torch.sigmoid(torch.tensor(bias)).item() < 1e-30


def test_the_stage_of_boxes_equals_scikit_learns_ridge(files: RegionFiles, tmp_path: Path) -> None:
    finish._fit_boxes(files, IDS, tmp_path, [0, 1, 2], NAMES, told())
    norms = np.concatenate([np.linalg.norm(files.near(i), axis=1) for i in IDS.tolist()])
    scale = 20 / norms.mean()
    for k in (0, 1):
        x, y = [], []
        for i in IDS.tolist():
            regions = files.regions(i)
            rows, objects = regions.near()
            for row, j, feature in zip(rows, objects, files.near(i), strict=True):
                if regions.truth.labels[j] == k:
                    p = regions.proposals[row].astype(np.float64)
                    g = regions.truth.xyxy[j].astype(np.float64)
                    (pw, ph), (gw, gh) = p[2:] - p[:2], g[2:] - g[:2]
                    centre = (g[:2] + g[2:] - p[:2] - p[2:]) / 2 / (pw, ph)
                    y.append([*centre, np.log(gw / pw), np.log(gh / ph)])
                    x.append(feature)
        expected = SklearnRidge(alpha=1000.0).fit(scale * np.array(x, np.float64), np.array(y))
        weight, bias = finish._read_fit("boxes", tmp_path, k)
        theirs = expected.predict(scale * np.array(x))
        np.testing.assert_allclose(np.array(x) @ weight.T + bias, theirs, atol=1e-5)
    weight, bias = finish._read_fit("boxes", tmp_path, 2)
    assert weight.shape == (4, 5) and not weight.any() and not bias.any()


def test_features_of_other_weights_are_never_used(tmp_path: Path) -> None:
    best, folder = tmp_path / "best.safetensors", tmp_path / "finish"
    best.write_bytes(b"one")
    finish._begin(folder, best)
    (folder / "features").mkdir()
    finish._begin(folder, best)
    assert (folder / "features").exists()
    best.write_bytes(b"two")
    finish._begin(folder, best)
    assert not (folder / "features").exists()


# Fast R-CNN


def test_deviations_are_folded_into_the_weights_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fast_rcnn_small(num_classes=3)
    std = torch.rand(3, 4) + 0.1
    model.set_delta_statistics(torch.randn(3, 4), std)
    directory = RunDirectory(tmp_path)
    header = {"format": "pt", "vidi": "{}"}
    safetensors.torch.save_file(model.state_dict(), directory.best, header)
    image = torch.randn(1, 3, 96, 96)
    regions = torch.tensor([[0, 10.0, 10, 50, 60], [0, 0, 0, 96, 96]])
    with torch.no_grad():
        before = model.eval()(image, regions)
    made: Any = SimpleNamespace(model=model)
    assert finish.finish(directory, made, Silent()) is None
    folded = fast_rcnn_small(num_classes=3)
    folded.load_state_dict(load_file(directory.best))
    assert (folded.delta_std == 1).all() and not folded.delta_mean.any()
    with torch.no_grad():
        after = folded.eval()(image, regions)
    torch.testing.assert_close(after, before)
    with safetensors.safe_open(str(directory.best), framework="pt") as file:
        assert file.metadata() == header
    written = directory.best.stat().st_mtime_ns
    finish.finish(directory, made, Silent())
    assert directory.best.stat().st_mtime_ns == written


# The whole run, and its deaths


STAGES = ["features/0000/00000007", "fits/svm-00001", "fits/boxes-00002", "best.safetensors"]
"""Where the child dies, by the file that it was about to rename; of the best weights, the write
that finishes them."""


DATA = "scenes:detection,size=64,n=12,val=2,test=0"


@pytest.fixture
def folder(tmp_path: Path, propose: Callable[[str, Path], str]) -> Path:
    """Where the proposals lie that a run beside them is trained with."""
    propose(DATA, tmp_path / "proposals.json")
    return tmp_path


def train(run: str, die_at: str | None = None, signal_at: str | None = None) -> Any:
    """Train or go on."""
    torch.set_num_threads(1)
    replace, removed = os.replace, shutil.rmtree

    def dying(source: Any, target: Any) -> None:
        name = str(target)
        finishing = (Path(run) / "finish" / "fits" / "boxes-00002.safetensors").exists()
        if die_at and die_at in name and (finishing or "best" not in name):
            os.kill(os.getpid(), signal.SIGKILL)
        if signal_at and signal_at in name:
            os.kill(os.getpid(), signal.SIGTERM)
        replace(source, target)

    def dying_in_removal(folder: Any, **options: Any) -> None:
        if die_at == "removal" and Path(folder).name == "finish" and not options:
            os.kill(os.getpid(), signal.SIGKILL)
        removed(folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidi.engine.checkpoint.os.replace", dying)
        patch.setattr("vidi.engine.finish.shutil.rmtree", dying_in_removal)
        return vidi.train(
            DATA,
            model="rcnn_small",
            run=run,
            resume=True,
            progress=Silent(),
            epochs=2,
            batch_size=4,
            image_size=64,
            precision="fp32",
            data={"threads": 1, "proposals": f"{Path(run).parent}/proposals.json"},
            detection={"regions": 16},
            logging={"pictures": False},
        )


def obeying(run: str, stage: str) -> None:
    """Ends with 0 if the training says that it was told to end."""
    sys.exit(train(run, signal_at=stage).interrupted != signal.SIGTERM)


def dead(*args: Any, target: Any = train) -> int | None:
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=target, args=args)
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, propose: Callable[[str, Path], str]
) -> tuple[Any, dict[str, torch.Tensor]]:
    run = tmp_path_factory.mktemp("whole") / "run"
    propose(DATA, run.parent / "proposals.json")
    result = train(str(run))
    assert not (run / "finish").exists()
    return result, load_file(run / "best.safetensors")


def test_a_run_is_finished_and_says_what_it_finds(
    whole: tuple[Any, dict[str, torch.Tensor]],
) -> None:
    result, tensors = whole
    assert tensors["finished"] == 1
    assert tensors["svm.weight"].any() and tensors["boxes.weight"].any()
    # Of an array that is given the file must have the proposals, too.
    proposals = result.path.parent / "proposals.json"
    more = {"image 0": [[0, 0, 40, 40], [20, 8, 80, 64]]}
    proposals.write_text(json.dumps(json.loads(proposals.read_text()) | more))
    found = result.predict([np.zeros((64, 80, 3), np.uint8)])[0]
    assert np.isfinite(found.found.xyxy).all() and np.isfinite(found.found.scores).all()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_in_every_stage_it_comes_to_the_same_weights(
    whole: tuple[Any, dict[str, torch.Tensor]], folder: Path
) -> None:
    run = folder / "run"
    for stage in [*STAGES, "removal"]:
        assert dead(str(run), stage) == -signal.SIGKILL, stage
        unfinished = stage != "removal"
        assert bool(load_file(run / "best.safetensors")["finished"]) != unfinished
    result = train(str(run))
    assert not (run / "finish").exists()
    tensors = load_file(run / "best.safetensors")
    assert [k for k, t in whole[1].items() if not torch.equal(t, tensors[k])] == []
    assert result.metrics == pytest.approx(whole[0].metrics, nan_ok=True, abs=0)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("stage", ["features/0000/00000004", "fits/svm-00003", "fits/boxes-00003"])
def test_a_signal_is_obeyed_between_two_files(
    stage: str, whole: tuple[Any, dict[str, torch.Tensor]], folder: Path
) -> None:
    run = folder / "run"
    # In a process of its own: whatever else listens for signals here is none of this test's.
    assert dead(str(run), stage, target=obeying) == 0
    assert list((run / "finish").glob(f"{stage}*")), "what was begun is written"
    assert not load_file(run / "best.safetensors")["finished"]
    train(str(run))
    tensors = load_file(run / "best.safetensors")
    assert [k for k, t in whole[1].items() if not torch.equal(t, tensors[k])] == []
