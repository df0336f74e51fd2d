"""Codes that pooling reads are turned, values are not changed."""

import io

import numpy as np
import onnxruntime
import pytest

from sottovoce.export.graph import Graph
from sottovoce.export.layout import close_windows, turn_codes


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


@pytest.mark.parametrize("frames", [1, 7, 19, 20, 21, 40, 47])
def test_windows_cut_short_are_the_same_with_padding_in_both_engines(frames: int) -> None:
    graph = Graph()
    graph.inputs, graph.outputs = {"x": [1, 4, "frames"]}, {"y": [1, 4, "windows"]}
    settings = {"kernel_shape": [20], "strides": [20], "ceil_mode": 1, "count_include_pad": 0}
    graph.add("AveragePool", "x", output="y", **settings)
    x = np.random.default_rng(frames).standard_normal((1, 4, frames)).astype(np.float32)
    expected = np.stack([x[..., at : at + 20].mean(axis=2) for at in range(0, frames, 20)], axis=2)
    close_windows(graph)
    (node,) = graph.nodes
    assert {entry.name: entry.i for entry in node.attribute}["ceil_mode"] == 0
    model = graph.model().SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-6)
    openvino = pytest.importorskip("openvino", reason="an optional engine")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(x)[0], expected, atol=1e-6)


def test_windows_that_overlap_stay() -> None:
    graph = Graph()
    graph.add("AveragePool", "x", output="y", kernel_shape=[20], strides=[10], ceil_mode=1)
    close_windows(graph)
    assert {entry.name: entry.i for entry in graph.nodes[0].attribute}["ceil_mode"] == 1
