"""Recall against the number of proposals, and the seconds they take: a table and a picture.

    python benchmarks/proposal_recall.py DATA … [--run RUN] [--images N] [--out DIR]

``DATA``: whatever `vidi proposals` takes; ``DATA=SPLIT`` looks at one split of it. All methods of
``--methods`` are run on each, and the network of ``--run``, which proposes its regions itself:
1,000 an image. Recall is asked of all boxes, whatever their class. A network is measured on images
that it was not trained on, so give ``DATA=test`` with a run. Seconds are one processor's per image,
from the decoded image on, measured when the proposals were computed (the network's on a GPU, where
there is one: by the clock). ``--images``: as many of each split, evenly spread. The picture is
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

from vidi import api
from vidi.data.open import open_data
from vidi.data.proposals import METHODS, Method, search
from vidi.data.recall import COUNTS, Recall, recall
from vidi.engine import learned_proposals
from vidi.report.pictures import BLUE, GREEN, ORANGE, RED, STYLE

SHOWN = (100, 300, 1000, 2000, 10_000)
"""Columns of the table."""
LEARNED = tuple(count for count in COUNTS if count <= 1000)
"""Of a network: more would cost it time that no detector spends."""
COLOURS: dict[str, str] = dict(zip(METHODS, (BLUE, GREEN, ORANGE), strict=True))


@dataclass(frozen=True)
class Measured:
    data: str
    images: int
    method: str
    found: Recall
    seconds: float


def measure(
    source: str,
    split: str | None,
    images: int | None,
    methods: list[Method],
    model: api.Model | None,
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
    if model is not None:
        if split in (None, "train"):
            print(
                f"{name}: the network may have been trained on these images, and finds more in "
                f"them than in others. Measure it on {source}=test.",
                file=sys.stderr,
            )
        own = (model.network, model.recipe, model.compute)
        found = learned_proposals.search(*own, dataset, ids, count=max(LEARNED), threads=2)
        out.append(
            Measured(
                name,
                len(ids),
                f"network ({model.recipe.model})",
                recall([one.boxes for one in found], boxes, (0.5,), LEARNED),
                float(np.mean([one.seconds for one in found])),
            )
        )
    return out


def table(rows: list[Measured]) -> str:
    heads = ["data", "boxes", "method", *(f"{count:,}" for count in SHOWN), "found", "s an image"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        at = dict(zip(row.found.counts, row.found.table[:, 0], strict=True))
        shown = [f"{at[count]:.3f}" if count in at else "–" for count in SHOWN]
        cells = [f"{row.data} ({row.images} images)", f"{row.found.boxes:,}", f"`{row.method}`"]
        cells += [*shown, f"{row.found.proposals[-1]:,.0f}", f"{row.seconds:.3g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[Measured], path: Path) -> None:
    names = list(dict.fromkeys(row.data for row in rows))
    with matplotlib.rc_context({**STYLE, "lines.markersize": 3.5}):
        figure = Figure(figsize=(3.6 * len(names), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            for row in (row for row in rows if row.data == name):
                # From where an image has fewer proposals, more are not to be had.
                reached = np.searchsorted(row.found.proposals, row.found.proposals[-1]) + 1
                label = f"{row.method}, {row.seconds:.2g} s"
                counts, values = row.found.counts[:reached], row.found.table[:reached, 0]
                colour = COLOURS.get(row.method, RED)
                axes.plot(counts, values, "o-", color=colour, label=label)
            axes.set(title=name, xlabel="proposals per image, at most", xscale="log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            axes.set_ylim(0, 1.02)
            # Below the axes, where no line can lie under it.
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8)
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
    parser.add_argument("--run", help="a run of a network that proposes its regions itself")
    parser.add_argument("--out", type=Path, default=Path())
    told = parser.parse_args()
    model = None if told.run is None else api.load(told.run)
    rows: list[Measured] = []
    for one in told.data:
        source, _, split = one.partition("=") if not one.startswith("scenes:") else (one, "", "")
        rows += measure(source, split or None, told.images, told.methods, model)
    print(table(rows))
    told.out.mkdir(parents=True, exist_ok=True)
    draw(rows, told.out / "proposal-recall.png")
    print(f"wrote {told.out / 'proposal-recall.png'}", file=sys.stderr)


if __name__ == "__main__":
    main()
