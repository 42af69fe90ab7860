"""``--lr auto`` and ``--lr find`` beside five rates by hand: accuracy after a short run.

    python benchmarks/lr_auto.py --results lr_auto.json
        [--cifar10 DIR] [--imagenette DIR] [--epochs 3] [--image-size N] [--seeds 1] [--threads N]
        [--optimiser sgd] [--batch-size N] [--model NAME]

The folders default to cifar10 and imagenette-small in $VIDI_DATA; networks are resnet20 and
resnet18. The rates by hand are a factor of :data:`APART` apart about the one that ``auto`` gives
(the middle one is that very rate), and all are trained with the optimiser that ``auto`` chooses, or
the one that is named. Accuracy is that of the best weights on the validation or, where there is
one, the test split, on average over the seeds. Each result is written to the JSON file as soon as
it is there, under what it was measured with; what stands there is not measured again, so the
benchmark can be stopped and started at any time. Printed is a Markdown table, and for ``auto`` and
``find`` the difference to the best of the five.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import vidi
from vidi.engine.run import RunDirectory

APART = 3.0
STEPS = (-2, -1, 0, 1, 2)
"""The rates by hand, in steps of that factor from auto's."""
NETWORKS = {"cifar10": "resnet20", "imagenette": "resnet18"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    root = os.environ.get("VIDI_DATA")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--cifar10", default=root and f"{root}/cifar10")
    parser.add_argument("--imagenette", default=root and f"{root}/imagenette-small")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--model", help="instead of resnet20 and resnet18")
    parser.add_argument("--optimiser", choices=("auto", "sgd", "adamw", "muon"), default="auto")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    tables = []
    for name in NETWORKS:
        data = getattr(options, name)
        if not data:
            print(f"{name}: left out, no folder (--{name}, or VIDI_DATA)")
            continue
        tables.append(table(name, measured(data, name, options)))
    print("\n\n".join(tables))


def measured(data: str, name: str, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Each rate's results, by what was asked for."""
    out: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        auto = once(data, name, "auto", options, seed)
        out.setdefault("auto", []).append(auto)
        out.setdefault("find", []).append(once(data, name, "find", options, seed))
        for step in STEPS:
            lr = float(f"{auto['lr'] * APART**step:.2g}") if step else auto["lr"]
            # A rate that is told means SGD's: what auto chose is told with it.
            row = once(data, name, lr, options, seed, optimiser=auto["optimiser"])
            out.setdefault(f"{lr:g}", []).append(row)
    return out


def once(
    data: str,
    name: str,
    lr: float | str,
    options: argparse.Namespace,
    seed: int,
    optimiser: str | None = None,
) -> dict[str, Any]:
    """The result of one run: from the file, or trained now and written there."""
    fields: dict[str, Any] = {
        "model": options.model or NETWORKS[name],
        "epochs": options.epochs,
        "seed": seed,
        "lr": lr,
        "optimiser": {"name": optimiser or options.optimiser},
    }
    fields |= {"image_size": options.image_size} if options.image_size else {}
    fields |= {"batch_size": options.batch_size} if options.batch_size else {}
    key = json.dumps({"data": Path(data).name, **fields}, sort_keys=True)
    known = json.loads(options.results.read_text("utf-8")) if options.results.is_file() else {}
    if key in known:
        found: dict[str, Any] = known[key]
        return found
    print(f"{name}: --lr {lr}, seed {seed}", flush=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = vidi.train(data, run=f"{folder}/run", logging={"pictures": False}, **fields)
        described = RunDirectory(run.path).read_description()
    kept = described.recipe
    row = {
        "lr": kept.lr,
        "optimiser": kept.optimiser.name,
        "batch_size": kept.batch_size,
        "image_size": kept.image_size,
        "accuracy": (run.test_metrics or run.metrics)["accuracy"],
        "split": "test" if run.test_metrics else "val",
        "note": next((n for n in described.notes if n.startswith("learning rate")), ""),
        "seconds": time.perf_counter() - began,
        "torch_threads": torch.get_num_threads(),
    }
    # Read again: another process may have written meanwhile.
    known = json.loads(options.results.read_text("utf-8")) if options.results.is_file() else {}
    part = options.results.with_suffix(".part")
    part.write_text(json.dumps(known | {key: row}, indent=1), "utf-8")
    part.replace(options.results)
    return row


def table(name: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    def accuracy(which: str) -> float:
        return float(statistics.mean(row["accuracy"] for row in rows[which]))

    hand = [which for which in rows if which not in ("auto", "find")]
    best = max(map(accuracy, hand))
    first = rows["auto"][0]
    lines = [
        f"{name}, {first['optimiser']}, batch {first['batch_size']}, {first['image_size']} px, "
        f"{len(rows['auto'])} seed(s), split {first['split']}",
        "",
        "| `--lr` | rate | accuracy | difference to the best by hand |",
        "|---|---|---|---|",
    ]
    for which, results in rows.items():
        rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(row["lr"] for row in results))
        difference = 100 * (accuracy(which) - best)
        lines.append(f"| {which} | {rates} | {accuracy(which):.2%} | {difference:+.2f} points |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
