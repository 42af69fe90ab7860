"""Seconds that the boundary score takes: BSDS500's test set at 99 thresholds.

    python benchmarks/boundary_score.py $VIDI_DATA/bsds500 [--images 20] [--processes 2]

The prediction is the length of the colours' gradient at two scales, after non-maximum suppression,
as float32: no two thresholds see the same pixels, as with a network's output. Images are spread
evenly over the set, and the time for all of them is extrapolated. With more than one process, each
takes an image at a time. Reading the files counts; starting the processes does not. Processor
seconds are given besides, for machines on which other work runs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from scipy import ndimage

from vidi.data.open import open_data
from vidi.ops import boundaries
from vidi.ops.suppression import suppress
from vidi.types import Array


def gradients(image: Array) -> Array:
    """A plausible soft boundary map, float32 [H, W] in [0, 1], of uint8 [H, W, 3]."""
    total = np.zeros(image.shape[:2])
    for sigma in (1.5, 3.0):
        channels = [
            ndimage.gaussian_gradient_magnitude(image[..., k] / 255, sigma) for k in range(3)
        ]
        total += np.sqrt(np.square(channels).sum(0)) * sigma
    return np.asarray(np.minimum(total / np.quantile(total, 0.99), 1), np.float32)


def one(source: str, split: str, index: int) -> tuple[boundaries.Counts, float, float]:
    """(counts, processor seconds of predicting, of scoring) of one image."""
    sample = open_data(source, task="boundaries").split(split)[index]
    assert sample.edges is not None
    begun = time.process_time()
    prediction = suppress(gradients(sample.image))
    predicted = time.process_time()
    counts = boundaries.score(prediction, sample.edges)
    return counts, predicted - begun, time.process_time() - predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    total = len(open_data(arguments.source, task="boundaries").split(arguments.split))
    chosen = np.linspace(0, total - 1, min(arguments.images, total)).astype(int).tolist()
    task = partial(one, arguments.source, arguments.split)
    with ProcessPoolExecutor(arguments.processes) as pool:
        list(pool.map(abs, range(arguments.processes)))
        begun = time.perf_counter()
        done = list(pool.map(task, chosen))
        wall = time.perf_counter() - begun
    s = boundaries.summary([counts for counts, _, _ in done])
    report = {
        "images": len(done),
        "processes": arguments.processes,
        "wall_seconds": round(wall, 1),
        "predicting_cpu_seconds": round(sum(p for _, p, _ in done), 1),
        "scoring_cpu_seconds": round(sum(t for _, _, t in done), 1),
        "slowest_image_cpu_seconds": round(max(t for _, _, t in done), 1),
        "whole_set_minutes": round(wall / len(done) * total / 60, 1),
        "ods": round(s.ods.f, 4),
        "ois": round(s.ois.f, 4),
        "ap": round(s.ap, 4),
    }
    for key, value in report.items():
        print(f"{key.replace('_', ' '):28} {value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
