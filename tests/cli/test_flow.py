"""Flow from the command line: train, evaluate, predict pairs, folders and videos, score files."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy.ndimage import map_coordinates

import vidi
from vidi.data.dataset import Dataset
from vidi.data.flowfiles import read_flo, read_kitti, write_flo
from vidi.data.formats import flow_folders, flying_chairs
from vidi.data.open import open_data
from vidi.engine import evaluate, streams
from vidi.engine.flow_fields import FlowField
from vidi.types import Array

Ask = Callable[..., tuple[int, str, str]]
Page = Callable[[str], list[tuple[str, str]]]
SCENES = "scenes:flow,size=64,n=8,val=2,test=2"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("flow") / "run"
    vidi.train(SCENES, run=folder, batch_size=4, length={"steps": 2}, data={"cache": "off"})
    return folder


def save(pixels: Array, path: Path) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def texture(seed: int, h: int = 50, w: int = 70) -> Array:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC))


def scenes(n: int, size: int, val: int = 0) -> Dataset:
    return open_data(f"scenes:flow,size={size},n={n},val={val},test=0", carve_val=False)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Four frames of a picture that moves to the right, by 2 pixels each."""
    folder = tmp_path / "frames"
    folder.mkdir()
    whole = texture(1, w=90)
    for k in range(4):
        save(whole[:, 10 - 2 * k : 80 - 2 * k], folder / f"shot_{k + 8}.png")
    return folder


@pytest.fixture(scope="module")
def motorcycle() -> tuple[Array, Array, Array]:
    """Left and right photograph, and the left one's flow to the right one, NaN where not known
    (Scharstein et al. 2014, in scikit-image's package): 500 x 741."""
    left, right, disparity = skimage.data.stereo_motorcycle()
    disparity = np.where(np.isfinite(disparity), disparity, np.nan)
    return left, right, np.stack([-disparity, 0 * disparity], 2).astype(np.float32)


def test_training_leaves_pictures_and_the_score(ask: Ask, run: Path) -> None:
    for name in ("curves.png", "predictions.png", "evaluation.json", "best.safetensors"):
        assert (run / name).is_file(), name
    recipe = json.loads((run / "recipe.json").read_text())["recipe"]
    assert recipe["model"] == "flownet_small"
    assert recipe["image_size"] == 64
    assert recipe["augmentation"]["preset"] == "flow"
    code, out, err = ask("eval", run, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["split"] == "test" and said["samples"] == 2
    assert {"epe", "fl", "epe_zero"} <= set(said["metrics"])
    test = open_data(SCENES, task="flow")
    sizes = [np.hypot(*np.moveaxis(np.asarray(s.flow), 2, 0)) for s in test.split("test")]
    assert said["metrics"]["epe_zero"] == pytest.approx(float(np.mean(sizes)), rel=1e-4)


def test_a_pair_of_photographs(
    ask: Ask, run: Path, motorcycle: tuple[Array, Array, Array], tmp_path: Path
) -> None:
    """The files agree with one another, and with scipy on what they mean."""
    left, right, _ = motorcycle
    first, second = save(left, tmp_path / "left.png"), save(right, tmp_path / "right.png")
    out_folder = tmp_path / "out"
    code, out, err = ask("predict", run, "--pair", first, second, "--out", out_folder, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (said["path"], said["path2"]) == (str(first), str(second))
    assert sorted(p.name for p in out_folder.iterdir()) == [
        "left-flow.png",
        "left-kitti.png",
        "left-warped.png",
        "left.flo",
        "predict.json",
        "predictions.jsonl",
    ]
    flow, valid = read_flo(said["flo"])
    assert flow.shape == (500, 741, 2)
    assert valid.all() and np.isfinite(flow).all()
    kitti, known = read_kitti(said["kitti"])
    assert np.array_equal(known, (np.abs(flow) < 511).all(2)), "farther it cannot say"
    assert np.abs(kitti - flow)[known].max() <= 1 / 128
    with Image.open(said["picture"]) as picture:
        assert picture.size == (741 + 96, 500)
    y, x = np.mgrid[:500, :741]
    to = [y + flow[..., 1].astype(float), x + flow[..., 0].astype(float)]
    inside = (to[0] >= -0.5) & (to[0] <= 499.5) & (to[1] >= -0.5) & (to[1] <= 740.5)
    seen = np.stack(
        [
            map_coordinates(right[..., c].astype(float), to, order=1, mode="nearest")
            for c in range(3)
        ],
        2,
    )
    with Image.open(said["warped"]) as picture:
        warped = np.asarray(picture).astype(float)
    assert np.abs(warped - seen)[inside].max() < 0.6
    assert (warped[~inside] == 0).all()
    apart = np.abs(seen - left)[inside].mean()
    assert said["photometric_error"] == pytest.approx(apart, abs=1e-2)
    still = np.abs(right.astype(float) - left)[inside].mean()
    assert said["photometric_error_zero"] == pytest.approx(still, abs=1e-2)


def test_the_true_flow_of_photographs_brings_the_second_frame_back(
    motorcycle: tuple[Array, Array, Array],
) -> None:
    left, right, flow = motorcycle
    known = np.isfinite(flow).all(2)
    field = FlowField("left", "right", left, right, np.where(known[..., None], flow, 0))
    apart = np.abs(field.warped.astype(float) - left)[known & (field.warped > 0).any(2)]
    still = np.abs(right.astype(float) - left)[known]
    assert np.median(apart) < 0.35 * np.median(still)
    opposite = FlowField("left", "right", left, right, -field.flow)
    assert field.photometric_error < opposite.photometric_error


def test_photographs_with_their_truth_are_evaluated(
    ask: Ask, run: Path, motorcycle: tuple[Array, Array, Array], tmp_path: Path
) -> None:
    left, right, flow = motorcycle
    data = tmp_path / "data"
    data.mkdir()
    save(left, data / "frame_0001.png")
    save(right, data / "frame_0002.png")
    known = np.isfinite(flow).all(2)
    write_flo(data / "frame_0001.flo", flow, known)
    code, out, err = ask("eval", run, data, "--split", "train", "--json")
    assert code == 0, err
    metrics = json.loads(out)["metrics"]
    assert metrics["epe_zero"] == pytest.approx(float(-flow[known][:, 0].mean()), rel=1e-4)
    assert np.isfinite(metrics["epe"])
    assert 0 <= metrics["fl"] <= 1


def test_a_folder_and_a_video(ask: Ask, run: Path, frames: Path, tmp_path: Path) -> None:
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (70, 50))
    for name in ("8", "9", "10", "11"):
        picture = cv2.imread(str(frames / f"shot_{name}.png"))
        assert picture is not None
        writer.write(picture)
    writer.release()
    code, out, err = ask("predict", run, frames, video, "--out", tmp_path / "out")
    assert code == 0, err
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.flo")) == [
        "clip-000001", "clip-000002", "clip-000003", "shot_10", "shot_8", "shot_9",
    ]  # fmt: skip
    lines = out.splitlines()
    assert len(lines) == 6
    assert "shot_8.png → shot_9.png: photometric error" in lines[0]
    assert "clip.avi frame 3 → clip.avi frame 4" in lines[5]
    one, two = (read_flo(str(tmp_path / f"out/{n}.flo"))[0] for n in ("shot_8", "clip-000001"))
    assert one.shape == two.shape == (50, 70, 2)


def test_python_takes_pairs_of_arrays_and_paths(run: Path, frames: Path) -> None:
    model = vidi.load(run)
    paths = frames / "shot_8.png", frames / "shot_9.png"
    arrays = tuple(np.asarray(Image.open(path)) for path in paths)
    by_path = model.predict([paths])[0]
    by_array = model.predict([arrays])[0]
    assert np.array_equal(by_path.flow, by_array.flow)
    assert by_path.path2 == str(paths[1])
    with pytest.raises(vidi.InputError, match="pairs"):
        model.predict([paths[0]])


def one_frame(folder: Path) -> None:
    for name in ("9", "10", "11"):
        (folder / f"shot_{name}.png").unlink()


def none(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def twice(folder: Path) -> None:
    shutil.copy(folder / "shot_8.png", folder / "shot_8.bmp")


def apart(folder: Path) -> None:
    one_frame(folder)
    shutil.copy(folder / "shot_8.png", folder / "cover.png")


def padded(folder: Path) -> None:
    shutil.copy(folder / "shot_8.png", folder / "shot_08.png")


def image(folder: Path) -> None:
    shutil.rmtree(folder)
    save(texture(0), folder.with_suffix(".png")).rename(folder.parent / "x.png")
    (folder.parent / "x.png").rename(folder)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (one_frame, "holds 1 frame; flow needs a frame and the next one"),
        (none, "holds no frames; flow needs"),
        (twice, "two frames called shot_8"),
        (apart, "holds 2 frames, no two of one numbered sequence; flow needs"),
        (padded, "the frames shot_08 and shot_8 have the same number"),
        (image, "has one frame, and flow needs two"),
    ],
)
def test_sources_without_a_pair_get_a_sentence(
    ask: Ask, run: Path, frames: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(frames)
    code, _, err = ask("predict", run, frames, "--out", tmp_path / "out")
    assert code == 2
    assert sentence in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_a_gap_and_frames_of_other_sizes(ask: Ask, run: Path, frames: Path, tmp_path: Path) -> None:
    shutil.copy(frames / "shot_11.png", frames / "shot_13.png")
    save(texture(3, h=20), frames / "shot_10.png")
    code, out, err = ask("predict", run, frames, "--out", tmp_path / "out")
    assert code == 1
    said = " ".join(err.split())
    assert "the frame after shot_11 is missing" in said
    assert "shot_9.png is 70 × 50 pixels, and the frame after it 70 × 20" in said
    assert "2 could not be read; 1 pairs were predicted" in said
    assert len(out.splitlines()) == 1


def test_a_folder_that_may_not_be_read(
    ask: Ask, run: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is a sentence, and the other folder's pairs are predicted."""
    locked = tmp_path / "locked"
    locked.mkdir()
    own = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder == locked:
            raise PermissionError(13, "Permission denied")
        return own(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    code, out, err = ask("predict", run, locked, frames, "--out", tmp_path / "out")
    assert code == 1
    assert f"{locked} may not be read by this user" in " ".join(err.split())
    assert len(out.splitlines()) == 3


def test_large_pairs_go_alone(run: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vidi.load(run)
    sizes: list[int] = []
    own = evaluate.answers

    def answers(network: Any, task: Any, batch: Any, compute: Any, **views: Any) -> list[Any]:
        sizes.append(len(batch))
        return own(network, task, batch, compute, **views)

    monkeypatch.setattr(streams, "answers", answers)
    paths = [str(frames / f"shot_{k}.png") for k in range(8, 12)]
    pairs = list(itertools.pairwise(paths))
    together = list(model.stream(pairs))
    monkeypatch.setattr(streams, "EVALUATED_PIXELS", 50 * 70 - 1)
    alone = list(model.stream(pairs))
    assert sizes == [3, 1, 1, 1]
    for one, other in zip(together, alone, strict=True):
        assert (one.path, one.path2) == (other.path, other.path2)
        np.testing.assert_allclose(one.flow, other.flow, atol=1e-3)


def test_nothing_is_overwritten(ask: Ask, run: Path, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    code, _, err = ask("predict", run, frames, "--out", out)
    assert code == 2
    assert "is not empty" in err
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "There is nothing to predict"),
        (("--pair", "frames/none.png", "frames/shot_8.png"), "frames/none.png"),
        (("frames/shot_8.png",), "is one image; flow needs two"),
        (("nowhere",), "There is no file or folder at nowhere"),
        (("frames", "--heatmap"), "are for other tasks"),
        (("frames", "--scales", 0.5, 1), "--scales is for segmentation and boundaries"),
    ],
)
def test_words_that_do_not_fit(
    ask: Ask,
    run: Path,
    frames: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(frames.parent)
    code, _, err = ask("predict", run, *words)
    assert code == 2
    assert sentence in " ".join(err.split())


def test_predictions_in_files_are_scored_as_the_run_itself(
    ask: Ask, run: Path, tmp_path: Path
) -> None:
    """By their names, exactly, from .flo; and from KITTI's PNG to its 1/64 pixel."""
    chairs = tmp_path / "chairs"
    chairs.mkdir()
    flying_chairs.write(scenes(n=3, size=48), chairs)
    code, out, err = ask("eval", run, chairs, "--split", "train", "--json")
    assert code == 0, err
    expected = json.loads(out)["metrics"]
    made = tmp_path / "made"
    assert ask("predict", run, chairs / "data", "--out", made)[0] == 0
    code, out, err = ask("eval", "--predictions", made, chairs, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["samples"] == 3
    assert said["metrics"] == pytest.approx(expected, rel=1e-6)

    (tmp_path / "kitti").mkdir()
    for path in made.glob("*-kitti.png"):
        shutil.copy(path, tmp_path / "kitti" / path.name.replace("-kitti", ""))
    code, out, err = ask("eval", "--predictions", tmp_path / "kitti", chairs, "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["epe"] == pytest.approx(expected["epe"], abs=0.02)

    first = next(made.glob("*.flo"))
    flow = read_flo(str(first))[0]
    for spoiled, sentence in (
        (flow[:-1], "48 × 47 pixels, and its pair 48 × 48"),
        (np.full_like(flow, np.nan), "not finite"),
        (np.full_like(flow, 1e10), "pixels as not known"),
    ):
        write_flo(first, spoiled)
        code, _, err = ask("eval", "--predictions", made, chairs)
        assert code == 2
        assert sentence in " ".join(err.split())
    first.unlink()
    code, _, err = ask("eval", "--predictions", made, chairs)
    assert code == 2
    assert "no prediction for 1 of the 3 pairs" in " ".join(err.split())


def test_one_file_is_not_taken_for_several_pairs(ask: Ask, tmp_path: Path) -> None:
    data = tmp_path / "data"
    flow_folders.write(scenes(n=2, size=16), data)
    made = tmp_path / "made"
    places = sorted(p.parent for p in data.rglob("*.flo"))
    for place in places:
        (made / place.name).mkdir(parents=True)
        shutil.copy(place / "frame_0001.flo", made / place.name)
    code, out, err = ask("eval", "--predictions", made, data, "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["epe"] == 0, "folders tell them apart"
    shutil.copy(places[0] / "frame_0001.flo", made)
    for place in places:
        shutil.rmtree(made / place.name)
    code, _, err = ask("eval", "--predictions", made, data)
    assert code == 2
    assert "the same name in different folders" in " ".join(err.split())


def nan(folder: Path) -> None:
    write_flo(next(folder.rglob("*.flo")), np.full((16, 16, 2), np.nan, np.float32))


def other_size(folder: Path) -> None:
    save(texture(0, 9, 11), next(folder.rglob("frame_0002.png")))


def no_successor(folder: Path) -> None:
    next(folder.rglob("frame_0002.png")).unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (nan, "the flow is (nan, nan) at x = 0, y = 0"),
        (other_size, "Both frames of a pair have one size"),
        (no_successor, "1 files of flow lack a frame"),
    ],
)
def test_training_says_what_is_wrong_with_the_data(
    ask: Ask, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    data = tmp_path / "data"
    flow_folders.write(scenes(n=3, size=16, val=1), data)
    spoil(data)
    code, _, err = ask("train", data, "--run", tmp_path / "run", "--length.steps", 1)
    assert code == 2
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("data", "words", "sentence"),
    [
        (SCENES, ("--augmentation.crop", "pad"), "preset flow (or none)"),
        (SCENES, ("--augmentation.preset", "photos"), "preset flow (or none)"),
        ("digits", ("--augmentation.preset", "flow"), "for pairs of frames"),
        ("digits", ("--augmentation.pair-shift", 0.1), "--augmentation.pair-shift is for pairs"),
    ],
)
def test_settings_of_other_tasks(
    ask: Ask, tmp_path: Path, data: str, words: tuple[Any, ...], sentence: str
) -> None:
    code, _, err = ask("train", data, "--run", tmp_path / "run", *words)
    assert code == 2
    assert sentence in " ".join(err.split())


def test_the_pages_commands_work(
    run_page: Page, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(frames.parent)
    shutil.copy(frames / "shot_8.png", "a.png")
    shutil.copy(frames / "shot_9.png", "b.png")
    assert len(run_page("flow")) == 6
    assert len(list(Path("frames-motion").iterdir())) == 12 + 2
    assert read_flo("motion/a.flo")[0].shape == (50, 70, 2)


def test_chairs_as_they_come(ask: Ask, run: Path, real_data: Path) -> None:
    chairs = real_data / "flow" / "FlyingChairs_release"
    code, out, err = ask("eval", run, chairs, "--split", "train", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["samples"] >= 7
    assert 5 < said["metrics"]["epe_zero"] < 30
