"""The card of an exported file, MODEL.md: what it is, how good, how to call it, and its limits.

Mitchell et al. 2019, "Model cards for model reporting", says what belongs on one. All of this is
known from the run; what nobody has measured or said is told as that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidi.deploy.int8 import Int8
from vidi.deploy.parity import Parity
from vidi.engine.run import RunDirectory

MOST_CLASSES = 200
"""Rows of the table of classes, and names in a list."""
SHOWN_CLASSES = 10
"""Names in the code that calls the file; of more the file itself is asked."""
USES = {
    "classification": "says which of its classes an image shows; every image gets one",
    "multilabel": "says which of its classes an image shows; there may be several, or none",
    "segmentation": "gives each pixel of an image one of its classes",
    "boundaries": "says of each pixel of an image how likely it is on a boundary",
    "flow": "says how far each pixel of one frame has moved in the next",
    "detection": "finds the objects of its classes in an image, and their boxes",
}
LIMITS = {
    "classification": "An image of none of the classes gets one all the same, maybe with a high "
    "probability.",
    "multilabel": "A class is usually said to be there from a probability of 0.5 on; for another "
    "balance of misses and false alarms choose another.",
    "segmentation": "A pixel of none of the classes gets one all the same.",
    "boundaries": "Lines are as wide as the network leaves them; thin them (non-maximum "
    "suppression) before they are compared with drawn ones.",
    "flow": "What is hidden in the second frame has no place in it; its flow is a guess. Motion "
    "larger than in training is found badly.",
    "detection": "Scores order the boxes; choose the least one by what a miss and a false alarm "
    "cost you.",
}
WHAT = {
    "image": "RGB, as it is decoded",
    "image2": "the frame after it, of the same size",
    "regions": "where objects may be: x0, y0, x1, y1 in pixels of the image",
    "probabilities": "of each class",
    "mask": "of each pixel the number of its class",
    "boundaries": "of each pixel how likely it is on a boundary, 0 to 1",
    "flow": "how far each pixel moves to the right and down, in pixels",
    "boxes": "x0, y0, x1, y1 in pixels of the image, the surest first",
    "scores": "of each box, 0 to 1",
    "labels": "of each box the number of its class",
}
DECODED = {
    "classification": 'print(classes[answer["probabilities"][0].argmax()])',
    "multilabel": 'print([c for c, p in zip(classes, answer["probabilities"][0]) if p >= 0.5])',
    "segmentation": 'print(answer["mask"][0])  # of each pixel the number of its class',
    "boundaries": 'print(answer["boundaries"][0].max())',
    "flow": 'print(answer["flow"][0].mean((0, 1)))  # pixels to the right and down',
    "detection": 'for box, score, k in zip(answer["boxes"], answer["scores"], answer["labels"]):\n'
    "    print(classes[k], score, box)",
}


def write(
    path: Path,
    reference: Any,
    metadata: dict[str, Any],
    parity: Parity,
    file: str,
    int8: Int8 | None,
) -> None:
    """Write the card of the exported ``file`` (its name) as ``path``.

    ``reference``: the :class:`vidi.api.Model` that it was made from. ``metadata``: the file's own.
    """
    path.write_text(text(reference, metadata, parity, file, int8), encoding="utf-8")


def text(
    reference: Any, metadata: dict[str, Any], parity: Parity, file: str, int8: Int8 | None
) -> str:
    """The card, in Markdown."""
    task, weights = metadata["task"], metadata["weights"]
    classes, data = metadata["classes"], metadata["data"]
    described = reference.description.data
    samples = ", ".join(f"{name} {count:,}" for name, count in data["samples"].items())
    sections = [
        f"# {file}",
        f"A network that {USES[task]}: {metadata['network']}, trained by vidi on "
        f"{data['name']}. The file holds all of it, from the bytes of an image to the answer"
        + (", in whole numbers of 8 bits." if int8 else "."),
        "## How to call it",
        f"```python\n{_call(task, file, metadata)}\n```",
        metadata["preparation"],
        _sides("Input", metadata["inputs"]),
        _sides("Output", metadata["outputs"]),
        *_named(classes),
        "## How good it is",
        *_scores(reference, int8),
        "## Whether it answers as the run does",
        "The file was compared with the trained network, as exported from, in fp32, image by "
        f"image. {parity.sentence}"
        + (" That is the file in fp32, from which the one in int8 was made." if int8 else ""),
        "## What it is for, and its limits",
        f"It is for images like those that it was trained on. {LIMITS[task]} On other images — "
        "another camera, another light, another part of the world — it is worse, and nobody has "
        "measured by how much; nor whether it is equally good for all groups of people, where it "
        "sees people. Measure it on images of your own before anything depends on it.",
        *[f"- {note}" for note in metadata["notes"]],
        "## What it was made from",
        _table(
            ("", ""),
            [
                ("network", metadata["network"]),
                ("after", weights["source"] or "the network's source does not say"),
                ("trained by", f"`{metadata['command']}`"),
                ("data", f"{data['name']} ({data['format']}), {samples}"),
                ("data's fingerprint", f"`{data['fingerprint']}`"),
                *(
                    [("left out", f"{len(described['left_out']):,} unreadable images")]
                    if described.get("left_out")
                    else []
                ),
                ("began with the weights", weights["start"] or "random ones"),
                ("licence of the weights", weights["licence"]),
                (f"SHA-256 of {weights['file']}", f"`{weights['sha256']}`"),
                ("trained with", _versions(metadata["versions"]["trained"])),
                ("exported with", _versions(metadata["versions"]["exported"])),
            ],
        ),
    ]
    body = "\n\n".join(section for section in sections if section)
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", body) + "\n"


def _call(task: str, file: str, metadata: dict[str, Any]) -> str:
    """Ten lines or so of Python."""
    frames = [name for name in metadata["inputs"] if name.startswith("image")]
    named = task not in ("boundaries", "flow", "segmentation")
    many = named and len(metadata["classes"]) > SHOWN_CLASSES
    lines = [*(["import json", ""] if many else []), "import numpy as np"]
    if file.endswith(".onnx"):
        lines += ["import onnxruntime"]
    elif file.endswith(".xml"):
        lines += ["import openvino"]
    else:
        lines += ["import torch"]
        if task == "detection":
            lines += ["import torchvision  # the graph uses its operators"]
    lines += ["from PIL import Image, ImageOps", ""]
    size = metadata["size"]
    opened = 'ImageOps.exif_transpose(Image.open("{}.jpg")).convert("RGB")'
    if size is not None:
        opened += f".resize(({size[1]}, {size[0]}), Image.Resampling.BOX)"
    names = {"image": "photo" if len(frames) == 1 else "first", "image2": "second"}
    lines += [f"{name} = np.asarray({opened.format(names[name])})[None]" for name in frames]
    given = [*frames]
    if "regions" in metadata["inputs"]:
        lines += ["regions = np.array([[0, 0, 100, 80]], np.float32)  # where objects may be"]
        given += ["regions"]
    if named and not many:
        lines += [f"classes = {metadata['classes']!r}"]
    lines += [""]
    inside = ", ".join(f'"{name}": {name}' for name in given)
    if file.endswith(".onnx"):
        lines += [
            f"session = onnxruntime.InferenceSession({file!r})",
            *_classes(many, 'session.get_modelmeta().custom_metadata_map["vidi"]'),
            "names = [output.name for output in session.get_outputs()]",
            f"answer = dict(zip(names, session.run(names, {{{inside}}})))",
        ]
    elif file.endswith(".xml"):
        lines += [
            f"read = openvino.Core().read_model({file!r})",
            *_classes(many, 'read.get_rt_info("vidi").astype(str)'),
            'model = openvino.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
            f"answer = {{k.any_name: v for k, v in model({{{inside}}}).items()}}",
        ]
    else:
        inside = ", ".join(f"{name}=torch.from_numpy({name}.copy())" for name in given)
        lines += [
            *(['extra = {"vidi.json": ""}'] if many else []),
            f"model = torch.export.load({file!r}{', extra_files=extra' * many}).module()",
            *_classes(many, 'extra["vidi.json"]'),
            f"answer = {{k: v.numpy() for k, v in model({inside}).items()}}",
        ]
    return "\n".join([*lines, DECODED[task]])


def _classes(many: bool, said: str) -> list[str]:
    """Of many the file is asked, which says so under ``said``."""
    return [f'classes = json.loads({said})["classes"]'] if many else []


def _sides(kind: str, sides: dict[str, Any]) -> str:
    rows = [
        (f"`{name}`", of["type"], " × ".join(map(str, of["shape"])), WHAT[name])
        for name, of in sides.items()
    ]
    return _table((kind, "type", "shape", "what"), rows)


def _named(classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    shown = ", ".join(f"{k} {name}" for k, name in enumerate(classes[:MOST_CLASSES]))
    more = len(classes) - MOST_CLASSES
    return [f"Classes: {shown}" + (f" and {more:,} more." if more > 0 else ".")]


def _scores(reference: Any, int8: Int8 | None) -> list[str]:
    """Tables of the run's metrics, and of its classes on the last of its splits."""
    path = Path(reference.path)
    found = RunDirectory(path).read_evaluation() if path.is_dir() else {}
    if not found:
        return ["The run's folder holds no evaluation of these weights."]
    names = list(dict.fromkeys(name for split in found.values() for name in split["metrics"]))
    counted = [f"{split} ({of['samples']:,})" for split, of in found.items()]
    rows = [(name, *(_number(of["metrics"].get(name)) for of in found.values())) for name in names]
    out = [
        "Measured when the run was trained (metric, and by split its value; in brackets the number "
        "of samples):",
        _table(("metric", *counted), rows),
    ]
    if int8 is not None:
        out.append(int8.sentence[0].upper() + int8.sentence[1:] + ".")
    split, last = list(found.items())[-1]
    classes: list[dict[str, Any]] = last.get("per_class") or []
    if classes:
        columns = list(classes[0])
        shown = [tuple(_number(row.get(c)) for c in columns) for row in classes[:MOST_CLASSES]]
        out += [f"By class, on the split {split}:", _table(columns, shown)]
    return out


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _versions(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) or "not known"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines)


def _cell(value: str) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
