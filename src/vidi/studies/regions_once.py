"""R-CNN runs the network for each proposal, Fast R-CNN once for the image.

Two thousand proposals lie over one another, and R-CNN computes the maps of each anew. Fast R-CNN
computes them once, on the whole image, and takes from them a grid of cells for each proposal; per
proposal it runs the fully connected layers alone. With VGG-16 that is about 80 times fewer
multiply-adds. The papers' programs differed by more: 47 s against 0.32 s an image, 146 times
(Girshick 2015, table 4).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidi.models import count
from vidi.models.fast_rcnns import fast_rcnn_alexnet, fast_rcnn_vgg16
from vidi.models.rcnns import rcnn_alexnet, rcnn_vgg16
from vidi.models.vggs import vgg16
from vidi.studies import Measured, Study, Table, Value
from vidi.studies._sheet import BLUE, GREY, ORANGE, sheet
from vidi.studies.backward_cost import counted, fastest

CLAIM = 17

PROPOSALS = 2000
VOC = (600, 800)
"""A photograph of VOC, 375 × 500 pixels, with its shorter side brought to 600."""
BY_OPERATIONS = (65.0, 95.0)
"""About 80 times: what is expected of the count."""
TIME = 2.5
"""The measured ratio of times may be off the ratio of multiply-adds by this factor."""


def regions(number: int, size: tuple[int, int]) -> Tensor:
    """``number`` random boxes [K, 5] in the first image of a batch, h × w pixels; seeded."""
    generator = torch.Generator().manual_seed(1)
    h, w = size
    corners = torch.rand(number, 2, 2, generator=generator).sort(1).values
    corners = corners * torch.tensor([w, h]).float()
    # At least 16 pixels a side, and within the image.
    low = torch.minimum(corners[:, 0], torch.tensor([w - 16.0, h - 16.0]))
    high = torch.maximum(corners[:, 1], low + 16)
    return torch.cat((torch.zeros(number, 1), low, high), 1)


def detector_macs(build: Any, number: int, size: tuple[int, int]) -> int:
    """Multiply-adds for one image of h × w pixels and ``number`` regions, without computing."""
    with torch.device("meta"):
        net, image = build().eval(), torch.empty(1, 3, *size)
    with torch.no_grad():
        return counted(lambda: net(image, regions(number, size).to("meta")))


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    """Counts with VGG-16, and times with AlexNet on a small image. ``small``: counts alone.
    ``full`` and ``folder`` change nothing."""
    numbers = (1, 10, 100, 300, PROPOSALS)
    counted = {
        name: [detector_macs(build, number, VOC) for number in numbers]
        for name, build in (("R-CNN", rcnn_vgg16), ("Fast R-CNN", fast_rcnn_vgg16))
    }
    slow, fast = (np.array(counted[name], float) for name in ("R-CNN", "Fast R-CNN"))
    with torch.device("meta"):
        classifier = count.macs(vgg16(), 224)
        # The same but for the last layer, which has other classes.
        last = 4096 * 1000
    ratio = float(slow[-1] / fast[-1])
    per_slow, per_fast = (
        float((values[-1] - values[0]) / (numbers[-1] - numbers[0])) for values in (slow, fast)
    )
    least, most = BY_OPERATIONS
    # R-CNN's SVMs and box regression stand beside its softmax; all are tiny.
    off = abs(per_slow / (classifier - last) - 1)
    measured = [
        Measured(
            f"multiply-adds of R-CNN over Fast R-CNN, VGG-16, {PROPOSALS:,} proposals",
            ratio,
            f"about 80: {least:g} to {most:g}",
            least <= ratio <= most,
        ),
        Measured(
            "R-CNN, multiply-adds for one more proposal",
            per_slow,
            f"VGG-16's own {classifier - last:,} within 1 %",
            off <= 0.01,
        ),
        Measured(
            "Fast R-CNN, multiply-adds for one more proposal",
            per_fast,
            "less than a hundredth of R-CNN's: the fully connected layers alone",
            per_fast < per_slow / 100,
        ),
        Measured(
            "Fast R-CNN, share of the multiply-adds that does not depend on proposals",
            alone := float(fast[0] - per_fast) / float(fast[0]),
            "at least 0.99 with one proposal",
            alone >= 0.99,
        ),
    ]
    rows: list[tuple[Value, ...]] = [
        ("VGG-16", f"{VOC[0]} × {VOC[1]}", number, a / 1e9, b / 1e9, a / b, "–", "–", "–")
        for number, a, b in zip(numbers, *counted.values(), strict=True)
    ]
    timed = None if small else _timed()
    if timed is not None:
        some, size, operations, took = timed
        for number, (a, b), (c, d) in zip(some, operations, took, strict=True):
            rows.append(
                ("AlexNet", f"{size[0]} × {size[1]}", number, a / 1e9, b / 1e9, a / b, c, d, c / d)
            )
        ratio, expected = took[-1][0] / took[-1][1], operations[-1][0] / operations[-1][1]
        measured.append(
            Measured(
                f"time of R-CNN over Fast R-CNN, AlexNet, {some[-1]} proposals",
                ratio,
                f"{expected:.1f} by multiply-adds, within a factor of {TIME:g}",
                expected / TIME <= ratio <= expected * TIME,
            )
        )
    return Study(
        measured=tuple(measured),
        pictures=(
            (
                "Cost of an image against the number of proposals: R-CNN grows with them from the "
                "start, Fast R-CNN hardly",
                lambda path: _draw(path, numbers, slow, fast, timed),
            ),
        ),
        tables=(
            Table(
                "One image",
                ("network", "pixels", "proposals", "R-CNN, GMAC", "Fast R-CNN, GMAC", "ratio",
                 "R-CNN, s", "Fast R-CNN, s", "ratio of times"),
                tuple(rows),
            ),
        ),
        notes=(
            "With fewer than ten proposals R-CNN is the cheaper one: it never looks at the whole "
            "image.",
            "Finding the proposals costs both the same, and is not counted.",
        ),
    )  # fmt: skip


Timed = tuple[tuple[int, ...], tuple[int, int], list[tuple[int, int]], list[tuple[float, float]]]


def _timed() -> Timed:
    """(numbers of proposals, image size, multiply-adds, seconds), each of R-CNN and Fast R-CNN."""
    numbers, size = (1, 4, 16, 64), (256, 320)
    builds = rcnn_alexnet, fast_rcnn_alexnet
    nets: list[nn.Module] = [build().eval() for build in builds]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.randn(1, 3, *size)
    operations, took = [], []
    for number in numbers:
        a, b = (detector_macs(build, number, size) for build in builds)
        operations.append((a, b))
        boxes = regions(number, size)
        runs = [functools.partial(net, image, boxes) for net in nets]
        with torch.inference_mode():
            c, d = fastest(runs, repeats=3)
        took.append((c, d))
    return numbers, size, operations, took


def _draw(path: Path, numbers: tuple[int, ...], slow: Any, fast: Any, timed: Timed | None) -> None:
    with sheet(path, 10.5, 4.1, columns=1 if timed is None else 2) as panels:
        axes = panels[0]
        axes.plot(numbers, slow / 1e9, "o-", color=ORANGE, label="R-CNN: network per proposal")
        axes.plot(numbers, fast / 1e9, "o-", color=BLUE, label="Fast R-CNN: once per image")
        axes.annotate(
            f"{slow[-1] / fast[-1]:.0f} ×",
            (numbers[-1], float(np.sqrt(slow[-1] * fast[-1])) / 1e9),
            xytext=(-8, 0),
            textcoords="offset points",
            ha="right",
            fontsize=11,
            fontweight="bold",
        )
        axes.vlines(numbers[-1], fast[-1] / 1e9, slow[-1] / 1e9, color=GREY, linestyle=":")
        axes.set(
            title=f"VGG-16, {VOC[0]} × {VOC[1]} pixels: counted",
            xlabel="proposals",
            ylabel="billion multiply-adds an image",
        )
        if timed is not None:
            some, size, _, took = timed
            for values, colour, name in zip(
                zip(*took, strict=True), (ORANGE, BLUE), ("R-CNN", "Fast R-CNN"), strict=True
            ):
                panels[1].plot(some, values, "o-", color=colour, label=name)
            panels[1].set(
                title=f"AlexNet, {size[0]} × {size[1]} pixels: measured",
                xlabel="proposals",
                ylabel="processor seconds an image",
            )
        for axes in panels:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
            axes.legend(loc="upper left")
