"""From one plan to the next: what stays, what starts anew."""

import pytest
import torch
from torch import nn

from sottovoce import quant
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadPlan
from sottovoce.quant.attach import stored


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 4))


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [stored(layer).detach().clone() for layer in module]


def test_float_weights_go_on_and_same_specs_keep_what_they_learned() -> None:
    net = network()
    quant.attach(net, Plan.parse("0=kmeans4; 1=uniform4; 2=float"))
    with torch.no_grad():
        quant.attached(net)["0"].gain.fill_(1.25)
        quant.attached(net)["1"].gain.fill_(1.25)
    before = weights(net)
    quant.change(net, Plan.parse("0=kmeans4; 1=kmeans2; 2=kmeans3"))
    assert all(torch.equal(old, new) for old, new in zip(before, weights(net), strict=True))
    kept = quant.attached(net)
    assert [str(kept[name].spec) for name in "012"] == [f"kmeans{bits}/channel/mse" for bits in (4, 2, 3)]
    assert bool((kept["0"].gain == 1.25).all())
    assert not bool((kept["1"].gain == 1.25).any())


def test_it_is_attach_for_a_float_network_and_takes_plans_off() -> None:
    one, two = network(), network()
    quant.attach(one, Plan.parse("*=kmeans2"))
    quant.change(two, Plan.parse("*=kmeans2"))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(one, two, strict=True))
    quant.change(two, Plan.parse("*=float"))
    assert not quant.attached(two)
    assert torch.equal(two[0].weight, network()[0].weight)


def test_a_plan_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadPlan, match="fits no layer"):
        quant.change(network(), Plan.parse("9=kmeans2; *=float"))
