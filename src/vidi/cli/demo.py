"""Train on the embedded digits, and show what comes out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidi.cli.arguments import parse

SHOWN = 40


@dataclass(frozen=True)
class Demo:
    """Train on 1,797 embedded images of handwritten digits, and show what comes out."""

    out: str = "runs"
    """The folder that the run's folder, demo-digits, is put in."""
    epochs: float | Literal["auto"] = "auto"
    """Passes over the training set."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Demo, arguments, prog="vidi demo")

    from vidi import api
    from vidi.engine.run import free_name
    from vidi.report import progress

    folder = free_name(Path(told.out), "demo-digits")
    with contextlib.redirect_stdout(sys.stderr), progress.display() as display:
        run = api.train("digits", run=folder, epochs=told.epochs, progress=display)
    if run.interrupted:
        return 128 + run.interrupted
    assert run.test_metrics is not None, "the digits have a test split"
    _draw_predictions(run.path)
    print(f"\nAccuracy on digits it was not trained on: {run.test_metrics['accuracy']:.4f}")
    print("Pictures:")
    for name, what in (
        ("predictions.png", "test digits and what the network says of them"),
        ("confusion.png", "which digits it takes for which"),
        ("curves.png", "how loss and accuracy came about"),
    ):
        print(f"  {run.path / name}  {what}")
    print(f"Now your own: vidi train YOUR_FOLDER, or vidi predict {run.path} SOME_IMAGE")
    return 0


def _draw_predictions(path: Path) -> None:
    """predictions.png: the mistakes on the test split, then digits that were read right."""
    from vidi import api
    from vidi.data.open import open_data
    from vidi.report import pictures

    model = api.load(path)
    digits = open_data("digits")
    test = digits.splits["test"]
    images = [digits[int(i)].image for i in test]
    said = model.predict(images)
    truths = [digits.classes[k] for k in digits.split("test").labels]
    wrong = [i for i, p in enumerate(said) if p.label != truths[i]]
    right = [i for i, p in enumerate(said) if p.label == truths[i]]
    shown = (wrong[: SHOWN // 2] + right)[:SHOWN]
    pictures.predictions(
        [images[i] for i in shown],
        [truths[i] for i in shown],
        [(said[i].label, said[i].probability) for i in shown],
        path / "predictions.png",
        title=f"{len(test)} test digits, {len(wrong)} read wrong (in red, first)",
    )
