"""Images per second of the loader alone, beside torchvision's ImageFolder and DataLoader.

    python benchmarks/loader.py $VIDI_DATA/imagenette-small [--threads 2] [--size 128]

Three measurements, each interleaved with its peer, median of ``--rounds``:

- decode: JPEG files, no cache, random resized crop, flip and a little colour;
- cached: the same from the memory cache (later epochs);
- arrays: 32-pixel images in memory, pad-and-crop and flip, batches of 128.

The peer decodes with Pillow, transforms with torchvision and has as many worker processes as we
have threads; its workers are started, and its first epoch is over, before it is timed. Both yield
batches of uint8. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from vidi.data import augment, cache
from vidi.data.draws import Draws
from vidi.data.loader import Loader
from vidi.data.open import open_data
from vidi.recipe import Augmentation
from vidi.types import Array, Encoded, Sample


def encode(sample: Sample, rng: Draws) -> Encoded:
    return Encoded({"image": sample.image}, {"label": np.asarray(sample.label, np.int64)})


class Arrays(Dataset[Any]):
    """Images in memory as torchvision's CIFAR10 holds them: made into Pillow images one by one."""

    def __init__(self, images: Array, transform: Callable[[Any], Any]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[i])), i % 10


def peer(data: Dataset[Any], batch: int, workers: int) -> DataLoader[Any]:
    return DataLoader(
        data,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def rate(batches: Iterable[Any], size: Callable[[Any], int]) -> float:
    """Images a second."""
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += size(batch)
    return count / (time.perf_counter() - start)


def compare(ours: Loader, theirs: DataLoader[Any], rounds: int) -> dict[str, float]:
    def one(epoch: int) -> tuple[float, float]:
        return rate(ours.epoch(epoch), len), rate(theirs, lambda b: len(b[0]))

    one(0)
    rates = [one(k + 1) for k in range(rounds)]
    mine, other = (statistics.median(r) for r in zip(*rates, strict=True))
    return {"vidi": round(mine), "torchvision": round(other), "ratio": round(mine / other, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder with train/CLASS/*.jpg")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--arrays", type=int, default=12800, help="number of 32-pixel images")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)

    data = open_data(args.folder)
    ids = data.splits["train"]
    photos = augment.resolve(Augmentation(preset="photos"))
    theirs = ImageFolder(
        str(args.folder / "train"),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(args.size, (0.25, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.2, 0.2, 0.2),
                transforms.PILToTensor(),
            ]
        ),
    )
    results = {}
    for name, mode in (("decode", "off"), ("cached", "memory")):
        store = cache.make(data.images, data.root, args.size * 3 // 2, mode)  # type: ignore[arg-type]
        ours = Loader(
            data,
            ids,
            load=store.load,
            encode=encode,
            augmentation=photos,
            image_size=args.size,
            batch_size=args.batch,
            train=True,
            threads=args.threads,
        )
        results[name] = compare(ours, peer(theirs, args.batch, args.threads), args.rounds)
        print(f"{name:>7}: {results[name]}")

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (args.arrays, 32, 32, 3), dtype=np.uint8)
    samples = [(small[i], i % 10) for i in range(len(small))]
    arrays = open_data({"train": samples, "val": samples[:100]})
    ours = Loader(
        arrays,
        arrays.splits["train"],
        load=lambda i: (small[i], (32, 32)),
        encode=encode,
        augmentation=augment.resolve(Augmentation(preset="small")),
        image_size=32,
        batch_size=128,
        train=True,
        threads=args.threads,
    )
    usual = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    results["arrays"] = compare(ours, peer(Arrays(small, usual), 128, args.threads), args.rounds)
    print(f" arrays: {results['arrays']}")
    print(json.dumps({"threads": args.threads, "size": args.size, "images_per_second": results}))


if __name__ == "__main__":
    main()
