"""Codes that pooling reads are turned, values are not changed."""

import numpy as np
import onnxruntime

from sottovoce.export.graph import Graph
from sottovoce.export.layout import turn_codes


def rounded() -> Graph:
    """x → rounded → convolution → rounded → mean over frames; the first rounding is read by a convolution alone."""
    graph = Graph()
    graph.inputs, graph.outputs = {"x": [1, 4, "frames"]}, {"y": [1, 4]}
    step, zero = graph.constant(np.float32(0.02)), graph.constant(np.uint8(128))
    tensor = "x"
    for _ in range(2):
        codes = graph.add("QuantizeLinear", tensor, step, zero)
        last = graph.add("DequantizeLinear", codes, step, zero)
        tensor = graph.add("Conv", last, graph.constant(np.eye(4, dtype=np.float32)[:, :, None]), kernel_shape=[1])
    graph.add("ReduceMean", last, axes=[2], keepdims=0, output="y")
    graph.outputs["z"] = [1, 4, "frames"]
    graph.add("Identity", tensor, output="z")
    return graph


def test_only_float_readers_of_the_last_rounding_read_turned_codes() -> None:
    graph = rounded()
    x = np.random.default_rng(0).standard_normal((1, 4, 30)).astype(np.float32)

    def outputs() -> list[np.ndarray]:
        model = graph.model().SerializeToString()
        return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})

    before = outputs()
    turn_codes(graph)
    for old, new in zip(before, outputs(), strict=True):
        np.testing.assert_array_equal(old, new)
    (turn,) = [node for node in graph.nodes if node.op_type == "Reshape"]
    (read,) = graph.consumers(turn.output[0])
    assert [node.op_type for node in graph.consumers(read.output[0])] == ["ReduceMean"]
