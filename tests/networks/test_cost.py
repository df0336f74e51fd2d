"""MACs against the tables of the papers and against a count by hand."""

import pytest
import torch
from torch import nn

from sottovoce import networks
from sottovoce.networks.cost import macs

FRAMES = 201  # 2 s when frames are centred on every hop, as the tools behind these tables seem to do


def total(kind: str) -> dict[str, int]:
    with torch.device("meta"):
        network = networks.build(kind)
        return macs(network, network.config.mels, FRAMES)


@pytest.mark.parametrize(
    ("kind", "billions"),
    [
        ("resnet34-c", 3.67),
        ("resnet18-c", 1.78),
        ("resnet221", 21.29),
        ("resnet293", 28.10),
        ("dfresnet233", 11.17),
    ],
)
def test_macs_equal_the_published_ones(kind: str, billions: float) -> None:
    assert sum(total(kind).values()) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(("kind", "billions"), [("ecapa256-c", 0.43), ("ecapa512-c", 0.96), ("ecapa1024-c", 2.56)])
def test_macs_of_ecapa_equal_those_of_paper_c(kind: str, billions: float) -> None:
    once = 1536 * 128  # the mean is the same in every frame, and the paper's numbers count its product once
    assert (sum(total(kind).values()) - (FRAMES - 1) * once) / 1e9 == pytest.approx(billions, rel=0.011)


def test_macs_by_hand() -> None:
    network = nn.Sequential(nn.Conv1d(4, 8, 3, stride=2, groups=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    network.append(nn.Linear(8, 5))
    # 9 frames give 4; a group has 2 inputs
    assert macs(network, 4, 9) == {"0": 4 * 8 * 2 * 3, "4": 8 * 5}


def test_the_mode_of_the_network_comes_back() -> None:
    network = networks.build("resnet", blocks=(1, 1), width=4)
    before = network.bn1.running_mean.clone()
    macs(network, 80, 20)
    assert network.training
    assert torch.equal(network.bn1.running_mean, before)
    assert not network.conv1._forward_hooks
