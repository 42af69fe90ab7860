"""Memory and time to predict one large image by tiles, above what the network itself takes.

    python benchmarks/tiled_prediction.py fcn_small [fcn8s_vgg16 …] [--size 6000x4000]

Each network has random weights and runs in a process of its own. Peak memory is the process's
resident memory at its worst (VmHWM) less that before the image is made: so it holds the image, the
label map, the measurement of the network's field, and a tile's maps. Linux only.
``--tile`` sets the tiles' side; ``--check`` predicts a part in one piece, too, and compares its
interior. The last line of each network is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from vidi import models
from vidi.ops import receptive, tiles
from vidi.types import Array, Notes

GB = 1e9


def resident(field: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at its worst."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def picture(height: int, width: int) -> Array:
    """Blobs of several sizes, made row by row, so that making it takes no memory of note."""
    x = np.arange(width)[None, :, None]
    image = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, 64):
        rows = np.arange(y, min(y + 64, height))[:, None, None]
        wave = sum(
            np.sin(x / a + np.arange(3)) * np.cos(rows / (a * 1.3)) for a in (7, 31, 113, 401)
        )
        image[y : y + 64] = np.clip(128 + 40 * wave, 0, 255)
    return image


def normalise(pixels: Array) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    return (tensor.float() - 118) / 58


def one(name: str, arguments: argparse.Namespace) -> None:
    width, height = map(int, arguments.size.split("x"))
    torch.manual_seed(0)
    network = getattr(models, name)(num_classes=arguments.classes).eval()
    # FCNs begin with scores of zero.
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    before = resident("VmRSS")
    image = picture(height, width)
    notes: Notes = []
    start = time.perf_counter()
    field = receptive.measure(network)
    measured = time.perf_counter() - start
    plan = tiles.lay(height, width, field, arguments.tile)
    labels = tiles.predict_tiled(
        network, image, normalise, tile=arguments.tile, field=field, notes=notes
    )
    seconds = time.perf_counter() - start
    peak = resident("VmHWM") - before
    seen = [[s.stop - s.start for s in tile.seen] for tile in plan.tiles]
    row = {
        "network": name,
        "size": [width, height],
        "peak_gb": round(peak / GB, 3),
        "seconds": round(seconds, 1),
        "field_seconds": round(measured, 2),
        "stride": field.stride,
        "reach": field.reach,
        "bytes_per_pixel": round(field.memory(1e3, 1e3) / 1e6, 1),
        "tiles": len(plan.tiles),
        "largest": max(seen),
        "overlap": plan.overlap,
        "computed_per_pixel": round(sum(h * w for h, w in seen) / (height * width), 2),
        "classes_found": len(np.unique(labels)),
    }
    if arguments.check:
        row["differing_share"] = check(network, image, labels, field)
    for note in notes:
        print(note)
    print(
        f"{name}: {peak / GB:.2f} GB above the network's own, {seconds:.0f} s, "
        f"{len(plan.tiles)} tiles"
    )
    print(json.dumps(row))


def check(network: torch.nn.Module, image: Array, labels: Array, field: receptive.Field) -> float:
    """The share of pixels about a seam that a single piece labels otherwise."""
    assert field.reach is not None
    middle = [n // 2 // field.stride * field.stride for n in labels.shape]
    margin = max(field.reach) + field.stride
    half = -(-(margin + 256) // field.stride) * field.stride
    piece = tuple(slice(m - half, m + half) for m in middle)
    inner = slice(margin, 2 * half - margin)
    with receptive.evaluating(network):
        alone = tiles.labels(network(normalise(image[piece]))).numpy()
    return float((alone[inner, inner] != labels[piece][inner, inner]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--size", default="6000x4000", help="width x height in pixels")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        one(arguments.networks[0], arguments)
        return
    options = [o for o in sys.argv[1:] if o not in arguments.networks]
    for name in arguments.networks:
        subprocess.run([sys.executable, __file__, name, *options, "--inside"], check=True)


if __name__ == "__main__":
    main()
