"""Whether backpropagation's gradient is the loss's: any network's, by wiggling its parameters.

The network's own loss on a few small images, in float64, against finite differences
(:mod:`vidi.ops.finite_differences`): of each parameter tensor a random direction and eight entries.
It finds a backward pass that was written by hand and is wrong, and what depends on a parameter
behind autograd's back.

All that is no function of the parameters is held fixed: dropout and other draws by the seed;
detached values, and the regions that a detector proposes and samples (no gradient flows through
them, Ren et al. 2015, section 3.2), as in the first pass. Batch norms in training mode take the
batch's statistics. The network itself is not touched: a copy is wiggled.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vidi import tasks
from vidi.doctor.random_batch import random_batch
from vidi.doctor.replay import Replay, replayed
from vidi.engine.device import to_device
from vidi.engine.prepare import Prepared
from vidi.errors import InputError
from vidi.models import count, profile, tracing
from vidi.models.members import members_of
from vidi.ops import finite_differences
from vidi.ops.finite_differences import ENTRIES, Compared, Probe
from vidi.tasks import Task
from vidi.types import Batch

SIDES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sides of images that are tried, in pixels; the smallest that the network takes will do ..."""
LEAST = 64
"""... from this, or a quarter of its usual side, on. Smaller ones leave deep batch norms two or
three values, whose normalised ones are nearly constant and bend sharply."""
SAMPLES = 2
CLASSES = 4
SHIFT = 0.5
"""Where the biases of batch norms are drawn: around it, seven of ten ReLUs let through. Around 0,
half of them do, and each layer of batch norm and ReLU makes a change 1.2 times as large (Yang et
al. 2019, "A mean field theory of batch normalization"): after a hundred without shortcuts nothing
is small."""
SMOOTHING = 0.1
"""Of the labels of two random images. A drawn network may be certain of both and right, and then
all derivatives are lost in rounding."""
NARROW = (torch.float16, torch.bfloat16, torch.float32)
NARROWING = (Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type_as)
DETACHING = (Tensor.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
SHOWN = 10
"""As many tensors with a wrong gradient are told."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class GradCheck:
    """What came of it."""

    network: str
    task: str
    images: tuple[int, int, int]
    """How many, and their height and width in pixels."""
    compared: Compared
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.compared.passed

    def as_json(self) -> dict[str, Any]:
        c = self.compared
        n, height, width = self.images
        return {
            "network": self.network,
            "task": self.task,
            "images": {"count": n, "height": height, "width": width},
            "passed": c.passed,
            "tensors": len({probe.parameter for probe in c.probes}),
            "probes": len(c.probes),
            **{verdict: len(c.of(verdict)) for verdict in ("equal", "zero", "crossing", "wrong")},
            "worst": c.worst,
            "disagreeing": [
                {
                    "parameter": probe.parameter,
                    "entry": None if probe.entry is None else list(probe.entry),
                    "backpropagation": probe.gradient,
                    "difference": probe.difference,
                }
                for probe in c.of("wrong")
            ],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        c = self.compared
        n, height, width = self.images
        tensors = {probe.parameter for probe in c.probes}
        out = [
            f"{self.network}: backpropagation against finite differences, {len(tensors)} parameter "
            f"tensors, {len(c.probes):,} derivatives, {n} images of {height} × {width} pixels",
            f"  equal     {len(c.of('equal')):>6,}  worst relative error {c.worst:.1e}",
            f"  zero      {len(c.of('zero')):>6,}  in both, or too little to be told from rounding",
            f"  kinks     {len(c.of('crossing')):>6,}  set aside, {c.crossings:.1%} "
            f"(at most {finite_differences.MOST_CROSSINGS:.0%})",
            f"  wrong     {len(c.of('wrong')):>6,}",
        ]
        out += [f"  {line}" for line in _disagreeing(c.of("wrong"))]
        out += [f"note: {note}" for note in self.notes]
        return [*out, self._verdict()]

    def _verdict(self) -> str:
        c = self.compared
        if c.passed:
            return "The gradient is right."
        if wrong := c.of("wrong"):
            names = list(dict.fromkeys(probe.parameter for probe in wrong))
            return (
                f"The gradient is wrong for {len(names)} of "
                f"{len({probe.parameter for probe in c.probes})} tensors. The fault lies in the "
                f"backward pass of what comes after the last of them, {names[-1]}, or in its own "
                "layer: an autograd.Function, something under no_grad(), a value that was "
                "kept from an earlier pass."
            )
        if not c.of("equal"):
            return "Nothing could be compared: no parameter changes the loss."
        return (
            "Too many kinks lie within the steps to judge the gradient. Try other images, or "
            "another seed."
        )


def gradcheck(
    made: Prepared,
    *,
    samples: int = SAMPLES,
    entries: int = ENTRIES,
    seed: int = 0,
    say: Say | None = None,
) -> GradCheck:
    """Check a run's network with its own loss on ``samples`` of its own training images, as small
    as it takes them. Of an ensemble the first member is checked.

    ``entries``: of each parameter tensor, beside a direction.
    ``say`` hears the name of each parameter tensor before its turn.
    """
    recipe = made.description.recipe
    _, network = next(members_of(made.model))
    assert recipe.image_size != "auto"
    frames = 2 if recipe.task == "flow" else 1
    loader = copy.copy(made.train)
    loader.image_size = _side(network, recipe.image_size, frames)
    loader.batch_size, loader.threads, loader.rank, loader.world = samples, 0, 0, 1
    with contextlib.closing(loader.epoch(0)) as batches:
        batch = to_device(next(batches), torch.device("cpu"), made.compute.normalisation, False)
    with _modes_kept(made.model):
        made.train_mode(made.model)
        return _check(network, made.task, batch, recipe.model, recipe.task, (entries, seed, say))


def gradcheck_network(
    network: nn.Module,
    *,
    name: str | None = None,
    task: str | None = None,
    classes: int = CLASSES,
    image_size: int = 64,
    samples: int = SAMPLES,
    entries: int = ENTRIES,
    seed: int = 0,
    say: Say | None = None,
) -> GradCheck:
    """Check any network in training mode with its task's loss, on random images and targets, of a
    classifier smoothed ones.

    ``task``: its own by default, or classification where it states none. ``classes``: what it was
    built for.
    """
    kind = task or str(getattr(network, "task", "classification"))
    made = _task(kind, network, classes)
    batch = random_batch(kind, classes=classes, side=image_size, samples=samples, seed=seed)
    with _modes_kept(network):
        network.train()
        said = name or type(network).__name__
        return _check(network, made, batch, said, kind, (entries, seed, say))


def gradcheck_named(
    name: str,
    *,
    classes: int = CLASSES,
    image_size: int | None = None,
    samples: int = SAMPLES,
    entries: int = ENTRIES,
    seed: int = 0,
    say: Say | None = None,
) -> GradCheck:
    """Check a network of the package, of timm's or one's own, freshly built for a few classes.

    Its weights are drawn by one rule (He et al. 2015, "Delving deep into rectifiers", eq. 10):
    with the smaller ones that some networks begin with, gradients would be lost in rounding.
    Biases of batch norms are drawn around :data:`SHIFT`.
    ``image_size``: by default the smallest of :data:`SIDES` that it takes, or its usual size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network, usual = profile.named(name, classes=classes, image_size=image_size)
        _draw(network)
    side = usual
    if image_size is None:
        frames = 2 if getattr(network, "task", "") == "flow" else 1
        side = _side(network, usual, frames)
    return gradcheck_network(
        network,
        name=name,
        classes=classes,
        image_size=side,
        samples=samples,
        entries=entries,
        seed=seed,
        say=say,
    )


def _task(kind: str, network: nn.Module, classes: int) -> Task:
    names = tuple(f"class {k}" for k in range(classes))
    told: dict[str, Any] = {}
    if getattr(network, "proposes", False):
        told = {"proposes": True, "regions": 16}
    elif kind == "classification":
        told = {"label_smoothing": SMOOTHING}
    task: Task = tasks.find(kind).Task(classes=names, **told)
    return task


def _side(network: nn.Module, usual: int, frames: int) -> int:
    """The smallest of the sides that will do, or the usual one."""
    least = min(LEAST, usual / 4)
    return next((s for s in SIDES if least <= s < usual and _takes(network, s, frames)), usual)


def _takes(network: nn.Module, side: int, frames: int) -> bool:
    try:
        count.trial(network, side, frames=frames)
    except Exception:  # whatever a network says of an image that is too small
        return False
    return True


def _check(
    network: nn.Module,
    task: Task,
    batch: Batch,
    name: str,
    kind: str,
    how: tuple[int, int, Say | None],
) -> GradCheck:
    entries, seed, say = how
    notes = []
    frozen = sum(not p.requires_grad for p in network.parameters())
    if frozen:
        many = "1 frozen tensor was" if frozen == 1 else f"{frozen} frozen tensors were"
        notes.append(f"{many} not wiggled")
    with _in_float64(), torch.random.fork_rng(devices=[]):
        own = tracing.copied(network, _double)
        moved = _stir(own, seed)
        if moved:
            notes.append(
                f"{', '.join(moved[:3])}{' …' if len(moved) > 3 else ''} "
                f"{'is' if len(moved) == 1 else 'are'} all zero, which may hide what comes before "
                "or leave a ReLU on its kink: moved at random for the check"
            )
        batch = _batch_in_float64(batch)
        held = _Held(own, seed)
        replay = Replay(own)
        constants = _Constants(replay)
        weights = task.weights(batch)

        def whole() -> Tensor:
            with constants:
                parts = task.losses(held, batch)
            return torch.stack([value / weights[key] for key, value in parts.items()]).sum()

        wiggled = {n: p for n, p in own.named_parameters() if p.requires_grad}
        if not wiggled:
            raise InputError(f"No parameter of {name} requires a gradient; there is none to check.")
        try:
            loss = replayed(whole, replay)
            compared = finite_differences.compare(
                loss, wiggled, entries=entries, seed=seed, say=say
            )
        except ValueError as error:
            raise InputError(f"The gradient of {name} cannot be checked: {error}") from error
    if n := sum(kept is not None for kept in constants.kept.values()):
        notes.append(
            f"{'1 value is' if n == 1 else f'{n} values are'} detached on the way from the "
            "parameters to the loss: no gradient is to flow there, and none was looked for"
        )
    image = batch.inputs["image"]
    images = (len(image), int(image.shape[2]), int(image.shape[3]))
    return GradCheck(name, kind, images, compared, tuple(notes))


class _Held(nn.Module):
    """The network, with all that is no function of its parameters as it was in the first pass.

    ``module``: itself, where tasks look for what it states, as they do in several processes.
    """

    def __init__(self, module: nn.Module, seed: int) -> None:
        super().__init__()
        self.module = module
        self.seed = seed
        self.proposed: list[Tensor] | None = None

    def forward(self, *inputs: Any) -> Any:
        torch.default_generator.manual_seed(self.seed)  # of dropout
        return self.module(*(self._fixed(one) if callable(one) else one for one in inputs))

    def _fixed(self, choose: Callable[[list[Tensor]], Tensor]) -> Callable[[list[Tensor]], Tensor]:
        """Sampling depends on the sample's own seed, so that the same proposals give the same."""

        def chosen(proposals: list[Tensor]) -> Tensor:
            if self.proposed is None:
                self.proposed = [one.detach().clone() for one in proposals]
            return choose(self.proposed)

        return chosen


class _Constants(TorchFunctionMode):
    """Values that are detached stay as they were in the first pass: that is what detaching says.

    Not those within an autograd.Function, which may do as it likes, and whose gradient is its own.
    """

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.replay = replay
        self.kept: dict[tuple[int, bool, int], Tensor | None] = {}
        """By where in the pass; None for those that are not held."""
        self.counts: dict[tuple[int, bool], int] = {}

    def __enter__(self) -> Any:
        self.counts = {}
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if function not in DETACHING:
            return out
        place = self.replay.place
        nth = self.counts[place] = self.counts.get(place, 0) + 1
        key = (*place, nth)
        if key not in self.kept:
            # The first pass is with gradients, but not within such a function.
            held = torch.is_grad_enabled() and args[0].requires_grad
            self.kept[key] = out.clone() if held else None
        kept = self.kept[key]
        return out if kept is None else kept.clone()


class _InFloat64(TorchFunctionMode):
    """Where a double is to become a narrower float, it stays one.

    Losses and some layers ask for fp32 against half precision's errors; here they would round.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in NARROWING and _is_double(args[0]):
            if function not in (Tensor.to, Tensor.type_as):
                return args[0]
            args = (args[0], *(_widened(one) for one in args[1:]))
        if not kwargs:
            return function(*args)
        if "dtype" in kwargs:
            kwargs = {**kwargs, "dtype": _widened(kwargs["dtype"])}
        return function(*args, **kwargs)


def _is_double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in NARROW else value
    if isinstance(value, Tensor) and value.dtype in NARROW:
        return value.double()  # only its type and device are asked for
    return value


@contextlib.contextmanager
def _in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _InFloat64():
            yield
    finally:
        torch.set_default_dtype(before)


def _double(tensor: Tensor) -> Tensor:
    """A copy on the CPU; a parameter stays one."""
    value = tensor.detach().to("cpu", copy=True)
    value = value.double() if value.is_floating_point() else value
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, tensor.requires_grad)
    return value


def _batch_in_float64(batch: Batch) -> Batch:
    def wide(value: Any) -> Any:
        if isinstance(value, list):
            return [wide(one) for one in value]
        narrow = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if narrow else value

    inputs = {name: wide(value) for name, value in batch.inputs.items()}
    targets = {name: wide(value) for name, value in batch.targets.items()}
    return dataclasses.replace(batch, inputs=inputs, targets=targets)


def _draw(network: nn.Module) -> None:
    with torch.no_grad():
        for module in network.modules():
            middle = SHIFT if isinstance(module, nn.modules.batchnorm._BatchNorm) else 0.0
            for name, tensor in module.named_parameters(recurse=False):
                if tensor.requires_grad and tensor.ndim > 1:
                    tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
                elif tensor.requires_grad and name.endswith("bias"):
                    tensor.normal_(mean=middle, std=0.1)


def _stir(network: nn.Module, seed: int) -> list[str]:
    """Gives tensors that are all zero some values, and tells their names.

    Last layers and residual branches that begin at zero hide all before them, and biases of zero
    leave ReLUs that see nothing exactly on their kink.
    """
    generator = torch.Generator().manual_seed(seed)
    moved = []
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if tensor.requires_grad and not tensor.any():
                fan = tensor[0].numel() if tensor.ndim > 1 else 100
                tensor.normal_(std=fan**-0.5, generator=generator)
                moved.append(name)
    return moved


@contextlib.contextmanager
def _modes_kept(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _disagreeing(wrong: Sequence[Probe]) -> list[str]:
    """One line for each tensor, the probe that is off by most."""
    worst: dict[str, Probe] = {}
    for probe in wrong:
        if probe.parameter not in worst or probe.error > worst[probe.parameter].error:
            worst[probe.parameter] = probe
    lines = [
        f"{probe.parameter} {list(probe.entry) if probe.entry is not None else 'direction'}: "
        f"backpropagation {probe.gradient:.6g}, difference {probe.difference:.6g}"
        for probe in list(worst.values())[:SHOWN]
    ]
    return lines + ([f"and {len(worst) - SHOWN} more tensors"] if len(worst) > SHOWN else [])
