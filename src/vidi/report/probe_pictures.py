"""The picture of a probe: what each weight of the penalty came to on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from vidi.report.pictures import BLUE, GREY, ORANGE, RED, STYLE, _figure, _line, _save


def by_weight(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Share that is right, and squared error, over λ; the chosen one in red.

    ``history``: the rows of metrics.jsonl, one of which is the probe's.
    """
    row = next(row for row in reversed(history) if row["event"] == "probe")
    with matplotlib.rc_context(STYLE):
        figure, panels = _figure(8, 3.4, 2)
        for axes, name, colour in zip(
            panels, ("right", "squared_error"), (BLUE, ORANGE), strict=True
        ):
            values = row[name]
            _line(axes, row["weights"], values, colour, name)
            chosen = values[row["weights"].index(row["chosen"])]
            axes.axvline(row["chosen"], color=GREY, linewidth=0.8)
            axes.plot(row["chosen"], chosen, "o", color=RED, markersize=6)
            axes.set_xscale("log")
            said = {"right": "share that is right", "squared_error": "squared error"}[name]
            axes.set(title=f"validation, {said}: {chosen:.4f}", xlabel="λ, weight of the penalty")
        _save(figure, path)
