"""Weights from elsewhere: published ones by name, files, other runs; and freezing.

A published network is torchvision's under the same name, so its weights load into ours key by key;
what is new is the check. A file is verified by the hash in its name, nothing is unpickled, and only
a head for another number of classes may differ: it keeps its fresh start, and that is said.

A network on another's trunk takes the other's weights too, if its class can tell which is which
(``adopt``). Its name says whose: ``fcn8s_vgg16`` is on ``vgg16``, whose published weights are then
its own.
"""

import hashlib
import importlib
import pickle
import re
import socket
import urllib.error
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vidi import models
from vidi.errors import InputError

# Heads that exist only in training, by torchvision's names: aux1, aux2, aux_classifier.
_AUXILIARY = "aux"
_PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How the images were prepared on which weights were trained."""

    mean: tuple[float, ...]
    """Of each channel, red first, on a scale of 0 to 1."""
    std: tuple[float, ...]
    image_size: int
    """Side of the centre crop, in pixels."""
    resize_size: int
    """The shorter side before the crop, in pixels."""
    interpolation: str
    """``bilinear`` or ``bicubic``."""
    categories: tuple[str, ...] | None
    source: str
    """Who published the weights, and under what terms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReport:
    """What :func:`load_weights` did."""

    loaded: int
    """Tensors taken over."""
    replaced: tuple[str, ...]
    """Parameters left at their fresh initialisation."""
    dropped: tuple[str, ...]
    """Tensors for which the network has no place: of auxiliary heads, or another task's layers."""
    preprocessing: Preprocessing | None
    """What the weights expect; None if the file does not tell (a run tells it itself)."""
    sentence: str


def published(model_name: str) -> tuple[str, ...]:
    """Names of the published weights of a network or of its trunk, the default first; often none.

    Such as ``("imagenet1k_v1", "imagenet1k_v2")``; for timm's ``("imagenet",)``. A network for
    segmentation or detection may have its own after its trunk's: ``coco_with_voc_labels_v1``,
    ``coco_v1``.
    """
    if model_name.startswith("timm:"):
        return ("imagenet",) if _timm_config(model_name) is not None else ()
    return tuple(name.lower() for name in _members(model_name))


def published_preprocessing(model_name: str, weights: str) -> Preprocessing | None:
    """What published weights expect, by their name or their file's; None for any other file."""
    if model_name.startswith("timm:"):
        return _timm_preprocessing(model_name) if weights.lower() == "imagenet" else None
    member = _chosen(model_name, weights)
    return None if member is None else _torchvision_preprocessing(model_name, member)


def load_weights(
    model: nn.Module, weights: str, *, model_name: str, num_classes: int
) -> WeightsReport:
    """Loads ``weights`` into ``model``, which was built as ``model_name`` for ``num_classes``.

    ``weights`` is ``imagenet`` (torchvision's first version; ``imagenet1k_v2`` and the like name
    another), which is read from torch.hub's folder or downloaded into it; or a file
    (``.safetensors``, ``.pth``); or a folder with a run's ``best.safetensors`` or the published
    file. A head for another number of classes keeps its fresh initialisation, as do auxiliary
    heads that the file lacks; the report's sentence says so. Where the file is another network's,
    on the same trunk, ``model.adopt`` says what of it fits where; all else starts fresh.

    Raises InputError if there is no such file or name, if it cannot be downloaded or is damaged,
    if it needs unpickling, or if it belongs to another network.
    """
    if model_name.startswith("timm:") and weights.lower() == "imagenet":
        state, origin = _timm_state(model, model_name), model_name
    else:
        path = _locate(weights, model_name)
        state, origin = _read(path), str(path)
        member = _chosen(model_name, weights)
        if member is not None and _of_a_detector(member):
            state = _with_eps(state)
    translated = None if _fits(model, state) else _translation(model, state)
    if translated is not None:
        report = _adopt(model, state, translated, origin)
    else:
        report = _load(model, state, origin, model_name, num_classes)
    preprocessing = published_preprocessing(model_name, weights)
    return replace(report, preprocessing=preprocessing)


def freeze(model: nn.Module, parts: tuple[str, ...]) -> list[str]:
    """Stops the parameters under the named ``parts`` (``layer1``, ``features.0``) from training.

    Returns their names. Raises InputError if a part does not exist, or if nothing would be left to
    train. Batch normalisation in frozen parts must not follow the new data either: after each
    ``model.train()`` call ``.eval()`` on every module of :func:`frozen_modules`.
    """
    frozen: list[str] = []
    for part in parts:
        under = [
            name
            for name, _ in model.named_parameters()
            if name == part or name.startswith(f"{part}.")
        ]
        if not under:
            top = [name for name, child in model.named_children() if list(child.parameters())]
            raise InputError(
                f"Cannot freeze {part!r}: this network has no parameters under that name. Its "
                f"parts are {', '.join(top)}."
            )
        frozen += [name for name in under if name not in frozen]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    if trainable <= set(frozen):
        raise InputError(
            f"Freezing {', '.join(parts)} leaves nothing to train; leave out the last part."
        )
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return frozen


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The outermost modules that have parameters, none of which trains."""
    own = list(model.parameters())
    if own and not any(parameter.requires_grad for parameter in own):
        return [model]
    return [frozen for child in model.children() for frozen in frozen_modules(child)]


def _with_eps(state: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """torchvision's published detectors divide by the root of the variance alone (``overwrite_eps``
    sets their norms' eps to 0); where eps is added to it, these larger scales make up for that."""
    out = dict(state)
    for name, variance in state.items():
        if name.endswith(".running_var"):
            scale = f"{name.removesuffix('.running_var')}.weight"
            larger = (1 + eps / variance.double()).sqrt()
            out[scale] = (state[scale] * larger).to(variance.dtype)
    return out


def _fits(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the file holds this network's parameters in its shapes, and no other's."""
    own = model.state_dict()
    return all(
        name in state and state[name].shape == parameter.shape
        for name, parameter in model.named_parameters()
    ) and all(name in own or name.startswith(_AUXILIARY) for name in state)


def _translation(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str] | None:
    """By own name the file's name of what the network can take over from another network."""
    adopt = getattr(model, "adopt", None)
    found: dict[str, str] | None = None if adopt is None else adopt(state)
    return found


def _adopt(
    model: nn.Module, state: Mapping[str, Tensor], translated: Mapping[str, str], origin: str
) -> WeightsReport:
    own = model.state_dict()
    reshaped = [name for name, theirs in translated.items() if state[theirs].dim() == 2]
    taken = {name: state[theirs].reshape(own[name].shape) for name, theirs in translated.items()}
    model.load_state_dict(taken, strict=False)
    fresh = tuple(
        name for name, p in model.named_parameters() if name not in taken and p.requires_grad
    )
    used = set(translated.values())
    left = tuple(name for name in state if name not in used)

    sentence = f"Loaded {len(taken)} of the {len(state)} tensors of {origin}"
    if matrices := [name for name in reshaped if own[name].dim() == 4]:
        sentence += f"; fully connected layers became the convolutions {_layers(matrices)}"
    sentence += "."
    if fresh:
        sentence += f" Beginning fresh: {_layers(fresh)}."
    if left:
        sentence += f" Left out, since this network has no place for it: {_layers(left)}."
    return WeightsReport(
        loaded=len(taken), replaced=fresh, dropped=left, preprocessing=None, sentence=sentence
    )


def _layers(tensors: Iterable[str]) -> str:
    """The layers of the named tensors; those of one auxiliary head as one."""
    layers = (
        name.partition(".")[0] if name.startswith(_AUXILIARY) else name.rpartition(".")[0]
        for name in tensors
    )
    return ", ".join(dict.fromkeys(layers))


def _load(
    model: nn.Module, state: dict[str, Tensor], origin: str, model_name: str, num_classes: int
) -> WeightsReport:
    own = model.state_dict()
    if state and all(name.startswith("members.") for name in state):
        raise InputError(
            f"{origin} holds the networks of an ensemble, and {model_name} is one network. Name a "
            "run of a single one."
        )
    missing = [
        # Files older than PyTorch 0.4.1 do not count batches, and nothing needs the count.
        name
        for name in own
        if name not in state and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in own]
    other_shape = [n for n, t in own.items() if n in state and state[n].shape != t.shape]
    fresh = [name for name in missing if name.startswith(_AUXILIARY)]
    dropped = [name for name in unexpected if name.startswith(_AUXILIARY)]
    head = [name for name in other_shape if _is_head(model, name, own, state, num_classes)]
    classes = {state[name].shape[0] for name in head}
    kept = {name: state[name] for name in own if name in state and name not in other_shape}

    wrong = [f"{n} is not in the file" for n in missing if n not in fresh]
    wrong += [f"{n} is not in the network" for n in unexpected if n not in dropped]
    wrong += [
        f"{n} has shape {list(state[n].shape)}, not {list(own[n].shape)}"
        for n in other_shape
        if n not in head or len(classes) > 1
    ]
    if wrong or not kept:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        what = "; ".join(wrong[:4]) + more if wrong else "nothing but the head is in it"
        raise InputError(
            f"{origin} is a checkpoint from another model, not from {model_name}: {what}. "
            "Choose the network it was trained with by --model, or other weights."
        )
    model.load_state_dict(kept, strict=False)

    sentence = f"Loaded {len(kept)} tensors from {origin}."
    if head:
        sentence += (
            f" The head was trained for {classes.pop()} classes and this data has {num_classes}: "
            f"{', '.join(head)} start fresh."
        )
    if fresh:
        parts = sorted({name.partition(".")[0] for name in fresh})
        sentence += f" The file has no auxiliary heads: {', '.join(parts)} start fresh."
    if dropped:
        sentence += " The file's auxiliary heads, which this network does not have, were left out."
    return WeightsReport(
        loaded=len(kept),
        replaced=(*head, *fresh),
        dropped=tuple(dropped),
        preprocessing=None,
        sentence=sentence,
    )


def _is_head(
    model: nn.Module,
    name: str,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    num_classes: int,
) -> bool:
    """Whether tensor ``name`` differs from the file's in nothing but the number of classes."""
    module_name, _, leaf = name.rpartition(".")
    return (
        leaf in ("weight", "bias")
        and isinstance(model.get_submodule(module_name), nn.Linear | nn.Conv2d)
        and state[name].dim() == own[name].dim()
        and own[name].shape[0] == num_classes
        and state[name].shape[1:] == own[name].shape[1:]
    )


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, without running anything in it."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is damaged or no safetensors file: {error}. Fetch or write it again."
            ) from error
    if suffix not in _PICKLED:
        raise InputError(
            f"{path} is not known as a file of weights; expected .safetensors or one of PyTorch's "
            f"({', '.join(_PICKLED)})."
        )
    with path.open("rb") as file:
        magic = file.read(2)
    try:
        if magic != b"PK" and magic[:1] != b"\x80":
            raise ValueError("neither the zip archive nor the stream that torch.save writes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles: the refusal below says it
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text is not passed on: it advises to switch the protection off.
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        held = f" ({blocked.group(1)})" if blocked else ""
        raise InputError(
            f"{path} holds pickled Python objects{held}, not only tensors. Unpickling runs "
            "whatever the file's author wrote into it, so it was not done and nothing ran. If you "
            "trust the file, save its state_dict alone, as safetensors."
        ) from error
    except Exception as error:  # a damaged file may raise nearly anything
        reason = (
            str(error).partition(". ")[0] if isinstance(error, RuntimeError | ValueError) else ""
        )
        raise InputError(
            f"{path} is damaged or not a PyTorch checkpoint{reason and ': '}{reason}. "
            "Fetch or write it again."
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    items = content.items() if isinstance(content, Mapping) else ()
    state = {key: value for key, value in items if isinstance(value, Tensor)}
    if not state:
        raise InputError(
            f"{path} holds no weights: expected a state_dict, tensors by name, alone or under "
            "'state_dict', 'model' or 'model_state_dict'."
        )
    for prefix in ("module.", "_orig_mod."):  # DistributedDataParallel's, torch.compile's
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _locate(weights: str, model_name: str) -> Path:
    members = _members(model_name)
    # Names come first: a folder of images called imagenet is likelier than weights called so.
    if (member := _member(members, weights)) is not None:
        return _cached(member, model_name)
    path = Path(weights).expanduser()
    if path.is_dir():
        path = _file_in(path, model_name, members)
    elif not path.is_file():
        known = ", ".join(["imagenet", *published(model_name)]) if members else ""
        raise InputError(
            f"There are no weights {weights!r}: it is neither a file nor a folder, and "
            + (
                f"the published weights of {model_name} are {known}."
                if known
                else f"{model_name} has no published weights."
            )
        )
    if any(path.name == _file_name(member) for member in members.values()):
        _verify(path)
    return path


def _file_in(folder: Path, model_name: str, members: Mapping[str, Any]) -> Path:
    candidates = ["best.safetensors", *(_file_name(member) for member in members.values())]
    for name in candidates:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"The folder {folder} holds no weights for {model_name}: looked for "
        f"{', '.join(candidates)}. Give a run's folder, or the file itself."
    )


def _cached(member: Any, model_name: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / _file_name(member)
    if path.is_file():
        _verify(path)
        return path
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torch.hub sets none: a silent network would hang for ever
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(member.url, str(path), _hash_of(path))
    except (OSError, RuntimeError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise InputError(
            f"The published weights of {model_name} could not be downloaded from {member.url} to "
            f"{path}: {reason}. Without a network, give the file instead: --weights "
            f"PATH/{path.name}."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def _verify(path: Path) -> None:
    """Raises InputError unless the file's SHA-256 begins with the digits in its name."""
    expected = _hash_of(path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise InputError(
            f"{path} is damaged or not what its name says: its SHA-256 begins with "
            f"{found[: len(expected)]}, expected {expected}. Delete it and fetch it again."
        )


def _hash_of(path: Path) -> str:
    digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
    assert digits is not None, f"torchvision's {path.name} has no hash in its name"
    return digits.group(1)


def _members(model_name: str) -> dict[str, Any]:
    """torchvision's weights for a network of ours, its trunk's before its own."""
    if ":" in model_name or model_name not in models.names():
        return {}
    trunk = _trunk(model_name)
    return {**(_enumerated(trunk) if trunk else {}), **_enumerated(model_name)}


def _enumerated(name: str) -> dict[str, Any]:
    torchvision_models = importlib.import_module("torchvision.models")
    try:
        enum = torchvision_models.get_model_weights(name.replace("faster_rcnn", "fasterrcnn"))
    except ValueError:
        return {}
    # Weights without categories are trunks for other tasks (VGG-16's "features").
    return {
        member.name: member
        for member in enum
        if member.name.startswith(("IMAGENET", "COCO")) and member.meta.get("categories")
    }


def _trunk(model_name: str) -> str | None:
    """The classifier that a name ends in: ``vgg16`` for ``fcn8s_vgg16`` and ``fast_rcnn_vgg16``,
    ``resnet50`` for ``faster_rcnn_resnet50_fpn``."""
    words = model_name.removesuffix("_fpn").split("_")
    ends = ("_".join(words[i:]) for i in range(1, len(words)))
    classifiers = models.names("classification")
    return next((end for end in ends if end in classifiers), None)


def _chosen(model_name: str, weights: str) -> Any | None:
    """torchvision's published weights that are meant by their name or their file's."""
    members = _members(model_name)
    if (member := _member(members, weights)) is not None:
        return member
    path = Path(weights).expanduser()
    if not path.exists():
        return None
    file = _file_in(path, model_name, members) if path.is_dir() else path
    return next((m for m in members.values() if _file_name(m) == file.name), None)


def _of_a_detector(member: Any) -> bool:
    """Whether published weights are of a whole network for detection."""
    return "box_map" in member.meta["_metrics"].get("COCO-val2017", {})


def _member(members: Mapping[str, Any], weights: str) -> Any | None:
    if weights.lower() == "imagenet":  # the first version
        return next((m for name, m in members.items() if name.startswith("IMAGENET")), None)
    return members.get(weights.upper())


def _file_name(member: Any) -> str:
    return str(member.url.rpartition("/")[2])


def _torchvision_preprocessing(model_name: str, member: Any) -> Preprocessing:
    recipe = f"recipe: {member.meta['recipe']}"
    if _of_a_detector(member):
        # Its network normalises and resizes for itself, from settings in no table.
        return Preprocessing(
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            image_size=800,
            resize_size=800,
            interpolation="bilinear",
            categories=tuple(member.meta["categories"][1:]),  # the first is the background
            source=f"torchvision's {member} (code BSD-3-Clause), trained on COCO; {recipe}",
        )
    transforms = member.transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    trunk = _trunk(model_name)
    if "googlenet" in (model_name, trunk):
        # These weights came from TensorFlow and want pixels in [-1, 1]. torchvision normalises as
        # for its other networks and lets the network undo it (transform_input); said at once here.
        mean = std = (0.5, 0.5, 0.5)
    imagenet = member.name.startswith("IMAGENET")
    # Networks for segmentation were trained on whole images, whose shorter side is known.
    size = (transforms.crop_size if imagenet else transforms.resize_size)[0]
    data = "ImageNet-1k, whose terms are for research" if imagenet else "COCO, VOC's categories"
    return Preprocessing(
        mean=mean,
        std=std,
        image_size=size,
        resize_size=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        # A trunk's weights come without the layer that knew the categories.
        categories=None if trunk and imagenet else tuple(member.meta["categories"]),
        source=f"torchvision's {member} (code BSD-3-Clause), trained on {data}; {recipe}",
    )


def _timm_config(model_name: str) -> Any | None:
    models.find(model_name)  # says what is wrong with the name, or that timm is missing
    name = model_name.removeprefix("timm:")
    config = importlib.import_module("timm").get_pretrained_cfg(name)
    return config if config is not None and config.has_weights else None


def _timm_preprocessing(model_name: str) -> Preprocessing | None:
    config = _timm_config(model_name)
    if config is None:
        return None
    timm_data = importlib.import_module("timm.data")
    data = timm_data.resolve_data_config(pretrained_cfg=config.to_dict())
    size = data["input_size"][-1]
    return Preprocessing(
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        image_size=size,
        resize_size=int(size / data["crop_pct"]),
        interpolation=data["interpolation"],
        categories=None,
        source=f"timm's {config.architecture}.{config.tag}, licence {config.license or 'not said'}",
    )


def _timm_state(model: nn.Module, model_name: str) -> dict[str, Tensor]:
    """timm's published weights for the network; timm itself adapts them to its image size."""
    config = _timm_config(model_name)
    if config is None:
        raise InputError(
            f"timm has no published weights for {model_name}; train without --weights."
        )
    timm = importlib.import_module("timm")
    name = model_name.removeprefix("timm:")
    size = {"img_size": model.image_size} if config.fixed_input_size else {}
    try:
        pretrained = timm.create_model(name, pretrained=True, **size)
    except Exception as error:  # each of timm's sources fails in its own way
        raise InputError(
            f"The published weights of {model_name} could not be downloaded from "
            f"{config.hf_hub_id or config.url or 'their publisher'}: {error}. Without a network, "
            "give a file of weights instead: --weights PATH."
        ) from error
    state: dict[str, Tensor] = pretrained.state_dict()
    return state
