"""``vidi export``: only what answers as the run does is left, whole, and says what it is."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vidi
from vidi.cli import main
from vidi.deploy import export, function, libraries, openvino_files, torch_files
from vidi.errors import InputError, RunError

Ask = Callable[..., tuple[int, str, str]]
PAGE = (Path(__file__).parents[2] / "docs/export.md").read_text(encoding="utf-8")
QUICK: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "batch_size": 4,
    "logging": {"pictures": False},
}
SMALL = ("--image-size", 8, 8)
"""A graph for images of one size is drawn in a quarter of the time."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "digits"
    vidi.train("digits", run=run, model="perceptron", length={"steps": 20}, lr=0.01, **QUICK)
    return run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "scenes"
    data = "scenes:segmentation,size=72,n=8,val=4,test=0"
    vidi.train(data, run=run, model="fcn_small", length={"steps": 2}, lr=0.01, **QUICK)
    return run


def left(folder: Path) -> list[str]:
    """What lies there, but for the tests' own cache."""
    return sorted(p.name for p in folder.iterdir() if p.name != "vidi-cache")


def test_the_command(digits: Path, tmp_path: Path, ask: Ask) -> None:
    out = tmp_path / "deep" / "digits.pt2"
    code, said, errors = ask("export", digits, "--format", "torch", "--out", out, "--images", 20)
    assert code == 0, errors
    assert "image: uint8 [batch, height, width, 3]" in said
    assert "probabilities: float32 [batch, 10]" in said
    assert "0 of 24 labels differ" in said
    assert "20 images of the split val, and 4 crops of them" in errors
    assert sorted(p.name for p in out.parent.iterdir()) == ["MODEL.md", "digits.pt2"]
    said_of_itself = export.read(out).metadata
    assert said_of_itself["classes"] == list("0123456789")
    assert said_of_itself["task"] == "classification"
    assert len(said_of_itself["weights"]["sha256"]) == 64

    before = out.read_bytes()
    code, _, errors = ask("export", digits, "--format", "torch", "--out", out)
    assert code == 2 and "exists already" in errors
    assert out.read_bytes() == before


def test_json(digits: Path, tmp_path: Path, ask: Ask) -> None:
    out = tmp_path / "model.pt2"
    code, said, errors = ask(
        "export", digits, "--format", "torch", "--out", out, "--images", 4, *SMALL, "--json"
    )
    assert code == 0, errors
    told = json.loads(said)
    assert [Path(p).name for p in told["files"]] == ["model.pt2", "MODEL.md"]
    assert all(Path(p).is_file() for p in told["files"])
    assert told["parity"]["samples"] == 4 and told["parity"]["differing"] == 0
    assert left(tmp_path) == ["MODEL.md", "model.pt2"]


def test_maps_take_any_size_and_one_size(scenes: Path, tmp_path: Path) -> None:
    model = vidi.load(scenes, device="cpu")
    heard: list[str] = []
    made = model.export("torch", tmp_path / "any" / "model.pt2", images=2, say=heard.append)
    assert made.metadata["size"] is None and made.metadata["notes"] == []
    assert made.parity.samples == 8, "two, four crops, and a pair to go through it together"
    assert any("4 crops" in note for note in heard)
    one = model.export("torch", tmp_path / "one" / "model.pt2", images=2, size=(40, 56))
    assert one.metadata["size"] == [40, 56]
    assert one.metadata["outputs"]["mask"]["shape"] == ["batch", 40, 56]
    assert "56 × 40" in one.metadata["preparation"]
    image = np.zeros((1, 40, 56, 3), np.uint8)
    assert export.read(one.path).run({"image": image})["mask"].shape == (1, 40, 56)


def test_a_network_that_knows_one_size_alone_is_told(scenes: Path, tmp_path: Path) -> None:
    model = vidi.load(scenes, device="cpu")

    class OneSize(type(model.network)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> Any:
            assert int(x.shape[2]) > 0  # int() settles the size
            return super().forward(x)

    model.network.__class__ = OneSize
    heard: list[str] = []
    made = model.export("torch", tmp_path / "model.pt2", images=2, say=heard.append)
    assert made.metadata["size"] == [72, 72]
    assert made.metadata["inputs"]["image"]["shape"] == ["batch", 72, 72, 3]
    (note,) = made.metadata["notes"]
    assert note in heard and "takes only images of 72 × 72 px" in note


def test_images_are_so_small_that_the_run_answers_them_whole(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vidi.load(scenes, device="cpu")
    dataset, split = export.opened(model, None, print)
    monkeypatch.setattr(export.tiles, "SMALL", 4500)
    whole = function.function(model)
    samples = export.Samples(dataset, dataset.splits[split], whole, model.recipe)
    areas = [x["image"].shape[0] * x["image"].shape[1] for x in samples]
    assert 4000 < max(areas) <= 4500
    assert samples.notes == []
    monkeypatch.setattr(export, "SMALLEST_MAP", 80)
    samples = export.Samples(dataset, dataset.splits[split], whole, model.recipe)
    assert len(samples) == 4 and "alone were compared" in samples.notes[0]


def test_want_of_room_is_no_fault_of_the_network(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vidi.load(scenes, device="cpu")
    tried: list[Any] = []
    for error, said in (
        (OSError(28, "No space left on device"), r"cannot be written: No space left"),
        (MemoryError(), "memory or room"),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), "memory or room"),
    ):

        def fail(*given: Any, error: Exception = error) -> None:
            tried.append(given)
            raise error

        monkeypatch.setattr(torch_files, "write", fail)
        with pytest.raises((InputError, RunError), match=said):
            model.export("torch", tmp_path / "model.pt2", images=2)
    assert len(tried) == 3, "no other size is tried"
    assert left(tmp_path) == []


def test_the_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"^/elsewhere/x\.jpg cannot be read or written: Gone"),
        export._beside(tmp_path / "model.pt2"),
    ):
        raise FileNotFoundError(2, "Gone", "/elsewhere/x.jpg")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"model\.pt2 cannot be written: "),
        export._beside(tmp_path / "file" / "model.pt2"),
    ):
        pass


def test_nothing_of_another_process_is_written_over(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vidi.load(digits, device="cpu")
    out = tmp_path / "model.pt2"
    write = export.card.write

    def meanwhile(*given: Any) -> None:
        write(*given)
        out.write_text("theirs")
        monkeypatch.setattr(os.path, "lexists", lambda path: False)  # it was looked at before

    monkeypatch.setattr(export.card, "write", meanwhile)
    with pytest.raises(InputError, match="another process"):
        model.export("torch", out, images=1, size=(8, 8))
    assert out.read_text() == "theirs" and left(tmp_path) == ["model.pt2"]


def told_to_end(run: str, out: str) -> None:
    """Ends with 3 if an export that is told to end does, and who listened before does again."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    torch_files.write = lambda *given: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        main(["export", run, "--format", "torch", "--out", out])
    assert stop.value.code == 143 and heard == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    sys.exit(3)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_what_is_told_to_end_leaves_nothing(digits: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=told_to_end, args=(str(digits), f"{tmp_path}/new/m.pt2"))
    process.start()
    process.join(120)
    assert process.exitcode == 3
    assert left(tmp_path) == []


def test_weights_that_lie_in_no_file_are_refused(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(digits, run)
    model = vidi.load(run, device="cpu")
    data = model.description.data | {"svd": {"fc": 3}}
    other = dataclasses.replace(
        model, description=dataclasses.replace(model.description, data=data)
    )
    with pytest.raises(InputError, match="has others"):
        other.export("torch", tmp_path / "model.pt2")
    (run / "best.safetensors").unlink()
    with pytest.raises(InputError, match="in no file"):
        model.export("torch", tmp_path / "model.pt2")


def _halved(folder: Path) -> None:
    openvino = libraries.openvino()
    model = libraries.openvino_core().read_model(folder / "model.xml")
    openvino.save_model(model, folder / "half.xml", compress_to_fp16=True)
    for suffix in (".xml", ".bin"):
        (folder / f"half{suffix}").replace(folder / f"model{suffix}")


def _one_weight(folder: Path) -> None:
    stored = openvino_files.read(folder / "model.xml").tensors()
    weight = max(stored.values(), key=lambda x: x.size).tobytes()
    whole = (folder / "model.bin").read_bytes()
    at = whole.index(weight)
    (folder / "model.bin").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


@pytest.mark.parametrize("spoil", [_halved, _one_weight])
def test_openvinos_weights_are_the_runs(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    convert = openvino_files.convert

    def spoilt(source: Path, path: Path, metadata: Any) -> None:
        convert(source, path, metadata)
        spoil(path.parent)

    monkeypatch.setattr(openvino_files, "convert", spoilt)
    model = vidi.load(digits, device="cpu")
    with pytest.raises(RunError, match=r"The tensor \S+ (differs|is not in|is float16)"):
        model.export("openvino", tmp_path / "model.xml", images=1, size=(8, 8))
    assert left(tmp_path) == []


def test_what_answers_otherwise_is_not_left(
    digits: Path, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = torch_files.write

    def swapped(function: Any, *rest: Any) -> set[str]:
        function.image_mean += 10
        return write(function, *rest)

    monkeypatch.setattr(torch_files, "write", swapped)
    out = tmp_path / "new" / "digits.pt2"
    words = ("export", digits, "--format", "torch", "--out", out, "--images", 4, *SMALL)
    code, said, errors = ask(*words)
    assert code == 1 and said == ""
    assert "was not written" in errors and "probabilities differ" in errors
    assert not out.parent.exists()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "onnx", "--out", "model.pt2"), "does not end in .onnx"),
        (("--format", "torch", "--int8"), "int8 is for"),
        (("--format", "onnx", "--images", "0"), "at least 1"),
        (("--format", "onnx", "--image-size", "1", "40"), "at least 2"),
        (("--format", "onnx", "--max-loss", "-1"), "from 0 on"),
        (("--format", "onnx", "--max-loss", "nan"), "from 0 on"),
        (("--format", "onnx", "--data", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_asked_for(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = ask("export", digits, *words)
    assert code == 2, errors
    assert said in errors
    assert left(tmp_path) == []


def test_where_the_data_is_gone_other_images_do(photos: Path, tmp_path: Path, ask: Ask) -> None:
    run = tmp_path / "run"
    moved = tmp_path / "moved"
    vidi.train(
        str(photos),
        run=run,
        model="perceptron",
        image_size=8,
        length={"steps": 2},
        lr=0.01,
        **QUICK,
    )
    shutil.move(photos, moved)
    out = tmp_path / "out" / "model.pt2"
    code, _, errors = ask("export", run, "--format", "torch", "--out", out)
    assert code == 2 and "--data" in errors and not out.parent.exists()
    Image.open(next(moved.rglob("*.jpg"))).save(tmp_path / "moved" / "one.png")
    code, said, errors = ask(
        "export", run, "--format", "torch", "--out", out, "--data", moved, "--images", 3, *SMALL
    )
    assert code == 0, errors
    assert "labels differ" in said and "0 of" in said


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_works(photos: Path, tmp_path: Path, ask: Ask, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        line.removeprefix("$ vidi ")
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ vidi ")
    ]
    assert len(commands) >= 4
    for command in commands:
        quicker = command.replace("resnet20", "perceptron")
        code, _, errors = ask(*shlex.split(quicker))
        assert code == 0, f"{command}\n{errors}"
    assert left(tmp_path / "openvino") == ["MODEL.md", "model.bin", "model.xml"]
    assert left(tmp_path / "onnx") == ["MODEL.md", "model.onnx"]
    assert "openvino" in sys.modules  # which reports its use where others import it first
    for code_text in blocks("python"):
        exec(compile(code_text, "docs/export.md", "exec"), {})
