"""The run doctor: says in words why a training went wrong, and what to do.

Each check is a function that yields findings, in a file by theme; a new one is a function and a
place in a list below, causes before their symptoms. ``RECORDED`` reads only what the run wrote
about itself, and goes over every training; ``ON_DATA`` looks at samples, weights and
predictions too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vidi.doctor import (
    by_task,
    curves,
    generalisation,
    labels,
    layers,
    preprocessing,
    settings,
)
from vidi.doctor.finding import SEVERITIES, Finding, Series, Severity, in_order
from vidi.doctor.records import Records, read_records

if TYPE_CHECKING:
    from vidi.doctor.looking import Looked
    from vidi.engine.prepare import Prepared

__all__ = [
    "SEVERITIES",
    "Finding",
    "Records",
    "Series",
    "Severity",
    "examine",
    "examine_on_data",
    "read_records",
]

RECORDED: tuple[Callable[[Records], list[Finding]], ...] = (
    layers.wrong_input,
    layers.alike,
    layers.exploding,
    layers.saturated,
    layers.frozen,
    layers.disconnected,
    layers.evaluating_norms,
    layers.few_values,
    settings.strong_decay,
    settings.strong_dropout,
    curves.diverged,
    curves.ping_pong,
    curves.bouncing,
    curves.slow_to_turn,
    curves.too_slow,
    layers.dead,
    layers.vanishing,
    curves.initial_loss,
    settings.not_finite,
    layers.not_finite,
    settings.decayed_norms,
    curves.plateau,
    curves.noise,
    labels.renumbered,
    labels.imbalance,
    generalisation.overfitting,
    by_task.no_objects,
    by_task.ignored,
    by_task.one_class,
    by_task.still,
)
"""They need the run's files only."""

ON_DATA: tuple[Callable[[Records, Looked], list[Finding]], ...] = (
    generalisation.shift,
    preprocessing.differing,
    preprocessing.by_batch,
    preprocessing.statistics,
    generalisation.leakage,
    labels.shuffled,
    generalisation.class_shift,
    generalisation.easier,
    generalisation.gap,
    settings.costly_dropout,
    generalisation.underfitting,
    by_task.no_objects_sampled,
    by_task.missed_by_proposals,
    by_task.scale,
    by_task.dull_sides,
)
"""They need the data and the network, too."""


def examine(records: Records) -> tuple[Finding, ...]:
    """What a run's files tell, the worst first; of causes and their symptoms the causes."""
    return in_order([finding for check in RECORDED for finding in check(records)])


def examine_on_data(records: Records, made: Prepared) -> tuple[Finding, ...]:
    """What the files, the data and the network tell together.

    ``made``: the run opened again, as :func:`vidi.api.reopen` gives it.
    """
    from vidi.doctor.looking import look

    looked = look(records, made)
    found = [finding for check in RECORDED for finding in check(records)]
    told = {finding.code for finding in found}  # is not told once more
    seen = [finding for check in ON_DATA for finding in check(records, looked)]
    return in_order([*found, *(finding for finding in seen if finding.code not in told)])
