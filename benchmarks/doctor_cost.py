"""What the doctor's recording costs: training with it and without, in turns.

    python benchmarks/doctor_cost.py [--data DIR] [--rounds 5] [--steps 150]

Each round trains every case twice from the same start, with ``--logging.vitals`` on and off, in
changing order. What is timed are the steps, from the sixth on, and what follows evaluations (the
doctor reads the records then); evaluations themselves, the same in both, are not. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import vidi

FIRST = 5
"""Steps that are not timed: they compile and allocate."""


class Stopwatch:
    """Seconds of training, told by what training tells a display."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None
        self.steps = 0

    def step(self, step: int, loss: float, images_per_second: float) -> None:
        now = time.perf_counter()
        if self._since is not None and step > FIRST:
            self.seconds += now - self._since
            self.steps += 1
        self._since = now

    def evaluated(self, **what: Any) -> None:
        self._since = time.perf_counter()

    def note(self, sentence: str) -> None: ...
    def start(self, **what: Any) -> None: ...
    def measured(self, total_steps: int) -> None: ...

    def finish(self, rows: list[tuple[str, str]]) -> None:
        """After the last evaluation the doctor has read the records once more, untimed."""


def alone(function: Callable[..., float], *arguments: Any) -> float:
    """In a process of its own: a later training in the same one is slower."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def seconds_per_step(case: dict[str, Any], steps: int, vitals: bool) -> float:
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        vidi.train(
            case["data"],
            run=Path(folder) / "run",
            model=case["model"],
            length={"steps": steps, "evaluate_every": case.get("evaluate_every", 1.0)},
            logging={"vitals": vitals, "pictures": False},
            progress=watch,
            **case.get("settings", {}),
        )
    return watch.seconds / watch.steps


def cases(data: Path | None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {
        "digits, resnet20": {"data": "digits", "model": "resnet20"},
        "scenes:segmentation, fcn_small": {
            "data": "scenes:segmentation,n=300,val=10,test=0",
            "model": "fcn_small",
            "settings": {"schedule": {"half": 0.0}},
        },
        "scenes:detection, faster_rcnn_small": {
            "data": "scenes:detection,n=300,val=4,test=0",
            "model": "faster_rcnn_small",
        },
    }
    if data is not None:
        found["cifar10, resnet20"] = {"data": data / "cifar10", "model": "resnet20"}
        found["imagenette-small at 128 px, resnet18"] = {
            "data": data / "imagenette-small",
            "model": "resnet18",
            "settings": {"image_size": 128, "batch_size": 32},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of cifar10 and imagenette-small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", help="the cases whose names hold this")
    told = parser.parse_args()
    results: dict[str, list[float]] = {}
    for name, case in cases(told.data).items():
        if told.only and told.only not in name:
            continue
        ratios = results.setdefault(name, [])
        for number in range(told.rounds):
            found = {}
            for vitals in (number % 2 == 0, number % 2 == 1):
                found[vitals] = alone(seconds_per_step, case, told.steps, vitals)
            ratios.append(found[True] / found[False])
            print(f"{name}: round {number + 1}: {ratios[-1]:.3f}", flush=True)
    print("| case | time with it, relative to without: median (least to greatest) |\n|---|---|")
    for name, ratios in results.items():
        print(f"| {name} | {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}) |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
