"""Every architecture: parameter counts and tensor names as published, shapes, shortest input."""

from __future__ import annotations

import pytest
import torch

from sottovoce import networks
from sottovoce.errors import BadInput


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("kind", "settings", "parameters", "tensors"),
    [
        ("resnet34", {}, 6_634_336, 218),
        ("resnet18", {}, 4_105_440, None),
        ("ecapa512", {}, 6_190_720, 221),
        ("ecapa512", {"context": False}, 5_797_504, None),
        ("ecapa1024", {}, 14_657_088, None),
        ("ecapa1024", {"context": False}, 14_263_872, None),
    ],
)
def test_counts_equal_wespeaker(kind: str, settings: dict, parameters: int, tensors: int | None) -> None:
    network = networks.build(kind, **settings)
    assert count(network) == parameters
    assert tensors is None or len(network.state_dict()) == tensors


def test_resnet_names_and_shapes_equal_wespeaker() -> None:
    shapes = {name: tuple(t.shape) for name, t in networks.build("resnet34").state_dict().items()}
    assert shapes["conv1.weight"] == (32, 1, 3, 3)
    assert shapes["bn1.running_var"] == (32,)
    assert shapes["layer3.5.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer2.0.shortcut.0.weight"] == (64, 32, 1, 1)
    assert shapes["layer2.0.shortcut.1.num_batches_tracked"] == ()
    assert shapes["seg_1.weight"] == (256, 5120)
    assert "layer1.0.shortcut.0.weight" not in shapes


def test_ecapa_names_and_shapes_equal_wespeaker() -> None:
    shapes = {name: tuple(t.shape) for name, t in networks.build("ecapa512").state_dict().items()}
    assert shapes["layer1.conv.weight"] == (512, 80, 5)
    assert shapes["layer2.se_res2block.0.conv.weight"] == (512, 512, 1)
    assert shapes["layer3.se_res2block.1.convs.6.weight"] == (64, 64, 3)
    assert shapes["layer3.se_res2block.1.bns.6.running_mean"] == (64,)
    assert shapes["layer4.se_res2block.3.linear1.weight"] == (128, 512)
    assert shapes["conv.weight"] == (1536, 1536, 1)
    assert shapes["pool.linear1.weight"] == (128, 4608, 1)
    assert shapes["pool.linear2.weight"] == (1536, 128, 1)
    assert shapes["bn.weight"] == (3072,)
    assert shapes["linear.weight"] == (192, 3072)


@pytest.mark.parametrize(
    ("kind", "settings"), [("resnet", {"blocks": (1, 1, 1, 1), "width": 8}), ("ecapa", {"width": 32, "aggregate": 64})]
)
def test_shortest_input_is_finite_and_one_frame_less_is_not(kind: str, settings: dict) -> None:
    network = networks.build(kind, **settings).eval()
    with torch.no_grad():
        assert torch.isfinite(network(torch.randn(2, 80, network.min_frames))).all()
        assert not torch.isfinite(network(torch.randn(2, 80, network.min_frames - 1))).all()
        assert network(torch.randn(3, 80, 50)).shape == (3, network.dim)


def test_standard_deviation_is_the_unbiased_one() -> None:
    x = torch.randn(2, 3, 7)
    mean, std = networks.resnet.StatisticsPool()(x).chunk(2, dim=1)
    assert torch.allclose(mean, x.mean(-1), atol=1e-6)
    assert torch.allclose(std, (x.var(-1) + 1e-7).sqrt(), atol=1e-6)


def test_unknown_networks_and_settings_name_the_nearest() -> None:
    with pytest.raises(BadInput, match="resnet34"):
        networks.build("resnet43")
    with pytest.raises(BadInput, match="width"):
        networks.build("resnet", widht=16)
