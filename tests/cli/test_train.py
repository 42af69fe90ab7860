"""What `vidi train` asks of the Python interface, and what it says of the outcome.

Training itself is replaced where the test is about the words: signals and a full disk cannot be had
for the asking. `test_end_to_end.py` trains.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vidi import api, recipes
from vidi.cli import main
from vidi.engine.run import Description, RunDirectory
from vidi.errors import InputError, RunError
from vidi.recipe import Recipe, replace
from vidi.types import Normalisation


@dataclass
class Trainer:
    """Stands in for ``vidi.api.train``: remembers what it was asked."""

    asked: dict[str, Any] = field(default_factory=dict)
    fails: BaseException | None = None
    interrupted: int | None = None

    def __call__(self, data: Any = None, **asked: Any) -> Any:
        self.asked = {"data": data, **asked}
        print("a print in the user's network")  # noqa: T201
        asked["progress"].note("a note")
        if self.fails:
            raise self.fails
        return api.Run(
            path=Path("runs/x"),
            recipe=Recipe(),
            classes=("a", "b"),
            metrics={"accuracy": 0.5},
            test_metrics=None,
            epochs=1.0,
            steps=10,
            images_per_second=100.0,
            interrupted=self.interrupted,
        )


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    fake = Trainer()
    monkeypatch.setattr(api, "train", fake)
    return fake


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose settings are all resolved to something."""
    settled = replace(
        Recipe(),
        {"model": "resnet20", "epochs": 10.0, "lr": 0.1, "batch_size": 128, "image_size": 32},
    )
    description = Description(
        recipe=settled,
        classes=("a", "b"),
        normalisation=Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        data={"root": "photos"},
        versions={},
    )
    path = tmp_path / "run"
    path.mkdir()
    RunDirectory(path).write_description(description)
    return path


def test_flags_become_the_recipe(trainer: Trainer) -> None:
    code = main(["train", "photos", "--epochs", "3", "--optimiser.momentum", "0.8", "--run", "r"])
    assert code == 0
    assert trainer.asked["data"] == "photos"
    assert trainer.asked["run"] == "r"
    assert trainer.asked["resume"] is False
    assert trainer.asked["recipe"] == replace(Recipe(), {"epochs": 3.0, "optimiser.momentum": 0.8})


def test_a_named_recipe_is_the_start_and_flags_change_it(trainer: Trainer) -> None:
    assert main(["train", "photos", "--recipe", "cifar_he2016", "--schedule.gamma", "0.2"]) == 0
    named = recipes.find("cifar_he2016")()
    assert trainer.asked["recipe"] == replace(named, {"schedule.gamma": 0.2})


def test_resuming_changes_only_what_was_typed(trainer: Trainer, run: Path) -> None:
    assert main(["train", "--run", str(run), "--resume", "--epochs", "20"]) == 0
    asked = trainer.asked
    assert asked.pop("progress")
    assert asked == {
        "data": None,
        "run": str(run),
        "resume": True,
        "recipe": None,
        "epochs": 20.0,
    }


def test_resuming_with_the_command_that_began_the_run_changes_nothing(
    trainer: Trainer, run: Path
) -> None:
    words = ["train", "photos", "--model", "resnet20", "--epochs", "10", "--lr", "auto"]
    assert main([*words, f"--run={run}", "--resume"]) == 0
    assert set(trainer.asked) == {"data", "run", "resume", "recipe", "progress"}


def test_a_value_of_the_default_is_a_change_where_the_run_has_another(
    trainer: Trainer, run: Path
) -> None:
    """--seed 0 is the default, but the run may have been begun with another."""
    body = json.loads((run / "recipe.json").read_text())
    body["recipe"]["seed"] = 5
    (run / "recipe.json").write_text(json.dumps(body))
    assert main(["train", "--run", str(run), "--resume", "--seed", "0"]) == 0
    assert trainer.asked["seed"] == 0


def test_resuming_what_is_not_there_yet_begins_it(trainer: Trainer, tmp_path: Path) -> None:
    assert main(["train", "photos", "--run", str(tmp_path / "no"), "--resume", "--lr", "1"]) == 0
    assert trainer.asked["recipe"] == replace(Recipe(), {"lr": 1.0})
    assert trainer.asked["resume"] is True


def test_json_is_one_object_and_nothing_else(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "photos", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "run": "runs/x",
        "epochs": 1.0,
        "steps": 10,
        "metrics": {"accuracy": 0.5},
        "test_metrics": None,
        "images_per_second": 100.0,
    }
    assert "a print in the user's network" in said.err
    assert "a note" in said.err


@pytest.mark.parametrize(
    ("received", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (None, 0)]
)
def test_an_interrupted_run_ends_with_128_and_the_signal(
    trainer: Trainer, received: int | None, code: int
) -> None:
    trainer.interrupted = received
    assert main(["train", "photos"]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("The folder is empty."), 2),
        (RunError("The disk is full."), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_sentence_and_its_code(
    trainer: Trainer, error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.fails = error
    assert main(["train", "photos", "--json"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert f"vidi: {str(error) or 'Interrupted.'}\n" in said.err
    assert "Traceback" not in said.err


def test_an_error_of_ours_keeps_its_traceback(trainer: Trainer) -> None:
    trainer.fails = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["train", "photos"])


def test_only_the_first_of_several_processes_speaks(
    trainer: Trainer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "photos", "--json"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "a note" not in said.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian", "photos"], "vidi train"),
        (["train", "photos", "--recipe", "cifar_he"], "cifar_he2016"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_a_damaged_recipe_is_said(trainer: Trainer, run: Path) -> None:
    (run / "recipe.json").write_text("{")
    assert main(["train", "--run", str(run), "--resume"]) == 2
