"""Faster R-CNN with a pyramid is torchvision's: names, levels, detections, losses, files.

Both have the same random weights, scaled so that they say something: no published ones are needed.
Where proposals are sorted they compute in fp64, in which none change places by rounding.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from vidi import models
from vidi.models import count, weights
from vidi.models.faster_rcnn_resnets import ResNetFasterRCNN
from vidi.models.weights import load_weights
from vidi.ops import anchors as grids
from vidi.ops.regions import regions_of
from vidi.tasks.detection import Task
from vidi.types import Batch

DEPTHS = (18, 34, 50, 101)
CLASSES = 12
PROPOSALS = 300
HEAD = "roi_heads.box_predictor."
CHOSEN: dict[str, Any] = {
    "regions": 512,
    "background_iou": (0.0, 0.5),
    "nms": 0.5,
    "least_score": 0.05,
}
"""What torchvision's differs in from Fast R-CNN's paper."""


def proposed(network: Any, anchored: Any, sizes: Any) -> list[torch.Tensor]:
    return [boxes for boxes, _ in network.scored_proposals(anchored, sizes)]


def torchvisions(depth: int, classes: int = CLASSES, norm: Any = FrozenBatchNorm2d) -> Any:
    """As ``fasterrcnn_resnet50_fpn`` builds it from a classifier's weights, three stages to train;
    for images whose shorter side is 160 pixels, and with fewer proposals."""
    backbone = resnet_fpn_backbone(
        backbone_name=f"resnet{depth}", weights=None, norm_layer=norm, trainable_layers=3
    )
    return torchvision.models.detection.FasterRCNN(
        backbone, 1 + classes, min_size=160, max_size=267, rpn_post_nms_top_n_test=PROPOSALS
    )


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return models.find(name)(**options)


def made(depth: int, classes: int = CLASSES) -> Any:
    network: Any = models.find(f"faster_rcnn_resnet{depth}_fpn")(num_classes=classes)
    return network


def photographs() -> list[Tensor]:
    """Three of scikit-image's, [3, H, W] from 0 to 1: square, wide, and wider."""
    data: Any = skimage.data
    found = (data.astronaut(), data.coffee(), data.chelsea())
    return [torch.from_numpy(x).permute(2, 0, 1).double() / 255 for x in found]


@torch.no_grad()
def speak(theirs: Any, image: Tensor) -> None:
    """Norms that do something, and last layers whose outputs differ from place to place."""
    generator = torch.Generator().manual_seed(1)
    for module in theirs.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.3, 0.8),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.uniform_(low, high, generator=generator)

    def scale(layer: Any, outputs: list[Tensor], std: float, mean: float = 0.0) -> None:
        said = torch.cat([y.movedim(1, -1).flatten(0, -2) for y in outputs])
        factor = std / said.std(0)
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.copy_((layer.bias - said.mean(0)) * factor + mean)

    theirs.eval()
    images, _ = theirs.transform([image])
    maps = theirs.backbone(images.tensors)
    head = theirs.rpn.head
    logits, deltas = head(list(maps.values()))
    scale(head.cls_logits, logits, 2)
    scale(head.bbox_pred, deltas, 0.2)
    boxes, _ = theirs.rpn(images, maps)
    roi = theirs.roi_heads
    y = roi.box_head(roi.box_roi_pool(maps, boxes, images.image_sizes))
    scale(roi.box_predictor.cls_score, [roi.box_predictor.cls_score(y)], 1.5)
    scale(roi.box_predictor.bbox_pred, [roi.box_predictor.bbox_pred(y)], 0.7)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, ResNetFasterRCNN]:
    """torchvision's on ResNet-50 and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = torchvisions(50).double()
    speak(theirs, photographs()[0])
    theirs.float().double()  # tests that go through fp32 leave them as they are
    ours = made(50).double()
    ours.load_state_dict(theirs.state_dict())
    ours.after = (2000, PROPOSALS)
    return theirs, ours.eval()


@pytest.fixture(scope="module")
def small() -> ResNetFasterRCNN:
    """On ResNet-18, as it begins."""
    torch.manual_seed(0)
    network: ResNetFasterRCNN = made(18).double().eval()
    network.after = (200, 100)
    return network


def resized(theirs: Any, images: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """torchvision's batch, and its images as they are without their padding."""
    batch, _ = theirs.transform(images)
    sizes = batch.image_sizes
    return batch, [x[:, :h, :w] for x, (h, w) in zip(batch.tensors, sizes, strict=True)]


def batch_of(
    images: list[Tensor], sizes: list[tuple[int, int]], targets: dict[str, Any], stacked: bool
) -> Batch:
    """``sizes``: of the images before they were resized (h, w)."""
    matrices = []
    for image, (h, w) in zip(images, sizes, strict=True):
        matrices.append(np.diag([image.shape[2] / w, image.shape[1] / h, 1.0]))
    n = len(images)
    return Batch(
        inputs={"image": torch.stack(images) if stacked else images},
        targets=targets,
        keys=[str(k) for k in range(n)],
        ids=np.arange(n),
        matrices=np.stack(matrices),
        sizes=np.array(sizes),
        valid=np.ones(n, bool),
    )


# Names


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_and_what_trains_are_torchvisions(depth: int) -> None:
    """What trains: after a classifier; from scratch all does."""
    ours = on_meta(f"faster_rcnn_resnet{depth}_fpn", num_classes=CLASSES)
    with torch.device("meta"):
        theirs = torchvisions(depth)
    own = {k: v.shape for k, v in ours.state_dict().items()}
    counters = [k for k in own if k.endswith("num_batches_tracked")]
    others = [(k, v.shape) for k, v in theirs.state_dict().items()]
    assert [(k, shape) for k, shape in own.items() if k not in counters] == others
    if depth == 50:
        with torch.device("meta"):
            trained = torchvisions(depth, norm=nn.BatchNorm2d).state_dict()
        assert list(own.items()) == [(k, v.shape) for k, v in trained.items()]

    assert all(p.requires_grad for p in ours.parameters())
    weights.freeze(ours, ours.frozen)
    trained = [k for k, p in ours.named_parameters() if p.requires_grad]
    assert trained == [k for k, p in theirs.named_parameters() if p.requires_grad]
    held = {m for module in weights.frozen_modules(ours) for m in module.modules()}
    norms = [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(counters) and held.issuperset(norms)


def test_counts_are_the_published_ones() -> None:
    """Of parameters, without the norms' 53,120, and of multiply-adds, for 1,000 regions."""
    network = on_meta("faster_rcnn_resnet50_fpn")
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    published = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    found = count.parameters(network)
    assert found == 41_808_406
    assert found - sum(map(count.parameters, norms)) == 41_755_286 == published.meta["num_params"]
    assert network.roi_heads.box_predictor.cls_score.out_features == 91
    macs = count.macs(network, 800, regions=1000)
    assert macs / 1e9 == pytest.approx(published.meta["_ops"], abs=0.005)


# Levels


@pytest.mark.parametrize("photograph", range(3))
def test_every_level_and_the_detections_equal_torchvisions(
    pair: tuple[Any, ResNetFasterRCNN], photograph: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair
    image = photographs()[photograph]
    batch, (alone,) = resized(theirs, [image])
    parts = ("backbone", "rpn.head", "rpn", "roi_heads.box_roi_pool", "roi_heads.box_predictor")
    said: dict[str, Any] = {}
    for part in parts:
        module = theirs.get_submodule(part)
        monkeypatch.setattr(module, "forward", noting(said, part, module.forward))
    steps = ("pyramid", "told", "anchored", "scored_proposals", "pooled", "respond")
    found: dict[str, Any] = {}
    for step in steps:
        monkeypatch.setattr(ours, step, noting(found, step, getattr(ours, step)))
    task = Task(("thing",) * CLASSES, proposes=True, **CHOSEN)
    with torch.no_grad():
        (expected,) = theirs([image])
        single = batch_of([alone], [(image.shape[1], image.shape[2])], {}, stacked=False)
        (detections,) = task.predict(ours, single)

    for y, x in zip(found["pyramid"], said["backbone"].values(), strict=True):
        assert x.std() > 0.05
        torch.testing.assert_close(y, x)
    logits, deltas = said["rpn.head"]
    for told, *x in zip(found["told"], logits, deltas, strict=True):
        torch.testing.assert_close(told, tuple(x))
    anchors = theirs.rpn.anchor_generator(batch, list(said["backbone"].values()))
    assert torch.equal(found["anchored"].anchors, anchors[0])
    ((boxes,), _) = said["rpn"]
    assert len(boxes) == PROPOSALS
    torch.testing.assert_close([one for one, _ in found["scored_proposals"]], [boxes])
    torch.testing.assert_close(found["pooled"], said["roi_heads.box_roi_pool"])
    torch.testing.assert_close(found["respond"], said["roi_heads.box_predictor"])
    ours.train()
    (in_training,) = proposed(ours, found["anchored"], batch.image_sizes)
    ours.eval()
    more = filtered(theirs, logits, deltas, anchors, batch.image_sizes)
    assert len(more) > 2 * PROPOSALS
    torch.testing.assert_close(in_training, more)

    scores, labels = expected["scores"], expected["labels"].numpy()
    assert len(scores) > 30 and scores[0] - scores[-1] > 0.1 and len(set(labels)) >= 3
    assert (detections.labels + 1 == labels).all()
    assert np.abs(detections.scores - scores.numpy()).max() < 1e-5
    assert np.abs(detections.xyxy - expected["boxes"].numpy()).max() < 1e-3


def noting(where: dict[str, Any], name: str, function: Any) -> Any:
    """The function, whose last result is then ``where[name]``."""

    def called(*args: Any) -> Any:
        where[name] = function(*args)
        return where[name]

    return called


def filtered(theirs: Any, logits: Any, deltas: Any, anchors: Any, sizes: Any) -> Tensor:
    """torchvision's proposals in an image in training, from what its head says."""
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    counts = [y[0].numel() for y in logits]
    scores, moves = concat_box_prediction_layers(logits, deltas)
    proposals = theirs.rpn.box_coder.decode(moves, anchors).view(1, -1, 4)
    theirs.rpn.train()
    boxes, _ = theirs.rpn.filter_proposals(proposals, scores, sizes, counts)
    theirs.rpn.eval()
    found: Tensor = boxes[0]
    return found


def test_regions_meet_the_map_that_torchvision_takes() -> None:
    """Of all areas, also just at the bounds of a level, and of less than a cell."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = made(18)
    sides = torch.tensor([0.0, 1, 3, 111.9, 112, 112.1, 223.999, 223.99992, 224, 448, 896, 5000])
    wide = torch.stack((sides * 0, sides * 0, sides * 2, sides / 2), 1)
    level = network.level(regions_of([wide]))
    assert level.tolist() == LevelMapper(2, 5)([wide]).tolist()
    assert set(level.tolist()) == {0, 1, 2, 3}
    maps = {str(k): torch.randn(2, 256, 64 >> k, 96 >> k).double() for k in range(4)}
    corners = torch.rand(60, 2, 2).sort(1).values * torch.tensor([384.0, 256.0])
    corners[:20, 1] = corners[:20, 0] + torch.rand(20, 2) * 9
    boxes = [corners[::2].flatten(1).double(), corners[1::2].flatten(1).double()]
    expected = MultiScaleRoIAlign(list(maps), 7, 2)(maps, boxes, [(256, 384)] * 2)
    torch.testing.assert_close(network.pooled(list(maps.values()), regions_of(boxes)), expected)


def test_the_fifth_maps_anchors_stand_apart_as_torchvisions(
    small: ResNetFasterRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """800 pixels are 13 cells of the fifth map: 61 apart there, though the cells are 64 apart."""
    maps = [torch.empty(1, 1, 800 // s, 1088 // s) for s in (4, 8, 16, 32)]
    maps.append(maps[-1][:, :, ::2, ::2])
    told = [(y.expand(1, 3, -1, -1), y.repeat(1, 12, 1, 1)) for y in maps]
    monkeypatch.setattr(small, "told", lambda _: told)
    anchors = small.anchored(maps).anchors
    images = torchvision.models.detection.image_list.ImageList(
        torch.empty(1, 3, 800, 1088), [(800, 1088)]
    )
    theirs = torchvision.models.detection.faster_rcnn._default_anchorgen()
    assert torch.equal(anchors, theirs(images, maps)[0])
    cells = anchors[-13 * 17 * 3 :].view(13, 17, 3, 4)
    assert (cells[1, 0] - cells[0, 0]).tolist() == [[0, 61, 0, 61]] * 3


# Padding


def test_a_padded_batch_equals_torchvisions(
    pair: tuple[Any, ResNetFasterRCNN], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair
    monkeypatch.setattr(theirs.transform, "min_size", (96,))
    batch, _ = resized(theirs, photographs()[:2])
    with torch.no_grad():
        maps = theirs.backbone(batch.tensors)
        boxes, _ = theirs.rpn(batch, maps)
        outputs = ours(batch.tensors, None, batch.image_sizes)
        y = theirs.roi_heads.box_head(theirs.roi_heads.box_roi_pool(maps, boxes, batch.image_sizes))
        logits, deltas = theirs.roi_heads.box_predictor(y)
    torch.testing.assert_close(outputs.regions, regions_of(boxes))
    torch.testing.assert_close(outputs.logits, logits)
    true = deltas[:, 4:].reshape(-1, 4) * torch.tensor([0.1, 0.1, 0.2, 0.2])
    torch.testing.assert_close(outputs.deltas.view(-1, 4), true, rtol=1e-6, atol=1e-6)


def test_padding_is_not_seen(small: ResNetFasterRCNN) -> None:
    """Up to the next multiple of 32 all is zero anyhow; beyond the image nothing is proposed."""
    torch.manual_seed(0)
    images = torch.zeros(2, 3, 64, 96).double()
    sizes = [(40, 70), (64, 96)]
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w].normal_()
    with torch.no_grad():
        both = small(images, None, sizes)
        for k, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
            single = small(image[None, :, :h, :w])
            own = both.regions[:, 0] == k
            torch.testing.assert_close(both.regions[own, 1:], single.regions[:, 1:])
            torch.testing.assert_close(both.logits[own], single.logits)
            assert len(single.regions) > 50
            assert (single.regions[:, 3:].amax(0) <= torch.tensor([w, h])).all()


# Losses


def truths(sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Five objects in each image, small to large."""
    generator = torch.Generator().manual_seed(2)
    out = []
    for h, w in sizes:
        sides = torch.tensor([[20.0, 25], [40, 30], [60, 90], [90, 80], [110, 120]])
        low = torch.rand(5, 2, generator=generator) * (torch.tensor([w, h]) - sides)
        out.append(torch.cat((low, low + sides), 1))
    return out


def test_losses_and_gradients_equal_torchvisions(
    pair: tuple[Any, ResNetFasterRCNN], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the regions and the anchors that ours has sampled, which torchvision labels for itself."""
    theirs, ours = pair[0].float(), pair[1].float()
    monkeypatch.setattr(theirs.transform, "min_size", (128,))
    batch, alone = resized(theirs, [image.float() for image in photographs()[:2]])
    sizes = batch.image_sizes
    boxes = truths(sizes)
    labels = [torch.arange(5) % CLASSES, torch.arange(5) + 3]
    targets = {
        "boxes": boxes,
        "classes": labels,
        "kinds": [torch.zeros(5, dtype=torch.uint8)] * 2,
        "size": torch.tensor(sizes),
        "seed": torch.tensor([5, 6]),
        "valid": torch.ones(2, dtype=torch.bool),
    }
    task = Task(("thing",) * CLASSES, proposes=True, **CHOSEN | {"regions": 64})
    regions: list[Tensor] = []
    anchors: list[tuple[Tensor, Tensor]] = []
    sample, sample_anchors = Task.sample, grids.sample

    def sampled(self: Task, *given: Any) -> Any:
        found = sample(self, *given)
        regions.append(torch.from_numpy(found[0]))
        return found

    def sampled_anchors(*given: Any) -> Any:
        anchors.append(sample_anchors(*given))
        return anchors[-1]

    monkeypatch.setattr(Task, "sample", sampled)
    monkeypatch.setattr(grids, "sample", sampled_anchors)
    weights.freeze(ours, ours.frozen)
    ours.train()
    for module in weights.frozen_modules(ours):
        module.eval()
    padded = batch_of(list(batch.tensors), sizes, targets, stacked=True)
    sums, counts = task.losses(ours, padded), task.weights(padded)
    found = {name: sums[name] / counts[name] for name in sums}
    assert [len(r) for r in regions] == [64, 64] and counts["cross_entropy"] == 128
    assert [len(a) + len(b) for a, b in anchors] == [256, 256] and counts["objectness"] == 512

    def chosen(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for label, (objects, background) in zip(labels, anchors, strict=True):
            assert (label[objects] == 1).all() and (label[background] == 0).all()
            for rows, out in ((objects, masks[0]), (background, masks[1])):
                out.append(torch.zeros_like(label, dtype=torch.uint8).index_fill_(0, rows, 1))
        return masks

    def selected(proposals: Any, targets: Any) -> Any:
        heads = theirs.roi_heads
        xyxy, classes = ([t[key] for t in targets] for key in ("boxes", "labels"))
        matched, label = heads.assign_targets_to_proposals(regions, xyxy, classes)
        own = [b[m] for b, m in zip(xyxy, matched, strict=True)]
        return regions, matched, label, heads.box_coder.encode(own, regions)

    monkeypatch.setattr(theirs.rpn, "fg_bg_sampler", chosen)
    monkeypatch.setattr(theirs.roi_heads, "select_training_samples", selected)
    monkeypatch.setattr(theirs.transform, "_skip_resize", True)
    monkeypatch.setattr(theirs.transform, "image_mean", [0.0] * 3)
    monkeypatch.setattr(theirs.transform, "image_std", [1.0] * 3)
    given = [{"boxes": b, "labels": x + 1} for b, x in zip(boxes, labels, strict=True)]
    expected = theirs.train()(alone, given)
    for name, other in (
        ("cross_entropy", "loss_classifier"),
        ("boxes", "loss_box_reg"),
        ("objectness", "loss_objectness"),
        ("anchors", "loss_rpn_box_reg"),
    ):
        assert expected[other].item() > 0.01, name
        assert found[name].item() == pytest.approx(expected[other].item(), rel=1e-4), name

    sum(found.values()).backward()  # type: ignore[union-attr]
    sum(expected.values()).backward()
    own = {k: p.grad for k, p in ours.named_parameters() if p.grad is not None}
    others = {k: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    assert list(own) == list(others) and len(own) > 50
    for name, gradient in own.items():
        off = (gradient - others[name]).norm() / others[name].norm()
        assert off < 3e-3, name  # float32 through fifty layers: processors differ by some 1e-3
    for network in pair:
        network.zero_grad()
        network.eval().double()
    ours.requires_grad_(True)


def test_images_without_objects_give_losses(small: ResNetFasterRCNN) -> None:
    torch.manual_seed(0)
    small.train()
    images = [torch.randn(3, 70, 90).double(), torch.randn(3, 70, 90).double()]
    targets: dict[str, Any] = {
        "boxes": [torch.zeros(0, 4), torch.tensor([[5.0, 5.0, 50.0, 40.0]])],
        "classes": [torch.zeros(0, dtype=torch.int64), torch.tensor([3])],
        "kinds": [torch.zeros(n, dtype=torch.uint8) for n in (0, 1)],
        "size": torch.tensor([[70, 90]] * 2),
        "seed": torch.tensor([5, 6]),
        "valid": torch.ones(2, dtype=torch.bool),
    }
    task = Task(("thing",) * CLASSES, proposes=True)
    losses = []
    for rows in ([0, 1], [0]):
        batch = batch_of(
            [images[k] for k in rows],
            [(70, 90)] * len(rows),
            {key: [value[k] for k in rows] for key, value in targets.items() if key != "valid"}
            | {"size": targets["size"][rows], "valid": targets["valid"][rows]},
            stacked=True,
        )
        losses.append(task.losses(small, batch))
    assert all(x.isfinite() for found in losses for x in found.values())
    assert losses[0]["boxes"] > 0 and losses[0]["anchors"] > 0
    assert losses[1]["boxes"] == 0 and losses[1]["anchors"] == 0
    assert losses[1]["objectness"] > 0 and losses[1]["cross_entropy"] > 0
    sum(losses[1].values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None or p.grad.isfinite().all() for p in small.parameters())
    small.zero_grad()
    small.eval()


# Weights


def publish(folder: Path, name: str, state: dict[str, Tensor]) -> Path:
    """Writes a file whose name ends in its hash, as torchvision's do."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "unnamed.pth")
    digits = hashlib.sha256((folder / "unnamed.pth").read_bytes()).hexdigest()[:8]
    return (folder / "unnamed.pth").rename(folder / f"{name}-{digits}.pth")


def as_of_2019(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the names that torchvision's published file has."""
    out = {}
    for name, tensor in state.items():
        old = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for k in range(4):
            old = old.replace(f"_blocks.{k}.0.", f"_blocks.{k}.")
        out[old] = tensor
    return out


def test_the_published_network_loads_whole_and_says_the_same(
    pair: tuple[Any, ResNetFasterRCNN], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is of 2019, and its norms divide by the root of the variance and nothing more."""
    theirs = copy.deepcopy(pair[0]).float()
    state = theirs.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor[::7] *= 1e-5  # as in channels that say little: there eps counts
            state[name.replace("running_var", "weight")][::7] *= 3e-3
    old = as_of_2019(state)
    assert "backbone.fpn.inner_blocks.0.weight" in old and "rpn.head.conv.bias" in old
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = publish(tmp_path / "hub" / "checkpoints", "fasterrcnn_resnet50_fpn_coco", old)
    member = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    monkeypatch.setattr(member.value, "url", f"https://example.invalid/{path.name}")

    name = "faster_rcnn_resnet50_fpn"
    assert weights.published(name) == ("imagenet1k_v1", "imagenet1k_v2", "coco_v1")
    network = made(50).eval()
    report = load_weights(network, "coco_v1", model_name=name, num_classes=CLASSES)
    assert report.loaded == len(state) and not report.replaced and not report.dropped
    told = report.preprocessing
    assert told is not None and told.image_size == 800 and told.mean == (0.485, 0.456, 0.406)
    assert told.categories is not None and len(told.categories) == 90
    assert (told.categories[0], told.categories[89]) == ("person", "toothbrush")

    overwrite_eps(theirs, 0.0)
    batch, (alone,) = resized(theirs, [photographs()[0].float()])
    with torch.no_grad():
        expected = theirs.backbone(batch.tensors).values()
        found = network.pyramid(alone[None])
        network.load_state_dict(state)  # as any other file: eps is added
        other = network.pyramid(alone[None])
    for y, x in zip(found, expected, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other[0], found[0], rtol=1e-2, atol=1e-2)


def test_files_of_torchvision_and_of_other_classes(small: ResNetFasterRCNN, tmp_path: Path) -> None:
    """All is taken from them, but the last layers if their classes are others."""
    torch.manual_seed(0)
    theirs = {k: v.double() for k, v in torchvisions(18).state_dict().items()}
    before = {k: v.clone() for k, v in small.state_dict().items()}
    other = {k: v[:8] if k.startswith(HEAD) else v for k, v in theirs.items()}
    counted = {k: other.get(k, v) for k, v in before.items()}  # as our own files are
    for state, whole in ((theirs, True), (as_of_2019(other), False), (counted, False)):
        small.load_state_dict(before)
        torch.save(state, tmp_path / "x.pth")
        report = load_weights(
            small,
            str(tmp_path / "x.pth"),
            model_name="faster_rcnn_resnet18_fpn",
            num_classes=CLASSES,
        )
        fresh = [k for k in before if k.startswith(HEAD) and not whole]
        assert list(report.replaced) == fresh and report.preprocessing is None
        for name, tensor in small.state_dict().items():
            expected = theirs if name in theirs and name not in fresh else before
            assert torch.equal(tensor, expected[name]), name
    small.load_state_dict(theirs)  # strict, though it counts no batches
    small.load_state_dict(before)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_body_takes_a_classifiers_weights(depth: int) -> None:
    network = on_meta(f"faster_rcnn_resnet{depth}_fpn", num_classes=3)
    with torch.device("meta"):
        classifier = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    found = network.adopt(classifier)
    assert found is not None
    assert set(classifier) - set(found.values()) == {"fc.weight", "fc.bias"}
    assert all(own == f"backbone.body.{theirs}" for own, theirs in found.items())
    body = [k for k in network.state_dict() if k.startswith("backbone.body.")]
    assert list(found) == body
    other = DEPTHS[(DEPTHS.index(depth) + 1) % 4]
    with torch.device("meta"):
        assert network.adopt(torchvisions(other).state_dict()) is None
    assert network.adopt(on_meta("vgg11").state_dict()) is None


# Any input


@pytest.mark.parametrize("size", [(1, 1), (13, 40), (33, 70)])
def test_images_of_any_size(small: ResNetFasterRCNN, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    h, w = size
    strange = torch.tensor(
        [
            [0.0, 0, 0, w, h],
            [1, -30, -30, -20, -10],  # outside
            [1, w + 50, h + 50, w + 90, h + 90],
            [0, 3, 3, 3, 3],  # without area
            [0, 4, 4, 2, 3],  # inverted
            [0, -1000, -1000, 1000, 1000],
        ]
    )
    with torch.no_grad():
        for regions in (None, strange, strange[:0]):
            outputs = small(torch.randn(2, 3, *size).double(), regions)
            n = len(outputs.regions)
            assert outputs.logits.shape == (n, 1 + CLASSES)
            assert outputs.deltas.shape == (n, 4 * CLASSES)
            assert outputs.logits.isfinite().all() and outputs.deltas.isfinite().all()
            if regions is None:
                assert n > 0 and (outputs.regions[:, 3:] <= torch.tensor([w, h])).all()


def test_scores_in_full_precision_under_autocast(small: ResNetFasterRCNN) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 96)
    network = copy.deepcopy(small).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = network(image)
    for x in (outputs.logits, outputs.anchored.logits):
        assert x.dtype == torch.float32
        assert (x != x.bfloat16().float()).any()
