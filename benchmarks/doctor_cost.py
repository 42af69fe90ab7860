"""What the doctor's recording costs: training with it and without, in turns.

    python benchmarks/doctor_cost.py [--data DIR] [--rounds 5] [--steps 150]

Each round trains every case twice from the same start, with ``--logging.vitals`` on and off, in two
processes that take turns of some seconds (``alternate.py``). What is timed are the steps, from the
sixth on, and what follows evaluations (the doctor reads the records then); evaluations themselves,
the same in both, are not. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from alternate import Stopwatch, seconds_per_step

import vidi


def training(watch: Stopwatch, case: dict[str, Any], steps: int, vitals: bool) -> None:
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
            with_it, without = seconds_per_step(
                [(training, (case, told.steps, vitals)) for vitals in (True, False)]
            )
            ratios.append(with_it / without)
            print(f"{name}: round {number + 1}: {ratios[-1]:.3f}", flush=True)
    print("| case | time with it, relative to without: median (least to greatest) |\n|---|---|")
    for name, ratios in results.items():
        print(f"| {name} | {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}) |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
