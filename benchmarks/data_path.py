"""Samples a second of decoding and geometry, annotations included, beside torchvision's v2.

    python benchmarks/data_path.py $VIDI_DATA [--rounds 5] [--seconds 4] [--only photos,boxes]

- photos: imagenette-small, random resized crop and flip to 128 px;
- boxes: bccd, the same to 480 px, boxes too;
- masks: camvid whole, 360 × 480, random resized crop (at least half the area) and flip, masks too;
- scenes: generated scenes with all annotations at 128 and at 384 px (no peer).

Ours with one and with two threads, without a cache and from memory. The peer is a DataLoader with
two worker processes, whose images are decoded by Pillow, or by torchvision itself; it has no cache.
All yield batches of uint8. Each round times ours and both peers one after the other, for
``--seconds`` each, after a first that is not counted; workers are started before that. Printed are
medians, and the median, least and largest of the rounds' ratios. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from vidi.data import annotations, augment, cache, draws, geometry, scenes
from vidi.data.dataset import Dataset
from vidi.data.open import open_data
from vidi.engine import defaults, device
from vidi.recipe import Augmentation
from vidi.types import Array, Sample

BATCH = 32
RATIO = (3 / 4, 4 / 3)
SETTLE = 1.5
"""Seconds in which a peer's workers finish what they began, before others are timed."""


@dataclass(frozen=True)
class Job:
    """One of the data sets: what is read, and how large the input is."""

    name: str
    folder: str
    task: str
    size: tuple[int, int]
    area: tuple[float, float]


JOBS = [
    Job("photos", "imagenette-small", "classification", (128, 128), (0.25, 1.0)),
    Job("boxes", "bccd", "detection", (480, 480), (0.25, 1.0)),
    Job("masks", "camvid", "segmentation", (360, 480), (0.5, 1.0)),
]


def matrices(job: Job, epoch: int, ids: Array, shapes: list[tuple[int, int]]) -> Iterator[Array]:
    """Random resized crop and flip, from the image's pixels to the input's."""
    h, w = job.size
    photos = Augmentation(preset="photos", crop_area=job.area, crop_ratio=RATIO)
    side = augment.plan(augment.resolve(photos), w, 0, epoch, ids)
    for row, shape in enumerate(shapes):
        square = augment.matrix(side, row, shape)
        yield square if h == w else geometry.compose(square, geometry.scaling(1, h / w))


def ours(
    job: Job, data: Dataset, load: Callable[[int], Any], threads: int
) -> Callable[[], Iterator[int]]:
    """Endless batches; each gives its number of samples."""
    ids = data.splits["train"]

    def batch(drawn: Array, epoch: int) -> int:
        images = np.empty((len(drawn), *job.size, 3), np.uint8)
        samples = []
        loaded = [load(int(i)) for i in drawn]
        full = [size for _, size in loaded]
        for k, m in enumerate(matrices(job, epoch, drawn, full)):
            i = int(drawn[k])
            sample = Sample(key=data.images.key(i), image=loaded[k][0], **data.annotations(i))
            samples.append(
                annotations.warp_sample(
                    sample, m, job.size, full=full[k], out=images[k], quick=True
                )
            )
        if job.task == "segmentation":
            np.stack([s.mask for s in samples if s.mask is not None])
        return len(images)

    def run() -> Iterator[int]:
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Any] = deque()
            epoch = 0
            try:
                while True:
                    order = draws.permutation(0, epoch, ids)
                    for start in range(0, len(order) - BATCH + 1, BATCH):
                        waiting.append(pool.submit(batch, order[start : start + BATCH], epoch))
                        if len(waiting) > 2 * threads:
                            yield waiting.popleft().result()
                    epoch += 1
            finally:
                for work in waiting:
                    work.cancel()

    return run


class Peer(TorchDataset[Any]):
    """The same files; boxes are parsed beforehand, masks are decoded as images are."""

    def __init__(self, job: Job, root: Path, data: Dataset, decode: str) -> None:
        self.decode = decode
        self.task = job.task
        ids = data.splits["train"].tolist()
        keys = [data.images.key(i) for i in ids]
        self.paths = [str(root / job.folder / key) for key in keys]
        self.boxes: list[Any] = []
        self.masks: list[str] = []
        if job.task == "detection":
            self.boxes = [data.annotations(i)["boxes"] for i in ids]
        if job.task == "segmentation":
            parts = [Path(path) for path in self.paths]
            self.masks = [str(p.parent.parent / "masks" / f"{p.stem}.png") for p in parts]
        steps: list[Any] = [
            v2.RandomResizedCrop(job.size, job.area, RATIO, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        if job.task == "detection":
            steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()]
        self.transform = v2.Compose([*steps, *([v2.PILToTensor()] if decode == "pillow" else [])])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> Any:
        path = self.paths[k]
        image: Any
        if self.decode == "pillow":
            image = Image.open(path).convert("RGB")
            size = (image.height, image.width)
        else:
            image = tv_tensors.Image(
                decode_image(path, ImageReadMode.RGB, apply_exif_orientation=True)
            )
            size = (image.shape[1], image.shape[2])
        if self.task == "classification":
            return self.transform(image)
        if self.task == "segmentation":
            pixels = torch.from_numpy(np.array(Image.open(self.masks[k])))[None]
            found = self.transform(image, tv_tensors.Mask(pixels))
            return found[0], found[1]
        known = self.boxes[k]
        target = {
            "boxes": tv_tensors.BoundingBoxes(  # type: ignore[call-arg]
                torch.from_numpy(known.xyxy), format="XYXY", canvas_size=size
            ),
            "labels": torch.from_numpy(known.labels),
        }
        found = self.transform(image, target)
        return found[0], found[1]


def together(samples: list[Any]) -> Any:
    if isinstance(samples[0], tuple):
        images, targets = zip(*samples, strict=True)
        stacked = torch.stack(targets) if isinstance(targets[0], torch.Tensor) else targets
        return torch.stack(images), stacked
    return torch.stack(samples), None


def theirs(job: Job, root: Path, data: Dataset, decode: str) -> Callable[[], Iterator[int]]:
    loader = DataLoader(
        Peer(job, root, data, decode),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
        collate_fn=together,
    )
    iter(loader)  # starts the workers, which stay

    def run() -> Iterator[int]:
        try:
            while True:
                for images, _ in loader:
                    yield len(images)
        finally:
            time.sleep(SETTLE)

    return run


def generated(size: int, threads: int) -> Callable[[], Iterator[int]]:
    def batch(start: int) -> int:
        for i in range(start, start + 8):
            scenes.render(0, i, size=(size, size))
        return 8

    def run() -> Iterator[int]:
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Any] = deque()
            start = 0
            try:
                while True:
                    waiting.append(pool.submit(batch, start))
                    start += 8
                    if len(waiting) > 2 * threads:
                        yield waiting.popleft().result()
            finally:
                for work in waiting:
                    work.cancel()

    return run


def kept(data: Dataset, side: int) -> int:
    """The shorter side at which training keeps images of which parts of ``side`` are seen."""
    shorter = int(np.median([min(data.images.size(int(i))) for i in data.splits["train"]]))
    return defaults.kept(shorter, side)


def rate(run: Callable[[], Iterator[int]], seconds: float) -> float:
    """Samples a second, from the first batch on, which starts what there is to start."""
    batches = run()
    next(batches)
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        count += next(batches)
    batches.close()  # type: ignore[attr-defined]
    return count / passed


def compare(
    runs: dict[str, Callable[[], Iterator[int]]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Rates by round, all of one round before the next."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds + 1):
        for name, run in runs.items():
            measured = rate(run, seconds)
            if k:
                found[name].append(measured)
    return found


def report(name: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians; and, of each that is ours, the ratio to each peer with its spread."""
    out: dict[str, Any] = {what: round(statistics.median(r), 1) for what, r in found.items()}
    for what, rates in found.items():
        print(f"{name:>7} {what:<22} {statistics.median(rates):8.1f} /s")
    for what in [w for w in found if not w.startswith("torchvision")]:
        for peer in [w for w in found if w.startswith("torchvision")]:
            ratios = [a / b for a, b in zip(found[what], found[peer], strict=True)]
            spread = [round(f(ratios), 2) for f in (statistics.median, min, max)]
            out[f"{what} : {peer}"] = spread
            print(f"{name:>7} {what} : {peer} = {spread[0]} ({spread[1]} to {spread[2]})")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, help="the folder with imagenette-small, bccd and camvid")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="photos,boxes,masks,scenes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    only = args.only.split(",")
    jobs = [job for job in JOBS if job.name in only]
    peers: dict[str, dict[str, Callable[[], Iterator[int]]]] = {}
    for job in jobs:
        data = open_data(args.root / job.folder, task=job.task)
        peers[job.name] = {
            f"torchvision, {decode}": theirs(job, args.root, data, decode)
            for decode in ("pillow", "torchvision")
        }
    device.tune_allocator()  # as training does; the peers' processes have begun without
    results: dict[str, Any] = {}
    for job in jobs:
        data = open_data(args.root / job.folder, task=job.task)
        shorter = None if job.name == "masks" else kept(data, min(job.size))
        runs: dict[str, Callable[[], Iterator[int]]] = {}
        for mode in ("off", "memory"):
            store = cache.make(data.images, data.root, shorter, mode)  # type: ignore[arg-type]
            for threads in (1, 2):
                runs[f"vidi {threads} threads {mode}"] = ours(job, data, store.load, threads)
            if mode == "memory":
                for i in data.splits["train"].tolist():
                    store.load(i)
        found = compare(runs | peers[job.name], args.rounds, args.seconds)
        results[job.name] = report(job.name, found)
    if "scenes" in only:
        for size in (128, 384):
            runs = {f"{threads} threads": generated(size, threads) for threads in (1, 2)}
            found = compare(runs, args.rounds, args.seconds)
            results[f"scenes {size}"] = report(f"{size} px", found)
    print(json.dumps({"samples_per_second": results}))


if __name__ == "__main__":
    main()
