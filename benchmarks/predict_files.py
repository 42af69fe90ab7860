"""Images per second from JPEG files to answers: `vidi predict` beside the usual loop.

    python benchmarks/predict_files.py DATA                  # resnet18 at 224 px
    python benchmarks/predict_files.py DATA --run runs/mine  # another run

DATA is a folder of images (JPEG files below it, in classes or not). Without ``--run`` a run is made
of it in one step of training: what is timed does not depend on the weights.

Two contenders take turns within each round, each in a fresh process and each round in another
order, one image at a time and in batches of 32:

- vidi: ``vidi predict RUN FOLDER --json --batch-size 1`` (or 32), its defaults else;
- usual: Pillow decodes, torchvision resizes, crops, turns into a tensor and normalises, the network
  computes in fp32 and its softmax gives the answer, which is printed. ``--workers`` reads with
  that many processes of torch's DataLoader; by default the loop does it all itself.

The clock is the parent's: it stands at the first lines that come out of each process (as many as
``--warm``), and stops at the last one; and the network is converted before, which `vidi predict`
would not do for images that torch has done sooner. So neither starts, imports nor conversion of
the network count. Both see the same files, and the share of images to which they give the same
class is shown; it is below 1 where an image's two likeliest classes are nearly as likely, for
Pillow's resizing is not OpenCV's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import vidi

BATCHES = (1, 32)
CONTENDERS = ("usual", "vidi")


def main() -> None:
    options = parse()
    if options.worker:
        usual_loop(options)
        return
    with tempfile.TemporaryDirectory() as made:
        run = options.run or make_run(options, Path(made))
        folder, count = files(options, Path(made))
        backend = vidi.load(run, backend=options.backend).backend
        print(
            f"{platform.platform()}, {os.cpu_count()} cores, {count} images, {run}, {backend}",
            flush=True,
        )
        rounds = []
        for number in range(options.rounds):
            measured: dict[str, Any] = {}
            for batch in BATCHES:
                order = CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]
                rates, answers = {}, {}
                for name in order:
                    rates[name], answers[name] = measure(name, run, folder, batch, options)
                same = [a == b for a, b in zip(answers["usual"], answers["vidi"], strict=True)]
                measured[str(batch)] = {**rates, "same": sum(same) / len(same)}
                shown = ", ".join(f"{name} {rate:.1f}/s" for name, rate in rates.items())
                print(f"round {number + 1}, batch {batch}: {shown}", flush=True)
            rounds.append(measured)
    print(table(rounds))
    print(json.dumps({"images": count, "run": str(run), "rounds": rounds}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", help="a folder of images")
    parser.add_argument("--run", help="a run of `vidi train`; else one is made")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=512, help="as many are predicted")
    parser.add_argument("--warm", type=int, default=96, help="answers before the clock starts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="the usual loop's processes")
    parser.add_argument("--backend", default="auto", help="vidi's")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_run(options: argparse.Namespace, made: Path) -> Path:
    vidi.train(
        options.data,
        run=made / "run",
        model=options.model,
        image_size=options.image_size,
        augmentation={"preset": "photos"},
        batch_size=8,
        length={"steps": 1},
        data={"cache": "off"},
        logging={"pictures": False},
    )
    return made / "run"


def files(options: argparse.Namespace, made: Path) -> tuple[Path, int]:
    """A folder with copies of the first images, evenly spread, so that both read the same."""
    found = sorted(
        p for p in Path(options.data).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")
    )
    if not found:
        raise SystemExit(f"{options.data} holds no JPEG files.")
    folder = made / "images"
    folder.mkdir()
    count = options.images
    for k in range(count):
        shutil.copy(found[k * len(found) // count], folder / f"{k:06}.jpg")
    return folder, count


def measure(
    name: str, run: str | Path, folder: Path, batch: int, options: argparse.Namespace
) -> tuple[float, list[str]]:
    """Images per second, and the class of each."""
    if name == "vidi":
        command = ["-m", "vidi", "predict", str(run), str(folder), "--json"]
        command += ["--batch-size", str(batch), "--backend", options.backend]
    else:
        command = [__file__, "--worker", str(batch), "--run", str(run), "--folder", str(folder)]
        command += ["--workers", str(options.workers)]
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        times, labels = [], []
        for line in process.stdout:
            times.append(time.perf_counter())
            labels.append(json.loads(line)["label"])
        errors = process.stderr.read()
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}:\n{errors}")
    warm = options.warm
    return (len(times) - warm) / (times[-1] - times[warm - 1]), labels


def usual_loop(options: argparse.Namespace) -> None:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    model = vidi.load(options.run, device="cpu")
    network = model.network.to(memory_format=torch.contiguous_format).eval()
    size = model.recipe.image_size
    assert size != "auto"
    normalisation = model.description.normalisation
    steps = transforms.Compose(
        [
            transforms.Resize(round(size / 0.875)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(normalisation.mean, normalisation.std),
        ]
    )

    class Files(Dataset[torch.Tensor]):
        def __init__(self) -> None:
            self.paths = sorted(Path(options.folder).iterdir())

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, i: int) -> torch.Tensor:
            with Image.open(self.paths[i]) as image:
                tensor: torch.Tensor = steps(image.convert("RGB"))
            return tensor

    batches = DataLoader(Files(), batch_size=options.worker, num_workers=options.workers)
    with torch.inference_mode():
        for batch in batches:
            for p in network(batch).softmax(1):
                k = int(p.argmax())
                print(json.dumps({"label": model.classes[k], "probability": float(p[k])}))
            sys.stdout.flush()


def table(rounds: list[dict[str, Any]]) -> str:
    def spread(values: list[float], form: str) -> str:
        shown = (statistics.median(values), min(values), max(values))
        return "{} ({} to {})".format(*(form.format(v) for v in shown))

    lines = ["", f"median of {len(rounds)} rounds (least to greatest)"]
    lines.append(
        f"{'':<12}{'usual loop, images/s':>26}{'vidi, images/s':>26}{'ratio':>22}{'same':>7}"
    )
    for batch in BATCHES:
        own = [measured[str(batch)] for measured in rounds]
        cells = [spread([one[name] for one in own], "{:.1f}") for name in CONTENDERS]
        ratio = spread([one["vidi"] / one["usual"] for one in own], "{:.2f}")
        same = statistics.median(one["same"] for one in own)
        lines.append(f"{f'batch {batch}':<12}{cells[0]:>26}{cells[1]:>26}{ratio:>22}{same:>7.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
