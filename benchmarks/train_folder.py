"""Images per second from JPEG files to updated weights: vidi, torchvision's loop, timm's script.

    python benchmarks/train_folder.py                                # resnet18, 128 px, batch 32
    python benchmarks/train_folder.py --timm-script train.py         # with timm's own script
    python benchmarks/train_folder.py --device cuda --model resnet50 --image-size 224 --workers 16

The data is a folder with ``train/`` and ``val/``, a folder per class in each. Three contenders take
turns within each round, each in a fresh process and each round in another order:

- vidi: ``vidi train DATA``, its cache in a new, empty folder every time;
- torchvision: the usual loop: ImageFolder, Pillow transforms, DataLoader, fp32, torch.optim.SGD;
- timm: its training script, channels-last and autocast to bfloat16. The script is not part of the
  package: ``--timm-script`` says where it is. Without it, a loop of the same structure is run on
  timm's own network, loader and optimiser, and the table says so.

All three do the same work on an image: random resized crop (bilinear), flip, normalisation; timm's
colour jitter and our colour changes are off, as is label smoothing. All have ``--workers``
processes or threads.

What is timed is the training loop of whole epochs: the epoch's images over the wall time from the
first request for a batch to the last update, without evaluation, saving and the start of the
process. Before its first epoch vidi reads all images once and fills its cache; that time (with
opening the folder, and all else until the loop begins) is counted into its first epoch.

Beside it stands the arithmetic that the processor is good for: the fastest of a few 3x3
convolutions, channels-last, forward, in bf16 and in fp32, measured in the same rounds. A
contender's share of a ceiling is 3 (forward, and twice that backward) x 2 x multiply-adds of one
image x images per second; it may be above 1 for bf16's where a processor is faster in fp32.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTENDERS = ("vidi", "torchvision", "timm")
CONVOLUTIONS = ((64, 56), (128, 56), (256, 28), (512, 14), (512, 28))
"""Channels and side of the convolutions that the ceiling is the fastest of."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Epochs = list[tuple[int, float]]
"""(images, seconds) of each epoch."""


def main() -> None:
    options = parse()
    if options.worker:
        work = WORKERS[options.worker](options)
        Path(options.result).write_text(json.dumps(work), encoding="utf-8")
        return
    show: Callable[[str], None] = lambda text: print(  # noqa: E731
        text, file=sys.stderr if options.json else sys.stdout, flush=True
    )
    report = {"settings": settings(options), "machine": machine(options.device)}
    for name, part in report.items():
        show(f"{name}: " + ", ".join(f"{k} {v}" for k, v in part.items()))
    if not options.timm_script:
        show("timm: --timm-script is not given; a loop of ours on timm's parts stands in for it")
    rounds = []
    for number in range(options.rounds):
        shift = number % len(CONTENDERS)
        measured: dict[str, Any] = {"ceiling": measure("ceiling", options)}
        for name in CONTENDERS[shift:] + CONTENDERS[:shift]:
            measured[name] = measure(name, options)
            rates = [round(images / seconds, 1) for images, seconds in measured[name]["epochs"]]
            show(f"round {number + 1}, {name}: {rates} images/s by epoch")
        rounds.append(measured)
    report["rounds"] = rounds  # type: ignore[assignment]
    report["results"] = summary(rounds, forward_macs(options))
    show(table(report["results"], options))
    if options.json:
        print(json.dumps(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Images per second of training, beside torchvision's loop and timm's script."
    )
    data = os.environ.get("VIDI_DATA")
    parser.add_argument(
        "--data",
        default=str(Path(data) / "imagenette-small") if data else None,
        help="folder with train/ and val/ (default: $VIDI_DATA/imagenette-small)",
    )
    parser.add_argument("--model", default="resnet18", help="a name that all three know")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3, help="at least 2: first and later ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes, or threads, that load")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--timm-script", metavar="PATH", help="train.py of timm's repository")
    parser.add_argument(
        "--timm-args",
        metavar="ARGS",
        default="",
        help='more flags for it, such as "--color-jitter 0.4" for its default augmentation',
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--worker", choices=[*CONTENDERS, "ceiling"], help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data is None:
        parser.error("say with --data where the images are, or set VIDI_DATA")
    if not all((Path(options.data) / split).is_dir() for split in ("train", "val")):
        parser.error(f"{options.data} has no folders train/ and val/")
    if options.epochs < 2 or options.rounds < 1:
        parser.error("--epochs must be at least 2 (first and later ones), --rounds at least 1")
    if options.timm_script and not Path(options.timm_script).is_file():
        parser.error(f"--timm-script: there is no file {options.timm_script}")
    if options.timm_args and not options.timm_script:
        parser.error("--timm-args are for the script that --timm-script names")
    options.data = str(Path(options.data).resolve())
    options.classes = sum(p.is_dir() for p in (Path(options.data) / "train").iterdir())
    return options


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contender (or the ceiling) in a fresh process, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="train-folder-") as folder:
        environment = {**os.environ, "VIDI_CACHE": str(Path(folder) / "cache")}
        if name == "timm" and options.timm_script:
            command = timm_command(options, folder)
        else:
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                "--worker",
                name,
                "--result",
                f"{folder}/result",
            ]
            for flag in ("data", "model", "image_size", "batch_size", "epochs", "workers"):
                command += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
            command += ["--device", options.device]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{shlex.join(command)} failed ({done.returncode}):\n{done.stderr[-3000:]}")
        if name == "timm" and options.timm_script:
            return {"epochs": timm_epochs(done.stderr + done.stdout, options)}
        measured: dict[str, Any] = json.loads((Path(folder) / "result").read_text("utf-8"))
        return measured


# --- The contenders -------------------------------------------------------------------------------


def train_vidi(options: argparse.Namespace) -> dict[str, Any]:
    """``vidi train``; ``preparation`` is from the command to the beginning of the loop."""
    import vidi.api  # noqa: F401  (the imports are the start of the process)
    from vidi.cli import main as vidi_main

    run = Path("run").resolve()
    command = ["train", options.data, "--run", str(run), "--json", *shlex.split(
        f"--model {options.model} --image-size {options.image_size} "
        f"--batch-size {options.batch_size} --epochs {options.epochs} --device {options.device} "
        f"--data.threads {options.workers} --augmentation.preset photos "
        "--augmentation.brightness 0 --augmentation.contrast 0 --augmentation.saturation 0 "
        "--augmentation.hue 0 --augmentation.crop-area 0.08 1 "
        "--regularisation.label-smoothing 0 "
        # Evaluation is not timed: once, at the end, is enough.
        f"--length.evaluate-every {options.epochs} --logging.no-pictures"
    )]  # fmt: skip
    began = time.time()
    if code := vidi_main(command):
        sys.exit(code)
    # The recipe is written as the last thing before the loop.
    preparation = (run / "recipe.json").stat().st_mtime - began
    epochs: Epochs = []
    images, seconds = 0, 0.0
    for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        if row["event"] == "epoch":
            epochs.append((row["images"] - images, row["seconds"] - seconds))
            images, seconds = row["images"], row["seconds"]
    epochs[0] = (epochs[0][0], epochs[0][1] + preparation)
    return {"epochs": epochs, "preparation": preparation}


def train_torchvision(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torchvision
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    dataset = ImageFolder(
        f"{options.data}/train",
        transforms.Compose(
            [
                transforms.RandomResizedCrop(options.image_size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        ),
    )
    loader = DataLoader(
        dataset,
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        pin_memory=device.type == "cuda",
    )
    model = torchvision.models.get_model(options.model, num_classes=options.classes).to(device)
    criterion = torch.nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)

    epochs: Epochs = []
    for _ in range(options.epochs):
        model.train()
        seen, total = 0, 0.0
        began = time.perf_counter()
        for images, labels in loader:
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            loss = criterion(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
            seen += len(images)
        epochs.append((seen, since(began, device)))
    return {"epochs": epochs}


def train_timm(options: argparse.Namespace) -> dict[str, Any]:
    """The structure of timm's script on timm's parts, where the script itself is not at hand."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter

    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    loader = create_loader(
        create_dataset("", root=options.data, split="train", is_training=True),
        input_size=(3, options.image_size, options.image_size),
        batch_size=options.batch_size,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        color_jitter=0.0,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=options.workers,
        device=device,
    )
    model = timm.create_model(options.model, num_classes=options.classes).to(device)
    model.to(memory_format=torch.channels_last)
    criterion = torch.nn.CrossEntropyLoss().to(device)
    optimiser = create_optimizer_v2(model, opt="sgd", lr=0.0125, weight_decay=2e-5, momentum=0.9)

    epochs: Epochs = []
    for _ in range(options.epochs):
        model.train()
        losses = AverageMeter()
        seen = 0
        began = time.perf_counter()
        optimiser.zero_grad()
        for images, labels in loader:
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = criterion(model(images), labels)
            loss.backward()
            optimiser.step()
            losses.update(loss.item(), images.size(0))
            optimiser.zero_grad()
            seen += images.size(0)
        epochs.append((seen, since(began, device)))
    return {"epochs": epochs}


def timm_command(options: argparse.Namespace, folder: str) -> list[str]:
    flags = (
        f"--channels-last --amp --amp-dtype bfloat16 --device {options.device} "
        f"--workers {options.workers} --model {options.model} --img-size {options.image_size} "
        f"-b {options.batch_size} --epochs {options.epochs} --num-classes {options.classes} "
        "--opt sgd --warmup-epochs 0 --smoothing 0 --color-jitter 0 "
        "--train-interpolation bilinear --log-interval 1"
    )
    return [
        *(sys.executable, str(Path(options.timm_script).resolve()), "--data-dir", options.data),
        *shlex.split(flags),
        # Evaluation is not timed: it is left out altogether.
        *("--val-split", "", "--output", folder),
        *shlex.split(options.timm_args),
    ]


def timm_epochs(log: str, options: argparse.Namespace) -> Epochs:
    """From the line that the script logs for each update: its images over its own wall time, which
    counts from the end of the update before, waiting for data included."""
    line = re.compile(r"Train: (\d+) \[ *(\d+)/(\d+) .*?Time: [\d.]+s, +([\d.]+)/s")
    seconds: dict[int, list[float]] = {}
    updates = 0
    for found in line.finditer(log):
        updates = int(found[3])
        seconds.setdefault(int(found[1]), []).append(options.batch_size / float(found[4]))
    if sorted(seconds) != list(range(options.epochs)) or any(
        len(some) != updates for some in seconds.values()
    ):
        sys.exit(f"The log of {options.timm_script} is not understood:\n{log[-3000:]}")
    return [(updates * options.batch_size, sum(seconds[e])) for e in range(options.epochs)]


def measure_ceiling(options: argparse.Namespace) -> dict[str, Any]:
    """Operations a second of each convolution, by arithmetic, then by channels and side: its
    fastest try."""
    import torch
    from torch.nn.functional import conv2d

    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    batch, repeats, times = (256, 20, 8) if device.type == "cuda" else (32, 1, 12)
    found: dict[str, dict[str, float]] = {"bf16": {}, "fp32": {}}
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    for kind, (channels, side) in itertools.product(kinds, CONVOLUTIONS):
        image = torch.randn(batch, channels, side, side, device=device).to(
            kinds[kind], memory_format=torch.channels_last
        )
        weight = torch.randn(channels, channels, 3, 3, device=device).to(
            kinds[kind], memory_format=torch.channels_last
        )
        spent = []
        with torch.no_grad():
            for _ in range(3):
                conv2d(image, weight, padding=1)
            since(0.0, device)
            for _ in range(times):
                began = time.perf_counter()
                for _ in range(repeats):
                    conv2d(image, weight, padding=1)
                spent.append(since(began, device) / repeats)
        operations = 2 * batch * channels * channels * 9 * side * side
        found[kind][f"{channels}x{side}x{side}"] = operations / min(spent)
    return {"flops": found}


def since(began: float, device: Any) -> float:
    """Seconds since then, once all that was asked of the device is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


WORKERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "vidi": train_vidi,
    "torchvision": train_torchvision,
    "timm": train_timm,
    "ceiling": measure_ceiling,
}


# --- The report -----------------------------------------------------------------------------------


def settings(options: argparse.Namespace) -> dict[str, Any]:
    images = sum(1 for p in Path(options.data, "train").rglob("*") if p.is_file())
    names = ("model", "image_size", "batch_size", "epochs", "rounds", "workers", "device")
    return {
        "data": Path(options.data).name,
        "train_images": images,
        **{name: getattr(options, name) for name in names},
        "timm": "its script" if options.timm_script else "a loop of ours on its parts",
        "timm_args": options.timm_args or "none",
    }


def machine(device: str) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"cpu": cpu_name(), "cores": cores}
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    if hasattr(os, "getloadavg"):
        found["load_at_start"] = round(os.getloadavg()[0], 2)
    found["python"] = platform.python_version()
    for package in ("vidi", "torch", "torchvision", "timm", "pillow"):
        found[package] = importlib.metadata.version(package)
    found["commit"] = commit()
    return found


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    extensions = [e for e in ("avx512_bf16", "amx_bf16") if re.search(rf"\b{e}\b", text)]
    return f"{name[1] if name else platform.machine()} ({', '.join(extensions) or 'no bf16'})"


def commit() -> str:
    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True).stdout

    changed = " with changes" if git("status", "--porcelain", "--", "../src").strip() else ""
    return (git("rev-parse", "--short", "HEAD").strip() or "unknown") + changed


def forward_macs(options: argparse.Namespace) -> int:
    from vidi import models
    from vidi.models import count

    model = models.build(options.model, num_classes=options.classes, image_size=options.image_size)
    return count.macs(model, options.image_size)


def summary(rounds: list[dict[str, Any]], macs: int) -> dict[str, Any]:
    """Median, least and greatest over the rounds; ratios are taken within each round."""

    def over(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    def rates(name: str, which: slice) -> list[float]:
        epochs = [measured[name]["epochs"][which] for measured in rounds]
        return [sum(i for i, _ in some) / sum(s for _, s in some) for some in epochs]

    ceilings = {
        kind: [max(measured["ceiling"]["flops"][kind].values()) for measured in rounds]
        for kind in ("bf16", "fp32")
    }
    out: dict[str, Any] = {
        "forward_macs": macs,
        "ceiling_flops": {kind: over(values) for kind, values in ceilings.items()},
        "preparation_seconds": over([measured["vidi"]["preparation"] for measured in rounds]),
    }
    for part, which in (("first", slice(0, 1)), ("later", slice(1, None))):
        per = {name: rates(name, which) for name in CONTENDERS}
        out[part] = {
            "images_per_second": {name: over(per[name]) for name in CONTENDERS},
            "ratio": {
                f"vidi/{name}": over([a / b for a, b in zip(per["vidi"], per[name], strict=True)])
                for name in CONTENDERS[1:]
            },
            **{
                f"share_of_{kind}_ceiling": {
                    name: over([6 * macs * r / c for r, c in zip(per[name], values, strict=True)])
                    for name in CONTENDERS
                }
                for kind, values in ceilings.items()
            },
        }
    return out


def table(results: dict[str, Any], options: argparse.Namespace) -> str:
    def cell(values: dict[str, float], form: str) -> str:
        return "{} ({} to {})".format(*(form.format(values[k]) for k in ("median", "min", "max")))

    titles = {
        "vidi": "vidi, its defaults",
        "torchvision": "torchvision loop, fp32",
        "timm": "timm's script, bf16" if options.timm_script else "loop on timm's parts, bf16",
    }
    lines = [
        "",
        f"median of {options.rounds} rounds (least to greatest)",
        f"{'':<28}{'first epoch':>26}{'later epochs':>26}",
    ]
    for what, form, rows in (
        ("images_per_second", "{:.1f}", titles),
        ("ratio", "{:.2f}", {f"vidi/{n}": f"vidi / {n}" for n in CONTENDERS[1:]}),
        ("share_of_bf16_ceiling", "{:.1%}", titles),
        ("share_of_fp32_ceiling", "{:.1%}", titles),
    ):
        lines.append(what.replace("_", " "))
        for name, title in rows.items():
            cells = [cell(results[part][what][name], form) for part in ("first", "later")]
            lines.append(f"  {title:<26}{cells[0]:>26}{cells[1]:>26}")
    prepared = results["preparation_seconds"]
    for kind, values in results["ceiling_flops"].items():
        ceiling = cell({k: v / 1e9 for k, v in values.items()}, "{:,.0f}")
        lines.append(f"{kind} convolution ceiling: {ceiling} GFLOP/s")
    lines += [
        f"{options.model} at {options.image_size} px: {results['forward_macs'] / 1e9:.3f} GMACs "
        "forward",
        f"vidi's reading of all images, part of its first epoch: {cell(prepared, '{:.1f}')} s",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
