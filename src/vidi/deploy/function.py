"""The whole function of a run, as one module: from the bytes of an image to the answer.

Whoever uses an exported network need not know how its images were prepared. Resizing,
normalisation, the network, and what is made of its outputs are one graph, which answers as
:meth:`vidi.api.Model.predict` does on an array.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.data import augment
from vidi.deploy import resizing
from vidi.engine.prepare import kept_size
from vidi.types import Normalisation, Notes

Sides = tuple[str | int, ...]
"""Of a tensor: a number, or the name of a side that may have any length."""


class Function(nn.Module):
    """A network with what goes before it and after it, for one task.

    Inputs: ``image``, uint8 RGB [B, H, W, 3], of any one size unless ``size`` says (H, W); for flow
    the second frame, ``image2``, too. Output: a dictionary of the answer's tensors, which
    ``outputs`` describes. ``shorter``: to what the image's shorter side is shrunk first, in pixels;
    None leaves it.
    """

    image_mean: Tensor
    image_scale: Tensor
    frames: tuple[str, ...] = ("image",)

    def __init__(
        self,
        network: nn.Module,
        normalisation: Normalisation,
        size: tuple[int, int] | None,
        shorter: int | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.shorter = shorter
        self.batch: int | None = None
        self.notes: Notes = []
        # As vidi.engine.device.to_device does it, to the bit.
        mean = torch.tensor(normalisation.mean).view(1, 3, 1, 1) * 255
        scale = 1 / (torch.tensor(normalisation.std).view(1, 3, 1, 1) * 255)
        self.register_buffer("image_mean", mean, persistent=False)
        self.register_buffer("image_scale", scale, persistent=False)

    @property
    def sides(self) -> Sides:
        """Of the image: batch, height and width."""
        return (self.batch or "batch", *(self.size or ("height", "width")))

    @property
    def inputs(self) -> dict[str, Sides]:
        return dict.fromkeys(self.frames, (*self.sides, 3))

    @property
    def outputs(self) -> dict[str, Sides]:
        raise NotImplementedError

    def example(self) -> dict[str, Tensor]:
        """Inputs to draw the graph with, of unequal sides."""
        height, width = self.size or (202, 246)
        many = self.batch or 2
        values = torch.arange(many * height * width * 3).remainder(251).to(torch.uint8)
        return {name: values.view(many, height, width, 3).clone() for name in self.frames}

    @property
    def preparation(self) -> str:
        """What is done to an image before the network sees it, as a sentence."""
        first = "Nothing needs to be done to an image beforehand"
        if self.size is not None:
            height, width = self.size
            first = f"Resize an image to {width} × {height} pixels (width × height) beforehand"
        return f"{first}. {self._inside()} and normalises it, inside."

    def _inside(self) -> str:
        if self.shorter is None:
            return "The model takes it at its own size"
        return f"The model shrinks it to a shorter side of {self.shorter} pixels at most"

    def fitted(self, levels: Tensor) -> Tensor:
        """Whole grey levels [B, 3, H, W] as the network is to see them, [B, 3, h, w]."""
        return levels if self.shorter is None else resizing.shrunk(levels, self.shorter)

    def seen(self, image: Tensor) -> Tensor:
        """The network's input: float32 [B, 3, h, w]."""
        return (self.fitted(image.permute(0, 3, 1, 2).float()) - self.image_mean) * self.image_scale

    def enlarged(self, maps: Tensor, image: Tensor) -> Tensor:
        """What the network gives, [B, C, h, w], at the size of the image."""
        if self.shorter is None:
            return maps
        height, width = image.shape[1:3]
        return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)


class Classify(Function):
    """``probabilities``: float32 [B, K], one per class.

    The network sees a square of ``side`` pixels: the image's ``centre``, or all of it, squashed.
    ``several``: each class is a label by itself.
    """

    classes = 0
    side = 0
    centre = False
    several = False

    @property
    def outputs(self) -> dict[str, Sides]:
        return {"probabilities": (self.sides[0], self.classes)}

    def _inside(self) -> str:
        part = "cuts out its centre and resizes that" if self.centre else "squashes it"
        return f"The model {part} to {self.side} × {self.side} pixels"

    def fitted(self, levels: Tensor) -> Tensor:
        assert self.shorter is not None
        resize = resizing.centred if self.centre else resizing.squashed
        return resize(levels, self.shorter, self.side)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        logits = first(self.network(self.seen(image)))
        return {"probabilities": logits.sigmoid() if self.several else logits.softmax(1)}


class Segment(Function):
    """``mask``: [B, H, W] of type ``kind``, the likeliest class of each pixel of the image."""

    kind = torch.uint8

    @property
    def outputs(self) -> dict[str, Sides]:
        return {"mask": self.sides}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        scores = self.enlarged(first(self.network(self.seen(image))), image)
        return {"mask": scores.argmax(1).to(self.kind)}


class Outline(Function):
    """``boundaries``: float32 [B, H, W], 0 to 1: how likely each pixel is on a boundary."""

    @property
    def outputs(self) -> dict[str, Sides]:
        return {"boundaries": self.sides}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        soft = self.enlarged(first(self.network(self.seen(image))).sigmoid(), image)
        return {"boundaries": soft.squeeze(1).clamp(0, 1)}


class Move(Function):
    """``flow``: float32 [B, H, W, 2], x and y in pixels of the image."""

    frames = ("image", "image2")

    @property
    def outputs(self) -> dict[str, Sides]:
        return {"flow": (*self.sides, 2)}

    def forward(self, image: Tensor, image2: Tensor) -> dict[str, Tensor]:
        small = first(self.network(self.seen(image), self.seen(image2)))
        flow = self.enlarged(small, image)
        if self.shorter is not None:  # vectors are longer as the image's sides are
            grown = [
                resizing.side(flow.shape[k]).float() / resizing.side(small.shape[k]).float()
                for k in (3, 2)
            ]
            flow = flow * torch.stack(grown).view(1, 2, 1, 1)
        return {"flow": flow.permute(0, 2, 3, 1)}


def function(model: Any, size: tuple[int, int] | None = None) -> Function:
    """The whole function of a run's weights, a copy of them, on the CPU and in fp32.

    ``model``: a :class:`vidi.api.Model` that torch computes. ``size``: the only (height, width)
    that is taken.
    """
    recipe = model.recipe
    if recipe.task == "detection":
        from vidi.deploy import detection  # which builds on this file

        detector: Function = detection.function(model, size)
        return detector
    given = (frozen(model.network), model.compute.normalisation, size, kept_size(recipe))
    whole: Function
    if recipe.task == "segmentation":
        whole = Segment(*given)
        whole.kind = torch.uint8 if len(model.classes) <= 256 else torch.int32
    elif recipe.task == "boundaries":
        whole = Outline(*given)
    elif recipe.task == "flow":
        whole = Move(*given)
    else:
        whole = Classify(*given)
        whole.side = recipe.image_size
        whole.centre = augment.EVALUATION.get(recipe.augmentation.crop) == "centre"
        whole.several = recipe.task == "multilabel"
        whole.classes = len(model.classes)
    return whole.eval()


def frozen(network: nn.Module) -> nn.Module:
    """A copy of the network for evaluation alone, on the CPU and in fp32."""
    copied = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    return copied.to(memory_format=torch.contiguous_format)


def first(outputs: Any) -> Tensor:
    """The output that counts, of a network that may have several."""
    found: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return found.float()
