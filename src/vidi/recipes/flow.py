"""Recipes for flow."""

from __future__ import annotations

import dataclasses

from vidi.recipe import Augmentation, Length, Optimiser, Recipe, Regularisation, Schedule

_FLOWNET = Recipe(
    model="flownet_s",
    batch_size=8,
    image_size=384,
    lr=1e-4,
    optimiser=Optimiser(
        name="adamw", momentum=0.9, beta2=0.999, weight_decay=4e-4, trunk_lr=1.0, sum_pixels=True
    ),
    # The rate is halved after 300, 400 and 500 thousand of 600 thousand steps.
    schedule=Schedule(name="step", milestones=(1 / 2, 2 / 3, 5 / 6), gamma=0.5, warmup=0.0),
    augmentation=Augmentation(preset="flow"),
    regularisation=Regularisation(label_smoothing=0.0, ema=0.0),
    length=Length(steps=600_000),
)
_PAIRS = 22_232
"""Of FlyingChairs' training split."""


def flownets_fischer2015() -> Recipe:
    """FlowNetS as in Dosovitskiy, Fischer et al. 2015, section 5.1: Adam, batch 8, 600k steps.

    The paper's EPE with it on FlyingChairs' test split is 2.71 pixels, about 25 % of the zero
    flow's; days on a GPU of the time, and nothing for a CPU. It departs from the paper in square
    crops of 384 px where the paper sees whole pairs of 512 × 384, in the ranges of the colours
    (``vidi.data.augment``), and in AdamW for Adam: decay acts on the weights directly, where
    Adam's goes through the gradient's scale, and at this rate does next to nothing.

        vidi train FlyingChairs_release --recipe flownets_fischer2015
    """
    return _FLOWNET


def flownetc_fischer2015() -> Recipe:
    """FlowNetC by the same schedule; the rate rises to 1e-4 within the first 10k steps.

    The paper's EPE with it on FlyingChairs' test split is 2.19 pixels, about 20 % of the zero
    flow's. The rise is linear from next to nothing, where the paper's begins at 1e-6; the warm-up's
    length in epochs is that for FlyingChairs' 22,232 pairs. It departs from the paper as
    ``flownets_fischer2015`` does.

        vidi train FlyingChairs_release --recipe flownetc_fischer2015
    """
    schedule = dataclasses.replace(_FLOWNET.schedule, warmup=10_000 * 8 / _PAIRS)
    return dataclasses.replace(_FLOWNET, model="flownet_c", schedule=schedule)


def flownets_short() -> Recipe:
    """FlowNetS in a tenth of the paper's length, 60k steps: hours on a GPU.

    For generated scenes as pretraining, after which ``--weights RUN`` goes on with one's own pairs.
    The rate is twice the paper's, rises for an epoch and falls to zero, since a short run has to
    end with small steps. It is to reach 40 % of the zero flow's EPE on pairs that it was not
    trained on; not measured yet.

        vidi train scenes:flow,size=384x512,n=20000 --recipe flownets_short
    """
    return dataclasses.replace(
        _FLOWNET,
        lr=2e-4,
        optimiser=dataclasses.replace(_FLOWNET.optimiser, sum_pixels=False),
        schedule=Schedule(name="cosine", warmup=1.0),
        length=Length(steps=60_000),
    )
