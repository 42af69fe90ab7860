"""Several networks as one: an ensemble, whose answer is the average of its members'.

This is a container, no architecture: ``vidi train --members 5`` and ``vidi ensemble`` make it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.errors import InputError
from vidi.types import Normalisation

TASKS = ("classification", "multilabel", "segmentation", "boundaries", "flow")
"""Tasks whose networks' outputs can be averaged. Detectors give each their own boxes."""


class Members(nn.Module):
    """``members`` networks for one task; the output has the form of one network's.

    Of classes (one of K per image or pixel, along the second side) it gives the logarithm of the
    mean probability; of labels and boundaries the logit of it; of flow the mean. Only the first of
    several outputs counts. What is trained is each member by itself.

    Raises :class:`InputError` for detection.
    """

    def __init__(self, members: Sequence[nn.Module], task: str) -> None:
        super().__init__()
        if task not in TASKS:
            raise InputError(
                f"An ensemble averages what its members say, and of {task} there is no average. It "
                f"is for {', '.join(TASKS)}."
            )
        self.members = nn.ModuleList(members)
        self.task = task

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs = torch.stack([_first(member(*inputs)).float() for member in self.members])
        if self.task == "flow":
            return outputs.mean(0)
        if self.task in ("classification", "segmentation"):
            return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))
        # The logit of a mean is the difference of the logarithms of both sums.
        return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)


class Adjusted(nn.Module):
    """``network``, given images that were normalised by ``given``, as if by its ``own``.

    Members of an ensemble see one batch; what was trained by itself has a mean and a deviation of
    its own training set.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, given: Normalisation, own: Normalisation) -> None:
        super().__init__()
        self.network = network
        (mean, std), (own_mean, own_std) = (
            (torch.tensor(n.mean), torch.tensor(n.std)) for n in (given, own)
        )
        self.register_buffer("scale", (std / own_std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer(
            "shift", ((mean - own_mean) / own_std).view(1, -1, 1, 1), persistent=False
        )

    def forward(self, *images: Tensor) -> Any:
        return self.network(*(image * self.scale + self.shift for image in images))


def members_of(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(start of its parameters' names, network) of each member; of what is no ensemble, itself."""
    if isinstance(network, Members):
        yield from ((f"members.{i}.", member) for i, member in enumerate(network.members))
    else:
        yield "", network


def _first(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found
