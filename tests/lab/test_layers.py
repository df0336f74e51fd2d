"""Figures of layers against loops over plain numbers, and against a network that is quantized by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sottovoce import networks, quant
from sottovoce.bits.plan import Plan
from sottovoce.lab.layers import BARS, activation_drift, weight_figures

NETWORK = {"kind": "resnet", "blocks": [1, 1], "width": 8, "dim": 16}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return networks.build(**NETWORK).eval()


def decoded(network: nn.Module, plan: str) -> nn.Module:
    twin = copy.deepcopy(network)
    quant.attach(twin, Plan.parse(plan))
    quant.detach(twin)
    return twin


@pytest.mark.parametrize("spec", ["kmeans2", "kmeans3/codebook", "uniform8", "uniform4/layer", "binary", "ternary"])
def test_weight_figures_are_those_of_the_decoded_weights(network: nn.Module, spec: str) -> None:
    before = copy.deepcopy(network.state_dict())
    found = weight_figures(network, Plan.parse(f"seg_1=float; *={spec}"))
    twin = decoded(network, f"*={spec}")
    assert set(found) == set(quant.quantizable(network)) - {"seg_1"}
    for name, row in found.items():
        w = network.get_submodule(name).weight.detach().double().numpy().ravel()
        q = twin.get_submodule(name).weight.detach().double().numpy().ravel()
        assert row["relative_error"] == pytest.approx(np.linalg.norm(w - q) / np.linalg.norm(w))
        assert row["cosine"] == pytest.approx(w @ q / np.linalg.norm(w) / np.linalg.norm(q))
        assert row["squared_error"] == pytest.approx(((w - q) ** 2).sum())
        assert row["kurtosis"] == pytest.approx(np.mean((w - w.mean()) ** 4) / np.var(w) ** 2)
        assert sum(row["histogram"]["counts"]) + row["histogram"]["outside"] == len(w)
        assert len(row["histogram"]["counts"]) == BARS
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_mean_error_is_in_units_of_the_outermost_level(network: nn.Module) -> None:
    found = weight_figures(network, Plan.parse("*=uniform4/layer/absmax"))
    for name, row in found.items():
        w = network.get_submodule(name).weight.detach().double()
        q = decoded(network, "*=uniform4/layer/absmax").get_submodule(name).weight.detach().double()
        assert row["mean_error"] == pytest.approx(float((w - q).abs().mean() / q.abs().max()), rel=1e-5)
        assert row["histogram"]["levels"] == pytest.approx(np.arange(-7, 8) / 7, abs=1e-6)
        assert row["histogram"]["outside"] == 0


def test_many_levels_are_not_listed(network: nn.Module) -> None:
    assert weight_figures(network, Plan.parse("*=uniform8"))["seg_1"]["histogram"]["levels"] is None


def test_kurtosis_of_a_known_distribution(network: nn.Module) -> None:
    layer = network.get_submodule("seg_1")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-1.0, 1.0]).repeat(layer.weight.numel() // 2).reshape(layer.weight.shape))
    assert weight_figures(network, Plan.parse("*=kmeans2"))["seg_1"]["kurtosis"] == pytest.approx(1.0)


def test_activation_drift_is_that_of_two_networks_side_by_side(network: nn.Module) -> None:
    torch.manual_seed(1)
    features = list(torch.randn(3, 80, 40).split(1))
    found = activation_drift(network, Plan.parse("conv1=float; *=kmeans2"), features)
    twin = decoded(network, "conv1=float; *=kmeans2")

    def outputs(model: nn.Module, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """The first input, by name its output: layers in order of the network; from forward, by hand."""
        seen: dict[str, list[torch.Tensor]] = {}
        for name in quant.quantizable(model):
            layer = model.get_submodule(name)
            plain = type(layer).forward.__get__(layer)
            layer.forward = lambda x, name=name, plain=plain: seen.setdefault(name, [x, plain(x)])[1]  # type: ignore[method-assign]
        with torch.no_grad():
            model(x)
        for name in quant.quantizable(model):
            del model.get_submodule(name).forward
        return seen

    for name in ("conv1", "seg_1", list(quant.quantizable(network))[3]):
        errors, local = [], []
        for x in features:
            wanted, got = outputs(network, x)[name], outputs(twin, x)[name]
            with torch.no_grad():
                alone = twin.get_submodule(name)(wanted[0])
            errors.append(float((wanted[1] - got[1]).norm() / wanted[1].norm()))
            local.append(float((wanted[1] - alone).norm() / wanted[1].norm()))
        assert found[name]["propagated"]["relative_error"] == pytest.approx(np.mean(errors), rel=1e-4)
        assert found[name]["local"]["relative_error"] == pytest.approx(np.mean(local), rel=1e-4)
    assert found["conv1"]["propagated"]["relative_error"] == 0.0
    assert found["conv1"]["local"]["cosine"] == pytest.approx(1.0)
    assert found["seg_1"]["propagated"]["relative_error"] > found["seg_1"]["local"]["relative_error"] > 0


def test_the_network_is_left_as_it_was(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    activation_drift(network, Plan.parse("*=kmeans2"), [torch.randn(1, 80, 40)])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
