"""Positive gains: same output, every batch norm that follows a layer keeps a gain above 0."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sottovoce import networks, quant
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput
from sottovoce.quant.gains import pairs


def shaken(network: nn.Module) -> nn.Module:
    """The network with gains of both signs and statistics that are not 0 and 1."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


def features(mels: int = 80) -> torch.Tensor:
    return torch.randn(2, mels, 40, generator=torch.Generator().manual_seed(1))


def norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]


@pytest.fixture
def resnet() -> nn.Module:
    return shaken(networks.build("resnet", blocks=(1, 1, 1, 1), width=4))


def test_gains_become_positive_and_the_output_stays(resnet):
    before = resnet(features())
    assert any(float(norm.weight.detach().min()) < 0 for norm in norms(resnet))
    quant.positive_gains(resnet, features())
    assert all(float(norm.weight.detach().min()) >= 1e-5 for norm in norms(resnet))
    torch.testing.assert_close(resnet(features()), before, rtol=1e-5, atol=1e-5)


def test_biases_turn_with_their_rows():
    network = shaken(nn.Sequential(nn.Conv1d(80, 8, 3), nn.BatchNorm1d(8)))
    before = network(features())
    quant.positive_gains(network, features())
    assert float(network[1].weight.detach().min()) > 0
    torch.testing.assert_close(network(features()), before, rtol=1e-6, atol=1e-6)


def test_a_norm_that_learns_no_gain_is_left_alone():
    network = nn.Sequential(nn.Conv1d(80, 8, 3), nn.BatchNorm1d(8, affine=False)).eval()
    before = network(features())
    quant.positive_gains(network, features())
    quant.clamp_gains(network)
    assert torch.equal(network(features()), before)


def test_a_norm_after_a_rectifier_keeps_its_gains():
    network = shaken(networks.build("ecapa256", width=16, aggregate=24))
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quant.positive_gains(network, features())
    assert pairs(network, features()) == []
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


def test_a_rectifier_in_place_is_seen():
    network = nn.Sequential(nn.Conv1d(80, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm1d(8))
    assert pairs(network, features()) == []


def test_a_layer_used_twice_is_left_alone():
    conv, norm = nn.Conv1d(80, 80, 1), nn.BatchNorm1d(80)
    assert pairs(nn.Sequential(conv, norm, conv), features()) == []
    assert pairs(nn.Sequential(conv, norm), features()) == [(conv, norm)]


def test_a_silent_channel_is_raised_to_the_floor(resnet):
    with torch.no_grad():
        resnet.bn1.weight[0], resnet.bn1.weight[1] = 0.0, -1e-9
    before = resnet(features())
    quant.positive_gains(resnet, features())
    assert resnet.bn1.weight[:2].tolist() == pytest.approx([1e-5, 1e-5])
    torch.testing.assert_close(resnet(features()), before, rtol=1e-3, atol=1e-3)


def test_clamping_keeps_found_gains_positive_and_no_others(resnet):
    quant.positive_gains(resnet, features())
    loose = nn.BatchNorm1d(4)
    network = nn.ModuleList([resnet, loose])
    with torch.no_grad():
        for norm in norms(network):
            norm.weight.fill_(-0.1)
    quant.clamp_gains(network)
    assert all(float(norm.weight.detach().max()) == pytest.approx(1e-5) for norm in norms(resnet))
    assert float(loose.weight.detach().max()) == pytest.approx(-0.1)


def test_modes_and_statistics_are_untouched(resnet):
    resnet.train()
    resnet.bn1.eval()
    variance = resnet.bn1.running_var.clone()
    quant.positive_gains(resnet, features())
    assert resnet.training
    assert not resnet.bn1.training
    assert resnet.layer1.training
    assert torch.equal(resnet.bn1.running_var, variance)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in resnet.modules())


def test_an_attached_network_is_refused(resnet):
    quant.attach(resnet, Plan.parse("*=kmeans4"))
    with pytest.raises(BadInput, match="detach its plan first"):
        quant.positive_gains(resnet, features())
