"""Killed and resumed equals never stopped, bit for bit.

The child kills itself with SIGKILL at a chosen moment: after a step in the middle of an epoch, or
inside a save, before or between its two renames. A fork server that has imported torch already
spares each child that time.
"""

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import vidi
from tests.networks import flownet
from vidi.engine import checkpoint
from vidi.engine.run import read_metrics
from vidi.models.small_fast_rcnns import fast_rcnn_small
from vidi.models.small_faster_rcnns import faster_rcnn_small

STEPS_PER_EPOCH = 7
EPOCHS = 3


def network(num_classes: int) -> nn.Module:
    """Small, with all that holds state or draws numbers: batch statistics and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(8 * 7 * 7, num_classes),
    )


def dense(num_classes: int) -> nn.Module:
    """The same kind of thing with a class per pixel."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(8, num_classes, 1),
    )


def detector(num_classes: int) -> nn.Module:
    return fast_rcnn_small(
        num_classes,
        stem=(4, 8),
        widths=(8, 8, 8, 8),
        depths=(1, 1, 1, 1),
        merged=8,
        pooled=3,
        hidden=16,
    )


def proposing(num_classes: int) -> nn.Module:
    return faster_rcnn_small(
        num_classes,
        stem=(4, 16),
        widths=(8, 8, 8, 8),
        depths=(1, 1, 1, 1),
        merged=8,
        pooled=3,
        hidden=16,
    )


class Data:
    """32 made images of 16 px in four classes, told apart by colour."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(i)
        image = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        label = i % 4
        image[..., label % 3] += 40 * (1 + label // 3)
        return image, label


class Killer:
    """A display that kills the process after a step."""

    def __init__(self, step: int | None) -> None:
        self._step = step

    def step(self, step: int, *_: Any) -> None:
        if step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: None


TASKS: dict[str, dict[str, Any]] = {
    "classification": {
        "model": network,
        "image_size": 16,
        "augmentation": {"preset": "strong", "crop": "pad"},
        "data": {"val_fraction": 0.125},
    },
    "segmentation": {
        "model": dense,
        "image_size": 16,
        "augmentation": {"preset": "dense", "rotation": 10.0, "erasing": 0.5},
        "data": {"balance": "weights"},
        "schedule": {"half": 0.5},
    },
    "boundaries": {
        "model": dense,
        "image_size": 16,
        "augmentation": {"preset": "dense", "rotation": 10.0},
        "data": {"agree": 1},
    },
    "flow": {
        "model": flownet,
        "image_size": 16,
        "augmentation": {"preset": "flow"},
        "data": {},
    },
    "detection": {"model": detector, "image_size": 24, "detection": {"regions": 16}, "data": {}},
    "learned": {
        "model": proposing,
        "image_size": 24,
        "detection": {"regions": 16, "anchors": 32},
        "data": {},
    },
}
"""``learned`` is detection, too: the network makes the proposals."""
DETECTION = "scenes:detection,size=24,n=28,val=4,test=0"
CASES = [(task, threads) for task in TASKS for threads in (0, 1, 4)]
ALL = ("classification", "segmentation")
CASES = [(task, threads) for task, threads in CASES if task in ALL or threads == 4]
"""The loader is the same for all; two tasks try it with every number of threads."""


def train(
    task: str,
    run: str,
    threads: int,
    at_step: int | None = None,
    at_rename: int | None = None,
) -> None:
    """Train or go on; die at that step, or before that rename (counted in this process)."""
    scenes = f"scenes:{'detection' if task == 'learned' else task},size=24,n=28,val=4,test=0"
    data = Data() if task == "classification" else scenes
    settings = dict(TASKS[task])
    settings["data"] = {**settings["data"], "threads": threads}
    if task == "detection":
        settings["data"]["proposals"] = f"{Path(run).parent}/proposals.json"
    torch.set_num_threads(1)
    renames = 0
    replace = os.replace

    def dying(source: Any, target: Any) -> None:
        nonlocal renames
        if "state-" in str(target):
            renames += 1
            if renames == at_rename:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    checkpoint.os.replace = dying  # type: ignore[attr-defined]
    vidi.train(
        data,
        run=run,
        resume=True,
        progress=Killer(at_step),
        epochs=EPOCHS,
        batch_size=4,
        precision="fp32",
        regularisation={"ema": 0.9, "label_smoothing": 0.0 if task == "flow" else 0.1},
        optimiser={"accumulate": 2, "name": "sgd"},
        length={"save_every_steps": 3},
        logging={"pictures": False, "every": 1},
        **settings,
    )


def run_child(*args: Any) -> int | None:
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=train, args=args)
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


def everything(run: Path) -> dict[str, torch.Tensor]:
    """All saved tensors: the last state's and the best weights."""
    newest = max((run / "last").glob("*.safetensors"))
    state = {f"last/{k}": v for k, v in load_file(newest).items()}
    return state | {f"best/{k}": v for k, v in load_file(run / "best.safetensors").items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [k for k in a if not torch.equal(a[k], b[k])]


@pytest.fixture(scope="module", params=list(TASKS))
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def uninterrupted(
    task: str, tmp_path_factory: pytest.TempPathFactory, propose: Callable[[str, Path], str]
) -> dict[str, torch.Tensor]:
    run = tmp_path_factory.mktemp("whole") / "run"
    if task == "detection":
        propose(DETECTION, run.parent / "proposals.json")
    assert run_child(task, str(run), 0) == 0
    return everything(run)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize(("task", "threads"), CASES, indirect=["task"])
def test_killed_at_random_moments_and_resumed_is_bitwise_equal(
    tmp_path: Path,
    task: str,
    threads: int,
    uninterrupted: dict[str, torch.Tensor],
    propose: Callable[[str, Path], str],
) -> None:
    rng = random.Random(threads)
    run = tmp_path / "run"
    if task == "detection":
        propose(DETECTION, tmp_path / "proposals.json")
    kills: list[tuple[int | None, int | None]] = [
        (rng.randint(1, 6), None),  # in the first epoch, perhaps before any save
        (None, rng.randint(1, 4)),  # inside a save
        (rng.randint(10, 13), None),  # in the middle of the second epoch
        (None, rng.randint(1, 4)),
    ]
    if task == "learned":  # anchors are fitted to the boxes again, as no state holds them yet
        kills.insert(0, (1, None))
    for at_step, at_rename in kills:
        assert run_child(task, str(run), threads, at_step, at_rename) == -signal.SIGKILL
    assert run_child(task, str(run), threads) == 0
    steps = [r["step"] for r in read_metrics(run) if r["event"] == "train"]
    assert steps == list(range(1, STEPS_PER_EPOCH * EPOCHS + 1)), "every step counts once"
    assert differing(everything(run), uninterrupted) == []


@pytest.mark.parametrize("task", ["classification"], indirect=True)
def test_the_comparison_can_fail(tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    """One weight off by the smallest amount is seen."""
    other = {k: v.clone() for k, v in uninterrupted.items()}
    key = next(k for k in other if k.endswith("0.weight"))
    other[key].view(-1)[0] = torch.nextafter(other[key].view(-1)[0], torch.tensor(9.0))
    assert differing(other, uninterrupted) == [key]


def test_a_run_killed_before_its_first_save_begins_with_its_weights(tmp_path: Path) -> None:
    """What is left of it then is its description alone."""
    more: dict[str, Any] = {"model": "perceptron", "logging": {"every": 1, "pictures": False}}
    first = vidi.train("digits", run=tmp_path / "first", length={"steps": 200}, **more)
    more["weights"] = str(first.path)
    whole = vidi.train("digits", run=tmp_path / "whole", length={"steps": 5}, **more)
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copy(whole.path / "recipe.json", killed)
    again = vidi.train(run=killed, resume=True)
    losses = [
        [row["loss"] for row in run.history() if row["event"] == "train"] for run in (whole, again)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 5
    assert losses[0][0] < 1, "random weights begin at log 10"
