"""MODEL.md: the code on it runs and answers, and what is said is what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.deploy import card, parity
from vidi.deploy.export import export, read


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    vidi.train(
        "digits",
        run=path,
        model="mlp",
        length={"steps": 20},
        device="cpu",
        precision="fp32",
        logging={"pictures": False},
    )
    return path


@pytest.mark.parametrize("file", ["model.onnx", "model.xml", "model.pt2"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_code_on_the_card_runs(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    formats = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
    model = vidi.load(run, device="cpu")
    # For any size in one of them, for the photograph's own in the others, which is quicker.
    size = None if file == "model.onnx" else (32, 20)
    made = export(model, formats[Path(file).suffix], tmp_path / file, images=3, size=size)
    written = made.card.read_text(encoding="utf-8")
    sides = "height × width" if size is None else "32 × 20"
    assert f"| `image` | uint8 | batch × {sides} × 3 |" in written
    image = np.random.default_rng(0).integers(0, 255, (5, 8, 3)).astype(np.uint8)
    lying = Image.Exif()
    lying[274] = 6  # turned by a quarter
    Image.fromarray(image.repeat(4, 0).repeat(4, 1)).save("photo.jpg", quality=100, exif=lying)
    (code,) = re.findall(r"```python\n(.*?)```", written, re.S)
    capsys.readouterr()
    exec(code, {})
    right = model.predict("photo.jpg")[0].label
    assert right != model.predict(np.asarray(Image.open("photo.jpg")))[0].label, "not upright"
    assert capsys.readouterr().out.strip() == right
    monkeypatch.setattr(card, "SHOWN_CLASSES", 9)
    many = card.text(model, made.metadata, made.parity, file, None)
    (code,) = re.findall(r"```python\n(.*?)```", many, re.S)
    assert "classes = json.loads(" in code
    exec(code, {})
    assert capsys.readouterr().out.strip() == right


def test_what_is_said_is_what_was_measured(run: Path, tmp_path: Path) -> None:
    model = vidi.load(run, device="cpu")
    made = export(model, "torch", tmp_path / "model.pt2", images=3, size=(8, 8))
    written = made.card.read_text(encoding="utf-8")
    metadata = read(made.path).metadata
    measured = model.evaluate(split="val").metrics["accuracy"]
    assert re.search(rf"\| accuracy \| {measured:.4f} \|", written)
    assert made.parity.sentence in written
    assert metadata["weights"]["sha256"] in written
    assert metadata["data"]["fingerprint"] in written
    assert "vidi " in written and "licence" in written
    assert "| `image` | uint8 | batch × 8 × 8 × 3 |" in written
    assert written.count("\n| 7 |") == 1  # a row for each class
    assert not re.search(r"\n{3,}|None|nan", re.sub(r"```.*?```", "code", written, flags=re.S))


def test_cards_of_other_tasks_say_what_these_give(run: Path) -> None:
    model = vidi.load(run, device="cpu")
    found = parity.Parity("flow", 1, (), "", 0, 0, 0, 0.0, 5, ())
    base: dict[str, Any] = {
        "network": "net",
        "classes": [],
        "size": [48, 64],
        "preparation": "Resize it.",
        "data": {"name": "d", "format": "f", "fingerprint": "0", "samples": {"train": 1}},
        "weights": {"source": None, "start": "x|y", "licence": "l", "file": "b", "sha256": "0"},
        "command": "vidi train",
        "versions": {"trained": {}, "exported": {}},
        "notes": ["One.", "Two."],
    }
    frame = {"type": "uint8", "shape": [1, 48, 64, 3]}
    flow = {
        **base,
        "task": "flow",
        "inputs": {"image": frame, "image2": frame},
        "outputs": {"flow": {"type": "float32", "shape": [1, 48, 64, 2]}},
    }
    said = card.text(model, flow, found, "m.onnx", None)
    assert "resize((64, 48), Image.Resampling.BOX))[None]\nimage2 = np.asarray(" in said
    assert 'ImageOps.exif_transpose(Image.open("second.jpg"))' in said
    assert "- One.\n- Two." in said and "x\\|y" in said and "Classes:" not in said
    boxes = {"type": "float32", "shape": ["regions", 4]}
    detection = {
        **base,
        "task": "detection",
        "classes": ["cat"],
        "size": None,
        "inputs": {"image": frame, "regions": boxes},
        "outputs": {"boxes": boxes},
    }
    said = card.text(model, detection, found, "m.pt2", None)
    assert "import torchvision" in said and "regions=torch.from_numpy(regions.copy())" in said
