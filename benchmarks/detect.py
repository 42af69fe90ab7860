"""Images a second of detection, one at a time from files, beside an Ultralytics YOLO of your own.

    python benchmarks/detect.py RUN DATA [--ultralytics WEIGHTS] [--image-size 480] [--threads 2]
        [--images N] [--rounds 5]

``RUN``: of `vidi train`; it is measured at the size that it was trained at. ``DATA``: whatever
`vidi train` takes, with the run's classes; its test split is predicted (or that for validation,
where there is no test). ``WEIGHTS``: a detector that Ultralytics trained on the same classes, which
predicts at ``--image-size`` and needs the package ultralytics in this environment. ``--images``: so
many of the split, evenly spread.

Timed is what a loop over paths does by default: decoding, network and post-processing,
`vidi.load(RUN).predict(path)` beside `YOLO(WEIGHTS).predict(path)`; then the networks alone, each
on the input that it got of the first image, and both on that stretched to a square of
``--image-size``. In each round both take their turn, the one first in one round and the other in
the next; a first round is not counted. Both compute with ``--threads`` of torch's (Ultralytics by
itself leaves one core free). Printed are medians, and the median, least and greatest of the rounds'
ratios.

A Faster R-CNN's network holds its proposals and their suppression, an end-to-end YOLO's the choice
of its detections; what follows is in the prediction alone. Proposals that are not the network's own
are computed before, and are in no figure. Multiply-adds are those of convolutions and matrix
products, parameters those that predict (Ultralytics folds normalisation into convolutions). Both
accuracies are vidi's measure of all detections from a score of 0.001 on, 300 an image at most. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidi import Model, load
from vidi.data.dataset import Dataset, FileImages
from vidi.data.open import open_data
from vidi.errors import InputError
from vidi.models.count import parameters
from vidi.ops.detection_meter import DetectionMeter
from vidi.types import Array, Detections, Sample

LEAST, MOST = 0.001, 300
"""The score from which on detections are measured, and how many of an image at most."""
REPEATS = 10
"""Forward passes of a network alone in a round."""
HEADS = {"vidi": "vidi", "ultralytics": "Ultralytics"}


@dataclass(frozen=True)
class Detector:
    """``predict``: as a user calls it. ``every``: all detections that are measured. ``run``: the
    network on ``inputs``, those of the first image."""

    name: str
    precision: str
    parameters: int
    predict: Callable[[str], Any]
    every: Callable[[str], Detections]
    run: Callable[[tuple[Any, ...]], Any]
    inputs: tuple[Any, ...]


def ours(run: str, first: str) -> tuple[Detector, Model]:
    model = load(run, device="cpu")
    if model.recipe.task != "detection":
        raise InputError(f"{run} is a run of {model.recipe.task}; one of detection is needed.")
    detection = dataclasses.replace(model.recipe.detection, least_score=LEAST, most=MOST)
    recipe = dataclasses.replace(model.recipe, detection=detection)
    described = dataclasses.replace(model.description, recipe=recipe)
    generous = dataclasses.replace(model, description=described)

    def alone(inputs: tuple[Any, ...]) -> Any:
        with model.compute.autocast():
            return model.network(*inputs)

    detector = Detector(
        name=model.recipe.model,
        precision=model.compute.precision,
        parameters=parameters(model.network),
        predict=model.predict,
        every=lambda path: generous.predict(path)[0].found,
        run=alone,
        inputs=seen(model.network, lambda: model.predict(first)),
    )
    return detector, model


def theirs(weights: str, size: int, classes: tuple[str, ...], first: str) -> Detector:
    if not Path(weights).is_file():  # a name alone would be downloaded
        raise InputError(f"There are no weights at {weights}. Name a file that Ultralytics wrote.")
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    try:
        ultralytics: Any = importlib.import_module("ultralytics")
    except ModuleNotFoundError as error:
        raise InputError(
            f"--ultralytics needs the package ultralytics here, and there is no module {error.name}"
            ". Install it (pip install ultralytics), or leave the option out."
        ) from error
    model = ultralytics.YOLO(weights)
    if sorted(model.names.values()) != sorted(classes):
        raise InputError(
            f"{weights} knows the classes {', '.join(model.names.values())}; the run knows "
            f"{', '.join(classes)}. Train both on the same data."
        )
    labels = np.array([classes.index(model.names[k]) for k in range(len(classes))])

    def predict(path: str, **options: Any) -> Any:
        return model.predict(path, imgsz=size, device="cpu", verbose=False, **options)

    def every(path: str) -> Detections:
        # Another object: options stay with a model that has predicted.
        found = generous.predict(
            path, imgsz=size, device="cpu", verbose=False, conf=LEAST, max_det=MOST
        )[0].boxes
        return Detections(
            xyxy=found.xyxy.numpy().astype(np.float32),
            labels=labels[found.cls.numpy().astype(int)],
            scores=found.conf.numpy().astype(np.float32),
        )

    generous = ultralytics.YOLO(weights)
    predict(first)
    network = model.predictor.model
    folded = ultralytics.YOLO(weights)
    folded.fuse(verbose=False)
    return Detector(
        name=Path(folded.model.yaml.get("yaml_file", weights)).stem,
        precision="fp32",
        parameters=parameters(folded.model),
        predict=predict,
        every=every,
        run=lambda inputs: network(*inputs),
        inputs=seen(network, lambda: predict(first)),
    )


def seen(network: nn.Module, call: Callable[[], Any]) -> tuple[Any, ...]:
    """What the network is called with, the first time that it is."""
    found: list[tuple[Any, ...]] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: found.append(inputs))
    call()
    hook.remove()
    return found[0]


@torch.inference_mode()
def square(inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """The image, and regions of it where they are given, stretched to a square."""
    image, *rest = inputs
    height, width = image.shape[2:]
    stretch = torch.tensor([1, size / width, size / height, size / width, size / height])
    return (
        F.interpolate(image, (size, size), mode="bilinear"),
        *(one * stretch if isinstance(one, Tensor) else one for one in rest),
    )


@torch.no_grad()
def multiply_adds(detector: Detector, inputs: tuple[Any, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        detector.run(inputs)
    return int(counter.get_total_flops()) // 2


@torch.inference_mode()
def rate(work: Callable[[Any], Any], items: list[Any], threads: int) -> float:
    """Items a second."""
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    for one in items:
        work(one)
    seconds = time.perf_counter() - begun
    # Ultralytics sets it whenever it chooses a device.
    assert torch.get_num_threads() == threads, "the number of threads was changed meanwhile"
    return len(items) / seconds


def measure(
    detectors: dict[str, Detector], paths: list[str], size: int, rounds: int, threads: int
) -> dict[str, dict[str, list[float]]]:
    """Images a second by what is timed, detector and round."""
    what = ("prediction", "network", "square")
    found: dict[str, dict[str, list[float]]] = {w: {d: [] for d in detectors} for w in what}
    squares = {name: square(one.inputs, size) for name, one in detectors.items()}
    for k in range(rounds + 1):
        turns = list(detectors.items())
        for timed in what:
            for name, one in turns if k % 2 else turns[::-1]:
                jobs: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
                    "prediction": (one.predict, paths),
                    "network": (one.run, [one.inputs] * REPEATS),
                    "square": (one.run, [squares[name]] * REPEATS),
                }
                measured = rate(*jobs[timed], threads)
                if k:
                    found[timed][name].append(measured)
        print(f"round {k} of {rounds} done", file=sys.stderr)
    return found


def accuracy(
    detector: Detector, dataset: Dataset, ids: Array, paths: list[str], classes: tuple[str, ...]
) -> dict[str, float]:
    meter = DetectionMeter(len(classes))
    nothing = np.zeros((1, 1, 3), np.uint8)
    for i, path in zip(ids.tolist(), paths, strict=True):
        sample = Sample(key=dataset.images.key(i), image=nothing, **dataset.annotations(i))
        meter.update([detector.every(path)], [sample])
    told = meter.compute()
    rows = {f"ap50 {row['class']}": row["ap50"] for row in meter.per_class(classes)}
    return {"map50": told["map50"], **rows, "map": told["map"]}


def shape(inputs: tuple[Any, ...]) -> str:
    height, width = inputs[0].shape[2:]
    return f"{height} × {width}"


def table(report: dict[str, Any], size: int) -> str:
    names = [name for name in HEADS if name in report]
    both = len(names) == 2
    heads = ["", *(f"{HEADS[name]}, `{report[name]['name']}`" for name in names)]
    rows = [[*heads, "vidi / Ultralytics"] if both else heads]
    timed = {
        "prediction": "prediction from files, images/s",
        "network": "network alone on its own input, images/s",
        "square": f"network alone on {size} × {size}, images/s",
    }
    given = [f"{report[name]['input']}, {report[name]['precision']}" for name in names]
    rows.append(["its input of the first image, precision", *given])
    for what, label in timed.items():
        values = [report[name][f"{what}_per_second"] for name in names]
        rows.append([label, *(f"{value:.1f} ({1000 / value:.1f} ms)" for value in values)])
        if both:
            ratio, least, most = report["ratios"][what]
            rows[-1].append(f"**{ratio:.2f}** ({least:.2f}–{most:.2f})")
    for what, label, unit in (
        ("multiply_adds", "multiply-adds of its own input, G", 1e9),
        ("square_multiply_adds", f"multiply-adds of {size} × {size}, G", 1e9),
        ("parameters", "parameters, M", 1e6),
    ):
        counts = [report[name][what] / unit for name in names]
        rows.append([label, *(f"{value:.2f}" for value in counts)])
        if both:
            rows[-1].append(f"{counts[0] / counts[1]:.2f}")
    for what in report[names[0]]["accuracy"]:
        rows.append([what, *(f"{report[name]['accuracy'][what]:.3f}" for name in names)])
    lines = ["| " + " | ".join([*row, *[""] * (len(rows[0]) - len(row))]) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def compare(told: argparse.Namespace) -> dict[str, Any]:
    dataset = open_data(told.data, task="detection", carve_val=False)
    split = "test" if "test" in dataset.splits else "val"
    ids = dataset.split(split).ids
    if told.images:
        rows = np.linspace(0, len(ids) - 1, min(told.images, len(ids))).round().astype(int)
        ids = ids[np.unique(rows)]
    if not isinstance(dataset.images, FileImages):
        raise InputError(f"{told.data} are no image files, which this reads one by one.")
    paths = [dataset.images.path(i) for i in ids.tolist()]
    torch.set_num_threads(told.threads)
    vidi, model = ours(told.run, paths[0])
    if model.classes != dataset.classes:
        raise InputError(
            f"{told.run} knows the classes {', '.join(model.classes)}; {told.data} has "
            f"{', '.join(dataset.classes)}. Name the data that it was trained on."
        )
    detectors = {"vidi": vidi}
    if told.ultralytics:
        peer = theirs(told.ultralytics, told.image_size, model.classes, paths[0])
        detectors["ultralytics"] = peer
    report: dict[str, Any] = {
        "data": f"{Path(told.data).name}, {split}",
        "images": len(paths),
        "run_image_size": model.recipe.image_size,
        "image_size": told.image_size,
        "own_proposals": getattr(model.network, "proposes", False),
        "threads": told.threads,
        "rounds": told.rounds,
    }
    for name, one in detectors.items():
        report[name] = {
            "name": one.name,
            "precision": one.precision,
            "input": shape(one.inputs),
            "parameters": one.parameters,
            "multiply_adds": multiply_adds(one, one.inputs),
            "square_multiply_adds": multiply_adds(one, square(one.inputs, told.image_size)),
            # Before what is timed: proposals that a run needs are then computed.
            "accuracy": accuracy(one, dataset, ids, paths, model.classes),
        }
        print(f"{HEADS[name]}: accuracy done", file=sys.stderr)
    rates = measure(detectors, paths, told.image_size, told.rounds, told.threads)
    for what, by_name in rates.items():
        for name, some in by_name.items():
            report[name][f"{what}_per_second"] = statistics.median(some)
    if len(detectors) == 2:
        report["ratios"] = {}
        for what, by_name in rates.items():
            ratios = [a / b for a, b in zip(*by_name.values(), strict=True)]
            report["ratios"][what] = [f(ratios) for f in (statistics.median, min, max)]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--ultralytics", metavar="WEIGHTS")
    parser.add_argument("--image-size", type=int, default=480)
    parser.add_argument("--threads", type=int, default=2, help="torch's")
    parser.add_argument("--images", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    told = parser.parse_args()
    try:
        report = compare(told)
    except InputError as error:
        sys.exit(str(error))
    sizes = f"a run of {report['run_image_size']} px"
    if told.ultralytics:
        sizes += f", Ultralytics at {told.image_size} px"
    print(
        f"{report['data']}, {report['images']} images; {sizes}; CPU, {told.threads} threads, "
        f"PyTorch {torch.__version__}; median of {told.rounds} rounds (least–greatest)\n"
    )
    print(table(report, told.image_size))
    if not report["own_proposals"]:
        print("\nThe run's proposals are not its network's: their seconds are in no figure.")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
