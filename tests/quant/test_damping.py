"""The damping loss against the paper's formula, and what its gradient does."""

import pytest
import torch
from torch import nn

from sottovoce import quant
from sottovoce.bits.plan import Plan


def layer(plan: str) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 6))
    quant.attach(network, Plan.parse(plan))
    return network


@pytest.mark.parametrize("plan", ["*=uniform3/channel/mse", "*=uniform3/layer/mse", "*=kmeans2/channel/mse"])
def test_it_is_the_formula(plan: str) -> None:
    network = layer(plan)
    weight = network[0].parametrizations.weight.original
    quantized = quant.attached(network)["0"]
    weight = weight.detach()
    _, levels, scale = quantized.encode(weight)
    low, high = float(levels.min()) * scale[:, None], float(levels.max()) * scale[:, None]
    clipped = torch.minimum(torch.maximum(weight, low), high)
    expected = (network[0].weight.detach() - clipped).square().sum()
    assert float(expected) > 0
    assert torch.allclose(quant.damping_loss(network), expected, rtol=1e-5)


@pytest.mark.parametrize("plan", ["*=uniform3/channel/mse", "*=uniform3/channel/clip3"])
def test_a_step_draws_weights_to_the_middle_of_their_bins(plan: str) -> None:
    network = layer(plan)
    weight = network[0].parametrizations.weight.original
    loss = quant.damping_loss(network)
    loss.backward()
    before = float(loss.detach())
    assert quant.attached(network)["0"].gain.grad is None
    with torch.no_grad():
        weight -= 0.25 * weight.grad
        assert float(quant.damping_loss(network)) < 0.6 * before  # (1 - 0.25 · 2)² and some new codes


def test_a_float_network_has_none() -> None:
    assert float(quant.damping_loss(nn.Linear(2, 2))) == 0.0
