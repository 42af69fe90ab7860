"""Recipes for classification."""

from __future__ import annotations

from vidi.recipe import Augmentation, Optimiser, Recipe, Regularisation, Schedule


def cifar_he2016() -> Recipe:
    """CIFAR-10 as in He et al. 2016, section 4.2: 64k steps of batch 128, pad-and-crop and flip.

    The paper's error with it: resnet20 8.75 %, resnet32 7.51 %, resnet44 7.17 %, resnet56 6.97 %,
    resnet110 6.61 % ± 0.16 (which the paper warms up at a rate of 0.01 for about 400 steps: add
    ``--schedule.warmup 1``). 64k × 128 images: hours on two cores, under an hour on a GPU.
    It departs from the paper in subtracting a mean per channel, not per pixel, and in leaving
    biases and norms undecayed (``--optimiser.decay-biases-and-norms`` decays them as the paper).

        vidi train cifar10 --recipe cifar_he2016 --model resnet20
    """
    return Recipe(
        model="resnet20",
        image_size=32,
        batch_size=128,
        lr=0.1,
        # 64,000 steps of 128 from the 45,000 images that are left beside the validation split,
        # which is as large as the paper's.
        epochs=182.0,
        optimiser=Optimiser(name="sgd", momentum=0.9, nesterov=False, weight_decay=1e-4),
        schedule=Schedule(name="step", milestones=(0.5, 0.75), gamma=0.1, warmup=0.0),
        augmentation=Augmentation(preset="small", pad=4, pad_mode="mean"),
        regularisation=Regularisation(label_smoothing=0.0, ema=0.0),
    )


def imagenet_resnet() -> Recipe:
    """ImageNet as the residual networks' authors trained it, at the length that became usual.

    90 epochs of batch 256, rate 0.1 divided by 10 every 30 epochs, random resized crops of 8 to
    100 % and flips. Reference scripts reach 76.1 % top-1 with resnet50 by it (torchvision's
    IMAGENET1K_V1 weights) and 69.8 % with resnet18. Days on one GPU; several with torchrun.

        torchrun --nproc-per-node 8 -m vidi train imagenet --recipe imagenet_resnet
    """
    return Recipe(
        model="resnet50",
        image_size=224,
        batch_size=256,
        lr=0.1,
        epochs=90.0,
        optimiser=Optimiser(
            name="sgd",
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            decay_biases_and_norms=True,
        ),
        schedule=Schedule(name="step", milestones=(1 / 3, 2 / 3), gamma=0.1, warmup=0.0),
        augmentation=Augmentation(preset="photos", crop_area=(0.08, 1.0)),
        regularisation=Regularisation(label_smoothing=0.0, ema=0.0),
    )
