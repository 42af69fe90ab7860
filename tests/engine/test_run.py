"""The run directory: rows that count, a lock, sentences for what is no run."""

import json
from pathlib import Path

import pytest

from tests.processes import python
from vidi.engine.run import Description, RunDirectory, free_name, read_metrics
from vidi.errors import InputError
from vidi.recipe import Recipe, to_dict
from vidi.types import Normalisation

DESCRIPTION = Description(
    recipe=Recipe(model="resnet20", epochs=2.0, augmentation=Recipe().augmentation),
    classes=("a", "µ"),
    normalisation=Normalisation((0.1, 0.2, 0.3), (1.0, 1.0, 1.0)),
    data={"root": "x"},
    command="vidi train x",
    versions={"vidi": "0"},
    notes=("said",),
)


def test_a_description_comes_back_as_it_was(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_description(DESCRIPTION)
    assert run.read_description() == DESCRIPTION


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is no run"),
        ("{", "cannot be read"),
        ("{}", "lacks 'normalisation'"),
        (json.dumps(DESCRIPTION.to_json() | {"recipe": {"epoks": 3}}), "epoks"),
    ],
)
def test_what_is_no_run_is_a_sentence(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(InputError, match=says):
        RunDirectory(tmp_path).read_description()


def test_rows_past_the_resumed_step_do_not_count(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3, 4):
        run.append(event="train", step=step, loss=step)
    run.append(event="resume", step=2)
    run.append(event="train", step=3, loss=30)
    rows = [(r["step"], r["loss"]) for r in read_metrics(tmp_path) if r["event"] == "train"]
    assert rows == [(1, 1), (2, 2), (3, 30)]


def test_half_a_line_loses_only_itself(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append(event="train", step=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "st')
    run.append(event="train", step=3)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 3]


def test_what_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    RunDirectory(tmp_path).append(event="end", metrics={"f1": float("nan")}, loss=float("inf"))
    (row,) = read_metrics(tmp_path)
    assert row == {"event": "end", "metrics": {"f1": None}, "loss": None}


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from vidi.engine.run import RunDirectory\n"
        "from vidi.errors import InputError\n"
        "try:\n"
        "    with RunDirectory(Path(sys.argv[1])).locked(): print('got it')\n"
        "except InputError as error: print(error)\n"
    )

    def other() -> str:
        done = python("-c", program, tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with RunDirectory(tmp_path).locked():
        assert "Another process is training" in other()
    assert other() == "got it\n"


def test_free_names_count_up(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        names.append(free_name(tmp_path, "digits"))
        names[-1].mkdir()
    assert [n.name for n in names] == ["digits", "digits-2", "digits-3"]


def test_the_recipe_survives_json_exactly() -> None:
    from vidi.recipe import from_dict, replace

    recipe = replace(
        Recipe(),
        {
            "epochs": 1 / 3,
            "schedule.milestones": (0.1, 0.7),
            "freeze": ("layer1", "conv1"),
            "augmentation.crop_area": (0.08, 1.0),
            "optimiser.clip": 1.5,
        },
    )
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epoch": 3}, "Did you mean epochs"),
        ({"momentum": 0.5}, "Did you mean optimiser.momentum"),
        ({"optimiser.momentom": 0.5}, "optimiser.momentum"),
        ({"epochs": "three"}, "should be a number or 'auto'"),
        ({"batch_size": 1.5}, "should be a whole number"),
        ({"schedule": {"name": "linear"}}, "'cosine'"),
        ({"epochs": True}, "should be a number"),
    ],
)
def test_a_wrong_field_or_value_is_a_sentence(changes: dict[str, object], says: str) -> None:
    from vidi.recipe import replace

    with pytest.raises(InputError, match=says):
        replace(Recipe(), changes)
