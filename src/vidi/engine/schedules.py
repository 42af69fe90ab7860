"""The learning rate as a function of the step: no state, so nothing to save or to get wrong."""

from __future__ import annotations

import math

from vidi.recipe import Schedule


def rate(schedule: Schedule, step: int, total: int | None, warmup: int) -> float:
    """The rate of ``step`` (from 0), relative to the highest one: in [0, 1].

    ``total`` is the run's length in steps, ``None`` while a length in minutes is still being
    measured (the rate then rises over ``warmup`` steps and stays). One-cycle rises for ``warmup``
    steps and falls linearly, without a plateau (Smith and Topin 2018); cosine falls as half a
    cosine (Loshchilov and Hutter 2017).
    """
    if step < warmup:
        return (step + 1) / warmup
    if total is None or schedule.name == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule.name == "step":
        return math.prod(schedule.gamma for m in schedule.milestones if step >= round(m * total))
    falling = 1 - done if schedule.name == "one-cycle" else (1 + math.cos(math.pi * done)) / 2
    return schedule.final + (1 - schedule.final) * falling
