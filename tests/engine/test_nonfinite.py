"""The first layer that is not finite is named."""

import torch
from torch import nn

from vidi.engine.ema import Average
from vidi.engine.nonfinite import first_gradient, first_layer


class Log(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), Log(), nn.Linear(3, 1))


def test_the_layer_whose_output_is_first_not_finite() -> None:
    model = network()
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[0].bias, -1.0)  # so that ReLU gives 0 and its log is minus infinity
    told = first_layer(model, lambda: model(torch.ones(4, 2)))
    assert "the output of 2 (Log)" in told


def test_a_weight_that_is_not_finite_is_found_before_any_layer() -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[0, 1] = torch.nan
    assert "the weight 3.weight" in first_layer(model, lambda: model(torch.ones(4, 2)))


def test_an_input_that_is_not_finite_is_told_apart() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    told = first_layer(model, lambda: model(torch.full((4, 2), torch.inf)))
    assert "the input of 0 (Linear)" in told


def test_a_loss_alone_is_not_the_networks_fault() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    assert "in the loss itself" in first_layer(model, lambda: model(torch.ones(4, 2)))


def test_the_gradient_is_traced_to_the_layer_nearest_the_loss() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].weight.grad = torch.full((3, 2), torch.nan)
    model[1].bias.grad = torch.zeros(1)
    assert "0.weight" in first_gradient(model)


def test_the_average_is_its_recursion() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average(model, 0.9)
    expected = model[0].weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model[0].weight += step
            model[1].num_batches_tracked += 1
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight
    assert torch.allclose(average.model[0].weight, expected)
    assert average.model[1].num_batches_tracked == 29
    assert not any(p.requires_grad for p in average.model.parameters())
