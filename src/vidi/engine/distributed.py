"""Several processes: all that differs by rank stands here.

``torchrun`` sets RANK, LOCAL_RANK and WORLD_SIZE; without them there is one process and every
function below is the identity.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

_ALONE = ContextVar("alone", default=False)


@contextlib.contextmanager
def session(patience: timedelta | None = None) -> Iterator[None]:
    """Join the process group that torchrun prepared, if it did, and leave it at the end.

    ``patience``: how long one process waits for the others, where torch's half an hour is too
    short. One that dies is noticed at once all the same."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    # gloo carries what lies on the CPU (flags, meters), whatever the devices are.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process is by itself: nothing that it computes is shared out."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() and not _ALONE.get() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _ALONE.get() else 1


def neighbours() -> int:
    """The processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_writer() -> bool:
    """Whether this process writes the run: exactly one does."""
    return rank() == 0


def local_device(device: torch.device) -> torch.device:
    """This process's device: the processes of one machine take its GPUs in turn."""
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as DDP has it: gradients are averaged over the processes as they arise."""
    if world() == 1:
        return model
    ids = [device] if device.type == "cuda" else None
    # Batch statistics stay each process's own, and rank 0's are the ones saved: buffers are not
    # sent around at every step for the sake of a running mean.
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def without_sync(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """For all but the last part of an accumulated batch: gradients are sent once."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def gathered(value: Any) -> list[Any]:
    """Every process's value, by rank. Pickled between our own processes only."""
    if world() == 1:
        return [value]
    out: list[Any] = [None] * world()
    dist.all_gather_object(out, value)
    return out


def from_writer(value: Any) -> Any:
    """The writer's value, in every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers (batch statistics), so that all evaluate one network."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
