"""Parts joined before norms are joined as codes; what comes out is what values joined would give."""

import numpy as np
import onnx
import onnxruntime
import pytest

from sottovoce import networks, quant
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.bits.plan import Plan
from sottovoce.export import build
from sottovoce.export.activations import find_region, round_tensors
from sottovoce.export.graph import Graph
from sottovoce.export.joins import join_codes, joins, part_codes, parts
from sottovoce.export.twin import unrounded


def dense(layers: int = 3, seed: int = 0) -> Graph:
    """x (1, 4, frames) → convolution → layers of [norm, ReLU, convolution], each joined to all before; norm → mean."""
    random = np.random.default_rng(seed)
    graph, rows = Graph(), 4
    graph.inputs, graph.outputs = {"x": [1, 4, "frames"]}, {"y": [1, 4 + 3 * layers, 1]}

    def constant(*shape: int) -> str:
        return graph.constant(random.standard_normal(shape).astype(np.float32), f"c{len(graph.constants)}")

    def norm(tensor: str) -> str:
        return graph.add("Add", graph.add("Mul", tensor, constant(rows, 1)), constant(rows, 1))

    def conv(tensor: str, outputs: int) -> str:
        weight = graph.constant(random.standard_normal((outputs, rows, 1)).astype(np.float32), f"w{len(graph.nodes)}")
        return graph.add("Conv", tensor, weight, kernel_shape=[1])

    x = conv("x", 4)
    for _ in range(layers):
        inner = conv(graph.add("Relu", norm(x)), 3)
        mask = graph.add("Sigmoid", graph.add("ReduceMean", inner, axes=[2], keepdims=1))
        x = graph.add("Concat", x, graph.add("Mul", inner, mask), axis=1)
        rows += 3
    graph.add("ReduceMean", graph.add("Relu", norm(x)), axes=[2], keepdims=1, output="y")
    return graph


def rounded(graph: Graph) -> Graph:
    weights = {name for name in graph.constants if name.startswith("w")}
    region = find_region(graph, weights)
    random = np.random.default_rng(1)
    grids = [(np.float32(random.uniform(0.02, 0.2)), np.uint8(random.integers(100, 150))) for _ in region.groups]
    bounded = {node.output[0] for node in region.relus}
    grids = [(s, np.uint8(0) if bounded & set(g) else z) for (s, z), g in zip(grids, region.groups, strict=True)]
    round_tensors(graph, region, grids)
    return graph


def run(graph: Graph, frames: int = 20) -> np.ndarray:
    x = np.random.default_rng(frames).standard_normal((1, 4, frames)).astype(np.float32)
    model = graph.model().SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def kinds_joined(graph: Graph) -> set[str]:
    """Operators that make what Concats over channels read."""
    joins = [node for node in graph.nodes if node.op_type == "Concat" and node.attribute[0].i == 1]
    makers = [graph.producer(name) for node in joins for name in node.input]
    return {maker.op_type for maker in makers if maker is not None}


def test_every_part_is_rounded_once_and_joined_as_codes() -> None:
    graph = dense()
    assert len(joins(graph)) == 3
    assert len(parts(graph, joins(graph))) == 4
    rounded(graph)
    before = run(graph)
    join_codes(graph)
    assert kinds_joined(graph) == {"QuantizeLinear", "Concat"}
    assert not [node for node in graph.nodes if node.op_type == "Mul" and node.input[0] in graph.constants]
    np.testing.assert_allclose(run(graph), before, atol=2e-5)


def test_taken_back_it_is_what_it_was_bit_for_bit() -> None:
    graph = rounded(dense())
    before = run(graph)
    join_codes(graph)
    part_codes(graph)
    assert kinds_joined(graph) == {"DequantizeLinear", "Concat"}
    np.testing.assert_array_equal(run(graph), before)


def test_what_others_read_stays_joined_as_values() -> None:
    graph = dense()
    last = [node for node in graph.nodes if node.op_type == "Concat"][-1]
    graph.outputs["z"] = [1, 13, "frames"]
    graph.add("Identity", last.output[0], output="z")
    assert not joins(graph)  # those before are read by the last


def test_parts_of_unknown_channels_stay() -> None:
    graph = rounded(dense())
    (first,) = [node for node in graph.nodes if node.op_type == "Conv" and node.input[0].startswith("~")][:1]
    weight = first.input[1]
    graph.inputs["w"] = [int(length) for length in graph.constants.pop(weight).shape]
    first.input[1] = "w"
    join_codes(graph)
    assert "QuantizeLinear" not in kinds_joined(graph)


@pytest.fixture(scope="module")
def campplus() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A small CAM++ at 8 bits, and the float graph behind it."""
    encoder = networks.build("campplus", layers=[3, 2, 2], head=8, width=16, growth=8, dim=16)
    quant.attach(encoder, Plan.of_bits(8, quant.quantizable(encoder)))
    coded = quant.coded(encoder)
    quant.detach(encoder)
    model = build(encoder.eval(), preset("wespeaker"), coded, [talker(2.0, seed=s) for s in range(4)], metadata={})
    return model, unrounded(model)


def test_dense_blocks_of_a_network_join_codes(campplus: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    model, plain = campplus
    joined = [node for node in Graph.of(model).nodes if node.op_type == "DequantizeLinear" and node.attribute]
    assert len([node for node in joined if len(node.input) == 2 and node.attribute[0].i == 1]) == 7
    assert not [node for node in plain.graph.node if "QuantizeLinear" in node.op_type]
    wave = talker(2.5, seed=9)[None]
    both = [
        onnxruntime.InferenceSession(form.SerializeToString(), providers=["CPUExecutionProvider"])
        for form in (model, plain)
    ]
    rounded, exact = (session.run(None, {"wave": wave})[0][0] for session in both)
    assert rounded @ exact > 0.99
