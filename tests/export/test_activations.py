"""Which tensors are rounded, and which stay in float."""

import numpy as np
import onnxruntime
import pytest

from sottovoce.export.activations import find_region, round_tensors
from sottovoce.export.graph import Graph
from sottovoce.export.trace import fold_norms, trace

BOUND = np.float32([[0.36], [-0.53]])


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def folded(encoder):
    graph = trace(encoder, 80)
    fold_norms(graph)
    return graph, {name for name in graph.constants if name.endswith(".weight")}


@pytest.mark.parametrize("name", ["resnet", "ecapa", "dfresnet"])
def test_every_convolution_reads_and_writes_rounded_tensors(name, network):
    graph, weights = folded(network(name))
    region = find_region(graph, weights)
    rounded = {tensor for group in region.groups for tensor in group}
    for conv in (node for node in graph.nodes if node.op_type == "Conv"):
        after = [reader for reader in graph.consumers(conv.output[0]) if reader.op_type == "Relu"]
        assert conv.input[0] in rounded
        assert (after[0].output[0] if after else conv.output[0]) in rounded


@pytest.mark.parametrize("name", ["resnet", "ecapa", "dfresnet"])
def test_pooling_and_gates_stay_in_float(name, network):
    graph, weights = folded(network(name))
    rounded = {tensor for group in find_region(graph, weights).groups for tensor in group}
    kept = {"Softmax", "Sigmoid", "Sqrt", "ReduceSum", "Gemm", "Mul"}
    assert not [node.op_type for node in graph.nodes if node.op_type in kept and rounded.intersection(node.output)]


def test_parts_of_a_split_share_a_grid_and_those_of_a_concat_have_their_own(network):
    graph, weights = folded(network("ecapa"))
    groups = find_region(graph, weights).groups
    for node in graph.nodes:
        if node.op_type == "Split":
            assert sum(node.input[0] in group and set(node.output) <= set(group) for group in groups) == 1
        if node.op_type == "Concat" and any(reader.op_type == "Conv" for reader in graph.consumers(node.output[0])):
            assert len({i for name in node.input for i, group in enumerate(groups) if name in group}) == len(node.input)


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


def test_attentive_pooling_of_maps_reads_the_grid_of_the_maps(network):
    graph = trace(network("resnet of paper-c"), 64)
    fold_norms(graph)
    groups = find_region(graph, {name for name in graph.constants if name.endswith(".weight")}).groups
    (reshape,) = (
        node
        for node in graph.nodes
        if node.op_type == "Reshape" and any(reader.op_type == "Conv" for reader in graph.consumers(node.output[0]))
    )
    assert sum({reshape.input[0], reshape.output[0]} <= set(group) for group in groups) == 1


def test_the_tensors_that_the_embedding_is_pooled_from_are_the_last(network):
    graph, weights = folded(network("ecapa"))
    region = find_region(graph, weights)
    assert {name for place in region.last for name in region.groups[place]} == {
        "/Relu_output_0",
        "/pool/linear2/Conv_output_0",
    }


def test_what_a_max_bounds_takes_the_grid_of_its_output_and_settled_bounds_lie_on_it():
    graph = Graph()
    graph.constants = {"w": np.zeros((2, 1, 1), np.float32), "b": np.float32([0.35, -0.52]), "low": BOUND}
    graph.add("Conv", "x", "w", "b", output="y")
    graph.add("Max", "y", "low", output="z")
    region = find_region(graph, {"w"})
    assert region.groups == [["x"], ["z"]]
    scales = round_tensors(graph, region, [(np.float32(1), np.uint8(0)), (np.float32(0.1), np.uint8(10))], settled=True)
    (top,) = (node for node in graph.nodes if node.op_type == "Add")
    (conv,) = (node for node in graph.nodes if node.op_type == "Conv")
    assert not [node for node in graph.nodes if node.op_type == "Max"]
    assert graph.constants[scales[top.input[0]]] == np.float32(0.1)
    read, lifted = (graph.producer(name) for name in top.input)
    assert graph.constants[read.input[2]] == 0  # rounding is the ReLU
    np.testing.assert_array_equal(graph.constants[lifted.input[0]], np.uint8([[14], [5]]))  # 0.4 and -0.5
    np.testing.assert_allclose(graph.constants[conv.input[2]], np.float32([0.35, -0.52]) - BOUND.reshape(-1), rtol=1e-6)


def test_a_lifted_relu_is_the_max_it_stands_for():
    draw = np.random.default_rng(0)
    graph = Graph()
    graph.inputs, graph.outputs = {"x": [1, 1, "frames"]}, {"z": [1, 2, "frames"]}
    graph.constants = {"w": np.ones((2, 1, 1), np.float32), "low": BOUND}
    graph.add("Conv", "x", "w", output="y", kernel_shape=[1])
    graph.add("Max", "y", "low", output="z")
    x = draw.uniform(-1, 1, (1, 1, 200)).astype(np.float32)
    region = find_region(graph, {"w"})
    fine = (np.float32(1e-5), np.uint8(0))
    before = run(graph, x)
    grids = {"x": (np.float32(2 / 255), np.uint8(128)), "z": (np.float32(0.1), np.uint8(10))}
    round_tensors(graph, region, [grids.get(group[0], fine) for group in region.groups], settled=True)
    after = run(graph, x)
    moved = np.round(BOUND / 0.1) * 0.1 - BOUND  # every value moves as its bound does
    assert np.abs(after - before - moved).max() <= 0.05 + 1 / 255 + 1e-6  # half a step of each of two roundings
    np.testing.assert_allclose(after.min(axis=2)[0], [0.4, -0.5], atol=1e-6)


@pytest.mark.parametrize(("low", "replaced"), [(0.0, True), (-1.0, False)])
def test_a_clip_at_zero_is_a_relu(low, replaced):
    graph = Graph()
    graph.constants = {"w": np.zeros((2, 1, 1), np.float32), "low": np.float32(low), "high": np.float32(20)}
    graph.add("Conv", "x", "w", output="y")
    graph.add("Clip", "y", "low", "high", output="z")
    region = find_region(graph, {"w"})
    assert region.groups == ([["x"], ["z"]] if replaced else [["x"], ["y"]])
    assert [node.op_type for node in region.relus] == (["Clip"] if replaced else [])


def test_a_transpose_keeps_the_grid_of_what_it_reads():
    graph = Graph()
    graph.constants = {"w": np.zeros((2, 2, 1, 1), np.float32), "v": np.zeros((2, 2, 1, 1), np.float32)}
    graph.add("Conv", "x", "w", output="y")
    graph.add("Transpose", "y", output="turned", perm=[0, 1, 3, 2])
    graph.add("Conv", "turned", "v", output="z")
    groups = [sorted(group) for group in find_region(graph, {"w", "v"}).groups]
    assert ["turned", "y"] in groups
    assert len(groups) == 3


def test_mirrored_edges_are_codes(network):
    graph, weights = folded(network("ecapa of speechbrain"))
    mirrors = [node for node in graph.nodes if node.op_type == "Pad"]
    assert len(mirrors) == 1 + 3 * 3  # the first layer, three convolutions in each of three blocks
    assert all(graph.constants[node.input[1]].dtype == np.int64 for node in mirrors)
    region = find_region(graph, weights)
    for node in mirrors:
        assert sum({node.input[0], node.output[0]} <= set(group) for group in region.groups) == 1
    round_tensors(graph, region, [(np.float32(0.1), np.uint8(index)) for index in range(len(region.groups))])
    for node in (node for node in graph.nodes if node.op_type == "Pad"):
        source = graph.producer(node.input[0])
        assert source is not None
        assert source.op_type == "QuantizeLinear"
        assert [reader.op_type for reader in graph.consumers(node.output[0])] == ["DequantizeLinear"]


def test_codes_are_not_moved_between_different_grids_or_for_two_readers():
    graph = Graph()
    graph.constants = {name: np.float32(1) for name in ("s", "t")} | {"o": np.uint8(0), "p": np.zeros(6, np.int64)}
    graph.add("DequantizeLinear", "q", "s", "o", output="x")
    graph.add("Pad", "x", "p", output="y", mode="reflect")
    graph.add("QuantizeLinear", "y", "t", "o", output="z")
    before = [(node.op_type, list(node.input)) for node in graph.nodes]
    round_tensors(graph, find_region(graph, set()), [])
    assert [(node.op_type, list(node.input)) for node in graph.nodes] == before
    graph.nodes[2].input[1] = "s"
    round_tensors(graph, find_region(graph, set()), [])
    assert [node.op_type for node in graph.nodes] == ["DequantizeLinear", "Pad"]
    assert list(graph.nodes[1].input) == ["q", "p"]
    assert list(graph.nodes[1].output) == ["z"]
