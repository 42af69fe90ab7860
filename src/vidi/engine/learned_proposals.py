"""What a Faster R-CNN proposes in images, without the half of it that looks at the proposals."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vidi.data import geometry
from vidi.data.dataset import Dataset
from vidi.engine import device
from vidi.engine.evaluate import Compute
from vidi.engine.prepare import kept_size, loader, make_task, unreadable
from vidi.engine.run import Description
from vidi.errors import InputError
from vidi.models.faster_rcnns import FasterRCNN
from vidi.recipe import Recipe, replace
from vidi.types import Array


@dataclass(frozen=True)
class Proposed:
    """Where a network says that an object may be in one image. ``boxes``: float32 [P, 4], xyxy in
    pixels of the full image, the surest first. ``scores``: float32 [P], how likely each is an
    object, from 0 to 1. ``seconds``: what it took from the decoded image on, of one processor; on
    another device than the CPU, by the clock."""

    path: str
    boxes: Array
    scores: Array
    seconds: float


def search(
    network: nn.Module,
    recipe: Recipe,
    compute: Compute,
    dataset: Dataset,
    ids: Array,
    *,
    count: int = 1000,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Proposed]:
    """The ``count`` surest proposals of each sample at ``ids`` (int64 [N]), in order.

    Each image goes alone through the very steps that evaluation takes, up to the proposals, in one
    thread of its own; ``threads`` of them at once, on the CPU. ``progress`` is called with the
    samples done and their number. ``count`` may be more than the network looks at in detection;
    then more anchors are looked at, too (:meth:`FasterRCNN.scored_proposals`).

    Raises :class:`InputError` for a network that proposes nothing itself, and, when all others are
    done, with the list of the images that cannot be read.
    """
    if not isinstance(network, FasterRCNN):
        raise InputError(
            f"This run's network, {recipe.model}, does not propose regions itself. Take a run of "
            "one that does, such as faster_rcnn_small."
        )
    if count < 1:
        raise InputError(f"{count} proposals were asked for; at least 1 is needed.")
    alone = replace(recipe, {"batch_size": 1, "data": {"threads": 0}})
    found: list[Proposed] = []
    bad: dict[str, str] = {}
    was_training = network.training
    network.eval()
    pool = ThreadPoolExecutor(threads if compute.device.type == "cpu" else 1, "vidi-proposals")
    try:
        with device.threads_for(0):
            work = [
                pool.submit(_proposed, network, alone, compute, dataset, int(i), count) for i in ids
            ]
            for done, (i, one) in enumerate(zip(ids.tolist(), work, strict=True), 1):
                try:
                    found.append(one.result())
                except InputError as error:
                    bad[dataset.images.key(i)] = str(error)
                if progress is not None:
                    progress(done, len(ids))
    finally:
        pool.shutdown(cancel_futures=True)
        network.train(was_training)
    if bad:
        raise InputError(unreadable(bad, "and got no proposals"))
    return found


@torch.inference_mode()
def _proposed(
    network: FasterRCNN, recipe: Recipe, compute: Compute, dataset: Dataset, i: int, count: int
) -> Proposed:
    image = dataset.images.load(i, kept_size(recipe))
    clock = time.thread_time if compute.device.type == "cpu" else time.perf_counter
    began = clock()
    task = make_task(recipe.task, (), recipe, None)
    batches = loader(
        dataset,
        np.array([i]),
        recipe,
        task,
        lambda _: image,
        compute.normalisation,
        truth=lambda _: {},
    )
    (batch,) = batches.epoch(0)
    with compute.autocast():
        seen = device.to_device(
            batch, compute.device, compute.normalisation, compute.channels_last
        ).inputs["image"][0]
        seen = seen if seen.dim() == 4 else seen[None]
        anchored = network.anchored(network.pyramid(seen))
        size = (seen.shape[2], seen.shape[3])
        ((boxes, logits),) = network.scored_proposals(anchored, [size], count)
    back = np.linalg.inv(batch.matrices[0])
    xyxy = geometry.hulls(back, boxes.cpu().numpy().astype(np.float64))
    h, w = image[1]
    return Proposed(
        path=dataset.images.key(i),
        boxes=np.clip(xyxy, 0, [w, h, w, h]).astype(np.float32),
        # In float64: in float32 the last digit depends on how many there are.
        scores=logits.cpu().double().sigmoid().float().numpy(),
        seconds=clock() - began,
    )


def seen_in_training(trained: Description, dataset: Dataset, split: str | None) -> str | None:
    """A sentence for recall that is measured on what the run was trained on; None where it is not,
    as far as the data's name tells. ``split``: None is all images."""
    if split in ("val", "test") or trained.data["root"] != str(dataset.root):
        return None
    return (
        f"The network was trained on images of {dataset.root}, and proposes better in them than in "
        "others. What it proposes in others, the split test (or val) says."
    )
