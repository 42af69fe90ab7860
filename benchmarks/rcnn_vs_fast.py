"""R-CNN, Fast R-CNN and Fast R-CNN with truncated SVD: seconds an image, without its proposals.

    python benchmarks/rcnn_vs_fast.py [--threads 2] [--rounds 5] [--trunk vgg16]
        [--proposals 2000] [--rcnn-proposals 2000]

All three on the same trunk with random weights, the same photograph (scikit-image's coffee, 600 ×
900 pixels) and the same proposals of selective search. Timed is the network, from the normalised
image to scores and deltas (R-CNN: warps, SVMs and regressions too); of random scores it makes no
sense to time what chooses detections. R-CNN takes minutes an image, so its regions are shared out
over the rounds: each times its part of them, then each of the others once, on all regions. So all
meet the same other work on the machine, and a round's ratio is that of R-CNN's part, times the
number of parts, to the other. Printed are the medians, and the least and largest ratio, beside
those of the paper (Girshick 2015, table 4, on a K40 with VGG-16) and of the multiply-adds. With
fewer ``--rcnn-proposals`` R-CNN's seconds are those of so many, times what is missing. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import cv2
import numpy as np
import torch
from skimage import data
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidi import models
from vidi.data.proposals import ranks, selective_search, working_size
from vidi.models.compress import truncated_svd
from vidi.models.rcnns import CHUNK
from vidi.ops.regions import regions_of

SHORTER = 600
PAPER = {"fast": 146, "fast_svd": 213}
RANKS = {
    "vgg16": {"classifier.0": 1024, "classifier.3": 256},
    "alexnet": {"classifier.1": 1024, "classifier.4": 256},
    "alexnet_2012": {"classifier.1": 1024, "classifier.4": 256},
}
"""Section 4.4 of the paper, for VGG-16; the same for AlexNet, which it does not give."""


def photograph() -> tuple[Tensor, Tensor]:
    """(the image, normalised, [1, 3, 600, 900]; its proposals [P, 4] in a random order)."""
    coffee: Any = data.coffee
    image = coffee()
    height, width = image.shape[:2]
    h, w = working_size((height, width))
    found = selective_search(cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), quality=True)
    scale = SHORTER / min(height, width)
    size = round(width * scale), round(height * scale)
    boxes = found[ranks(len(found), "coffee", 0)] * np.tile(np.divide(size, (w, h)), 2)
    enlarged = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    x = torch.from_numpy(enlarged).permute(2, 0, 1)[None].float()
    mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    return (x - mean) / std, torch.from_numpy(boxes).float()


@torch.no_grad()
def networks(trunk: str) -> dict[str, nn.Module]:
    rcnn, fast = models.find(f"rcnn_{trunk}")(), models.find(f"fast_rcnn_{trunk}")()
    # One trunk, and not two of them, in memory.
    own = dict(rcnn.named_parameters())
    for name, parameter in fast.named_parameters():
        if name in own and own[name].shape == parameter.shape:
            parameter.data = own[name].data
    # Of random weights the two factors are as good random: computing them takes minutes.
    thin = truncated_svd(on_meta(f"fast_rcnn_{trunk}"), RANKS[trunk])
    thin.to_empty(device=next(fast.parameters()).device)
    for parameter in thin.parameters():
        nn.init.normal_(parameter, std=0.01)
    thin.load_state_dict(fast.state_dict(), strict=False)
    return {"rcnn": rcnn.eval(), "fast": fast.eval(), "fast_svd": thin.eval()}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return models.find(name)()


@torch.no_grad()
def multiply_adds(trunk: str, image: Tensor, regions: int) -> dict[str, int]:
    with torch.device("meta"):
        shown, where, made = torch.empty(image.shape), torch.empty(regions, 5), networks(trunk)
    counted = {}
    for name, network in made.items():
        with FlopCounterMode(display=False) as counter:
            network(shown, where)
        counted[name] = int(counter.get_total_flops()) // 2
    return counted


def seconds(network: nn.Module, image: Tensor, regions: Tensor) -> float:
    begun = time.perf_counter()
    network(image, regions)
    return time.perf_counter() - begun


@torch.inference_mode()
def compare(trunk: str, rounds: int, proposals: int, rcnn_proposals: int) -> dict[str, Any]:
    torch.manual_seed(0)
    image, boxes = photograph()
    regions = regions_of([boxes[:proposals]])
    assert len(regions) == proposals, f"the photograph has only {len(boxes)} proposals"
    made = networks(trunk)
    parts = torch.tensor_split(regions[:rcnn_proposals], rounds)
    seconds(made["rcnn"], image, regions[:CHUNK])  # these rounds are not counted
    for name in PAPER:
        seconds(made[name], image, regions)
    times: dict[str, list[float]] = {name: [] for name in made}
    for part in parts:
        # As many regions as the others have.
        times["rcnn"].append(seconds(made["rcnn"], image, part) * proposals / len(part))
        for name in PAPER:
            times[name].append(seconds(made[name], image, regions))
    counted = multiply_adds(trunk, image, proposals)
    report: dict[str, Any] = {
        "trunk": trunk,
        "image": list(image.shape[2:]),
        "proposals": proposals,
        "rcnn_proposals": min(rcnn_proposals, proposals),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
    }
    for name in made:
        report[name] = {
            "seconds": round(statistics.median(times[name]), 3),
            "giga_multiply_adds": round(counted[name] / 1e9, 1),
        }
    for name, paper in PAPER.items():
        ratios = [a / b for a, b in zip(times["rcnn"], times[name], strict=True)]
        report[name] |= {
            "ratio": round(statistics.median(ratios), 1),
            "ratio_least": round(min(ratios), 1),
            "ratio_most": round(max(ratios), 1),
            "ratio_of_multiply_adds": round(counted["rcnn"] / counted[name], 1),
            "ratio_of_the_paper": paper if trunk == "vgg16" else None,
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, help="torch's; default: its own choice")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trunk", choices=sorted(RANKS), default="vgg16")
    parser.add_argument("--proposals", type=int, default=2000)
    parser.add_argument("--rcnn-proposals", type=int, default=2000)
    told = parser.parse_args()
    if told.threads:
        torch.set_num_threads(told.threads)
    report = compare(told.trunk, told.rounds, told.proposals, told.rcnn_proposals)
    print(f"CPU, {report['threads']} threads, PyTorch {torch.__version__}, fp32")
    for name in ("rcnn", *PAPER):
        one = report[name]
        line = f"{name:9} {one['seconds']:9.3f} s {one['giga_multiply_adds']:10,.1f} G"
        if name in PAPER:
            line += (
                f"   R-CNN takes {one['ratio']} times as long ({one['ratio_least']} to "
                f"{one['ratio_most']}); by multiply-adds {one['ratio_of_multiply_adds']}"
            )
            if told.trunk == "vgg16":
                line += f", in the paper {one['ratio_of_the_paper']}"
        print(line)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
