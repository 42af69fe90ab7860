"""HED: counts, where its maps stand, deep supervision, weights of a classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from vidi import models
from vidi.errors import InputError
from vidi.models import count, heds
from vidi.models.weights import load_weights
from vidi.ops.bilinear import bilinear_weight, transposed


def test_parameters_are_the_papers() -> None:
    assert count.parameters(heds.hed()) == 14_716_171  # without the fixed upsampling


def test_the_fused_output_begins_at_a_fifth_of_each() -> None:
    fuse = heds.hed().fuse
    assert torch.equal(fuse.weight.flatten(), torch.full((5,), 0.2))
    assert fuse.bias is not None and not fuse.bias.any()


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_upsampling_is_the_transposed_convolution_by_fixed_kernels(factor: int) -> None:
    x = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    size = torch.Size((3 * factor - 1, 4 * factor - factor // 2))
    weight = bilinear_weight(1, factor).double()
    expected = transposed(x, weight, factor, factor / 2, size)
    assert torch.allclose(heds.spread(x, factor, size), expected, atol=1e-7)


@pytest.mark.parametrize("name", models.names("boundaries"))
@pytest.mark.parametrize("size", [(33, 47), (64, 32)])
def test_every_output_has_the_images_size(name: str, size: tuple[int, int]) -> None:
    network = models.find(name)().eval()
    with torch.inference_mode():
        outputs = network(torch.randn(1, 3, *size))
    assert isinstance(outputs, tuple)
    shown = [o for o in outputs if o is not None]
    assert len(shown) >= 5
    assert {tuple(o.shape) for o in shown} == {(1, 1, *size)}


def test_boundaries_are_found_by_their_task() -> None:
    assert {"hed", "hed_small"} <= set(models.names("boundaries"))
    network = models.build("hed_small", num_classes=1, image_size=64, task="boundaries")
    with pytest.raises(InputError, match="is for boundaries, and this is segmentation"):
        models.check(network, "hed_small", 1, 64, task="segmentation")


def stages(network: nn.Module) -> list[str]:
    """A weight of each resolution's last convolution."""
    if isinstance(network, heds.SmallHED):
        return ["stem.0.weight", *(f"stages.{k}.0.conv2.weight" for k in range(3))]
    return [f"features.{k}.weight" for k in (2, 7, 14, 21, 28)]


@pytest.mark.parametrize("builder", [heds.hed, heds.hed_small])
def test_a_side_outputs_gradient_reaches_its_stage(builder: type) -> None:
    network = builder()
    for side in network.sides:
        nn.init.normal_(side.weight)  # they begin at zero, which passes nothing down
    outputs = network(torch.randn(2, 3, 48, 48))
    for k, name in enumerate(stages(network)):
        network.zero_grad()
        outputs[1 + k].square().sum().backward(retain_graph=True)
        assert network.get_parameter(name).grad.abs().sum() > 0, name
        for later in stages(network)[k + 1 :]:
            if builder is heds.hed:  # the small one's finer outputs see the coarser stages
                assert network.get_parameter(later).grad is None or not (
                    network.get_parameter(later).grad.any()
                )


def test_a_line_appears_where_it_is() -> None:
    """Each side of an untrained trunk with equal weights answers a dot about where it stands."""
    network = heds.hed().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            nn.init.zeros_(module.bias)
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, 32:40, 16:24] = 1  # centre at y 36, x 20
    with torch.inference_mode():
        outputs = network(image)
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for k in (1, 2, 3):
        share = outputs[k][0, 0] / outputs[k].sum()
        at = (float((share * y).sum()), float((share * x).sum()))
        assert at == pytest.approx((36, 20), abs=0.6), k


def test_a_classifiers_trunk_is_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "vgg16.safetensors"
    with torch.device("meta"):
        vgg = models.find("vgg16")(num_classes=2).state_dict()
    state = {k: torch.randn(v.shape) for k, v in vgg.items() if k.startswith("features.")}
    state |= {"classifier.6.weight": torch.zeros(2, 8), "classifier.6.bias": torch.zeros(2)}
    safetensors.torch.save_file(state, file)
    network = heds.hed()
    report = load_weights(network, str(file), model_name="hed", num_classes=1)
    own = network.state_dict()
    assert report.loaded == 26
    assert all(torch.equal(own[k], v) for k, v in state.items() if k.startswith("features."))
    assert {name.partition(".")[0] for name in report.replaced} == {"sides", "fuse"}
    assert network.adopt(models.find("resnet18")(num_classes=2).state_dict()) is None


def test_bf16_leaves_no_plateaus() -> None:
    """Non-maximum suppression needs neighbours that differ."""
    torch.manual_seed(0)
    network = heds.hed_small().eval()
    for side in network.sides:
        nn.init.normal_(side.weight)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        fused = network(torch.randn(1, 3, 64, 64))[0][..., :-2]  # the border is continued
    assert fused.dtype == torch.float32
    equal = (fused.diff(dim=3) == 0).float().mean()
    assert equal < 0.001
    rounded = F.interpolate(fused.bfloat16(), scale_factor=1)
    assert (rounded.diff(dim=3) == 0).float().mean() > 0.005
