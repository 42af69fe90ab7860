"""The comparison of runs, against scipy's tests, on folders that no training wrote."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vidi import models
from vidi.engine.run import Description, RunDirectory
from vidi.errors import InputError
from vidi.models import count
from vidi.models.cifar_resnets import resnet20
from vidi.models.perceptrons import mlp
from vidi.recipe import Recipe, replace
from vidi.report import compare_pictures
from vidi.report.compare import Comparison, Verdict, compare
from vidi.report.pictures import BLUE, ORANGE
from vidi.types import Normalisation


def write(
    path: Path,
    val: float | None,
    *,
    seed: int = 0,
    metric: str = "accuracy",
    test: float | None = None,
    fingerprint: str = "f00d",
    finished: bool = True,
    command: str = "vidi train photos/ --epochs 3",
    rows: Sequence[dict[str, Any]] = (),
    data: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
    **fields: Any,
) -> Path:
    """A run whose best weights came to ``val`` and ``test``."""
    recipe = replace(Recipe(task="classification"), {"epochs": 3, "seed": seed, **fields})
    run = RunDirectory(path)
    told = {
        "root": "photos",
        "format": "folders",
        "fingerprint": fingerprint,
        "samples": {"train": 90, "val": 10},
        "left_out": {},
        "loss": None,
    }
    run.write_description(
        Description(
            recipe=recipe,
            classes=("cat", "dog"),
            normalisation=Normalisation((0.5,) * 3, (0.2,) * 3),
            data=told | (data or {}),
            command=command,
            versions={"torch": "2.10", **(versions or {})},
        )
    )
    metrics = {metric: val, "other": 2.0}
    for epoch, part in ((1.0, 0.5), (2.0, 1.0)):
        seen = {name: None if value is None else part * value for name, value in metrics.items()}
        run.append(
            event="evaluation",
            step=int(9 * epoch),
            epoch=epoch,
            split="val",
            train_loss=2 - epoch,
            metrics=seen,
        )
    for row in rows:
        run.append(**row)
    if finished:
        body = {"val": {"samples": 10, "metrics": metrics}}
        if test is not None:
            body["test"] = {"samples": 10, "metrics": {metric: test}}
        run.write_evaluation(body)
        run.append(event="end", step=18, epoch=2.0, images_per_second=100.0, metrics=metrics)
    return path


def family(
    folder: Path, name: str, values: Sequence[float], *, split_by_seed: bool = False, **fields: Any
) -> list[Path]:
    """Runs of seeds 0, 1 …"""
    return [
        write(
            folder / f"{name}-{seed}",
            value,
            seed=seed,
            fingerprint=f"f{seed}" if split_by_seed else "f00d",
            **fields,
        )
        for seed, value in enumerate(values)
    ]


def told(found: Comparison, metric: str = "accuracy", split: str = "val") -> Verdict:
    (one,) = [v for v in found.verdicts if (v.metric, v.split) == (metric, split)]
    return one


@pytest.mark.parametrize("draw", range(6))
@pytest.mark.parametrize("by_seed", [False, True], ids=["Welch", "paired"])
def test_it_is_scipys_test(draw: int, by_seed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(draw)
    n, m = (4, 4) if by_seed else (rng.integers(2, 6), rng.integers(2, 6))
    x, y = rng.normal(0.8, 0.02, n), rng.normal(0.83, 0.01, m)
    found = compare(
        family(tmp_path, "a", x.tolist(), split_by_seed=by_seed)
        + family(tmp_path, "b", y.tolist(), split_by_seed=by_seed, lr=0.1)
    )
    one = told(found)
    expected: Any = scipy.stats.ttest_rel(y, x) if by_seed else None
    if not by_seed:
        expected = scipy.stats.ttest_ind(y, x, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert one.method == ("paired" if by_seed else "Welch")
    assert one.difference == pytest.approx(y.mean() - x.mean())
    assert one.interval == pytest.approx((interval.low, interval.high))
    assert one.p == pytest.approx(expected.pvalue)
    assert one.beyond == (expected.pvalue < 0.05)
    spread = found.spreads["val", "accuracy"]["A"]
    assert spread == pytest.approx((x.mean(), x.std(ddof=1), n))


def test_seeds_are_paired_only_where_they_and_their_splits_are_the_same(tmp_path: Path) -> None:
    a = family(tmp_path, "a", [0.80, 0.83, 0.81], split_by_seed=True)
    b = family(tmp_path, "b", [0.84, 0.85, 0.88, 0.86], split_by_seed=True, lr=0.1)
    assert told(compare([*a, *b[:3]])).method == "paired"
    assert told(compare([*a, *b])).method == "Welch", "one seed more"
    other = [
        write(tmp_path / f"c-{seed}", 0.9 + 0.01 * seed, seed=seed, fingerprint=f"c{seed}", lr=0.2)
        for seed in range(3)
    ]
    assert told(compare([*a, *other])).method == "Welch", "other samples held out"


def test_what_is_beyond_the_spread_is_said(tmp_path: Path) -> None:
    found = compare(
        family(tmp_path, "a", [0.80, 0.81, 0.82]) + family(tmp_path, "b", [0.90, 0.91, 0.92], lr=1)
    )
    assert told(found).better == "B"
    assert found.sentences == [
        "val accuracy: B is better than A by 0.1000 (95 % interval 0.0773 to 0.1227; Welch's t, "
        "3 and 3 seeds)."
    ]
    near = compare([tmp_path / "a-0", tmp_path / "a-1", *family(tmp_path, "c", [0.7, 0.9], lr=2)])
    assert told(near).beyond is False and told(near).better is None
    assert "no difference beyond the seeds' spread" in near.sentences[0]


def test_the_order_of_runs_is_the_sign_alone(tmp_path: Path) -> None:
    runs = family(tmp_path, "a", [0.80, 0.81, 0.83]) + family(tmp_path, "b", [0.9, 0.93], lr=1)
    one, other = told(compare(runs)), told(compare(runs[::-1]))
    assert (one.a, other.a) == ("A", "A")
    assert other.difference == pytest.approx(-one.difference)
    assert other.interval is not None and one.interval is not None
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert one.p == pytest.approx(other.p) and (one.better, other.better) == ("B", "A")
    tail = [said.partition("by")[2] for said in (one.sentence, other.sentence)]
    assert tail[0].partition(";")[0] == tail[1].partition(";")[0]


def test_lower_is_better_where_the_task_says_so(tmp_path: Path) -> None:
    runs = family(tmp_path, "a", [2.0, 2.1, 2.2], task="flow", metric="epe")
    runs += family(tmp_path, "b", [1.0, 1.1, 1.2], task="flow", metric="epe", lr=1)
    found = compare(runs)
    assert found.lower_is_better and told(found, "epe").better == "B"
    assert "B is better than A by 1.0000" in found.sentences[0]
    other = told(found, "other")
    assert other.better is None and other not in [v for v in found.verdicts if v.metric == "epe"]


def test_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    """A copy adds no seed: the spread of one is none."""
    write(tmp_path / "a", 0.8)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    found = compare([tmp_path / "a", tmp_path / "copy"])
    assert len(found.groups) == 1 and not found.differences and not found.verdicts
    assert found.spreads["val", "accuracy"]["A"] == (0.8, None, 1)
    assert "the seed too, and the same metrics" in found.notes[0]
    assert not found.commands
    run = RunDirectory(tmp_path / "copy")
    run.write_evaluation({"val": {"samples": 10, "metrics": {"accuracy": 0.9}}})
    repeated = compare([tmp_path / "a", tmp_path / "copy"])
    assert repeated.spreads["val", "accuracy"]["A"] == (0.8, None, 1), "the first one counts"
    assert "the seed too, but other metrics" in repeated.notes[0]


def test_only_the_seed_and_what_changes_no_result_leave_a_group_whole(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 0.8)
    runs = {
        "seed": write(tmp_path / "b", 0.8, seed=3),
        "pictures": write(tmp_path / "c", 0.8, seed=4, logging={"pictures": False}),
        "threads": write(tmp_path / "d", 0.8, seed=5, data={}, device="cpu"),
    }
    assert len(compare([a, *runs.values()]).groups) == 1
    changes: dict[str, Any] = {"lr": 0.5, "epochs": 5, "optimiser.momentum": 0.5, "probe": True}
    for name, value in changes.items():
        found = compare([a, write(tmp_path / name, 0.8, seed=1, **{name: value})])
        assert len(found.groups) == 2
        assert [d.name for d in found.differences] == [name]
        assert set(found.differences[0].values) == {"A", "B"}


def test_data_and_versions_that_differ(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 0.8)
    b = write(tmp_path / "b", 0.8, data={"left_out": {"x.jpg": "cut off"}}, versions={"torch": "3"})
    c = write(tmp_path / "c", 0.8, fingerprint="beef")
    found = compare([a, b, c])
    assert len(found.groups) == 3
    assert [(d.kind, d.name, *d.values.values()) for d in found.differences] == [
        ("data", "fingerprint", "f00d", "f00d", "beef"),
        ("data", "left out", "0", "1", "0"),
        ("versions", "torch", "2.10", "3", "2.10"),
    ]
    own = write(tmp_path / "own", 0.8, seed=1, data={"loss": "my.loss"})
    found = compare([a, own])
    assert [(d.kind, d.name, *d.values.values()) for d in found.differences] == [
        ("network", "loss", "the task's", "my.loss")
    ]
    assert len(found.groups) == 2
    many = compare(
        family(tmp_path, "x", [0.1, 0.2, 0.3], split_by_seed=True)
        + family(tmp_path, "y", [0.1, 0.2, 0.3], split_by_seed=True, lr=1)
    )
    assert [d.name for d in many.differences] == ["lr"], "the split is the seed's part"


def test_one_seed_each_says_nothing_and_names_the_command(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 0.8, command="vidi train 'my photos' --seed 0 --run a --lr=0.1")
    b = write(tmp_path / "b", 0.9, lr=1, command="script.py --x")
    found = compare([a, b])
    one = told(found)
    assert (one.method, one.interval, one.beyond, one.better) == (None, None, None, None)
    assert "with one seed each nothing can be said" in one.sentence
    words = shlex.split(found.commands[0])
    assert words == [
        *("vidi", "train", "my photos", "--lr=0.1", "--seed", "1", "--run", f"{a}-seed1")
    ]
    assert found.commands[1] == f"vidi.train(…, seed=1, run='{b}-seed1')"
    more = compare([a, write(tmp_path / "a2", 0.8, seed=1), b])
    assert told(more).beyond is None and len(more.commands) == 1
    assert "with one seed of B nothing can be said" in told(more).sentence


def test_seeds_without_any_spread_prove_nothing(tmp_path: Path) -> None:
    """Few validation images give equal figures, of which a test would be sure."""
    runs = family(tmp_path, "a", [0.8, 0.8]) + family(tmp_path, "b", [0.9, 0.9], lr=1)
    one = told(compare(runs))
    assert one.beyond is None and "no spread to measure" in one.sentence
    half = told(compare(runs[:2] + family(tmp_path, "c", [0.9, 0.92, 0.91], lr=2)))
    expected: Any = scipy.stats.ttest_ind([0.9, 0.92, 0.91], [0.8, 0.8 + 1e-9], equal_var=False)
    assert half.p == pytest.approx(expected.pvalue, rel=1e-4)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"event": "train", "step": 30}, "it is at step 30, still training or killed"),
        ({"event": "interrupted", "step": 25, "signal": 15}, "interrupted at step 25"),
        ({"event": "stopped", "step": 20, "why": "The loss is NaN."}, "The loss is NaN"),
    ],
)
def test_unfinished_runs_are_in_no_mean(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    runs = family(tmp_path, "a", [0.8, 0.82])
    stopped = write(tmp_path / "stopped", 0.99, seed=7, finished=False, rows=[row])
    found = compare([*runs, stopped])
    assert len(found.groups) == 1
    assert found.spreads["val", "accuracy"]["A"].seeds == 2
    assert said in found.notes[0] and "best val accuracy is 0.9900" in found.notes[0]
    assert found.as_json()["runs"][2]["metrics"] == {"val": {"accuracy": 0.99, "other": 2.0}}


def test_a_run_without_a_row_yet(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0.8), write(tmp_path / "b", 0.8, finished=False)
    (b / "metrics.jsonl").unlink()
    assert "nothing is recorded" in compare([a, b]).notes[0]


def test_a_metric_without_a_value(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a", 0.8), write(tmp_path / "b", None, lr=1)]
    found = compare(runs)
    assert set(found.spreads["val", "accuracy"]) == {"A"}
    assert [v.metric for v in found.verdicts] == ["other"]
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "two runs or more; none"),
        (["a"], "two runs or more; one"),
        (["a", "a/../a"], "named twice"),
        (["a", "nowhere"], "is no run"),
        (["a", "flow"], "cannot be compared"),
    ],
)
def test_wrong_runs(runs: list[str], said: str, tmp_path: Path) -> None:
    write(tmp_path / "a", 0.8)
    write(tmp_path / "flow", 0.8, metric="epe", task="flow")
    with pytest.raises(InputError, match=said):
        compare([tmp_path / name for name in runs])


def test_parameters_are_counted_in_the_file(tmp_path: Path) -> None:
    """The buffers, also detectors', are none."""
    networks: dict[str, nn.Module] = {"resnet20": resnet20(2), "mlp": mlp(2, 8)}
    for name in ("rcnn_small", "fast_rcnn_small", "faster_rcnn_small"):
        networks[name] = models.find(name)(num_classes=2)
    runs = []
    for name, network in networks.items():
        runs.append(write(tmp_path / name, 0.8, model=name))
        tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
        save_file(tensors, runs[-1] / "best.safetensors")
    found = compare(runs)
    for run, network in zip(found.runs, networks.values(), strict=True):
        assert run.parameters == count.parameters(network)
    assert [d.name for d in found.differences] == ["model", "parameters"]


def test_many_pairs_come_with_a_warning(tmp_path: Path) -> None:
    runs = [r for k in range(3) for r in family(tmp_path, f"g{k}", [0.8, 0.9], lr=float(k + 1))]
    found = compare(runs)
    assert len(found.sentences) == 3 and "one comparison in twenty" in found.notes[-1]
    found = compare([*runs, write(tmp_path / "x", 0.8, lr=5), write(tmp_path / "y", 0.8, lr=6)])
    assert len(found.sentences) == 4 and found.sentences[-1].startswith("With one seed of D and E")


def test_the_picture(tmp_path: Path) -> None:
    """Both groups' colours are in it, also where a run is not finished or has no training loss."""
    runs = family(tmp_path, "a", [0.8, 0.82]) + family(tmp_path, "b", [0.9, 0.91], lr=1)
    runs.append(write(tmp_path / "c", 0.5, seed=9, lr=1, finished=False))
    compare_pictures.curves(compare(runs), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as opened:
        pixels = np.asarray(opened.convert("RGB"), np.float64)
    for colour in (BLUE, ORANGE):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - rgb).max(2) < 40).sum() > 300


def test_a_run_without_weights_yet_is_in_its_group(tmp_path: Path) -> None:
    a, b = family(tmp_path, "a", [0.8, 0.82])
    save_file({"weight": torch.zeros(3, 4)}, a / "best.safetensors")
    for runs in ([a, b], [b, a]):
        found = compare(runs)
        assert len(found.groups) == 1 and not found.differences
    other = write(tmp_path / "c", 0.8, seed=2)
    save_file({"weight": torch.zeros(3, 5)}, other / "best.safetensors")
    found = compare([b, other, a, write(tmp_path / "d", 0.8, lr=1)])
    assert [[run.name for run in group.runs] for group in found.groups] == [
        *(["a-1", "c"], ["a-0"], ["d"])
    ], "networks of one name that have changed; what is not known goes with the first"
    (row,) = [one for one in found.differences if one.name == "parameters"]
    assert row.values == {"A": "15", "B": "12", "C": "not known yet"}


def test_rates_that_were_found_are_the_seeds_part(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": {"asked": {"lr": "find"}}}
    runs = [write(tmp_path / f"a{k}", 0.8, seed=k, lr=0.01 * (k + 1), **asked) for k in range(3)]
    assert len(compare(runs).groups) == 1
    given = write(tmp_path / "given", 0.8, seed=3, lr=0.01)
    other = write(tmp_path / "other", 0.8, lr=0.5, model="vgg11", **asked)
    found = compare([*runs, given, other])
    assert [len(group.runs) for group in found.groups] == [3, 1, 1]
    row = next(one for one in found.differences if one.name == "lr")
    assert row.values == {"A": "0.01 to 0.03 (found)", "B": "0.01", "C": "0.5 (found)"}


def test_seeds_that_were_trained_in_another_precision(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 0.8, precision="fp32")
    b = write(tmp_path / "b", 0.8, seed=1, precision="bf16")
    found = compare([a, b, write(tmp_path / "c", 0.8, lr=1, precision="bf16")])
    (note,) = found.notes
    assert note.startswith("A and B differ in precision alone (fp32, bf16), which auto chooses")


@pytest.mark.parametrize(
    "before", [{"event": "interrupted", "step": 9}, {"event": "stopped", "step": 9, "why": "NaN"}]
)
def test_what_ended_a_run_before_it_was_resumed_is_past(
    before: dict[str, Any], tmp_path: Path
) -> None:
    rows = [before, {"event": "resume", "step": 9}, {"event": "train", "step": 12}]
    runs = [write(tmp_path / "a", 0.8), write(tmp_path / "b", 0.8, finished=False, rows=rows)]
    assert "it is at step 12, still training" in compare(runs).notes[0]


@pytest.mark.parametrize("made", [{"members": [{"run": "a"}]}, {"svd": {"fc6": 4}}])
def test_no_command_trains_what_was_made_of_runs(made: dict[str, Any], tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0.8), write(tmp_path / "b", 0.9, data=made)
    assert shlex.split(compare([a, b]).commands[0])[-1] == f"{a}-seed1"
    assert len(compare([a, b]).commands) == 1


@pytest.mark.parametrize(
    ("command", "fields", "length"),
    [
        ("vidi train x/ --epochs 3", {"epochs": 4.0}, ["--epochs", "4"]),
        ("vidi train x/ --epochs=3", {"epochs": 0.25}, ["--epochs", "0.25"]),
        ("vidi train x/", {"epochs": 60}, ["--epochs", "60"]),
        ("vidi train x/ --epochs 3", {"length.steps": 3_000_000}, ["--length.steps", "3000000"]),
        ("vidi train x/ --length.steps 9", {"length.minutes": 1.5}, ["--length.minutes", "1.5"]),
    ],
)
def test_the_length_is_that_of_the_last_command(
    command: str, fields: dict[str, Any], length: list[str], tmp_path: Path
) -> None:
    resumed = [{"event": "resume", "step": 9}]
    a = write(tmp_path / "a", 0.8, command=command, rows=resumed, **fields)
    found = compare([a, write(tmp_path / "b", 0.9, lr=1)])
    assert shlex.split(found.commands[0]) == [
        *("vidi", "train", "x/", *length, "--seed", "1", "--run", f"{a}-seed1")
    ]
