"""Groups of layers, and that a partial plan rounds what belongs to its group and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from sottovoce import export, networks, quant
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput, BadPlan
from sottovoce.export.ranges import Histogram, minmax_range
from sottovoce.lab.groups import Group, parse_groups, plan_of, stages

ECAPA = {"kind": "ecapa", "width": 16, "aggregate": 16, "mels": 20, "dim": 8}
FRONT = preset("wespeaker")


def names(network: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    return {group.name: group.layers for group in stages(network)}


def test_ecapa_has_the_seven_groups_of_the_paper() -> None:
    network = networks.build(**ECAPA)
    found = names(network)
    assert list(found) == ["conv1", "block1", "block2", "block3", "mfa", "attention", "fc"]
    assert sorted(layer for layers in found.values() for layer in layers) == sorted(quant.quantizable(network))
    assert (found["conv1"], found["mfa"], found["fc"]) == (("layer1.conv",), ("conv",), ("linear",))


def test_weights_of_the_groups_are_those_of_the_paper() -> None:
    """Worked out by hand from the public code: weights only, no biases."""
    with torch.device("meta"):
        network = networks.build("ecapa1024-a")
    shapes = quant.quantizable(network)
    counts = {name: sum(int(np.prod(shapes[layer])) for layer in layers) for name, layers in names(network).items()}
    assert counts == {
        "conv1": 409_600,
        "block1": 2_703_360,
        "block2": 2_703_360,
        "block3": 2_703_360,
        "mfa": 4_718_592,
        "attention": 1_572_864,
        "fc": 589_824,
    }


def test_other_networks_are_split_by_their_modules() -> None:
    assert list(names(networks.build("resnet", blocks=(1, 1), width=4))) == ["conv1", "layer1", "layer2", "seg_1"]


def test_lists_of_modules_are_opened() -> None:
    network = torch.nn.Module()
    network.stem = torch.nn.Linear(2, 2)
    network.stages = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(2)])
    assert names(network) == {"stem": ("stem",), "stages.0": ("stages.0.0",), "stages.1": ("stages.1.0",)}


@pytest.mark.parametrize(
    "network", [networks.build(**ECAPA), networks.build("resnet", blocks=(1, 1), width=4)], ids=["ecapa", "resnet"]
)
def test_the_plan_of_groups_quantizes_their_layers_alone(network: torch.nn.Module) -> None:
    groups, shapes = stages(network), quant.quantizable(network)
    for group in groups:
        specs = plan_of([group]).resolve(shapes)
        assert tuple(layer for layer, spec in specs.items() if spec) == group.layers
        assert {str(spec) for spec in specs.values() if spec} == {"uniform8/channel/absmax"}
    assert str(plan_of([])) == "*=float"


def test_groups_of_the_user() -> None:
    groups = parse_groups("early=layer1.* layer2.*; last=linear;", ["layer1.conv", "layer2.a", "conv", "linear"])
    assert groups == [
        Group("early", ("layer1.*", "layer2.*"), ("layer1.conv", "layer2.a")),
        Group("last", ("linear",), ("linear",)),
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no groups"),
        ("fc", "name=pattern"),
        ("a=x; a=y", "once"),
        ("fc=linaer", "'linear'"),
        ("a=layer1.*; b=*conv", "'layer1.conv' is in the groups 'a' and 'b'"),
    ],
)
def test_wrong_groups(text: str, what: str) -> None:
    with pytest.raises(BadPlan, match=what):
        parse_groups(text, ["layer1.conv", "conv", "linear"])


def built(network: torch.nn.Module, plan: Plan, ranges: str = "minmax") -> onnx.ModelProto:
    quant.positive_gains(network, torch.zeros(2, FRONT.mels, 32))
    quant.attach(network, plan)
    coded = quant.coded(network)
    quant.detach(network)
    return export.build(network.eval(), FRONT, coded, [talker(0.5, seed=1)], metadata={}, ranges=ranges)


def rounded(model: onnx.ModelProto) -> dict[str, list[str]]:
    """For every convolution with a dequantized input: nothing but names of what feeds it."""
    producer = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] in producer:
            found[node.name or node.output[0]] = [producer[node.input[0]].op_type, _kind(producer, node.input[1])]
    return found


def _kind(producer: dict[str, onnx.NodeProto], weight: str) -> str:
    return producer[weight].op_type if weight in producer else "float"


def test_a_partial_plan_rounds_its_group_and_no_other() -> None:
    torch.manual_seed(0)
    network = networks.build(**{**ECAPA, "mels": FRONT.mels})
    groups = {group.name: group for group in stages(network)}
    model = built(network, plan_of([groups["block2"]]))
    convs = list(rounded(model).values())
    coded = [kinds for kinds in convs if kinds[1] != "float"]
    assert coded == [["DequantizeLinear", "DequantizeLinear"]] * 9  # 1x1, seven of Res2, 1x1: integer throughout
    assert all(kinds[0] != "DequantizeLinear" for kinds in convs if kinds[1] == "float")
    stored = {tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".codes")}
    assert {name.removesuffix(".codes") for name in stored} == set(groups["block2"].layers)


def test_a_float_plan_rounds_nothing() -> None:
    model = built(networks.build(**{**ECAPA, "mels": FRONT.mels}), plan_of([]))
    assert not [node for node in model.graph.node if "QuantizeLinear" in node.op_type]


def test_a_plan_of_layers_behind_the_pooling_alone_rounds_no_activation() -> None:
    network = networks.build(**{**ECAPA, "mels": FRONT.mels})
    model = built(network, plan_of([stages(network)[-1]]))
    assert [tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".codes")] == ["linear.codes"]
    assert not [node for node in model.graph.node if node.op_type == "QuantizeLinear"]


def test_percentile_100_covers_everything_that_was_observed() -> None:
    histogram = Histogram()
    histogram.add(np.array([-1.0, 0.0, 4.1], dtype=np.float32))
    scale, zero = minmax_range(histogram)
    assert scale == np.float32((histogram.high - histogram.low) / 255)
    assert (0 - float(zero)) * scale == pytest.approx(-1.0, abs=float(scale))
    assert (255 - float(zero)) * scale == pytest.approx(4.1, abs=float(scale))


def test_unknown_range_rules_are_refused() -> None:
    with pytest.raises(BadInput, match="minmax"):
        built(networks.build(**{**ECAPA, "mels": FRONT.mels}), plan_of([]), ranges="max")
