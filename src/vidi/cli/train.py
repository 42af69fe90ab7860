"""Train a network on labelled images, or go on with a run.

The flags are the fields of :class:`vidi.Recipe`. With ``--recipe NAME`` their defaults are that
recipe's; with ``--resume`` they are the run's own, and only what was typed is a change to it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.cli.outputs import finite
from vidi.errors import InputError
from vidi.recipe import Recipe, flat


@dataclass(frozen=True)
class Train:
    """Train a network on a folder of labelled images.

    vidi train photos/ --model resnet18 --epochs 30
    """

    data: Annotated[Positional[str | None], arg(metavar="[DATA]")] = None
    """A folder of images, a CSV of paths and labels, CIFAR, MNIST, or digits (embedded)."""
    run: Annotated[str | None, arg(metavar="DIR", aliases=["--run-dir"])] = None
    """The folder that the run is written to. none = runs/DATA-MODEL. Under torchrun say --run-dir: it takes --run for its own."""  # noqa: E501
    resume: FlagCreatePairsOff[bool] = False
    """Go on with --run where it stopped, or extend it with more --epochs."""
    recipe: Annotated[str | None, arg(metavar="NAME")] = None
    """Take the defaults from a name of `vidi list recipes`."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout; all else goes to stderr."""
    settings: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)


def main(arguments: Sequence[str]) -> int:
    # Both words are usual: an FCN is initialised from a classifier.
    arguments = [re.sub(r"^--init(?=$|=)", "--weights", word) for word in arguments]
    if any(word.partition("=")[0] == "--logging.tensorboard" for word in arguments):
        raise InputError(
            "TensorBoard is one of several trackers now: say --logging.trackers tensorboard."
        )
    base, saved = _defaults(arguments)
    told = parse(Train, arguments, prog="vidi train", default=Train(settings=base))

    from vidi import api
    from vidi.report import progress

    recipe: Recipe | None = told.settings
    changes: dict[str, Any] = {}
    if saved:
        # What was typed is what differs from the defaults that it was typed over. "auto" and
        # "find" ask for what the run holds already.
        recipe, changes = (
            None,
            {
                name: new
                for (name, new, _), (_, old, _) in zip(flat(told.settings), flat(base), strict=True)
                if new != old and new not in ("auto", "find")
            },
        )
    # A print somewhere in a user's network must not end up in the JSON.
    with contextlib.redirect_stdout(sys.stderr), progress.display() as display:
        run = api.train(
            told.data, run=told.run, resume=told.resume, recipe=recipe, progress=display, **changes
        )
    if told.json and os.environ.get("RANK", "0") == "0":
        print(
            json.dumps(
                {
                    "run": str(run.path),
                    "epochs": run.epochs,
                    "steps": run.steps,
                    "metrics": finite(run.metrics),
                    "test_metrics": run.test_metrics and finite(run.test_metrics),
                    "images_per_second": run.images_per_second,
                }
            )
        )
    return 128 + run.interrupted if run.interrupted else 0


def _defaults(arguments: Sequence[str]) -> tuple[Recipe, bool]:
    """(the recipe whose values are the flags' defaults, whether it is that of a run to resume)."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--recipe")
    scan.add_argument("--run", "--run-dir")
    scan.add_argument("--resume", action="store_true")
    try:
        found, _ = scan.parse_known_args(list(arguments))
    except argparse.ArgumentError:  # a value is missing, which the full parser will say
        return Recipe(), False
    if found.recipe is not None:
        from vidi import recipes

        # Together with --resume it is the command that began the run, once more: all of it is
        # compared with the run.
        return recipes.find(found.recipe)(), False
    if found.resume and found.run is not None and (Path(found.run) / "recipe.json").is_file():
        from vidi.engine.run import RunDirectory

        return RunDirectory(Path(found.run)).read_description().recipe, True
    return Recipe(), False
