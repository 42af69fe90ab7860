"""Networks: plain functions that build plain modules, found by name.

``vidi.models.resnet18(num_classes=10)`` is a function; ``find`` reads the same names from the
command line, a user's own as ``my_package.nets:build``, and timm's as ``timm:convnext_tiny``.
Nothing is registered: a network is any public function of a module in this package that returns a
module and needs no argument, so a new architecture is one new file. Its class says where it comes
from (``source``), its usual image size in pixels (``image_size``) and, unless it classifies images,
its ``task``; ``aux_weight``, where there is one, multiplies the losses of the outputs after the
first. A class with ``adopt(tensors)`` takes over other networks' weights: given a file's tensors by
name, it tells which of them is which of its own, or None if they are of no network it knows.

Importing this package does not import torch; the first use of a network does.
"""

import difflib
import importlib
import inspect
import os
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from vidi.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from vidi.models.convolutional import convolutionalize

    Builder = Callable[..., nn.Module]

__all__ = ["Description", "build", "check", "convolutionalize", "describe", "find", "names"]


DENSE = ("segmentation", "boundaries", "flow")
"""Tasks with labels per pixel, whose networks give a map for an image, of its size: training sees
crops, evaluation whole images, as they are."""


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        if name == "convolutionalize":  # no builder: it takes a network
            return importlib.import_module(f"{__name__}.convolutional").convolutionalize
        if name in _module_names():
            return importlib.import_module(f"{__name__}.{name}")
        if name in (builders := _builders()):
            return builders[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_module_names(), *_builders()})


def names(task: str | None = None) -> list[str]:
    """The names of all networks in this package, file by file in the order of definition.

    ``task``: only those for it; several labels per image are classified like one.
    """
    return [
        name
        for name, builder in _builders().items()
        if task is None or _task_of(typing.get_type_hints(builder)["return"]) == _kind(task)
    ]


def find(name: str) -> "Builder":
    """The function that builds the network called ``name``.

    ``resnet18`` is ``vidi.models.resnet18``, ``package.module:function`` a function of the user's
    (looked for in the current folder too), ``timm:NAME`` a classifier of timm's. Raises InputError,
    with the nearest names, if there is none.
    """
    if name.startswith("timm:"):
        return _find_timm(name.removeprefix("timm:"))
    if ":" in name:
        return _find_foreign(name)
    builders = _builders()
    if name not in builders:
        raise InputError(
            f"There is no network called {name!r}. {_nearest(name, builders)}"
            "`vidi list models` shows all; your own is package.module:function, timm's is "
            "timm:NAME."
        )
    return builders[name]


def build(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    task: str = "classification",
    builder: "Builder | None" = None,
    **options: Any,
) -> "nn.Module":
    """The network called ``name`` for ``num_classes`` classes and square images of ``image_size``.

    ``task``: what it is to be used for; the form of its output follows from it.
    ``builder``: the function itself, where it was given from Python; ``name`` is then only said.

    ``num_classes`` and ``image_size`` (pixels) are passed if the builder takes them, ``options``
    must be taken; an option that is None is left to the builder's default. Raises InputError if
    the name or an option is unknown, if the network is for another task or cannot take images of
    that size, or if it does not give one output per class (and pixel).
    """
    if image_size < 1:
        raise InputError(f"An image size of {image_size} pixels is impossible; use at least 1.")
    builder = builder or find(name)
    taken = inspect.signature(builder).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    given = {key: value for key, value in options.items() if value is not None}
    if not takes_all and (unknown := [key for key in given if key not in taken]):
        known = [key for key in taken if key not in ("num_classes", "image_size")]
        raise InputError(
            f"The network {name} does not take the option {unknown[0]!r}; "
            + (f"it takes {', '.join(known)}." if known else "it takes none.")
        )
    sizes = {"num_classes": num_classes, "image_size": image_size}
    given |= {key: value for key, value in sizes.items() if takes_all or key in taken}
    try:
        model = builder(**given)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        said = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise InputError(f"The network {name} could not be built with {said}: {error}.") from error
    check(model, name, num_classes, image_size, task)
    return model


def check(
    model: "nn.Module", name: str, num_classes: int, image_size: int, task: str = "classification"
) -> None:
    """Raises InputError unless the network fits the task and an image of that size.

    It should give one number per class, for :data:`DENSE` tasks for each pixel; the first of
    several outputs (a NamedTuple) counts. For flow it takes two images, and gives x and y.
    """
    from torch import Tensor, nn

    from vidi.models import count

    if not isinstance(model, nn.Module):
        raise InputError(f"{name} should return a torch.nn.Module; it gave {type(model).__name__}.")
    dense, frames = task in DENSE, 2 if task == "flow" else 1
    # A user's own network need not say its task; then its output alone tells.
    if getattr(model, "task", _kind(task)) != _kind(task):
        raise _other_task(name, _task_of(model), task)
    try:
        output = count.trial(model, image_size, frames=frames)
    except InputError:
        raise
    except Exception as error:  # any operation of the network may be the one that does not fit
        smallest = count.smallest_image_size(model, image_size, frames=frames)
        raise InputError(
            f"The network {name} cannot take images of {image_size} × {image_size} pixels: "
            + (f"it needs at least {smallest}." if smallest else f"{error}.")
        ) from error
    if getattr(model, "proposes", False) and not (
        hasattr(output, "anchored") and isinstance(getattr(model, "after", None), tuple)
    ):
        raise InputError(
            f"The network {name} says that it proposes regions, but gives nothing that they could "
            "be learned by. Let it be a vidi.models.faster_rcnns.FasterRCNN, or like one: with "
            "`after`, and outputs that have `regions` and `anchored`."
        )
    if isinstance(output, tuple):
        output = output[0]
    wanted = (1, num_classes, image_size, image_size) if dense else (1, num_classes)
    if task == "flow":
        wanted = (1, 2, image_size, image_size)
    if task == "detection":
        wanted = (2, 1 + num_classes)
    if isinstance(output, Tensor) and output.shape == wanted:
        return
    of_images = isinstance(output, Tensor) and output.dim() == 2 and len(output) == 1
    if (dense or task == "detection") and of_images:
        raise _other_task(name, "classification", task)
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if task == "flow":
        raise InputError(
            f"The network {name} should give a motion in x and y for each pixel of two images, a "
            f"tensor of shape {list(wanted)}; it gave {found}."
        )
    if task == "detection":
        raise InputError(
            f"The network {name} should give one number per class, the background's before them, "
            f"for each of two regions, a tensor of shape {list(wanted)}; it gave {found}."
        )
    per = "per class and pixel" if dense else "per class"
    raise InputError(
        f"The network {name} should give one number {per} for one image, a tensor of shape "
        f"{list(wanted)}; it gave {found}. Let its function take num_classes."
    )


class Description(NamedTuple):
    """What is known of a network before it is trained."""

    parameters: int
    macs: int
    """Multiply-adds of one image's prediction at ``image_size``, convolutions and linear layers."""
    image_size: int
    """Its usual side in pixels."""
    source: str
    task: str


def describe(name: str) -> Description:
    """Size, cost and source of the network ``name``, as it predicts, without allocating it."""
    import torch

    from vidi.models import count

    builder = find(name)
    # Heads that exist only in training are left out, as published counts do.
    options = {"aux_logits": False} if "aux_logits" in inspect.signature(builder).parameters else {}
    with torch.device("meta"):
        model = builder(**options)
    image_size = getattr(model, "image_size", 224)
    source = getattr(model, "source", type(model).__module__)
    macs = count.macs(model, image_size)
    return Description(count.parameters(model), macs, image_size, str(source), _task_of(model))


def _module_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _builders() -> dict[str, "Builder"]:
    modules = [importlib.import_module(f"{__name__}.{name}") for name in _module_names()]
    return {
        name: function
        for module in modules
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
        and _is_builder(function)
    }


def _is_builder(function: Callable[..., Any]) -> bool:
    from torch import nn

    parameters = inspect.signature(function).parameters.values()
    if any(
        p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters
    ):
        return False
    returned = typing.get_type_hints(function).get("return")
    return inspect.isclass(returned) and issubclass(returned, nn.Module)


def _task_of(network: Any) -> str:
    """The task of a network or of its class."""
    return str(getattr(network, "task", "classification"))


def _kind(task: str) -> str:
    """Whether an image has one label or several, it is classified."""
    return "classification" if task == "multilabel" else task


def _other_task(name: str, own: str, asked: str) -> InputError:
    return InputError(
        f"The network {name} is for {own}, and this is {asked}. Networks for it are "
        f"{', '.join(names(asked)) or 'still missing'}; choose one by --model."
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}? " if near else ""


def _find_foreign(name: str) -> "Builder":
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does; the user's package lies there
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"{name}: importing {module_name} failed: {error}.") from error
        raise InputError(
            f"{name}: there is no module {error.name!r}, neither installed nor in the current "
            f"folder ({os.getcwd()})."
        ) from error
    except Exception as error:  # whatever the user's file raises is what they must hear of
        raise InputError(
            f"{name}: importing {module_name} failed with {type(error).__name__}: {error}."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        problem = "is not a function" if function is not None else "does not exist"
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise InputError(
            f"{name}: {function_name!r} {problem} in {module.__file__}. "
            f"{_nearest(function_name, functions)}It should be a function that returns a "
            "torch.nn.Module."
        )
    builder: Builder = function
    return builder


def _find_timm(name: str) -> "Builder":
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise InputError(
            f"timm:{name} needs timm, which is not installed; install vidi with its extra, "
            "vidi[timm]."
        ) from error
    if not timm.is_model(name):
        raise InputError(
            f"timm has no model {name!r}. {_nearest(name, timm.list_models())}"
            "timm.list_models() lists them."
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the part after the dot is no published variant
        architecture = name.partition(".")[0]
        variants = timm.list_pretrained(f"{architecture}.*")
        raise InputError(
            f"timm has no weights {name!r} for {architecture}; it has {', '.join(variants)}."
        ) from error
    usual_size = 224 if config is None else config.input_size[-1]
    fixed_size = config is not None and config.fixed_input_size

    def timm_network(
        num_classes: int = 1000,
        image_size: int = usual_size,
        *,
        dropout: float | None = None,
        **options: Any,
    ) -> "nn.Module":
        if fixed_size:  # such as a vision transformer, whose position embedding has a size
            options["img_size"] = image_size
        if dropout is not None:
            options["drop_rate"] = dropout
        model: nn.Module = timm.create_model(name, num_classes=num_classes, **options)
        model.image_size = image_size  # type: ignore[assignment]
        model.source = f"timm {timm.__version__}, {name}"  # type: ignore[assignment]
        return model

    return timm_network
