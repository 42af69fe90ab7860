"""How long it takes, and how much memory, to open a dataset of a million files.

    python benchmarks/open_million.py [--files N] [--classes K] [--in FOLDER]

Makes N links to tiny PNGs, in K class folders, in a temporary folder; opens them in a fresh
process, and says how long the opening took (imports aside) and the process's peak resident memory,
what Python and its libraries take before included. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

CHILD = """
import json, resource, sys, time
def peak():  # MB
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
from vidi.data.open import open_data
imported = peak()
start = time.perf_counter()
dataset = open_data(sys.argv[1])
opened = time.perf_counter()
fingerprint = dataset.fingerprint()
print(json.dumps({
    "files": len(dataset), "classes": len(dataset.classes),
    "splits": {name: len(ids) for name, ids in dataset.splits.items()},
    "seconds": round(opened - start, 2),
    "fingerprint_seconds": round(time.perf_counter() - opened, 2),
    "peak_mb": round(peak()), "peak_mb_after_imports": round(imported),
}))
"""


LINKS = 50_000
"""Hard links to one file; common file systems allow about 65,000."""


def make(folder: Path, files: int, classes: int, symbolic: bool) -> None:
    content = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    link = os.symlink if symbolic else os.link
    made = 0
    for k in range(classes):
        inside = folder / f"class_{k:04d}"
        inside.mkdir()
        for i in range(files // classes + (k < files % classes)):
            if made % LINKS == 0:
                pixel = folder / f".pixel_{made}.png"
                pixel.write_bytes(content)
            link(pixel, inside / f"image_{i:06d}.png")
            made += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--symbolic", action="store_true", help="symbolic links, not hard ones")
    parser.add_argument("--in", dest="inside", help="where the temporary folder is made")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=told.inside) as folder:
        start = time.perf_counter()
        make(Path(folder), told.files, told.classes, told.symbolic)
        print(f"made {told.files:,} links in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        child = subprocess.run(
            [sys.executable, "-c", CHILD, folder], check=True, capture_output=True, text=True
        )
        found = json.loads(child.stdout)
    assert found["files"] == told.files
    print(f"{found['seconds']:.1f} s, {found['peak_mb']} MB at the peak")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
