"""The machine: which device, which arithmetic, which memory layout."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import nn

from vidi.errors import InputError
from vidi.ops import convolution
from vidi.recipe import Recipe
from vidi.types import Batch, Normalisation

SMALL_WORK = 5e8
"""A fiftieth of a second of one core, or about as long as threads may wait for each other."""
BF16_GAIN = 1.2
"""bf16 costs digits: it should be this many times faster at least."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(name: str) -> torch.device:
    """The device of that name; ``auto`` is the fastest that is there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The device {name!r} is not to be had here ({reason}). Leave --device at auto, or "
            "name cpu, cuda, cuda:1 or mps."
        ) from error
    return device


def best_precision(device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """bf16 where the processor is faster in it, fp16 on older GPUs, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "bf16" if _bf16_gain() >= BF16_GAIN else "fp32"
    return "fp32"


def computes(device: torch.device, precision: str) -> bool:
    """Whether autocast to ``precision`` works there; a run's precision is kept where it does, so
    that its figures can be repeated."""
    if device.type == "cpu" and precision == "bf16":
        # By the flags: slower than fp32 here or there, but the same figures each time.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if device.type == "cuda" and precision == "bf16":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return precision == "fp32" or device.type == "cuda"


@functools.cache
def _bf16_gain() -> float:
    """How many times faster this CPU convolves in bf16 than in fp32; takes a tenth of a second.

    Measured, since flags do not tell: some processors that list bf16 instructions are faster in
    fp32 for all that, and where there are none oneDNN emulates them, slower.
    """
    # No random numbers: the caller's generator stays where it is.
    image, weight = torch.ones(8, 64, 32, 32), torch.ones(64, 64, 3, 3)

    def seconds(dtype: torch.dtype) -> float:
        x = image.to(dtype, memory_format=torch.channels_last)
        w = weight.to(dtype, memory_format=torch.channels_last)
        spent = []
        for _ in range(8):
            began = time.perf_counter()
            nn.functional.conv2d(x, w, padding=1)
            spent.append(time.perf_counter() - began)
        return min(spent)  # whatever else runs only adds to it

    with torch.inference_mode():
        return seconds(torch.float32) / seconds(torch.bfloat16)


@contextlib.contextmanager
def threads_for(work: float) -> Iterator[None]:
    """One torch thread while a step's forward pass is under ``SMALL_WORK`` multiply-adds.

    Threads that share so little work spend their time waiting for each other, and on a machine
    that does anything else beside it, very long.
    """
    before = torch.get_num_threads()
    if work < SMALL_WORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tune_allocator() -> None:
    """Keep freed memory (glibc only): a training step frees and asks for the same large tensors.

    By default glibc returns each large block to the system and faults its pages in again at the
    next step, which costs a convolutional network on a CPU a good part of its time.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, -1)


def to_device(
    batch: Batch, device: torch.device, normalisation: Normalisation, channels_last: bool
) -> Batch:
    """The loader's arrays as tensors on the device; images normalised, fp32 [B, 3, H, W]."""

    def moved(value: object) -> object:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value).to(device, non_blocking=True)
        return [moved(v) for v in value] if isinstance(value, list) else value

    def normalised(value: object) -> object:
        if isinstance(value, list):  # images of different sizes: [1, 3, H, W] each
            return [normalised(one[None]) for one in value]
        image = moved(value)
        if not isinstance(image, torch.Tensor) or image.dtype != torch.uint8:
            return image
        mean, scale = _of_rows(normalisation, image.shape[2], device)
        x = image.to(torch.float32, memory_format=torch.contiguous_format)
        x.view(*x.shape[:2], -1).sub_(mean).mul_(scale)
        # [B, H, W, 3] seen as [B, 3, H, W] is channels-last already.
        x = x.permute(0, 3, 1, 2)
        return x if channels_last else x.contiguous()

    return Batch(
        inputs={k: normalised(v) for k, v in batch.inputs.items()},
        targets={k: moved(v) for k, v in batch.targets.items()} | {"valid": moved(batch.valid)},
        keys=batch.keys,
        ids=batch.ids,
        matrices=batch.matrices,
        sizes=batch.sizes,
        valid=batch.valid,
        samples=batch.samples,
    )


@functools.lru_cache(maxsize=64)
def _of_rows(
    normalisation: Normalisation, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is subtracted from a row of pixels, float [3 · width], and what then multiplies it: by
    rows it goes five times as fast as by the three channels of each pixel."""
    mean = torch.tensor(normalisation.mean, device=device) * 255
    scale = 1 / (torch.tensor(normalisation.std, device=device) * 255)
    return mean.repeat(width), scale.repeat(width)


def layout(model: nn.Module, channels_last: bool) -> nn.Module:
    return model.to(memory_format=torch.channels_last) if channels_last else model


def for_training(model: nn.Module, device: torch.device, recipe: Recipe) -> nn.Module:
    """The network on the device, in the recipe's layout, with the convolutions it trains with."""
    model = layout(model.to(device), bool(recipe.channels_last))
    if device.type == "cpu" and recipe.channels_last and not recipe.compile:
        convolution.convert(model)
    return model
