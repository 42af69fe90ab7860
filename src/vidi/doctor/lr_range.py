"""Which rate a run should have had: the rate finder on its network as it was before training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vidi.doctor.fresh import fresh
from vidi.engine import device
from vidi.engine.lr_range import SECONDS, Sweep, sweep
from vidi.engine.prepare import Prepared

NEAR = 3.0
"""Rates by this factor apart give much the same run."""


@dataclass(frozen=True)
class LrRange:
    """``lr``: the run's own highest rate. ``sweep``: what was seen."""

    run: str
    optimiser: str
    lr: float
    sweep: Sweep

    def as_json(self) -> dict[str, Any]:
        seen = self.sweep
        return {
            "run": self.run,
            "optimiser": self.optimiser,
            "lr": self.lr,
            "suggestion": seen.suggestion,
            "lowest": seen.lowest,
            "rises": seen.rises,
            "seconds": seen.seconds,
            "curve": [
                {"lr": r, "loss": loss if math.isfinite(loss) else None, "smoothed": s}
                for r, loss, s in zip(
                    seen.rates.tolist(), seen.losses.tolist(), seen.smoothed.tolist(), strict=True
                )
            ],
        }

    def lines(self) -> list[str]:
        seen = self.sweep
        out = [
            f"{self.run}: rates for {self.optimiser}, from the network as it was before training",
            f"  {seen.sentence}",
        ]
        if seen.suggestion is None:
            return [*out, "No rate can be suggested. --overfit-one-batch tells whether it learns."]
        out += [f"  suggestion    {seen.suggestion:g}", f"  the run's own {self.lr:g}"]
        return [*out, self._verdict(seen.suggestion)]

    def _verdict(self, suggestion: float) -> str:
        ratio = self.lr / suggestion
        if 1 / NEAR <= ratio <= NEAR:
            return "The run's rate is near the suggestion."
        much, which = (ratio, "higher") if ratio > 1 else (1 / ratio, "lower")
        return (
            f"The run's rate is {much:.2g} times {which} than the suggestion. Try --lr "
            f"{suggestion:g}."
        )


def lr_range(made: Prepared, *, network: Any = None, seconds: float = SECONDS) -> LrRange:
    """Sweep over rates (:mod:`vidi.engine.lr_range`) on the run's batches.

    From fresh weights, since the question is with which rate to begin: the network is built anew
    with the run's seed, with the recipe's weights where it has some; what the run has learned plays
    no part, and the run is not touched. ``network``: as for training, if it was given from Python.
    ``seconds``: about so long at most.
    """
    recipe = made.description.recipe
    assert not isinstance(recipe.lr, str)
    model, train_mode = fresh(made, network)
    with device.threads_for(made.work):
        seen = sweep(
            model,
            made.task,
            made.train,
            made.compute,
            recipe,
            is_head=made.is_head,
            train_mode=train_mode,
            seconds=seconds,
        )
    return LrRange(recipe.model, recipe.optimiser.name, recipe.lr, seen)
