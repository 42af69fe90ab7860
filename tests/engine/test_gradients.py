"""The gradient of a batch, for one network and for several."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vidi.engine import gradients
from vidi.engine.evaluate import Compute
from vidi.types import Normalisation

COMPUTE = Compute(torch.device("cpu"), "fp32", False, Normalisation((0.0,) * 3, (1.0,) * 3))


class Sum:
    """Two losses, sums over the samples, of which the second counts half."""

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        out = model(batch.x)
        return {"whole": out.square().sum(), "half": out.abs().sum() / 2}


def backward(networks: list[nn.Module], parts: list[Any]) -> dict[str, float]:
    total = torch.tensor(float(sum(len(part.x) for part in parts)))
    weights = {"whole": total, "half": total}
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    task: Any = Sum()
    return gradients.backward(networks, task, parts, weights, COMPUTE, scaler, seed=0, step=3)


def grads(network: nn.Module) -> list[Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


def test_parts_give_the_whole_batch_s_gradient_and_terms() -> None:
    torch.manual_seed(0)
    one = nn.Linear(4, 2)
    other = copy.deepcopy(one)
    x = torch.randn(10, 4)
    whole = backward([one], [SimpleNamespace(x=x)])
    parts = backward([other], [SimpleNamespace(x=x[:3]), SimpleNamespace(x=x[3:])])
    torch.testing.assert_close(grads(one), grads(other))
    assert whole.keys() == parts.keys() == {"whole", "half"}
    torch.testing.assert_close(list(whole.values()), list(parts.values()))


def test_each_network_gets_its_own_gradient_and_the_terms_are_their_mean() -> None:
    torch.manual_seed(0)
    networks = [nn.Linear(4, 2) for _ in range(3)]
    alone = copy.deepcopy(networks)
    batch = SimpleNamespace(x=torch.randn(10, 4))
    together = backward([*networks], [batch])
    single = [backward([network], [batch]) for network in alone]
    for one, other in zip(networks, alone, strict=True):
        torch.testing.assert_close(grads(one), grads(other))
    for name, value in together.items():
        torch.testing.assert_close(value, sum(terms[name] for terms in single) / 3)


def test_members_draw_their_own_dropout_and_the_first_that_of_one_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    first, second, alone = (copy.deepcopy(network) for _ in range(3))
    batch = SimpleNamespace(x=torch.randn(5, 4))
    backward([first, second], [batch])
    backward([alone], [batch])
    assert all(map(torch.equal, grads(first), grads(alone)))
    assert not all(map(torch.equal, grads(first), grads(second)))


def test_each_network_is_clipped_by_its_own_norm() -> None:
    networks = [nn.Linear(3, 1, bias=False) for _ in range(2)]
    for network, value in zip(networks, (0.1, 10.0), strict=True):
        network.weight.grad = torch.full((1, 3), value)
    norm = gradients.clip([*networks], 1.0)
    norms = [float(n.weight.grad.norm()) for n in networks if n.weight.grad is not None]
    torch.testing.assert_close(norms, [0.1 * 3**0.5, 1.0], rtol=1e-4, atol=0)
    torch.testing.assert_close(norm, ((0.03 + 300) / 2) ** 0.5, rtol=1e-5, atol=0)
