"""What a network costs, and what sizes it takes, found without computing anything.

On the meta device tensors have shapes and no contents, so a network of any size can be run in
milliseconds. Its parameters are lent meta copies for the call; the network itself is not touched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """How many numbers the network learns; shared ones are counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


PROPOSED = 2000
"""Regions that a detector of proposals is usually asked about, in an image."""


def proposed(model: nn.Module) -> int:
    """Regions that the detector is asked about in an image: its own proposals, or as many as is
    usual."""
    if not getattr(model, "proposes", False):
        return PROPOSED
    after: Any = model.after
    return int(after[1])


def macs(
    model: nn.Module,
    image_size: int,
    *,
    channels: int = 3,
    frames: int | None = None,
    regions: int | None = None,
) -> int:
    """Multiply-adds to predict one square image of ``image_size`` pixels.

    ``frames``: how many images the network takes; by default two if its task is flow, else one.
    ``regions``: if its task is detection, how many; unless told, as :func:`proposed` has it.

    Convolutions, matrix products and attention are counted, a multiplication and its addition as
    one, as the papers do; biases, normalisation, pooling and activations are not.
    """
    with _predicting(model), FlopCounterMode(display=False) as counter:
        _run_on_meta(model, image_size, channels, frames, regions)
    return int(counter.get_total_flops()) // 2


def trial(
    model: nn.Module, image_size: int, *, channels: int = 3, frames: int | None = None
) -> Any:
    """The network's output for one image of that size in evaluation mode; contents undefined.

    ``frames``: as :func:`macs` has it. A detector is asked about two regions.

    Whatever the network raises for such an image passes through.
    """
    with _predicting(model):
        try:
            return _run_on_meta(model, image_size, channels, frames, 2)
        except Exception:
            # A foreign network may look at values, which meta tensors do not have: run it truly.
            # (A lazy layer gets its shape by this, too.)
            like = next(model.parameters(), torch.empty(0))
            size = (1, channels, image_size, image_size)
            image = torch.zeros(size, dtype=like.dtype, device=like.device)
            return model(*[image] * _frames(model, frames), *_about(model, image, 2))


def smallest_image_size(
    model: nn.Module, failing: int, *, limit: int = 1024, frames: int | None = None
) -> int | None:
    """The smallest square image above ``failing`` pixels that the network takes, or None."""

    def fits(size: int) -> bool:
        try:
            _run_on_meta(model, size, 3, frames, 2)
        except Exception:
            return False
        return True

    with _predicting(model):
        high = failing + 1
        while not fits(high):
            high *= 2
            if high > limit:
                return None
        low = max(failing, high // 2)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _frames(model: nn.Module, frames: int | None) -> int:
    if frames is not None:
        return frames
    return 2 if getattr(model, "task", "") == "flow" else 1


def _about(model: nn.Module, image: torch.Tensor, regions: int | None) -> list[torch.Tensor]:
    """What a detector is asked about: regions that are the whole image."""
    if getattr(model, "task", "") != "detection":
        return []
    side = image.shape[-1]
    whole = torch.tensor([[0.0, 0, 0, side, side]]).repeat(regions or proposed(model), 1)
    return [whole.to(image.device)]


def _run_on_meta(
    model: nn.Module,
    image_size: int,
    channels: int,
    frames: int | None,
    regions: int | None,
) -> Any:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    lent = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next((t.dtype for t in lent.values() if t.is_floating_point()), torch.float32)
    image = torch.empty((1, channels, image_size, image_size), dtype=dtype, device="meta")
    about = _about(model, image, regions)
    with KeepingShapes():
        return functional_call(model, lent, (*(image,) * _frames(model, frames), *about))


class KeepingShapes(TorchFunctionMode):
    """Batch normalisation gives its input's shape at once.

    Meta tensors go through its arithmetic in Python otherwise, most of the time that a network
    takes. One whose statistics do not fit its input is left to PyTorch, which says so.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.batch_norm:
            x, mean, variance = args
            vectors = (mean, variance, kwargs["weight"], kwargs["bias"])
            plain = mean is not None and not kwargs["training"] and kwargs["eps"] >= 0
            if plain and all(v is None or v.shape == x.shape[1:2] for v in vectors):
                return torch.empty_like(x)
        return func(*args, **kwargs)


@contextmanager
def _predicting(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
