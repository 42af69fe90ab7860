"""Learning rate and image size as functions of the step and of the run's length."""

from __future__ import annotations

import math

from vidi.recipe import Schedule

COST = 0.25
"""What a step on images of half the size takes of one on whole images, where that is not measured:
what it has of the pixels."""


def rate(schedule: Schedule, step: float, total: float | None, warmup: float) -> float:
    """The rate of ``step`` (from 0), relative to the highest one: in [0, 1].

    All are counted in steps, or in :func:`work`. ``total`` is the run's length, ``None`` while a
    length in minutes is still being measured (the rate then rises over ``warmup`` steps and stays).
    One-cycle rises for ``warmup`` steps and falls linearly, without a plateau (Smith and Topin
    2018); cosine falls as half a cosine (Loshchilov and Hutter 2017).
    """
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if total is None or schedule.name == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule.name == "step":
        return math.prod(schedule.gamma for m in schedule.milestones if step >= round(m * total))
    falling = 1 - done if schedule.name == "one-cycle" else (1 + math.cos(math.pi * done)) / 2
    return schedule.final + (1 - schedule.final) * falling


def halves(share: float, total: int, cost: float = COST) -> int:
    """How many steps, from the first, are on images of half the size, so that their work is that
    share of all. ``cost``: the work of one of them, in steps on whole images."""
    return round(total * share / (cost + (1 - cost) * share))


def work(step: int, halves: int, cost: float = COST) -> float:
    """The work of the first ``step`` steps, in steps on whole images. The rate goes by it: what is
    learned on halves has to be learned anew on whole images, for which the rate must be high."""
    return step - (1 - cost) * min(step, halves)
