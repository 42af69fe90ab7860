"""Images per second through a network on the CPU: vidi's default beside what it could be instead.

    python benchmarks/inference.py                                  # resnet18 and resnet50, 224 px
    python benchmarks/inference.py resnet18 --batches 1 --rounds 3  # a short one
    python benchmarks/inference.py --run runs/imagenette-resnet18   # and int8, with its accuracy

Networks have random weights and 1000 classes. All contenders compute the same one from the same
normalised images, fp32 [B, 3, H, W], to logits:

- vidi: ``vidi.load(run, backend="auto")`` on a run that holds those weights, in the precision that
  vidi trains in on this processor; its network is called as predictions call it;
- torch fp32: the network as torch has it, in inference mode;
- torch bf16: the same, channels-last, under autocast;
- onnxruntime: ONNX Runtime used directly, on the file that torch's exporter writes;
- openvino fp32 and openvino bf16: OpenVINO used directly on that file, compiled for the batch's
  very shape, with the hint for latency, which for one image is its fastest.

Each round all take turns, beginning with another one, and each has ``--seconds`` of the clock; a
round's time is the median of the calls in it. Given are the median of the rounds, and the least and
the greatest; ratios are those of one round. Conversion is not counted; it is said how long it took,
the first time and from the cache.

``--run``: a finished run of classification, whose data is still there. It is exported in int8, by
``vidi export --format openvino --int8``, which measures what that costs on validation; what is
timed is then the whole function, from uint8 images of the training size to probabilities, in int8
and in fp32, beside the run's network by ``backend="auto"``, from normalised images to logits.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vidi
from vidi import models
from vidi.api import Model
from vidi.engine import defaults, device
from vidi.engine.evaluate import Compute
from vidi.engine.run import Description
from vidi.recipe import Data, Recipe
from vidi.types import Normalisation

CLASSES = 1000
Call = Callable[[], Any]


def saved(name: str, size: int, where: Path) -> Path:
    """A run that holds the network with random weights."""
    torch.manual_seed(0)
    precision = device.best_precision(torch.device("cpu"))
    recipe = Recipe(
        model=name,
        image_size=size,
        batch_size=32,
        precision=precision,
        channels_last=True,
        data=Data(threads=defaults.cores()),
    )
    normalisation = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    classes = tuple(map(str, range(CLASSES)))
    description = Description(recipe, classes, normalisation, {})
    compute = Compute(torch.device("cpu"), precision, True, normalisation)
    network = getattr(models, name)(num_classes=CLASSES).eval()
    return Model(where, description, network, compute).save(where)


def ours(model: Model, image: torch.Tensor) -> Call:
    image = image.contiguous(memory_format=torch.channels_last)

    def call() -> Any:
        with torch.inference_mode(), model.compute.autocast():
            return model.network(image).float()

    return call


def eager(network: torch.nn.Module, image: torch.Tensor) -> Call:
    def call() -> Any:
        with torch.inference_mode():
            return network(image)

    return call


def autocast(network: torch.nn.Module, image: torch.Tensor) -> Call:
    image = image.contiguous(memory_format=torch.channels_last)

    def call() -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return network(image).float()

    return call


def onnxruntime_call(file: Path, image: torch.Tensor) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = defaults.cores()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    pixels = image.numpy()
    return lambda: torch.from_numpy(session.run(None, {given.name: pixels})[0])


def openvino_call(file: Path, image: torch.Tensor, precision: str) -> Call:
    import openvino

    core = openvino.Core()
    network = core.read_model(str(file))
    network.reshape({0: list(image.shape)})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    pixels = image.numpy()
    return lambda: torch.from_numpy(request.infer([pixels], share_inputs=True)[0])


def direct(network: torch.nn.Module, image: torch.Tensor, file: Path) -> None:
    """The file that torch's exporter writes, for any number of images."""
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    example = image.repeat(max(1, 2 // len(image)), 1, 1, 1)
    program = torch.onnx.export(
        network, (example,), dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    assert program is not None
    program.save(str(file), external_data=False)


def taking_turns(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds a call of each, in each round."""
    names = list(calls)
    for call in calls.values():
        call()
        call()
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent: list[float] = []
            while sum(spent) < seconds or len(spent) < 3:
                began = time.perf_counter()
                calls[name]()
                spent.append(time.perf_counter() - began)
            found[name].append(statistics.median(spent))
    return found


def spread(values: list[float], digits: int = 1) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


def ratio(found: dict[str, list[float]], name: str, to: str) -> list[float]:
    """How many times as fast as ``to``, in each round."""
    return [b / a for a, b in zip(found[name], found[to], strict=True)]


def table(title: str, found: dict[str, list[float]], batch: int, base: str) -> None:
    print(f"\n{title}, batch {batch}\n")
    print(f"| | ms a batch | images per second | times {base} |\n|---|---|---|---|")
    for name, seconds in found.items():
        ms, rate = [1e3 * s for s in seconds], [batch / s for s in seconds]
        print(f"| {name} | {spread(ms)} | {spread(rate)} | {spread(ratio(found, name, base), 2)} |")


def compared(name: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row for each batch size."""
    run = saved(name, arguments.size, folder / name)
    network = vidi.load(run).network.to(memory_format=torch.contiguous_format)
    channels_last = vidi.load(run).network.to(memory_format=torch.channels_last)
    began = time.perf_counter()
    first = vidi.load(run, backend="auto")
    converting = time.perf_counter() - began
    began = time.perf_counter()
    model = vidi.load(run, backend="auto")
    opening = time.perf_counter() - began
    assert first.backend == model.backend
    print(
        f"\n{name}: vidi takes {model.backend}, after {converting:.1f} s; loaded again in "
        f"{opening:.2f} s{''.join('; ' + note for note in model.notes)}"
    )
    file = folder / f"{name}.onnx"
    rows = []
    for batch in arguments.batches:
        generator = torch.Generator().manual_seed(1)
        image = torch.randn(batch, 3, arguments.size, arguments.size, generator=generator)
        if not file.exists():
            direct(network, image, file)
        calls = {
            "vidi": ours(model, image),
            "torch fp32": eager(network, image),
            "torch bf16": autocast(channels_last, image),
            "onnxruntime": onnxruntime_call(file, image),
            "openvino fp32": openvino_call(file, image, "f32"),
            "openvino bf16": openvino_call(file, image, "bf16"),
        }
        wanted = calls["torch fp32"]()
        for contender, call in calls.items():
            off = float((call() - wanted).square().mean().sqrt() / wanted.std())
            if not off < 0.1:
                raise SystemExit(f"{contender} computes something else: off by {off:.3f}")
        found = taking_turns(calls, arguments.rounds, arguments.seconds)
        table(f"{name}, {arguments.size} px", found, batch, "torch fp32")
        others = [c for c in calls if c != "vidi"]
        fastest = min(others, key=lambda c: statistics.median(found[c]))
        to_torch, to_fastest = ratio(found, "vidi", "torch fp32"), ratio(found, "vidi", fastest)
        print(
            f"\nvidi is {spread(to_torch, 2)} times as fast as torch fp32, and "
            f"{spread(to_fastest, 2)} times as {fastest}, the fastest of the others."
        )
        rows.append(
            {
                "network": name,
                "size": arguments.size,
                "batch": batch,
                "backend": model.backend,
                "seconds": found,
                "times_torch_fp32": statistics.median(to_torch),
                "fastest_other": fastest,
                "times_fastest_other": statistics.median(to_fastest),
                "converting_seconds": converting,
                "opening_seconds": opening,
            }
        )
    return rows


def whole_numbers(run: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What int8 costs and brings, of a trained run."""
    from vidi.deploy import export

    model = vidi.load(run, backend="auto")
    trained = vidi.load(run)
    exported = trained.export("openvino", folder / "int8/model.xml", int8=True, max_loss=1.0)
    trained.export("openvino", folder / "fp32/model.xml")
    assert exported.int8 is not None
    print(f"\n{run}: {exported.int8.sentence}")
    int8, fp32 = (export.read(folder / f"{kind}/model.xml") for kind in ("int8", "fp32"))
    size = model.recipe.image_size
    assert isinstance(size, int)
    rows = []
    for batch in arguments.batches:
        pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        image = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
        calls: dict[str, Call] = {
            f"vidi ({model.backend})": ours(model, image),
            "exported int8": functools.partial(int8.run, {"image": pixels}),
            "exported fp32": functools.partial(fp32.run, {"image": pixels}),
        }
        found = taking_turns(calls, arguments.rounds, arguments.seconds)
        table(f"{run}, {size} px", found, batch, "exported fp32")
        rows.append(
            {
                "run": run,
                "batch": batch,
                "seconds": found,
                "metric": exported.int8.metric,
                "fp32": exported.int8.fp32,
                "int8": exported.int8.int8,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="a contender has in a round")
    parser.add_argument("--run", help="a trained classifier, for int8")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["VIDI_CACHE"] = str(Path(name) / "cache")
        rows = [row for net in arguments.networks for row in compared(net, arguments, Path(name))]
        if arguments.run is not None:
            rows += whole_numbers(arguments.run, arguments, Path(name))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
