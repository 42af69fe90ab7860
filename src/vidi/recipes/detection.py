"""Recipes for detection."""

from __future__ import annotations

from vidi.recipe import (
    Augmentation,
    Data,
    Detection,
    Length,
    Optimiser,
    Recipe,
    Regularisation,
    Schedule,
)


def fast_rcnn_girshick2015() -> Recipe:
    """VOC 2007 as in Girshick 2015, sections 2.3 and 4: VGG-16's ImageNet weights, 2 × 64 regions.

    The paper's mean AP with it (VOC 2007's measure, trained on its trainval): 66.9 %, and 66.6 %
    after a truncated SVD (`vidi eval RUN --svd 1024 256`). 40,000 steps of two images of 600
    pixels: 9.5 hours on the GPU of the time, and nothing for a CPU. It departs from the paper in
    giving biases the rate of weights and not twice as much.

        vidi train VOC2007/ --recipe fast_rcnn_girshick2015
    """
    return Recipe(
        model="fast_rcnn_vgg16",
        weights="imagenet",
        batch_size=2,
        lr=1e-3,
        image_size=600,
        data=Data(proposals="selective-fast", proposal_count=2000),
        optimiser=Optimiser(
            name="sgd", momentum=0.9, nesterov=False, weight_decay=5e-4, trunk_lr=1.0
        ),
        schedule=Schedule(name="step", milestones=(0.75,), gamma=0.1, warmup=0.0),
        augmentation=Augmentation(preset="none", crop="shorter", longest=1000, flip=0.5),
        regularisation=Regularisation(label_smoothing=0.0, ema=0.0),
        detection=Detection(regions=64, foreground=0.25, background_iou=(0.1, 0.5), nms=0.3),
        length=Length(steps=40_000),
    )
