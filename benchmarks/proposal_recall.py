"""Recall against the number of proposals, and the seconds they take: a table and a picture.

    python benchmarks/proposal_recall.py DATA … [--images N] [--out DIR]

``DATA``: whatever `vidi proposals` takes; ``DATA=SPLIT`` looks at one split of it. All methods of
``--methods`` are run on each; seconds are one processor's per image, measured when the proposals
were computed. ``--images``: as many of each split, evenly spread. The picture is
``proposal-recall.png``; the table is printed as Markdown.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from vidi.data.open import open_data
from vidi.data.proposals import METHODS, Method, search
from vidi.data.recall import COUNTS, Recall, recall
from vidi.report.pictures import BLUE, GREEN, ORANGE, STYLE

SHOWN = (100, 200, 500, 1000, 2000, 10_000)
"""Columns of the table."""
COLOURS = dict(zip(METHODS, (BLUE, GREEN, ORANGE), strict=True))


@dataclass(frozen=True)
class Measured:
    data: str
    images: int
    method: Method
    found: Recall
    seconds: float


def measure(
    source: str, split: str | None, images: int | None, methods: list[Method]
) -> list[Measured]:
    dataset = open_data(source, task="detection", carve_val=False)
    ids = np.arange(len(dataset)) if split is None else dataset.split(split).ids
    if images is not None:
        ids = ids[
            np.unique(np.linspace(0, len(ids) - 1, min(images, len(ids))).round().astype(int))
        ]
    boxes = [dataset.annotations(int(i))["boxes"] for i in ids]
    name = Path(source).name + ("" if split is None else f", {split}")
    out = []
    for method in methods:
        proposals = search(dataset, ids, method, count=max(COUNTS), threads=2)
        out.append(
            Measured(
                name,
                len(ids),
                method,
                recall(proposals.boxes, boxes, (0.5,), COUNTS),
                float(proposals.seconds.mean()),
            )
        )
        print(f"{name}: {method} done", file=sys.stderr)
    return out


def table(rows: list[Measured]) -> str:
    heads = ["data", "boxes", "method", *(f"{count:,}" for count in SHOWN), "found", "s an image"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        shown = [f"{row.found.table[row.found.counts.index(count), 0]:.3f}" for count in SHOWN]
        cells = [f"{row.data} ({row.images} images)", f"{row.found.boxes:,}", f"`{row.method}`"]
        cells += [*shown, f"{row.found.proposals[-1]:,.0f}", f"{row.seconds:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[Measured], path: Path) -> None:
    names = list(dict.fromkeys(row.data for row in rows))
    with matplotlib.rc_context({**STYLE, "lines.markersize": 3.5}):
        figure = Figure(figsize=(3.6 * len(names), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            for row in (row for row in rows if row.data == name):
                # From where an image has fewer proposals, more are not to be had.
                reached = np.searchsorted(row.found.proposals, row.found.proposals[-1]) + 1
                label = f"{row.method}, {row.seconds:.2f} s"
                counts, values = row.found.counts[:reached], row.found.table[:reached, 0]
                axes.plot(counts, values, "o-", color=COLOURS[row.method], label=label)
            axes.set(title=name, xlabel="proposals per image, at most", xscale="log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            axes.set_ylim(0, 1.02)
            axes.legend(loc="upper left", fontsize=8)
        panels[0].set_ylabel("recall at an overlap of 0.5")
        figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="DATA[=SPLIT]")
    parser.add_argument("--images", type=int)
    parser.add_argument(
        "--methods", nargs="+", default=["selective-fast", "edge-boxes"], choices=METHODS
    )
    parser.add_argument("--out", type=Path, default=Path())
    told = parser.parse_args()
    rows: list[Measured] = []
    for one in told.data:
        source, _, split = one.partition("=") if not one.startswith("scenes:") else (one, "", "")
        rows += measure(source, split or None, told.images, told.methods)
    print(table(rows))
    told.out.mkdir(parents=True, exist_ok=True)
    draw(rows, told.out / "proposal-recall.png")
    print(f"wrote {told.out / 'proposal-recall.png'}", file=sys.stderr)


if __name__ == "__main__":
    main()
