"""What five members on shared batches cost in time, against one network.

    python benchmarks/members_cost.py $VIDI_DATA/cifar10 --model resnet20 [--rounds 3]
    python benchmarks/members_cost.py $VIDI_DATA/imagenette-small --model resnet18 \\
        --image-size 64 --cache off

Each round trains one network, and an ensemble for a fifth as many steps, in two processes that take
turns of some seconds (``alternate.py``); what is timed are the steps from the sixth on, without
evaluations. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from alternate import Stopwatch, seconds_per_step

import vidi


def training(watch: Stopwatch, told: argparse.Namespace, members: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        vidi.train(
            told.data,
            run=Path(folder) / "run",
            model=told.model,
            members=members,
            image_size=told.image_size or "auto",
            batch_size=told.batch_size or "auto",
            length={"steps": steps, "evaluate_every": 1e6},
            data={"cache": told.cache},
            logging={"pictures": False},
            progress=watch,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", required=True)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    told = parser.parse_args()
    ratios = []
    for number in range(told.rounds):
        several, one = seconds_per_step(
            [
                (training, (told, told.members, told.steps)),
                (training, (told, 1, told.steps * told.members)),
            ]
        )
        ratios.append(several / one)
        print(f"round {number + 1}: {ratios[-1]:.3f}", flush=True)
    print(
        f"{told.data}, {told.model}: {told.members} members take {statistics.median(ratios):.3f} "
        f"times as long as one ({min(ratios):.3f} to {max(ratios):.3f})"
    )
    print(json.dumps({"data": told.data, "model": told.model, "ratios": ratios}))


if __name__ == "__main__":
    main()
