"""Which tensors are rounded, and which stay in float."""

import pytest

from sottovoce.export.activations import find_region
from sottovoce.export.graph import Graph
from sottovoce.export.trace import fold_norms, trace


def folded(encoder):
    graph = trace(encoder, 80)
    fold_norms(graph)
    return graph, {name for name in graph.constants if name.endswith(".weight")}


@pytest.mark.parametrize("name", ["resnet", "ecapa"])
def test_every_convolution_reads_and_writes_rounded_tensors(name, network):
    graph, weights = folded(network(name))
    region = find_region(graph, weights)
    rounded = {tensor for group in region.groups for tensor in group}
    for conv in (node for node in graph.nodes if node.op_type == "Conv"):
        after = [reader for reader in graph.consumers(conv.output[0]) if reader.op_type == "Relu"]
        assert conv.input[0] in rounded
        assert (after[0].output[0] if after else conv.output[0]) in rounded


@pytest.mark.parametrize("name", ["resnet", "ecapa"])
def test_pooling_and_gates_stay_in_float(name, network):
    graph, weights = folded(network(name))
    rounded = {tensor for group in find_region(graph, weights).groups for tensor in group}
    kept = {"Softmax", "Sigmoid", "Sqrt", "ReduceSum", "Gemm", "Mul"}
    assert not [node.op_type for node in graph.nodes if node.op_type in kept and rounded.intersection(node.output)]


def test_parts_of_a_split_and_of_a_concat_share_a_grid(network):
    graph, weights = folded(network("ecapa"))
    groups = find_region(graph, weights).groups
    for node in graph.nodes:
        if node.op_type == "Split":
            assert sum(node.input[0] in group and set(node.output) <= set(group) for group in groups) == 1
        if node.op_type == "Concat" and any(reader.op_type == "Conv" for reader in graph.consumers(node.output[0])):
            assert sum({*node.input, *node.output} <= set(group) for group in groups) == 1


def test_layers_without_codes_are_left_alone(network):
    graph, _ = folded(network("resnet"))
    assert find_region(graph, set()).groups == []


def test_an_addition_with_a_float_side_stays_in_float():
    graph = Graph()
    graph.add("Conv", "x", "w", output="y")
    graph.add("Add", "y", graph.add("Sigmoid", "x"), output="mixed")
    graph.add("Add", "y", "x", output="integer")
    rounded = [tensor for group in find_region(graph, {"w"}).groups for tensor in group]
    assert sorted(rounded) == ["integer", "x", "y"]
