"""Networks that OpenVINO or ONNX Runtime computes: the same answers, or none."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import vidi
from tests.processes import python
from vidi.deploy import backends, network_cache
from vidi.deploy.backends import Trial, Unsound
from vidi.deploy.converted import Converted, OpenVINO, write_onnx
from vidi.engine import defaults
from vidi.engine.evaluate import Compute
from vidi.errors import InputError
from vidi.ops import receptive
from vidi.recipe import Recipe
from vidi.types import Array, Normalisation

# Not imported here: openvino would report it.
PACKAGES = ("onnxscript", "onnxruntime", "openvino")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason="vidi[export]"
)

OTHERS = ("openvino", "onnxruntime")


class Tiny(nn.Module):
    """A classifier. ``gain``: code, as it were, for it is not among the weights."""

    def __init__(self, num_classes: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(8 * 14 * 14, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.gain * self.head(self.layers(x))
        return logits


class Asking(Tiny):
    """Its course depends on the image, which no exporter can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x) if x.sum() > 1e9 else super().forward(x)


class Dense(nn.Module):
    """Labels per pixel, of images of any size; of two outputs the first counts."""

    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, 8, 3, stride=2, padding=1)
        self.score = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat(images, 1)
        y = self.score(self.down(x).relu())
        return F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False), y


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of digits after a few steps, in fp32."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    vidi.train(
        "digits",
        run=path,
        model=Tiny,
        length={"steps": 3},
        lr=0.01,
        precision="fp32",
        image_size=28,
        device="cpu",
        logging={"pictures": False},
    )
    return path


@pytest.fixture(scope="module")
def kept(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the run's network for each library."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDI_CACHE", str(folder))
        patch.setattr(backends, "TIMED", 0.0)
        for other in OTHERS:
            vidi.load(run, network=Tiny, backend=other)
    return folder


@pytest.fixture(scope="module")
def converted_once() -> dict[Any, bytes]:
    """What has been converted so far."""
    return {}


@pytest.fixture(autouse=True)
def conversions(monkeypatch: pytest.MonkeyPatch, converted_once: dict[Any, bytes]) -> list[Path]:
    """Grows by a file for each conversion. A network is converted once, and given again: that takes
    most of the time. What is timed is timed shortly."""
    monkeypatch.setattr(backends, "TIMED", 0.0)
    written: list[Path] = []

    def write(network: Any, images: Any, file: Path, *, sizes: bool) -> None:
        written.append(file)
        weights = sum(p.double().sum().item() for p in network.parameters())
        key = type(network), getattr(network, "gain", 1.0), weights
        if key not in converted_once:
            write_onnx(network, images, file, sizes=sizes)
            converted_once[key] = file.read_bytes()
        file.write_bytes(converted_once[key])

    monkeypatch.setattr(backends, "write_onnx", write)
    return written


def trial(network: nn.Module, task: str, size: int = 40, precision: str = "fp32") -> Trial:
    recipe = dataclasses.replace(Recipe(), task=task, model="own", image_size=size)
    compute = Compute(
        torch.device("cpu"), precision, True, Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    )
    return Trial(network.eval(), recipe, compute)


def pictures(count: int) -> list[Array]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 28, 28, 3), dtype=np.uint8))


@pytest.mark.parametrize("other", OTHERS)
def test_predictions_are_those_of_torch(
    run: Path, kept: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDI_CACHE", str(kept))
    ours = vidi.load(run, network=Tiny)
    theirs = vidi.load(run, network=Tiny, backend=other)
    assert ours.backend == "torch" and ours.trained is ours.network
    assert theirs.backend == f"{other} fp32" and isinstance(theirs.network, Converted)
    images = pictures(7)
    wanted, found = (
        np.stack([p.probabilities for p in model.predict(images)]) for model in (ours, theirs)
    )
    assert wanted.std(0).max() > 0.01  # what does not see the image would always be right
    assert np.abs(found - wanted).max() < 1e-5
    assert ours.evaluate(split="val").metrics["cross_entropy"] == pytest.approx(
        theirs.evaluate(split="val").metrics["cross_entropy"], abs=1e-5
    )


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_images(run: Path, kept: Path, other: str, threads: int) -> None:
    """Also where threads share them unevenly."""
    network = vidi.load(run, network=Tiny).network
    (about,) = (
        f
        for f in kept.rglob("about.json")
        if f"{other} fp32" in json.loads(f.read_text())["seconds"]
    )
    file = about.parent / "network.onnx"
    library = backends.LIBRARIES[f"{other} fp32"](file, threads)
    one = trial(network, "classification", size=28)
    for count in (1, 2, 5, 6, 7, 33, 1):
        images = one.images(count, 28, 28)
        with torch.inference_mode():
            wanted = network(*images)
        assert torch.allclose(library(*images), wanted, atol=1e-5)
        assert count == 1 or not torch.allclose(wanted[:1], wanted[1:], atol=1e-3)


def test_threads_compute_beside_one_another(run: Path, kept: Path) -> None:
    """A few images each, and many at once between them."""
    network = vidi.load(run, network=Tiny).network
    library = backends.LIBRARIES["openvino fp32"](next(kept.rglob("network.onnx")), 3)
    whole = Converted(network, library)
    apart = whole.apart()
    assert apart is not None
    one = trial(network, "classification", size=28)

    def ask(k: int) -> bool:
        with torch.inference_mode():
            images = one.images(7 if k % 5 == 0 else 1 + k % 3, 28, 28)
            images = [image + k for image in images]  # each asks of others
            found = (whole if k % 5 == 0 else apart)(*images)
            return torch.allclose(found, network(*images), atol=1e-4)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(60)))


def test_a_stream_of_single_images_is_computed_by_several_threads(
    run: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which gives the answers in their order, and what cannot be read in its place."""
    monkeypatch.setattr(defaults, "cores", lambda: 3)
    model = vidi.load(run, network=Tiny, backend="openvino")
    rng = np.random.default_rng(0)
    files: list[Any] = ["none.png"]
    for k in range(30):
        files.append(tmp_path / f"{k}.png")
        Image.fromarray(rng.integers(0, 256, (28, 28)).astype(np.uint8)).save(files[-1])
    files.insert(4, np.zeros((2, 3, 4, 5)))
    wanted = list(vidi.load(run, network=Tiny).stream(files))
    with ThreadPoolExecutor(1) as fresh:
        threads = fresh.submit(torch.get_num_threads).result()
    met, together = list[int](), threading.Barrier(3)
    alone = OpenVINO.alone

    def counted(library: OpenVINO, *images: Tensor) -> Tensor:
        if not together.broken:  # until three have met once
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(10)
            together.abort()
            met.append(1)
        return alone(library, *images)

    monkeypatch.setattr(OpenVINO, "alone", counted)
    found = list(model.stream(files, batch_size=1))
    assert len(met) >= 3, "three threads were at it at the same time"
    assert len(found) == len(files)
    for one, other in zip(wanted, found, strict=True):
        assert isinstance(one, InputError) == isinstance(other, InputError)
        if not isinstance(one, InputError):
            assert one.path == other.path
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    with contextlib.closing(model.stream(iter(files), batch_size=1)) as stream:
        next(stream)
    names = {thread.name.partition("_")[0] for thread in threading.enumerate()}
    assert "vidi-computing" not in names, "they end with it"
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(torch.get_num_threads).result() == threads, "of a new thread, too"

    def never(library: OpenVINO, *images: Tensor) -> Tensor:
        raise AssertionError("by one thread")

    monkeypatch.setattr(OpenVINO, "alone", never)
    assert len(list(model.stream(files, batch_size=16))) == len(files), "large batches are as ever"
    assert len(list(model.stream(files[:2], batch_size=1, ahead=0))) == 2, "and single answers"
    assert len(list(model.stream(files[1:2], batch_size=1))) == 1, "as a server asks for them"


@pytest.mark.parametrize("task", ["segmentation", "flow"])
def test_any_size(tmp_path: Path, task: str) -> None:
    network = Dense(6 if task == "flow" else 3)
    one = trial(network, task)
    write_onnx(network, one.example(), tmp_path / "network.onnx", sizes=True)
    for name in ("openvino fp32", "onnxruntime fp32"):
        library = backends.LIBRARIES[name](tmp_path / "network.onnx", 2)
        one.compare(library, one.shapes)
        for shape in ((1, 40, 40), (3, 17, 64), (5, 33, 18)):
            images = one.images(*shape)
            with torch.inference_mode():
                assert torch.allclose(library(*images), network(*images)[0], atol=1e-5)


def test_several_threads_may_ask(run: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDI_CACHE", str(kept))
    network = vidi.load(run, network=Tiny, backend="openvino").network
    images = torch.randn(64, 1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    assert isinstance(network, Converted)
    with torch.inference_mode():
        wanted = [network.trained(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(network, images))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_torch_answers_where_it_is_looked_into(tmp_path: Path) -> None:
    """How far a network sees is measured by what happens inside."""

    class Map(Dense):
        def forward(self, *images: Tensor) -> Any:
            return super().forward(*images)[0]

    network = Map().eval()
    one = trial(network, "segmentation")
    write_onnx(network, one.example(), tmp_path / "network.onnx", sizes=True)
    converted = Converted(network, OpenVINO(tmp_path / "network.onnx", "fp32", 1))
    assert receptive.measure(converted) == receptive.measure(network)
    converted.train()
    image = torch.zeros(1, 3, 8, 8)
    assert converted(image).requires_grad  # torch's own
    assert not converted.eval()(image).requires_grad


def test_the_second_load_converts_nothing(
    run: Path, kept: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDI_CACHE", str(kept))
    for other in OTHERS:
        assert vidi.load(run, network=Tiny, backend=other).backend.startswith(other)
    assert conversions == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "no account", "no choice", "gone"])
def test_a_damaged_cache_is_made_anew(run: Path, conversions: list[Path], damage: str) -> None:
    vidi.load(run, network=Tiny, backend="onnxruntime")
    (file,) = network_cache.cache_folder().rglob("network.onnx")
    whole = file.read_bytes()
    if damage == "flipped":  # the last bit of a weight
        file.write_bytes(whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:])
    elif damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "no account":
        (file.parent / "about.json").write_text('{"fastest": ')
    elif damage == "no choice":
        about = json.loads((file.parent / "about.json").read_text())
        (file.parent / "about.json").write_text(json.dumps({"files": about["files"]}))
    else:
        file.unlink()
    again = vidi.load(run, network=Tiny, backend="onnxruntime")
    assert len(conversions) == 2 and again.backend == "onnxruntime fp32"
    vidi.load(run, network=Tiny, backend="onnxruntime")
    assert len(conversions) == 2
    assert not list(file.parent.parent.glob(".making-*"))


def test_changed_code_is_converted_anew(run: Path, conversions: list[Path]) -> None:
    """The weights are the same, and yet it is another network."""
    vidi.load(run, network=Tiny, backend="onnxruntime")

    def changed(num_classes: int) -> Tiny:
        return Tiny(num_classes, gain=1.01)

    model = vidi.load(run, network=changed, backend="onnxruntime")
    assert len(conversions) == 2
    image = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        assert torch.allclose(model.network(image), model.trained(image), atol=1e-5)


def test_without_a_folder_to_keep_it_in(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIDI_CACHE", str(tmp_path / "file"))
    assert vidi.load(run, network=Tiny, backend="onnxruntime").backend == "onnxruntime fp32"


def test_for_few_images_nothing_is_converted(
    run: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(self: Trial, compute: Callable[..., Tensor]) -> float:
        return 1.0 if compute == self.own else 0.1

    monkeypatch.setattr(Trial, "once", lambda self: 1.0)
    monkeypatch.setattr(Trial, "seconds", seconds)
    few = vidi.load(run, network=Tiny, backend="auto", images=9)
    assert (few.backend, few.notes, conversions) == ("torch", [], [])
    assert vidi.load(run, network=Tiny, backend="auto", images=10).backend != "torch"
    assert len(conversions) == 1
    assert vidi.load(run, network=Tiny, backend="auto", images=9).backend != "torch"
    assert len(conversions) == 1


@pytest.mark.parametrize("fastest", ["torch", "openvino fp32", "onnxruntime fp32"])
def test_the_fastest_is_taken(run: Path, fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(self: Trial, compute: Any) -> float:
        return 0.1 if getattr(compute, "name", "torch") == fastest else 0.2

    monkeypatch.setattr(Trial, "seconds", seconds)
    for _ in range(2):  # made, and from the cache
        model = vidi.load(run, network=Tiny, backend="auto")
        assert (model.backend, model.notes) == (fastest, [])


def test_what_was_converted_for_auto_serves_others(
    run: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "seconds", lambda self, compute: float(compute != self.own))
    assert vidi.load(run, network=Tiny, backend="auto").backend == "torch"
    for other in OTHERS:
        assert vidi.load(run, network=Tiny, backend=other).backend == f"{other} fp32"
    assert len(conversions) == 1


class Off:
    """A library that is faster, and wrong by a hundredth."""

    name = "openvino fp32"

    def __init__(self, file: Path, threads: int) -> None:
        self.right = backends.ONNXRuntime(file, threads)

    def __call__(self, *images: Tensor) -> Tensor:
        return 1.01 * self.right(*images)


def test_what_computes_something_else_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(self: Trial, compute: Any) -> float:
        return {"openvino fp32": 0.1, "onnxruntime fp32": 0.2}.get(
            getattr(compute, "name", ""), 0.3
        )

    monkeypatch.setattr(Trial, "seconds", seconds)
    monkeypatch.setitem(backends.LIBRARIES, "openvino fp32", Off)
    model = vidi.load(run, network=Tiny, backend="auto")
    assert model.backend == "onnxruntime fp32"
    assert "openvino fp32 gives other outputs than torch, by 0.0" in model.notes[0]
    with pytest.raises(InputError, match=r"other outputs than torch.*Say torch"):
        vidi.load(run, network=Tiny, backend="openvino")
    monkeypatch.setitem(backends.LIBRARIES, "onnxruntime fp32", Off)
    model = vidi.load(run, network=Tiny, backend="auto")  # what the cache says is compared again
    assert model.backend == "torch" and "So torch computes it." in model.notes[0]


def test_bf16_may_be_off_by_what_bf16_is(tmp_path: Path) -> None:
    network = Tiny(10)
    with torch.no_grad():
        network.head.weight.mul_(30)
    sloppy = trial(network, "classification", size=28, precision="bf16")
    exact = trial(network, "classification", size=28)

    class Rounded:
        name = "openvino bf16"

        def __init__(self, more: float) -> None:
            self.more = more

        def __call__(self, *images: Tensor) -> Tensor:
            return self.more * sloppy.own(*images)

    sloppy.compare(Rounded(1.0), sloppy.shapes)
    with pytest.raises(Unsound):
        sloppy.compare(Rounded(1.05), sloppy.shapes)
    with pytest.raises(Unsound):
        sloppy.compare(Rounded(float("nan")), sloppy.shapes)
    with pytest.raises(Unsound):
        exact.compare(Rounded(1.0), exact.shapes)


def test_bf16_is_for_runs_in_bf16_on_processors_that_are_faster_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends.device, "best_precision", lambda device: "bf16")
    for task, precision, allowed in (
        ("classification", "bf16", True),
        ("classification", "fp32", False),
        ("segmentation", "bf16", True),
        ("boundaries", "bf16", False),
        ("flow", "bf16", False),
    ):
        one = trial(Tiny(10), task, precision=precision)
        recipe = dataclasses.replace(Recipe(), task=task)
        assert backends._bf16(recipe, one.compute) is allowed
    monkeypatch.setattr(backends.device, "best_precision", lambda device: "fp32")
    one = trial(Tiny(10), "classification", precision="bf16")
    assert not backends._bf16(dataclasses.replace(Recipe(), task="classification"), one.compute)


def test_what_cannot_be_converted_stays_with_torch(run: Path, conversions: list[Path]) -> None:
    for _ in range(2):  # the second time it is known
        model = vidi.load(run, network=Asking, backend="auto")
        assert model.backend == "torch" and len(model.predict(pictures(2))) == 2
        assert "cannot be converted" in model.notes[0] and "torch" in model.notes[0]
        assert len(conversions) == 1
    with pytest.raises(InputError, match="cannot be converted"):
        vidi.load(run, network=Asking, backend="openvino")


def test_a_package_that_is_not_installed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = backends.importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "openvino" else find(name, *rest),
    )
    with pytest.raises(InputError, match=r"Not installed: openvino; pip install 'vidi\[export\]'"):
        vidi.load(run, network=Tiny, backend="openvino")
    model = vidi.load(run, network=Tiny, backend="auto")
    assert model.backend == "torch" and "Not installed: openvino" in model.notes[0]


def test_what_other_libraries_are_not_for() -> None:
    one = trial(Tiny(10), "classification")
    elsewhere = dataclasses.replace(one.compute, device=torch.device("meta"))
    detector = dataclasses.replace(Recipe(), task="detection")
    for recipe, compute, said in (
        (Recipe(), elsewhere, "are for CPUs"),
        (detector, one.compute, "detector"),
    ):
        chosen = backends.choose(one.network, Path("none"), recipe, compute, "auto")
        assert chosen.network is one.network and said in chosen.notes[0]
        with pytest.raises(InputError, match=said):
            backends.choose(one.network, Path("none"), recipe, compute, "onnxruntime")
    unknown: Any = "tensorrt"
    with pytest.raises(InputError, match="'tensorrt' is unknown; it is one of torch, auto"):
        backends.choose(one.network, Path("none"), Recipe(), one.compute, unknown)


def test_a_converted_run_is_saved_as_it_was_trained(
    run: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDI_CACHE", str(kept))
    model = vidi.load(run, network=Tiny, backend="openvino")
    again = vidi.load(model.save(tmp_path / "again"), network=Tiny)
    ours = vidi.load(run, network=Tiny).network.state_dict()
    assert again.network.state_dict().keys() == ours.keys()
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(tensor, ours[name])


LISTENING = """
import sys, types

assert "openvino" not in sys.modules  # else it has begun to report to the real one
heard = []

class Telemetry:
    def __init__(self, *given, **named):
        heard.append(given)

    def __getattr__(self, name):
        return lambda *given, **named: heard.append((name, *given))

class Stub(types.ModuleType):
    Telemetry = Telemetry

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        heard.append(name)
        return Telemetry

sys.modules["openvino_telemetry"] = Stub("openvino_telemetry")
from pathlib import Path
from vidi.deploy.converted import OpenVINO

OpenVINO(Path(sys.argv[1]), "fp32", 1)
print(heard)
"""


def test_openvino_reports_nothing(kept: Path) -> None:
    """Its reporter is called by nobody, even where somebody has it."""
    file = next(kept.rglob("network.onnx"))
    done = python("-c", LISTENING, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


SIGNALLED = """
import os, signal, sys
from pathlib import Path
import torch
from vidi.deploy.converted import OpenVINO

opened = [OpenVINO(Path(sys.argv[1]), "fp32", 1) for _ in range(2)]
for one in opened:
    one(torch.zeros(1, 3, 28, 28))
del one, opened[0]  # the older one first
opened.clear()
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
os.kill(os.getpid(), signal.SIGTERM)
print(heard)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_signal_is_heard_after_openvino(kept: Path) -> None:
    """A process that had two networks open and dropped them is told to end, and does not crash."""
    file = next(kept.rglob("network.onnx"))
    words = [sys.executable, "-c", SIGNALLED, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[1]"), done.stderr


def test_a_converted_run_is_exported_as_it_was_trained(
    run: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDI_CACHE", str(kept))
    model = vidi.load(run, network=Tiny, backend="openvino")
    assert isinstance(model.network, Converted)
    made = model.export("torch", tmp_path / "model.pt2", images=2, size=(28, 28))
    assert made.parity.passed and made.parity.tensors == 2 + 8


def test_what_failed_for_want_of_room_is_tried_again(
    run: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(backends, "write_onnx", full)
        model = vidi.load(run, network=Tiny, backend="auto")
        assert model.backend == "torch" and "No space left" in model.notes[0]
    monkeypatch.setattr(Trial, "seconds", lambda self, compute: float(compute == self.own))
    assert vidi.load(run, network=Tiny, backend="auto").backend != "torch"
    assert len(conversions) == 1


def test_what_could_not_be_converted_is_tried_again_once_its_code_has_changed(run: Path) -> None:
    assert vidi.load(run, network=Asking, backend="auto").notes
    assert vidi.load(run, network=Tiny, backend="auto").notes == []


def test_room_is_made_by_what_was_unused_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDI_CACHE", str(tmp_path))
    monkeypatch.setattr(network_cache, "BYTES", 2500)
    folders = [network_cache.place({"made of": k}) for k in range(3)]
    for k, folder in enumerate(folders):
        with network_cache.making(folder) as part:
            (part / "file").write_bytes(bytes(1000))
            network_cache.keep(part, folder, {"k": k})
        if k == 1:
            assert network_cache.read(folders[0]) is not None  # used later than the second
            os.utime(folders[1], (0, 0))
    assert [network_cache.read(f) is not None for f in folders] == [True, False, True]

    with network_cache.making(folders[1]) as live, network_cache.making(folders[1]) as dead:
        for part in (live, dead):
            (part / "file").write_bytes(bytes(3000))
        os.utime(dead, (0, 0))
        network_cache._make_room(folders[2])
        assert live.is_dir() and not dead.is_dir()
    assert [network_cache.read(f) is not None for f in folders] == [True, False, True]


def test_the_page(
    tmp_path: Path, ask: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holiday").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "holiday/cat.jpg")
    page = (Path(__file__).parent.parent.parent / "docs/inference.md").read_text(encoding="utf-8")
    block, code = (
        re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("console", "python")
    )
    commands = [shlex.split(line.removeprefix("$ ")) for line in block[0].splitlines()]
    answers = []
    for program, *words in commands[1:]:
        assert program == "vidi"
        status, out, err = ask(*words)
        assert status == 0
        answers.append((out, err))
    assert "openvino" in answers[-1][1]
    assert len({out.split()[1] for out, _ in answers[1:]}) == 1  # the same class each time
    exec(compile(code[0], "docs/inference.md", "exec"), {})
