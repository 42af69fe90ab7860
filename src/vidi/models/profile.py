"""Layer by layer: what a network computes, keeps, sees, and how long it takes.

Each quantity is one number that grows while the network runs (multiply-adds so far, bytes kept so
far, seconds), read when a module begins and when it ends; what its own modules added is theirs, the
rest is its own. So what is written as a function between modules (a ReLU, an addition) is counted,
with the module in which it is written, and rows add up to the whole.

Multiply-adds are a prediction's of one image, as :mod:`vidi.models.count` has them; memory and time
are training's, of a batch. Backward times are those of autograd's nodes, each of which belongs to
the module in whose forward pass it was made.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidi import models
from vidi.errors import InputError
from vidi.models import count, tracing
from vidi.ops import fields

ROUNDS = 7
"""Times that forward and backward are timed, at most; the least is told, since whatever else runs
only adds to it."""
SECONDS = 6.0
"""They end sooner after so long, after two; after one where that took twice as long."""
LITTLE = 0.01
"""A module that does nothing but run others is a row if it takes this share of the time."""
HEAVY = 2e11
"""Multiply-adds of a batch's forward pass, from which on nothing is timed on a CPU: three seconds
of one core, three times that with the backward pass, and a round has both twice."""
SWIFT = 10
"""Elsewhere this many times as many are timed."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What a module does itself, without the modules in it; or, grouped, with them."""

    name: str
    kind: str
    """Its class."""
    output: tuple[int, ...] | None
    """The shape of what it gives for one image, without the batch; None if it is no one tensor, or
    it is not called in a prediction."""
    field: float | None
    """Side of the square of input pixels that a pixel of its output depends on (receptive field);
    infinite for the whole image, None where the output is no map."""
    parameters: int
    macs: int
    memory: int
    """Bytes that training keeps of a batch for the backward pass."""
    forward: float | None
    """Seconds, of a batch in training; None where nothing was timed."""
    backward: float | None
    leaf: bool
    """Whether there are no modules in it."""


@dataclass(frozen=True, slots=True)
class Profile:
    network: str
    source: str
    image_size: int
    batch: int
    regions: int | None
    """Of a detector: what it was asked about, in each image."""
    device: str
    threads: int
    layers: tuple[Layer, ...]
    """All modules, in the order in which they are called."""
    forward: float | None
    """Seconds of the whole, timed without a look inside."""
    backward: float | None
    untimed: str | None = None
    """Why it was not timed, a sentence; None where it was, or was not to be."""

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def memory(self) -> int:
        return sum(layer.memory for layer in self.layers)

    @property
    def ratio(self) -> float | None:
        """How many times as long as forward backward takes."""
        if self.forward is None or self.backward is None:
            return None
        return self.backward / self.forward

    @property
    def depth(self) -> int:
        """How many words long the names of modules are, at most."""
        return max(layer.name.count(".") + 1 for layer in self.layers)

    def rows(self, depth: int | None = None) -> tuple[Layer, ...]:
        """The modules that do something themselves. With a ``depth``, those together that lie in
        one module with a name of so many words."""
        groups: dict[str, list[Layer]] = {}
        for layer in self.layers:
            groups.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
        together = (_together(name, layers) for name, layers in groups.items())
        return tuple(row for row in together if self._does(row))

    def _does(self, row: Layer) -> bool:
        if row.parameters or row.macs or row.memory:
            return True
        if row.forward is None or row.backward is None:
            return row.leaf and row.output is not None
        # Time passes in every module's own Python.
        seconds = sum((x.forward or 0) + (x.backward or 0) for x in self.layers)
        return (
            row.leaf and row.output is not None
        ) or row.forward + row.backward > LITTLE * seconds


def named(
    name: str, *, classes: int | None = None, image_size: int | None = None, **options: Any
) -> tuple[nn.Module, int]:
    """(the network called ``name``, the side of its images in pixels), freshly built.

    ``classes``, ``image_size``: its own by default. They are passed if the builder takes them,
    ``options`` only if it names them, for it may take ``**kwargs`` and yet not know those. Raises
    InputError for an unknown name, and where the network cannot be built so.
    """
    builder = models.find(name)
    named_ = inspect.signature(builder).parameters
    given = {"num_classes": classes, "image_size": image_size}
    known = {k: v for k, v in given.items() if v is not None and takes(builder, k)}
    known |= {k: v for k, v in options.items() if k in named_}
    try:
        network = builder(**known)
    except (TypeError, ValueError) as error:
        said = ", ".join(f"{key}={value!r}" for key, value in known.items())
        raise InputError(f"The network {name} could not be built with {said}: {error}.") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{name} should return a torch.nn.Module; it gave {type(network).__name__}."
        )
    return network, image_size or int(getattr(network, "image_size", 224))


def takes(builder: Callable[..., Any], name: str) -> bool:
    """Whether an argument of that name can be passed."""
    taken = inspect.signature(builder).parameters
    return name in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values())


def profile(
    network: nn.Module,
    image_size: int,
    *,
    batch: int = 1,
    regions: int | None = None,
    device: torch.device | None = None,
    timed: bool = True,
    name: str | None = None,
) -> Profile:
    """Profile ``network``, which is left as it is, for ``batch`` square images.

    ``regions``: what a detector is asked about in each image; as
    :func:`vidi.models.count.proposed` has it. ``device``: where it is timed, its own by default.
    ``timed``: whether it is; not above :data:`HEAVY`, nor where there is no backward pass.

    Raises InputError for images that it cannot take.
    """
    detects = getattr(network, "task", "") == "detection"
    if detects and regions is None:
        regions = count.proposed(network)
    run = _Run(image_size, 2 if getattr(network, "task", "") == "flow" else 1, regions)
    shadow = _shadow(network, run, batch)
    costs, seen = _costs(shadow, run)
    kept, learns = _kept(shadow, run, batch)
    where = device or tracing.device_of(network)
    times, untimed = None, None
    if timed and not learns:
        untimed = "no output hangs on a parameter that learns, so there is no backward pass."
    elif timed and sum(costs.values()) * batch > HEAVY * (1 if where.type == "cpu" else SWIFT):
        untimed = (
            "that would take minutes. Ask for fewer pixels (--image-size) or regions (--regions), "
            "or a smaller batch."
        )
    elif timed:
        own = tracing.copied(network, lambda tensor: _copy(tensor, where))
        times = _times(own, run, batch)
    modules = dict(network.named_modules())
    order = list(dict.fromkeys([*costs, *kept, *modules]))
    layers = [
        Layer(
            name=name,
            kind=type(modules[name]).__name__,
            output=seen[name][0] if name in seen else None,
            field=seen[name][1] if name in seen else None,
            parameters=own_count,
            macs=costs.get(name, 0),
            memory=kept.get(name, 0),
            forward=None if times is None else times.forwards.get(name, 0.0),
            backward=None if times is None else times.backwards.get(name, 0.0),
            leaf=next(modules[name].children(), None) is None,
        )
        for name, own_count in _parameters(network, order).items()
    ]
    return Profile(
        network=name or type(network).__name__,
        source=str(getattr(network, "source", type(network).__module__)),
        image_size=image_size,
        batch=batch,
        regions=regions,
        device=str(where),
        threads=torch.get_num_threads(),
        layers=tuple(layers),
        forward=None if times is None else times.forward,
        backward=None if times is None else times.backward,
        untimed=None if untimed is None else f"Not timed: {untimed}",
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """What the network is run on."""

    side: int
    frames: int
    regions: int | None

    def inputs(self, network: nn.Module, batch: int) -> list[Tensor]:
        """Images, and of a detector the regions, each the whole image."""
        like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
        shape = (self.frames, batch, 3, self.side, self.side)
        images = torch.zeros(shape, dtype=like.dtype, device=like.device)
        if images.device.type != "meta":  # zeros might be quicker or slower than numbers are
            images.normal_(generator=torch.Generator(images.device).manual_seed(0))
        if self.regions is None:
            return list(images)
        which = torch.arange(batch).repeat_interleave(self.regions)[:, None]
        whole = torch.tensor([[0, 0, self.side, self.side]]).expand(len(which), 4)
        return [*images, torch.cat((which, whole), 1).to(images)]

    def __call__(self, network: nn.Module, batch: int) -> list[Tensor]:
        """The outputs that a gradient can come from."""
        return list(_tensors(network(*self.inputs(network, batch))))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for one in output.values():
            yield from _tensors(one)
    elif isinstance(output, (tuple, list)):
        for one in output:
            yield from _tensors(one)


def _shadow(network: nn.Module, run: _Run, batch: int) -> nn.Module:
    """A copy without contents, or with them where the network looks at values, be it in training
    alone."""
    shadow = tracing.copied(network, lambda tensor: _copy(tensor, torch.device("meta"))).eval()
    try:
        with torch.no_grad():
            run(shadow, 1)
            # A batch norm that is given too little says so when its turn comes.
            with contextlib.suppress(ValueError):
                run(shadow.train(), batch)
    except Exception:
        shadow = copy.deepcopy(network).eval()
        try:
            with torch.no_grad():
                run(shadow, 1)
        except InputError:
            raise
        except Exception as error:  # any operation of the network may be the one that does not fit
            raise InputError(
                f"The network {type(network).__name__} cannot take images of {run.side} × "
                f"{run.side} pixels: {str(error).splitlines()[0]}. Give --image-size the size that "
                "it is for."
            ) from error
    return shadow


def _copy(tensor: Tensor, where: torch.device) -> Tensor:
    moved = tensor.detach().to(where, copy=True)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(moved, tensor.requires_grad)
    return moved


class _Gauge:
    """What each module adds itself to a number that grows, by the module's name."""

    def __init__(self, network: nn.Module, read: Callable[[], float]) -> None:
        self.read = read
        self.own: dict[str, float] = defaultdict(float)
        self.stack: list[str] = []
        self.last = 0.0
        self.handles = []
        for name, module in network.named_modules():
            self.handles.append(
                module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
            )
            self.handles.append(
                module.register_forward_hook(lambda *_, name=name: self._leave(), always_call=True)
            )

    def __enter__(self) -> dict[str, float]:
        return self.own

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _enter(self, name: str) -> None:
        now = self.read()
        if self.stack:
            self.own[self.stack[-1]] += now - self.last
        self.stack.append(name)
        self.own[name] += 0  # in the order of calls
        self.last = self.read()

    def _leave(self) -> None:
        now = self.read()
        self.own[self.stack.pop()] += now - self.last
        self.last = self.read()


_Seen = dict[str, tuple[tuple[int, ...] | None, float | None]]


def _costs(shadow: nn.Module, run: _Run) -> tuple[dict[str, int], _Seen]:
    """Multiply-adds of one image's prediction; and outputs and their fields; by module."""
    seen: _Seen = {}
    inputs = run.inputs(shadow, 1)
    watch = fields.Watch(*inputs[: run.frames])

    def note(name: str, output: Any) -> None:
        first = next(iter(_tensors(output)), None) if not isinstance(output, Tensor) else output
        if first is not None:
            seen[name] = (tuple(first.shape[1:]), watch.of(first))

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: note(name, o))
        for name, module in shadow.eval().named_modules()
    ]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, watch, _Gauge(shadow, counter.get_total_flops) as flops:
        shadow(*inputs)
    for handle in handles:
        handle.remove()
    return {name: int(value) // 2 for name, value in flops.items()}, seen


def _kept(shadow: nn.Module, run: _Run, batch: int) -> tuple[dict[str, int], bool]:
    """Bytes that training keeps for the backward pass, by the module that first does; and whether
    there is such a pass."""
    learned = {p.untyped_storage()._cdata for p in (*shadow.parameters(), *shadow.buffers())}
    known: dict[int, Tensor] = {}
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in learned and storage._cdata not in known:
            known[storage._cdata] = tensor  # held, so that no other takes its place
            total += storage.nbytes()
        return tensor

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        _Gauge(shadow.train(), lambda: total) as kept,
    ):
        try:
            learns = any(output.requires_grad for output in run(shadow, batch))
        except ValueError as error:  # a batch norm that sees one value of each channel
            raise InputError(
                f"{type(shadow).__name__} cannot be trained on {batch} of {run.side} × {run.side} "
                f"pixels: {error}. Give a larger --batch-size or --image-size."
            ) from error
    return {name: int(value) for name, value in kept.items()}, learns


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@dataclass(frozen=True, slots=True)
class _Times:
    """The least seconds of the rounds."""

    forward: float
    backward: float
    forwards: dict[str, float]
    """Of each module."""
    backwards: dict[str, float]


def _times(network: nn.Module, run: _Run, batch: int) -> _Times:
    """Forward and backward in training: in each round as they are, then with a look inside."""
    network.train()
    device = tracing.device_of(network)
    whole: list[tuple[float, float]] = []
    forwards: dict[str, list[float]] = defaultdict(list)
    backwards: dict[str, list[float]] = defaultdict(list)
    for _ in _rounds():
        began = _now(device)
        loss = _loss(run(network, batch))
        middle = _now(device)
        torch.autograd.backward(loss)
        whole.append((middle - began, _now(device) - middle))
        network.zero_grad()
        with _Gauge(network, lambda: _now(device)) as times, _Makers(network) as makers:
            loss = _loss(run(network, batch))
        spent: dict[str, float] = defaultdict(float)
        _time_nodes(loss, makers, spent, device)
        torch.autograd.backward(loss)
        network.zero_grad()
        for name in times:
            forwards[name].append(times[name])
            backwards[name].append(spent[name])
    forward, backward = zip(*whole[1:], strict=True)  # the first warms up
    each = ({k: min(v[1:]) for k, v in times.items()} for times in (forwards, backwards))
    return _Times(min(forward), min(backward), *each)


def _rounds() -> Iterator[int]:
    """One to warm up, and two at least to time; of slow ones, one."""
    began = time.perf_counter()
    for i in range(1 + ROUNDS):
        spent = time.perf_counter() - began
        if (i > 2 and spent > SECONDS) or (i == 2 and spent > 2 * SECONDS):
            return
        yield i


def _loss(outputs: list[Tensor]) -> Tensor:
    return torch.stack([one.float().mean() for one in outputs if one.requires_grad]).sum()


class _Makers:
    """Which module made an autograd node: nodes are numbered as they are made."""

    def __init__(self, network: nn.Module) -> None:
        self.starts: list[int] = []
        self.names: list[str] = []
        self.stack = [""]
        self.parameters = {id(p): n.rpartition(".")[0] for n, p in network.named_parameters()}
        self.handles = []
        for name, module in network.named_modules():
            self.handles.append(
                module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
            )
            self.handles.append(module.register_forward_hook(lambda *_: self._leave()))

    def __enter__(self) -> _Makers:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def of(self, node: Any) -> str:
        if hasattr(node, "variable"):  # where a parameter's gradient is put
            return self.parameters.get(id(node.variable), "")
        at = bisect.bisect_right(self.starts, node._sequence_nr()) - 1
        return self.names[at] if at >= 0 else ""

    def _enter(self, name: str) -> None:
        self.stack.append(name)
        self._note()

    def _leave(self) -> None:
        self.stack.pop()
        self._note()

    def _note(self) -> None:
        self.starts.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
        self.names.append(self.stack[-1])


def _time_nodes(
    loss: Tensor, makers: _Makers, spent: dict[str, float], device: torch.device
) -> None:
    """Lets every node that the loss came by add its time to its module's."""
    began = 0.0

    def begin(*_: Any) -> None:
        nonlocal began
        began = _now(device)

    waiting, known = [loss.grad_fn], {loss.grad_fn}
    while waiting:
        node: Any = waiting.pop()
        name = makers.of(node)

        def end(*_: Any, name: str = name) -> None:
            spent[name] += _now(device) - began

        node.register_prehook(begin)
        node.register_hook(end)
        for before, _ in node.next_functions:
            if before is not None and before not in known:
                known.add(before)
                waiting.append(before)


def _parameters(network: nn.Module, order: list[str]) -> dict[str, int]:
    """How many numbers each module learns itself; shared ones count for the first that has them."""
    modules = dict(network.named_modules())
    known: set[int] = set()
    out = {}
    for name in order:
        own = [p for p in modules[name].parameters(recurse=False) if id(p) not in known]
        known.update(map(id, own))
        out[name] = sum(p.numel() for p in own)
    return out


def _together(name: str, layers: list[Layer]) -> Layer:
    """``layers``: a module, and what lies in it."""
    whole = next(layer for layer in layers if layer.name == name)

    def total(of: Callable[[Layer], float | None]) -> float | None:
        values = [value for value in map(of, layers) if value is not None]
        return sum(values) if values else None

    return replace(
        whole,
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
        memory=sum(layer.memory for layer in layers),
        forward=total(lambda layer: layer.forward),
        backward=total(lambda layer: layer.backward),
        leaf=whole.leaf or len(layers) > 1,
    )
