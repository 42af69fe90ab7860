"""FlowNetC's correlation against loops: seconds, forward and backward, and memory.

    python benchmarks/correlation.py [--threads 1] [--rounds 5] [--size 384 512] [--batch 4]

The maps are those of 512 × 384 images at 1/8, with 256 channels. Against the loop over 441
displacements, each a product over whole maps, whose gradient is autograd's: both are run in turn in
each round, so that other work on the machine meets both, and the ratio is the median of the rounds'
ratios. Against the loop over pixels, at a small size. Memory is the process's peak (Linux): inputs,
output, gradients and all that is held in between, relative to inputs and output. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vidi.ops.correlation import correlation

DISPLACEMENT, STRIDE = 20, 2
Correlation = Callable[[Tensor, Tensor], Tensor]


def by_displacement(first: Tensor, second: Tensor) -> Tensor:
    """The loop over displacements, each a shifted product over whole maps."""
    h, w = first.shape[2:]
    wide = F.pad(second, (DISPLACEMENT,) * 4)
    steps = range(0, 2 * DISPLACEMENT + 1, STRIDE)
    products = [(first * wide[:, :, y : y + h, x : x + w]).mean(1) for y in steps for x in steps]
    return torch.stack(products, 1)


def by_pixel(first: Tensor, second: Tensor) -> Tensor:
    """The loop over pixels too: at each, one product with the window of the second map."""
    n, _, h, w = first.shape
    wide = F.pad(second, (DISPLACEMENT,) * 4)
    rows = []
    for image in range(n):
        for y in range(h):
            for x in range(w):
                end = 2 * DISPLACEMENT + 1
                window = wide[image, :, y : y + end : STRIDE, x : x + end : STRIDE]
                rows.append((first[image, :, y, x, None, None] * window).mean(0).flatten())
    return torch.stack(rows).view(n, h, w, -1).permute(0, 3, 1, 2)


def maps(batch: int, height: int, width: int, channels: int = 256) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, channels, height, width, requires_grad=True) for _ in range(2)]


def seconds(function: Correlation, inputs: list[Tensor]) -> tuple[float, float]:
    """(forward, backward)."""
    begun = time.perf_counter()
    out = function(*inputs)
    middle = time.perf_counter()
    out.backward(torch.ones_like(out))
    for one in inputs:
        one.grad = None
    return middle - begun, time.perf_counter() - middle


def compared(other: Correlation, inputs: list[Tensor], rounds: int) -> dict[str, float]:
    seconds(correlation, inputs)
    ours, theirs, ratios = [], [], []
    for _ in range(rounds):
        ours.append(sum(seconds(correlation, inputs)))
        theirs.append(sum(seconds(other, inputs)))
        ratios.append(theirs[-1] / ours[-1])
    return {
        "seconds": round(statistics.median(ours), 4),
        "loop_seconds": round(statistics.median(theirs), 4),
        "ratio": round(statistics.median(ratios), 1),
        "ratio_least": round(min(ratios), 1),
        "ratio_most": round(max(ratios), 1),
    }


def peak() -> int:
    """The process's largest resident size since :func:`forget`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if "VmHWM" in line)


def forget() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def memory(function: Correlation, inputs: list[Tensor]) -> tuple[int, int]:
    """Bytes beyond the inputs: of a forward pass, and of a forward and a backward pass."""
    before = forget()
    out = function(*inputs)
    forward = peak() - before
    out.backward(torch.ones_like(out))
    whole = peak() - before
    for one in inputs:
        one.grad = None
    return forward, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(384, 512))
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    height, width = (side // 8 for side in arguments.size)
    inputs = maps(arguments.batch, height, width)
    small = maps(1, 8, 8)
    torch.testing.assert_close(correlation(*small), by_displacement(*small), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(correlation(*small), by_pixel(*small), atol=1e-5, rtol=1e-4)
    report: dict[str, object] = {"threads": arguments.threads, "shape": list(inputs[0].shape)}
    if Path("/proc/self/clear_refs").exists():
        seconds(correlation, maps(1, 4, 4))  # what libraries allocate once is none of its own
        size = sum(x.nbytes for x in inputs)
        out = 441 * 4 * arguments.batch * height * width
        forward, whole = memory(correlation, inputs)
        report["memory"] = {
            "inputs_and_output_mb": round((size + out) / 1e6, 1),
            "forward": round((size + forward) / (size + out), 2),
            # Gradients alone are as large as inputs and output.
            "forward_and_backward": round((size + whole) / (size + out), 2),
            "of_that_gradients": 1.0,
        }
    report["over_displacements"] = compared(by_displacement, inputs, arguments.rounds)
    report["over_pixels"] = compared(by_pixel, maps(1, 12, 16), arguments.rounds)
    for name, value in report.items():
        print(f"{name:20} {value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
