"""One file per task: targets, loss, metric, decoding, drawing. A task's name is its module's."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from vidi.errors import InputError
from vidi.types import Batch, Encoded, Meter, Sample


class Task(Protocol):
    """All that differs between the problems. It calls the model; the loop knows neither."""

    headline: str
    """The metric by which the best weights are chosen; higher is better, unless the task says
    ``lower_is_better``."""
    outputs: int
    """What the network is built for: the number of classes."""

    padding: Mapping[str, int]
    """What targets are padded with, by name, where a batch's images differ in size."""

    def encode(self, sample: Sample, rng: Any, *, train: bool) -> Encoded:
        """Network inputs and targets of one sample whose geometry is settled."""

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """What each loss's sum is to be divided by, from the targets alone.

        Known before the forward pass, so that the parts of an accumulated batch and the shares of
        several processes are divided by the *global* weight: a mean of means is wrong where some
        samples or pixels count for nothing.
        """

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Each loss's sum over the batch, under the same names."""

    # A task may have ``signs(batch) -> dict[str, float]``: what a doctor should know of a training
    # batch's targets, written down with the vitals.

    def predict(self, model: nn.Module, batch: Batch, *, flip: bool = False) -> list[Any]:
        """One prediction per sample, in the original image's terms. A task with labels per pixel
        takes ``scales`` too, the sizes of the image that are averaged over."""

    def meter(self) -> Meter:
        """A task whose metric takes long also has a ``quick_meter``, of a coarser one under the
        same names, for the evaluations between epochs."""

    def details(self, meter: Meter) -> dict[str, Any]:
        """What a report shows beside the metrics: rows per class, a confusion matrix …"""


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def find(name: str) -> Any:
    """The task's module. Raises :class:`InputError` for an unknown name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"There is no task {name!r}; there are: {', '.join(names())}.{hint}")
    return importlib.import_module(f"{__name__}.{name}")


def masked(values: Tensor, valid: Tensor) -> Tensor:
    """Zero where the sample could not be read (whatever the network made of its blank image)."""
    return values.where(valid, values.new_zeros(()))
