"""The commands that a finding names: what `vidi train` makes of them is the run, but for what is to
be changed."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vidi.doctor import Records
from vidi.engine.run import Description
from vidi.recipe import Length, Logging, Optimiser, Recipe, Regularisation, Schedule
from vidi.types import Normalisation


def recipe(**changes: Any) -> Recipe:
    optimiser = Optimiser(name="sgd", momentum=0.9, nesterov=True, weight_decay=1e-4)
    plain = Recipe(model="nets:build", batch_size=64, lr=0.1, optimiser=optimiser, image_size=8)
    return replace(plain, **changes)


def records(told: Recipe, *, command: str = "", path: Path = Path("runs/a")) -> Records:
    said = Description(
        recipe=told,
        classes=("a", "b"),
        normalisation=Normalisation((0.3, 0.3, 0.3), (0.4, 0.4, 0.4)),
        data={"root": "digits", "task": "classification", "loss": None},
        command=command or "vidi train digits --model nets:build --lr 0.1 --run runs/a",
    )
    return Records(path=path, description=said)


@pytest.mark.parametrize(
    ("command", "changes", "expected"),
    [
        (
            "vidi train digits --lr 0.1 --model mlp --run runs/a",
            "--lr 0.01",
            "vidi train digits --model mlp --lr 0.01 --run runs/a-lr-0.01",
        ),
        (
            "vidi train --run=runs/a 'my photos' --json --optimiser.name sgd",
            "--optimiser.momentum 0.9",
            "vidi train 'my photos' --optimiser.name sgd --optimiser.momentum 0.9 "
            "--run runs/a-momentum-0.9",
        ),
        (
            "vidi train digits --length.steps 9 --length.minutes=2 --logging.no-vitals --model mlp",
            "--epochs 8",
            "vidi train digits --logging.no-vitals --model mlp --epochs 8 --run runs/a-epochs-8",
        ),
        (
            "vidi train --optimiser.decay_biases_and_norms digits",
            "--optimiser.no-decay-biases-and-norms",
            "vidi train digits --optimiser.no-decay-biases-and-norms "
            "--run runs/a-no-decay-biases-and-norms",
        ),
        (
            "script.py",
            "--lr 0.01",
            "vidi train digits --model nets:build --batch-size 64 --image-size 8 "
            "--optimiser.name sgd --lr 0.01 --run runs/a-lr-0.01",
        ),
    ],
)
def test_the_command_that_trains_again(command: str, changes: str, expected: str) -> None:
    assert records(recipe(), command=command).again(changes) == expected


def test_a_run_from_python_is_written_out_as_flags() -> None:
    """Read as the command line reads them, they are the run's values."""
    from vidi.cli.arguments import parse
    from vidi.cli.train import Train

    told = recipe(
        seed=3,
        freeze=("conv1", "conv2"),
        epochs=4.0,
        bad_images="skip",
        precision="bf16",
        optimiser=Optimiser(
            name="adamw", clip=0.125, rates=(("fc", 0.5), ("conv1", 2.0)), sum_pixels=True
        ),
        regularisation=Regularisation(dropout=0.3),
        schedule=Schedule(milestones=(0.25, 0.5, 0.875)),
        length=Length(steps=70, minutes=2.0, patience=4),
        logging=Logging(pictures=False),
    )
    from_python = records(told, command="script.py")
    command = from_python.again("--optimiser.momentum 0.9")
    assert command is not None
    found = parse(Train, shlex.split(command)[2:], prog="vidi train")
    assert (found.data, found.run) == ("digits", "runs/a-momentum-0.9")
    expected = replace(
        told,
        lr="auto",
        epochs="auto",  # steps go before it
        optimiser=replace(told.optimiser, momentum=0.9, nesterov="auto", weight_decay="auto"),
        length=Length(steps=70, patience=4),
        logging=Logging(),
    )
    assert found.settings == expected
    longer = from_python.again("--epochs 8")
    assert longer is not None and "--length" not in longer.replace("--length.patience", "")


def test_no_command_names_a_folder_that_is_there_or_another_s(tmp_path: Path) -> None:
    run = records(recipe(), path=tmp_path / "my run")

    def folder(changes: str) -> str:
        command = run.again(changes)
        assert command is not None
        return shlex.split(command)[-1]

    first = folder("--lr 0.01")
    assert first == str(tmp_path / "my run-lr-0.01")
    assert len({first, folder("--lr 0.02"), folder("--precision fp32")}) == 3
    (tmp_path / "my run-lr-0.01").mkdir()
    assert folder("--lr 0.01") == f"{first}-2"
    assert shlex.split(run.look_closer("--lr-range")) == [
        "vidi", "doctor", str(run.path), "--lr-range"
    ]  # fmt: skip


def test_there_is_no_command_for_what_python_gave() -> None:
    run = records(recipe(model="python:nets.Net"), command="script.py")
    assert run.again("--lr 0.01") is None
