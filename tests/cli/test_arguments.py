"""From words to values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from tyro.conf import arg

from vidi.cli.arguments import parse
from vidi.recipe import Recipe, flat, replace


@dataclass(frozen=True)
class Words:
    number: float | Literal["auto"] = "auto"
    """A number."""
    whole: int | None = None
    """A whole number."""
    yes: bool | Literal["auto"] = "auto"
    """A yes."""
    pair: tuple[float, float] | Literal["auto"] = "auto"
    """Two numbers."""
    text: str | None = "imagenet"
    """Anything."""


@dataclass(frozen=True)
class WithRecipe:
    settings: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--number 3", "number", 3.0),
        ("--number 1e-3", "number", 0.001),
        ("--number auto", "number", "auto"),
        ("--whole 7", "whole", 7),
        ("--whole none", "whole", None),
        ("--whole None", "whole", None),
        ("--yes true", "yes", True),
        ("--yes False", "yes", False),
        ("--yes auto", "yes", "auto"),
        ("--pair 0.1 1", "pair", (0.1, 1.0)),
        ("--pair auto", "pair", "auto"),
        ("--text none", "text", None),
        ("--text runs/x", "text", "runs/x"),
    ],
)
def test_words_become_values(words: str, name: str, value: Any) -> None:
    got = getattr(parse(Words, words.split(), prog="vidi", default=Words()), name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    "words",
    ["--number x", "--number nan", "--number inf", "--whole 1.5", "--yes 2", "--pair 1", "--pair"],
)
def test_what_does_not_fit_ends_with_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Words, words.split(), prog="vidi", default=Words())
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert words.split()[0] in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--epoch", "--epochs"),
        ("--batchsize", "--batch-size"),
        ("--momentum", "--optimiser.momentum"),
        ("--optimizer.momentum", "--optimiser.momentum"),
        ("--augmentation.mixp", "--augmentation.mixup"),
    ],
)
def test_a_misspelt_flag_is_answered_with_the_nearest(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(WithRecipe, [typed, "3"], prog="vidi train", default=WithRecipe())
    assert stop.value.code == 2
    assert meant in capsys.readouterr().err


OTHER = replace(
    Recipe(),
    {
        "task": "classification",
        "model": "resnet20",
        "epochs": 3.5,
        "batch_size": 64,
        "lr": 0.05,
        "image_size": 32,
        "weights": "imagenet",
        "freeze": ("conv1", "layer1"),
        "seed": 7,
        "precision": "bf16",
        "device": "cpu",
        "channels_last": True,
        "compile": False,
        "bad_images": "skip",
        "data.threads": 0,
        "data.cache": "off",
        "optimiser.nesterov": True,
        "optimiser.clip": 1.0,
        "optimiser.decay_biases_and_norms": True,
        "schedule.milestones": (0.3, 0.6, 0.9),
        "regularisation.dropout": 0.3,
        "augmentation.crop_area": (0.3, 1.0),
        "augmentation.crop_ratio": (0.5, 2.0),
        "length.minutes": 2.5,
        "logging.trackers": ("tensorboard", "mlflow"),
        "logging.pictures": False,
    },
)


def words_of(recipe: Recipe) -> list[str]:
    """The flags that say a recipe, field by field."""
    words: list[str] = []
    for name, value, _ in flat(recipe):
        flag = f"--{name.replace('_', '-')}"
        if name in (
            "optimiser.decay_biases_and_norms",
            "optimiser.sum_pixels",
            "logging.pictures",
            "logging.vitals",
            "probe",
        ):
            part, dot, last = flag.removeprefix("--").rpartition(".")
            words.append(flag if value else f"--{part}{dot}no-{last}")
        else:
            values = value if isinstance(value, tuple) else ("none" if value is None else value,)
            words += [
                flag,
                *(str(v).lower() if v is True or v is False else str(v) for v in values),
            ]
    return words


@pytest.mark.parametrize("recipe", [Recipe(), OTHER], ids=["default", "other"])
@pytest.mark.parametrize("start", [Recipe(), OTHER], ids=["over default", "over other"])
def test_a_recipe_said_in_flags_is_that_recipe(recipe: Recipe, start: Recipe) -> None:
    got = parse(WithRecipe, words_of(recipe), prog="vidi train", default=WithRecipe(start))
    assert got.settings == recipe
