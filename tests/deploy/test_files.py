"""Files of each format: written, read again, they hold the very weights and answer the same."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vidi.deploy import export, onnx_files, openvino_files, torch_files
from vidi.deploy.function import Classify, Outline
from vidi.errors import InputError
from vidi.models import hed_small
from vidi.types import Normalisation

SAID = {"task": "classification", "classes": ['a "b" <c> & d', "ü"], "notes": []}
NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def small_network() -> nn.Module:
    """Layers that a converter would like to fold, and one that evaluation does not use."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return network.eval().requires_grad_(False)


def classify(*, centre: bool) -> Classify:
    whole = Classify(small_network(), NORMALISATION, None, 12)
    whole.classes, whole.side, whole.centre = 2, 8, centre
    return whole.eval()


Written = tuple[Path, Classify, set[str]]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Written:
    path, whole = tmp_path_factory.mktemp("files") / "model.onnx", classify(centre=False)
    return path, whole, onnx_files.write(whole, whole.example(), path, SAID)


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory: pytest.TempPathFactory) -> Written:
    path, whole = tmp_path_factory.mktemp("files") / "model.pt2", classify(centre=True)
    return path, whole, torch_files.write(whole, whole.example(), path, SAID)


@pytest.fixture(params=list(export.SUFFIXES))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    if request.param == "torch":
        found: Written = request.getfixturevalue("torch_file")
        return found
    source, whole, used = request.getfixturevalue("onnx_file")
    if request.param == "onnx":
        return source, whole, used
    openvino_files.convert(source, tmp_path / "model.xml", SAID)
    return tmp_path / "model.xml", whole, used


def test_what_is_written_is_read(written: Written) -> None:
    path, whole, used = written
    artefact = export.read(path)
    assert artefact.metadata == SAID
    state = whole.network.state_dict()
    assert used == {name for name in state if not name.endswith("num_batches_tracked")}
    stored = artefact.tensors()
    assert set(stored) - set(torch_files.PREPARATION) == used
    for name in used:
        tensor = stored[name]
        right = state[name].numpy()
        assert tensor.dtype == right.dtype and tensor.tobytes() == right.tobytes(), name


@pytest.mark.parametrize("shape", [(1, 20, 31), (3, 9, 9), (2, 64, 12)])
def test_images_of_any_size_and_number_get_the_functions_answer(
    written: Written, shape: tuple[int, int, int]
) -> None:
    path, whole, _ = written
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = export.read(path).run({"image": image})
    with torch.inference_mode():
        right = whole(torch.from_numpy(image))
    assert list(found) == ["probabilities"]
    np.testing.assert_allclose(found["probabilities"], right["probabilities"].numpy(), atol=1e-6)


def test_a_network_with_maps_takes_any_size(tmp_path: Path) -> None:
    """Whose layers meet at sizes that are even for some images and odd for others."""
    torch.manual_seed(0)
    whole = Outline(hed_small().eval().requires_grad_(False), NORMALISATION, None, None).eval()
    for module in whole.network.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == 1:
            nn.init.normal_(module.weight, std=0.3)
    path = tmp_path / "model.pt2"
    torch_files.write(whole, whole.example(), path, SAID)
    artefact = export.read(path)
    rng = np.random.default_rng(0)
    for height, width in ((64, 64), (33, 50), (47, 81), (7, 36)):
        image = rng.integers(0, 256, (1, height, width, 3)).astype(np.uint8)
        with torch.inference_mode():
            right = whole(torch.from_numpy(image))["boundaries"].numpy()
        found = artefact.run({"image": image})["boundaries"]
        np.testing.assert_allclose(found, right, atol=1e-5)
        assert right.std() > 1e-3, "a constant map would be no test"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        export.read(tmp_path / "model.onnx")
    for name in ("model.onnx", "model.xml", "model.pt2", "model.txt"):
        (tmp_path / name).write_bytes(b"no model at all")
        with pytest.raises(InputError, match="model"):
            export.read(tmp_path / name)


def test_a_file_that_others_wrote_is_refused(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image + 1

    program = torch.export.export(Plain(), (torch.zeros(2, 3),))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(InputError, match="not written by `vidi export`"):
        export.read(tmp_path / "model.pt2")


def _pickled_inputs(name: str, content: bytes) -> bytes:
    return pickle.dumps(print) if "sample_inputs" in name else content


def _pickled_weight(name: str, content: bytes) -> bytes:
    if not name.endswith("model_weights_config.json"):
        return content
    config = json.loads(content)
    next(iter(config["config"].values()))["use_pickle"] = True
    return json.dumps(config).encode()


@pytest.mark.parametrize("planted", [_pickled_inputs, _pickled_weight])
def test_nothing_is_unpickled(
    torch_file: Written, tmp_path: Path, planted: Callable[[str, bytes], bytes]
) -> None:
    with (
        zipfile.ZipFile(torch_file[0]) as good,
        zipfile.ZipFile(tmp_path / "bad.pt2", "w", zipfile.ZIP_STORED) as bad,
    ):
        for one in good.namelist():
            bad.writestr(one, planted(one, good.read(one)))
    export.read(torch_file[0])
    with pytest.raises(InputError, match="run code"):
        export.read(tmp_path / "bad.pt2")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    whole = classify(centre=True)
    with warnings.catch_warnings(), pytest.raises(InputError, match=r"vidi\[export\]"):
        onnx_files.write(whole, whole.example(), tmp_path / "model.onnx", SAID)
