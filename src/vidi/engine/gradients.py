"""The gradient of a batch: in parts, over processes, for each member of an ensemble.

The loop (``train``) and whoever rehearses it (``lr_range``) take the same steps.
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import Tensor, nn

from vidi.engine import distributed
from vidi.engine.evaluate import Compute
from vidi.tasks import Task
from vidi.types import Batch


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in up to ``parts`` consecutive parts of nearly equal size."""
    if parts == 1:
        return [batch]
    out = []
    for rows in np.array_split(np.arange(len(batch)), parts):
        if not len(rows):
            continue
        s = slice(int(rows[0]), int(rows[-1]) + 1)
        out.append(
            Batch(
                inputs={k: v[s] for k, v in batch.inputs.items()},
                targets={k: v[s] for k, v in batch.targets.items()},
                keys=batch.keys[s],
                ids=batch.ids[s],
                matrices=batch.matrices[s],
                sizes=batch.sizes[s],
                valid=batch.valid[s],
                samples=batch.samples[s],
            )
        )
    return out


def total_weights(
    task: Task, parts: list[Batch], signal: int | None
) -> tuple[dict[str, Tensor], int]:
    """(each loss's weight over all parts and processes, the signal that any process received)."""
    weights: dict[str, Tensor] = {}
    for part in parts:
        for name, weight in task.weights(part).items():
            weights[name] = weights[name] + weight if name in weights else weight.float()
    if distributed.world() == 1:
        return weights, signal or 0
    device = next(iter(weights.values())).device
    flag = torch.tensor(float(signal or 0), device=device)
    # One message a step carries both; every process then stops before the same step.
    summed = distributed.total(torch.stack([*weights.values(), flag]))
    any_signal = max(distributed.gathered(signal or 0)) if summed[-1].item() else 0
    return dict(zip(weights, summed[:-1], strict=True)), any_signal


def backward(
    networks: list[nn.Module],
    task: Task,
    parts: list[Batch],
    weights: dict[str, Tensor],
    compute: Compute,
    scaler: torch.amp.GradScaler,
    seed: int,
    step: int,
) -> dict[str, float]:
    """Gradients of the global batch's mean loss, for each of the networks; gives its terms by name,
    over all processes, on average over the networks."""
    # DDP averages gradients over processes; the losses are sums over a global weight.
    world = distributed.world()
    terms: dict[str, Tensor] = {}
    for i, network in enumerate(networks):
        # What a network itself draws (dropout) hangs on nothing but these three.
        torch.manual_seed(draws_seed(seed + i, step, distributed.rank()))
        for part in parts:
            last = part is parts[-1]
            with contextlib.nullcontext() if last else distributed.without_sync(network):
                with compute.autocast():
                    losses = task.losses(network, part)
                # A batch of which nothing counts has weight 0 and loss 0, not 0/0.
                shares = {
                    k: s / weights[k].clamp_min(torch.finfo().tiny) for k, s in losses.items()
                }
                share = torch.stack([*shares.values()]).sum()
                scaler.scale(share * world).backward()  # type: ignore[no-untyped-call]
            for name, value in shares.items():
                value = value.detach() / len(networks)
                terms[name] = terms[name] + value if name in terms else value
    values = distributed.total(torch.stack([*terms.values()])).tolist()
    return dict(zip(terms, values, strict=True))


def clip(members: list[nn.Module], most: float | None) -> float:
    """Clips each network's gradient at a norm of ``most``, if any; gives the norm before, of
    several networks the root of the mean square."""
    norms = []
    for member in members:
        trained = [p for p in member.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if most is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, most, norm)
        norms.append(norm)
    return float(torch.stack(norms).square().mean().sqrt()) if len(norms) > 1 else float(norms[0])


def draws_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit mix of the three (splitmix64's finaliser, Steele et al. 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank + 1) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
