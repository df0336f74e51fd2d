"""Moving average of weights."""

import torch
from torch import nn

from sottovoce import quant
from sottovoce.bits.plan import Plan
from sottovoce.lab.average import Average


def test_it_is_the_recurrence_and_counters_are_left_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average, expected = Average(network, 0.9), network[0].weight.detach().clone()
    for count in range(120):
        with torch.no_grad():
            network[0].weight.add_(1.0)
            network[1].num_batches_tracked.add_(1)
        average.update(network, count)
        kept = min(0.9, (1 + count) / (10 + count))
        expected = kept * expected + (1 - kept) * network[0].weight.detach()
    average.put_into(network)
    assert torch.allclose(network[0].weight, expected, rtol=1e-4)
    assert int(network[1].num_batches_tracked) == 120


def test_the_averaged_weight_is_quantized_anew() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 8))
    quant.attach(network, Plan.parse("*=kmeans2"))
    average = Average(network, 0.5)
    with torch.no_grad():
        quant.attached(network)["0"].gain.mul_(1.5)
        network[0].parametrizations.weight.original.add_(torch.randn(8, 16))
    average.update(network, 100)
    average.put_into(network)
    assert all(len(row.unique()) <= 4 for row in network[0].weight)
