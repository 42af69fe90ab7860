"""Twenty steps whose losses a refactoring must reproduce (fp32, one thread, CPU).

The figures were written down from this code; a change that means to alter training alters them too,
and says so.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vidi
from vidi.models.fast_rcnns import Outputs
from vidi.models.faster_rcnns import FasterRCNN
from vidi.ops import anchors
from vidi.ops.regions import align

GOLDEN: list[float] = [
    2.70557,
    2.37623,
    2.30721,
    2.1902,
    2.10276,
    2.06733,
    2.03365,
    1.93381,
    1.86325,
    1.70297,
    1.52544,
    1.45537,
    1.35937,
    1.28737,
    1.19352,
    1.02499,
    0.98892,
    1.03157,
    0.72943,
    0.85034,
]


SEGMENTATION = [
    2.46121,
    2.22976,
    2.18317,
    2.16646,
    2.33043,
    2.52332,
    2.1652,
    2.12568,
    2.75748,
    2.27996,
    2.08428,
    2.05864,
    2.16627,
    2.09854,
    1.95682,
    2.12349,
    2.03198,
    2.08063,
    2.27138,
    1.81072,
]


BOUNDARIES = [
    0.68453,
    0.68238,
    0.65068,
    0.67642,
    0.69232,
    0.82067,
    0.77394,
    0.83957,
    0.78728,
    0.81912,
    0.72791,
    0.67234,
    0.66817,
    0.64556,
    0.63883,
    0.63616,
    0.68139,
    0.63941,
    0.6286,
    0.61562,
]


FLOW = [
    0.13883,
    0.15884,
    0.1521,
    0.1397,
    0.16022,
    0.13431,
    0.10127,
    0.12487,
    0.15662,
    0.09768,
    0.13216,
    0.09212,
    0.15399,
    0.14149,
    0.12146,
    0.1027,
    0.14246,
    0.1505,
    0.14241,
    0.13581,
]


DETECTION = [
    3.12269,
    2.34517,
    2.85325,
    2.45346,
    2.99795,
    2.63925,
    2.48923,
    2.28766,
    3.07519,
    2.66694,
    2.36341,
    2.5601,
    2.49974,
    2.66922,
    2.75978,
    2.45107,
    2.63509,
    2.40709,
    2.40885,
    2.50269,
]


LEARNED = [
    3.2781,
    3.24953,
    3.26355,
    3.06861,
    3.05941,
    2.90781,
    2.62159,
    2.62564,
    3.02848,
    2.71451,
    2.74147,
    2.46131,
    2.88698,
    2.76399,
    3.52481,
    2.8301,
    2.64652,
    2.74802,
    2.55249,
    2.72664,
]


def dense_network(num_classes: int) -> nn.Module:
    """Not one of vidi's networks: what is held here is the task and its data."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, num_classes, 3, padding=1),
    )


class Motion(nn.Module):
    """That network on both frames of a pair: flow in pixels."""

    task = "flow"

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense_network(2)
        self.layers[0] = nn.Conv2d(6, 16, 5, padding=2, bias=False)

    def forward(self, image: torch.Tensor, image2: torch.Tensor) -> torch.Tensor:
        flow: torch.Tensor = self.layers(torch.cat((image, image2), 1))
        return flow


def motion(num_classes: int) -> nn.Module:
    return Motion()


class Detector(nn.Module):
    """That network with a class per channel, averaged over regions; and boxes."""

    task = "detection"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = dense_network(5 * num_classes + 1)
        self.register_buffer("delta_mean", torch.zeros(num_classes, 4))
        self.register_buffer("delta_std", torch.ones(num_classes, 4))

    def set_delta_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.delta_mean, self.delta_std = mean, std

    def forward(self, image: torch.Tensor, regions: torch.Tensor) -> Outputs:
        pooled = align(self.layers(image), regions, 1, 1.0).flatten(1)
        classes = 1 + (pooled.shape[1] - 1) // 5
        return Outputs(pooled[:, :classes], pooled[:, classes:])


def detector(num_classes: int) -> nn.Module:
    return Detector(num_classes)


class Proposer(FasterRCNN):
    """A map at 1/4 without any normalisation, two anchors a cell, and a class per channel."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(strides=(4,), before=(60, 60), after=(20, 20))
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 8, 4, 2), nn.ReLU())
        self.objects, self.moves = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 8, 1)
        self.head = nn.Conv2d(16, 5 * (1 + num_classes), 3, padding=1)
        self.register_buffer("sides", torch.ones(2, 2))

    def set_anchors(self, sides: torch.Tensor) -> None:
        self.sides.copy_(sides)

    def pyramid(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [self.layers(image)]

    def told(self, maps: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.objects(maps[0]), self.moves(maps[0]))]

    def shapes(self) -> list[torch.Tensor]:
        return [anchors.about(self.sides, 1.5)]

    def respond(
        self, maps: list[torch.Tensor], regions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = align(self.head(maps[0]), regions, 1, 0.25).flatten(1)
        classes = pooled.shape[1] // 5
        return pooled[:, :classes], pooled[:, classes:]


def proposer(num_classes: int) -> nn.Module:
    return Proposer(num_classes)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(
    data: str, tmp_path: Path, balance: str = "none", proposals: str = "auto", **more: Any
) -> list[float]:
    run = vidi.train(
        data,
        run=tmp_path / "run",
        optimiser={"name": "sgd"},
        precision="fp32",
        device="cpu",
        channels_last=True,
        data={"threads": 0, "balance": balance, "proposals": proposals},
        schedule={"name": "constant", "warmup": 0},
        length={"steps": 20},
        logging={"pictures": False, "every": 1},
        **more,
    )
    return [r["loss"] for r in run.history() if r["event"] == "train"]


DENSE: dict[str, Any] = {
    "model": dense_network,
    "image_size": 32,
    "batch_size": 8,
    "augmentation": {"zoom": (0.8, 1.25)},
    "regularisation": {"label_smoothing": 0.0},
}


def compare(found: list[float], golden: list[float], off: float = 2e-2) -> None:
    assert found == pytest.approx(golden, abs=off)
    assert found[:5] == pytest.approx(golden[:5], abs=1e-4), "before rounding can add up"


def test_twenty_steps_on_digits(tmp_path: Path) -> None:
    compare(losses("digits", tmp_path, model="resnet20", batch_size=64, lr=0.02), GOLDEN)


def test_twenty_steps_of_segmentation(tmp_path: Path) -> None:
    data = "scenes:segmentation,size=48,n=80,val=4,test=0"
    found = losses(data, tmp_path, lr=0.1, balance="sqrt-weights", **DENSE)
    compare(found, SEGMENTATION)


def test_twenty_steps_of_boundaries(tmp_path: Path) -> None:
    data = "scenes:boundaries,size=48,n=80,val=4,test=0"
    compare(losses(data, tmp_path, lr=0.2, **DENSE), BOUNDARIES)


def test_twenty_steps_of_flow(tmp_path: Path) -> None:
    """With the whole of flow's augmentation, noise and the second frame's own motion included."""
    data = "scenes:flow,size=48,n=80,val=4,test=0"
    settings = DENSE | {"model": motion, "augmentation": {"preset": "flow"}}
    compare(losses(data, tmp_path, lr=1.0, **settings), FLOW, off=1e-3)


def test_twenty_steps_of_detection(tmp_path: Path, propose: Callable[[str, Path], str]) -> None:
    data = "scenes:detection,size=48,n=40,val=4,test=0"
    found = losses(
        data,
        tmp_path,
        lr=0.1,
        model=detector,
        batch_size=4,
        proposals=propose(data, tmp_path / "proposals.json"),
    )
    compare(found, DETECTION)


def test_twenty_steps_of_detection_by_own_proposals(tmp_path: Path) -> None:
    """Anchors fitted to the boxes, and four losses."""
    data = "scenes:detection,size=48,n=40,val=4,test=0"
    sampled = {"regions": 16, "anchors": 64}
    found = losses(
        data, tmp_path, lr=0.01, image_size=96, model=proposer, batch_size=4, detection=sampled
    )
    compare(found, LEARNED)
