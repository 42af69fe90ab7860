"""Faster R-CNN: what it proposes, and who may say what it is asked about."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.ops import box_iou

from vidi import models
from vidi.errors import InputError
from vidi.models import count
from vidi.models.faster_rcnns import FasterRCNN, Outputs
from vidi.models.small_fast_rcnns import fast_rcnn_small
from vidi.models.small_faster_rcnns import SmallFasterRCNN, faster_rcnn_small
from vidi.models.weights import load_weights
from vidi.tasks.detection import Task
from vidi.types import Batch

TINY: dict[str, Any] = {
    "stem": (4, 8),
    "widths": (8, 8, 8, 8),
    "depths": (1, 1, 1, 1),
    "merged": 8,
    "pooled": 3,
    "hidden": 16,
}


def proposed(network: Any, anchored: Any, sizes: Any) -> list[torch.Tensor]:
    return [boxes for boxes, _ in network.scored_proposals(anchored, sizes)]


def varied(network: nn.Module, seed: int = 0) -> Any:
    """As after some training: no layer is zero, normalisation does something, and what is said of
    one anchor is not what is said of the next."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=made).to(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=made))
    return network


def small(classes: int = 3, seed: int = 0) -> Any:
    """In float64: no rounding decides which of two proposals is the surer one."""
    torch.manual_seed(seed)
    network = varied(faster_rcnn_small(classes, **TINY), seed)
    with torch.no_grad():  # anchors are moved by a part of their sides, not out of the image
        for layer in network.moves:
            layer.weight.mul_(0.01)
            layer.bias.mul_(0.5)
    return network.double()


def images(n: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, *size, generator=made, dtype=torch.float64)


class Two(FasterRCNN):
    """A base with two maps, at 1/4 and 1/12, and what it says of them drawn once and for all."""

    def __init__(self, before: tuple[int, int], after: tuple[int, int], overlap: float) -> None:
        super().__init__(strides=(4, 12), before=before, after=after, overlap=overlap)
        self.regions_seen: list[int] = []

    def pyramid(self, image: Tensor) -> list[Tensor]:
        h, w = image.shape[2:]
        return [image[:, :, ::s, ::s].double() for s in (4, 12)] if min(h, w) else []

    def shapes(self) -> list[Tensor]:
        near = [[-4.0, -4, 5, 5], [-7, -2, 8, 3]]
        far = [[-11.0, -11, 12, 12], [-8, -20, 9, 21], [-2, -2, 3, 3]]
        return [torch.tensor(x, dtype=torch.float64) for x in (near, far)]

    def told(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        out = []
        for k, (y, shapes) in enumerate(zip(maps, self.shapes(), strict=True)):
            made = torch.Generator().manual_seed(k)
            a, (b, _, h, w) = len(shapes), y.shape
            logits = torch.randn(a, h, w, generator=made, dtype=torch.float64)
            moves = 0.5 * torch.randn(4 * a, h, w, generator=made, dtype=torch.float64)
            out.append((logits.expand(b, -1, -1, -1), moves.expand(b, -1, -1, -1)))
        return out

    def respond(self, maps: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        self.regions_seen.append(len(regions))
        # Classes by position, and deltas that tell their place in the layer's output.
        logits = regions[:, 1:4]
        return logits, torch.arange(12.0, dtype=torch.float64).expand(len(regions), 12)


def slow(network: FasterRCNN, image: Tensor, size: tuple[int, int], *, training: bool) -> Tensor:
    """Proposals [P, 4] of one image, written from the papers anchor by anchor."""
    maps = network.pyramid(image)
    before = network.before[0 if training else 1]
    after = network.after[0 if training else 1]
    kept: list[tuple[float, list[float]]] = []
    for (logits, moves), shapes, stride in zip(
        network.told(maps), network.shapes(), network.strides, strict=False
    ):
        _, a, h, w = logits.shape
        found = []
        for row in range(h):
            for column in range(w):
                for k in range(a):
                    x0, y0, x1, y1 = shapes[k].tolist()
                    wide, high = x1 - x0, y1 - y0
                    dx, dy, dw, dh = moves[0, 4 * k : 4 * k + 4, row, column].tolist()
                    x = (x0 + x1) / 2 + stride * column + dx * wide
                    y = (y0 + y1) / 2 + stride * row + dy * high
                    most = math.log(1000 / 16)
                    wide, high = wide * math.exp(min(dw, most)), high * math.exp(min(dh, most))
                    box = [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]
                    found.append((float(logits[0, k, row, column]), box))
        found = sorted(found, key=lambda one: -one[0])[:before]
        of_map: list[tuple[float, list[float]]] = []
        for score, box in found:
            limits = [size[1], size[0], size[1], size[0]]
            box = [min(max(v, 0.0), m) for v, m in zip(box, limits, strict=True)]
            if box[2] - box[0] < 1e-3 or box[3] - box[1] < 1e-3:
                continue
            if all(overlap(box, other) <= network.overlap for _, other in of_map):
                of_map.append((score, box))
        kept += of_map
    kept = sorted(kept, key=lambda one: -one[0])[:after]
    return torch.tensor([box for _, box in kept], dtype=torch.float64).view(-1, 4)


def overlap(a: list[float], b: list[float]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, wide) * max(0.0, high)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return both / (sum(areas) - both)


# Proposals


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("before", "after"), [((25, 60), (15, 90)), ((1000, 1000), (1000, 1000))])
@pytest.mark.parametrize("threshold", [0.7, 0.3])
def test_proposals_equal_a_slow_reference(
    training: bool, before: tuple[int, int], after: tuple[int, int], threshold: float
) -> None:
    network = Two(before, after, threshold).train(training)
    image, sizes = images(2, (48, 72)), [(48, 72), (31, 50)]
    found = proposed(network, network.anchored(network.pyramid(image)), sizes)
    for k, size in enumerate(sizes):
        expected = slow(network, image[k : k + 1], size, training=training)
        torch.testing.assert_close(found[k], expected)
    assert len(found[0]) > len(found[1]) or len(found[0]) == after[0 if training else 1]


@pytest.mark.parametrize("size", [(33, 97), (64, 40)])
def test_the_small_networks_proposals_equal_the_slow_reference(size: tuple[int, int]) -> None:
    network = small().eval()
    network.before, network.after = (0, 40), (0, 70)
    with torch.no_grad():
        image = images(1, size)
        expected = slow(network, image, size, training=False)
        found = network(image).regions
    assert len(expected) > 30
    torch.testing.assert_close(found[:, 1:], expected)
    assert not found[:, 0].any()


def test_anchors_of_the_small_network_stand_on_its_cells() -> None:
    """Cell k of the map at 1/s is about the middle of pixel s·k; widths come before heights."""
    network = small()
    sides = torch.arange(1.0, 25).view(12, 2) * torch.tensor([1.0, 3.0])
    network.set_anchors(sides)
    anchors = network.anchored(network.pyramid(images(1, (64, 96)))).anchors
    h, w = 64, 96
    expected = [
        (s * column + 0.5, s * row + 0.5, *sides[3 * k + a].tolist())
        for k, s in enumerate((4, 8, 16, 32))
        for row in range(h // s)
        for column in range(w // s)
        for a in range(3)
    ]
    centre, wide = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    assert torch.cat((centre, wide), 1).tolist() == [pytest.approx(row) for row in expected]


def test_regions_are_aligned_where_cells_stand() -> None:
    """On a map that says where its cells are, a region's mean is its middle."""
    network: Any = small()
    network.head = network.cls_score = network.bbox_pred = nn.Identity()
    x, y = (4 * torch.arange(n, dtype=torch.float64) + 0.5 for n in (24, 16))
    where = torch.stack((x.expand(16, 24), y[:, None].expand(16, 24)))[None]
    boxes = torch.tensor([[0.0, 10, 8, 50, 40], [0, 21.5, 9.25, 30, 44]]).double()
    aligned, _ = network.respond([where], boxes)
    middle = aligned.view(2, 2, -1).mean(2)
    torch.testing.assert_close(middle, (boxes[:, 1:3] + boxes[:, 3:]) / 2)


def test_nothing_is_proposed_beyond_an_image_nor_twice() -> None:
    network = small().eval()
    sizes = [(33, 97), (70, 41), (70, 97)]
    with torch.no_grad():
        outputs = network(images(3, (70, 97)), None, sizes)
        scored = network.scored_proposals(outputs.anchored, sizes)
    assert outputs.logits.shape == (len(outputs.regions), 4)
    assert outputs.deltas.shape == (len(outputs.regions), 12) and outputs.scores is None
    for k, (h, w) in enumerate(sizes):
        own = outputs.regions[outputs.regions[:, 0] == k, 1:]
        boxes, logits = scored[k]
        assert torch.equal(own, boxes) and (logits.diff() <= 0).all()
        assert 30 < len(own) <= 300
        assert (own >= 0).all() and (own[:, 2] <= w).all() and (own[:, 3] <= h).all()
        assert (own[:, 2:] > own[:, :2]).all()


def test_maps_do_not_suppress_each_others_proposals() -> None:
    """The same box on two maps stays twice; on one map once."""

    class Same(Two):
        def shapes(self) -> list[Tensor]:
            return [torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9]]).double()] * 2

        def told(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
            b = len(maps[0])
            return [
                (torch.zeros(b, 2, 1, 1).double(), torch.zeros(b, 8, 1, 1).double()) for _ in maps
            ]

    network = Same((9, 9), (9, 9), 0.7).eval()
    maps = [torch.zeros(1, 1, 1, 1)] * 2
    (found,) = proposed(network, network.anchored(maps), [(20, 20)])
    assert found.tolist() == [[0, 0, 9, 9]] * 2


# Who says what it is asked about


def test_regions_that_are_given_are_those_answered() -> None:
    network = small().eval()
    image = images(2, (50, 60))
    regions = torch.tensor([[1.0, 3, 4, 30, 40], [0, 0, 0, 60, 50], [1, 20, 20, 21, 21]]).double()
    with torch.no_grad():
        own = network(image)
        given = network(image, regions)
        again = network(image, own.regions)
        none = network(image, regions[:0])
        for k, region in enumerate(regions):
            alone = network(
                image[int(region[0])][None], torch.cat((region[:1] * 0, region[1:]))[None]
            )
            torch.testing.assert_close(alone.logits[0], given.logits[k])
            torch.testing.assert_close(alone.deltas[0], given.deltas[k])
    assert isinstance(given, Outputs) and torch.equal(given.regions, regions)
    assert given.logits.shape == (3, 4) and given.deltas.shape == (3, 12)
    assert none.logits.shape == (0, 4) and none.deltas.shape == (0, 12)
    torch.testing.assert_close(again.logits, own.logits)
    torch.testing.assert_close(again.deltas, own.deltas)
    torch.testing.assert_close(given.anchored.logits, own.anchored.logits)


@pytest.mark.parametrize("training", [False, True])
def test_a_function_hears_the_proposals_and_decides(training: bool) -> None:
    network = small().train(training)
    sizes = [(40, 50), (33, 60)]
    heard: list[Tensor] = []

    def choose(proposals: list[Tensor]) -> Tensor:
        heard.extend(proposals)
        return torch.tensor([[1.0, 1, 2, 30, 30], [0, 5, 5, 9, 19]]).double()

    outputs = network(images(2, (40, 60)), choose, sizes)
    assert outputs.regions.tolist() == [[1, 1, 2, 30, 30], [0, 5, 5, 9, 19]]
    assert outputs.logits.shape == (2, 4)
    expected = proposed(network, outputs.anchored, sizes)
    assert len(heard) == 2
    for told, own in zip(heard, expected, strict=True):
        assert torch.equal(told, own) and not told.requires_grad


def test_a_batch_equals_its_singles() -> None:
    network = small().eval()
    image = images(3, (48, 72))
    with torch.no_grad():
        whole = network(image)
        for k in range(3):
            rows = whole.regions[:, 0] == k
            alone = network(image[k : k + 1])
            torch.testing.assert_close(alone.regions[:, 1:], whole.regions[rows, 1:])
            torch.testing.assert_close(alone.logits, whole.logits[rows])
            torch.testing.assert_close(alone.deltas, whole.deltas[rows])
            torch.testing.assert_close(alone.anchored.deltas[0], whole.anchored.deltas[k])
    assert whole.logits.std(0).min() > 1e-3


def test_the_padding_of_a_batch_changes_no_region_given() -> None:
    """A region is aligned on the map of its own image, wherever that one lies in the batch."""
    network = small().eval()
    image = images(2, (64, 64))
    other = image.clone()
    other[1] = 0
    region = torch.tensor([[0.0, 5, 5, 40, 40]]).double()
    with torch.no_grad():
        a, b = network(image, region), network(other, region)
    torch.testing.assert_close(a.logits, b.logits)


def test_deltas_are_normalised_in_training_alone_and_the_backgrounds_left_out() -> None:
    network = Two((9, 9), (9, 9), 0.7)
    image, regions = images(1, (48, 48)), torch.tensor([[0.0, 0, 0, 9, 9]]).double()
    learned = network.train()(image, regions).deltas
    true = network.eval()(image, regions).deltas
    assert learned.tolist() == [[4, 5, 6, 7, 8, 9, 10, 11]]
    assert true.flatten().tolist() == pytest.approx([0.4, 0.5, 1.2, 1.4, 0.8, 0.9, 2.0, 2.2])


def test_more_regions_than_go_at_once() -> None:
    network = Two((9, 9), (9, 9), 0.7).eval()
    regions = torch.rand(5000, 5).double()
    outputs = network(images(1, (48, 48)), regions)
    assert network.regions_seen == [4096, 904]
    assert torch.equal(outputs.logits, regions[:, 1:4])


# The small one's parts


def test_counts() -> None:
    with torch.device("meta"):
        network = faster_rcnn_small()
    parameters = count.parameters(network)
    told = (faster_rcnn_small.__doc__ or "").partition(": ")[2]
    assert told == f"{parameters / 1e6:.2f} M parameters."
    # Fast R-CNN's, three more smoothing convolutions, and on four maps 5 · 3 numbers a cell.
    smoothing, said = 64 * 64 * 9 + 2 * 64, (64 + 1) * 15
    with torch.device("meta"):
        told_regions = fast_rcnn_small()
    assert parameters == count.parameters(told_regions) + 3 * smoothing + 4 * said
    assert count.proposed(network) == 300 and count.proposed(told_regions) == 2000
    assert count.proposed(Two((9, 9), (5, 7), 0.7)) == 7, "in evaluation"
    # Ren et al., section 3.3: a threshold of 0.7, and the 300 surest.
    assert network.overlap == 0.7 and network.after[1] == 300 and network.beta == 1


def test_another_order_or_number_of_anchors_is_seen() -> None:
    network = faster_rcnn_small(3, **TINY)
    usual = network.sides.clone()
    areas = usual.prod(2).flatten()
    assert (areas.diff() >= -1e-3).all(), "the smallest at 1/4"
    assert usual[0, 1].tolist() == [16, 16] and usual[3, 1].tolist() == [128, 128]
    for wrong in (torch.ones(11, 2), torch.ones(12, 1), torch.zeros(12, 2), -torch.ones(12, 2)):
        with pytest.raises(InputError, match="12 widths and heights above 0"):
            network.set_anchors(wrong)
    broken = torch.ones(12, 2)
    broken[4, 1] = torch.nan
    with pytest.raises(InputError, match="above 0"):
        network.set_anchors(broken)
    assert torch.equal(network.sides, usual), "what is refused changes nothing"
    own = torch.arange(1.0, 25).view(12, 2)
    network.set_anchors(own)
    assert torch.equal(network.sides.view(12, 2), own)


def test_anchors_lie_in_the_weights() -> None:
    network, fresh = small(seed=1), small(seed=2)
    network.set_anchors(torch.arange(1.0, 25).view(12, 2))
    fresh.load_state_dict(network.state_dict())
    image = images(1, (40, 56))
    with torch.no_grad():
        a, b = network.eval()(image), fresh.eval()(image)
    assert torch.equal(a.regions, b.regions) and torch.equal(a.logits, b.logits)
    assert torch.equal(fresh.sides, network.sides)


def truth_batch(anchors: Tensor, rows: list[int], size: tuple[int, int]) -> Batch:
    """Two images whose objects are the anchors at those ``rows``."""
    xyxy = anchors[rows].detach().float()
    n = len(rows)
    return Batch(
        inputs={"image": images(2, size)},
        targets={
            "boxes": [xyxy[: n // 2], xyxy[n // 2 :]],
            "classes": [torch.arange(n // 2) % 3, torch.arange(n - n // 2) % 3],
            "kinds": [torch.zeros(n // 2), torch.zeros(n - n // 2)],
            "size": torch.tensor([size, size]),
            "seed": torch.tensor([1, 2]),
            "valid": torch.ones(2, dtype=torch.bool),
        },
        keys=["a", "b"],
        ids=np.arange(2),
        matrices=np.tile(np.eye(3), (2, 1, 1)),
        sizes=np.tile(size, (2, 1)),
        valid=np.ones(2, bool),
    )


def test_a_gradient_reaches_every_parameter_by_the_tasks_losses() -> None:
    network = small().train()
    size = (96, 128)
    anchored = network.anchored(network.pyramid(images(2, size)))
    ends = np.cumsum(anchored.counts)
    rows = [int(end) - 8 for end in ends] * 2  # an object on each map
    task = Task(tuple("abc"), proposes=True)
    batch = truth_batch(anchored.anchors, rows, size)
    weights = task.weights(batch)
    losses = task.losses(network, batch)
    assert set(losses) == set(weights) == {"cross_entropy", "boxes", "objectness", "anchors"}
    torch.stack([losses[k] / weights[k] for k in losses]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_proposals_carry_no_gradient() -> None:
    """Joint training is approximate: where a region came from learns nothing from the head."""
    network = small().train()
    outputs = network(images(1, (64, 64)))
    outputs.logits.sum().backward()
    for layers in (network.objects, network.moves):
        assert all(p.grad is None for p in layers.parameters())
    assert network.merge[0][0].weight.grad is not None


# Weights of others


def written(folder: Path, network: nn.Module) -> str:
    save_file(network.state_dict(), folder / "w.safetensors")
    return str(folder / "w.safetensors")


def test_a_run_for_other_classes_gives_all_but_the_last_layers(tmp_path: Path) -> None:
    source = varied(faster_rcnn_small(7, **TINY), 1)
    source.set_anchors(torch.arange(1.0, 25).view(12, 2))
    network = faster_rcnn_small(3, **TINY)
    report = load_weights(
        network, written(tmp_path, source), model_name="faster_rcnn_small", num_classes=3
    )
    assert sorted(report.replaced) == [
        f"{layer}.{part}" for layer in ("bbox_pred", "cls_score") for part in ("bias", "weight")
    ]
    for name, tensor in network.state_dict().items():
        if not name.startswith(("bbox_pred", "cls_score")):
            assert torch.equal(tensor, source.state_dict()[name]), name
    assert network.sides[0, 0].tolist() == [1, 2]


def test_a_run_for_as_many_classes_loads_whole(tmp_path: Path) -> None:
    source, network = varied(faster_rcnn_small(3, **TINY), 1), faster_rcnn_small(3, **TINY)
    report = load_weights(
        network, written(tmp_path, source), model_name="faster_rcnn_small", num_classes=3
    )
    assert not report.replaced
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_the_small_fast_rcnn_gives_its_trunk(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source, network = varied(fast_rcnn_small(7, **TINY), 1), faster_rcnn_small(3, **TINY)
    sides = network.sides.clone()
    report = load_weights(
        network, written(tmp_path, source), model_name="faster_rcnn_small", num_classes=3
    )
    assert {name.partition(".")[0] for name in report.replaced} == {
        "merge", "objects", "moves", "cls_score", "bbox_pred"
    }  # fmt: skip
    assert torch.equal(network.stages[1][0].conv1.weight, source.stages[1][0].conv1.weight)
    assert torch.equal(network.head[0].weight, source.head[0].weight)
    assert torch.equal(network.sides, sides)


def test_a_network_with_another_trunk_gives_nothing() -> None:
    source = models.find("resnet20")()
    assert faster_rcnn_small(3, **TINY).adopt(source.state_dict()) is None
    wider = faster_rcnn_small(3, **{**TINY, "widths": (8, 8, 8, 16)})
    assert faster_rcnn_small(3, **TINY).adopt(wider.state_dict()) is None


# Sizes and arithmetic


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (16, 16), (33, 97), (57, 34), (8, 120)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    network = small().eval()
    with torch.no_grad():
        outputs = network(images(2, size))
    counts = [math.ceil(size[0] / s) * math.ceil(size[1] / s) * 3 for s in (4, 8, 16, 32)]
    assert list(outputs.anchored.counts) == counts
    assert len(outputs.anchored.anchors) == sum(counts)
    assert len(outputs.regions) and outputs.logits.isfinite().all()
    assert outputs.deltas.isfinite().all()


@pytest.mark.parametrize("size", [1, 16, 33])
def test_a_small_input_size_passes_the_check(size: int) -> None:
    models.check(faster_rcnn_small(3, **TINY), "faster_rcnn_small", 3, size, "detection")


def test_float64_stays_float64() -> None:
    outputs = small().eval()(images(1, (40, 40)))
    kinds = [outputs.logits, outputs.deltas, outputs.regions, *outputs.anchored[:3]]
    assert {x.dtype for x in kinds} == {torch.float64}


def test_what_is_scored_is_in_full_precision_under_autocast() -> None:
    network = varied(faster_rcnn_small(3, **TINY)).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        outputs = network(images(1, (64, 64)).float())
    kinds = [outputs.logits, outputs.deltas, outputs.regions, *outputs.anchored[:3]]
    assert {x.dtype for x in kinds} == {torch.float32}
    # bf16 has eight bits: rounded to them, many scores would be the same.
    rounded = outputs.logits.bfloat16().float()
    assert (rounded != outputs.logits).float().mean() > 0.9


def test_a_wild_network_proposes_finite_boxes() -> None:
    network = small().eval()
    with torch.no_grad():
        for layer in (*network.objects, *network.moves):
            layer.weight.mul_(1e4)
    outputs = network(images(1, (64, 48)))
    assert outputs.regions.isfinite().all()
    assert (outputs.regions[:, 3] <= 48).all() and (outputs.regions[:, 4] <= 64).all()
    assert isinstance(network, SmallFasterRCNN) and outputs.logits.isfinite().all()


def test_suppression_leaves_no_two_alike_on_a_map() -> None:
    network = small().eval()
    network.overlap = 0.5
    with torch.no_grad():
        anchored = network.anchored(network.pyramid(images(1, (64, 64))))
    first = anchored.counts[0]
    one = anchored._replace(
        logits=anchored.logits[:, :first],
        deltas=anchored.deltas[:, :first],
        anchors=anchored.anchors[:first],
        counts=(first,),
    )
    (boxes,) = proposed(network, one, [(64, 64)])
    overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
    assert len(boxes) > 20 and 0.3 < overlaps.max() <= 0.5
