"""A norm behind a ReLU, folded: the same values, one operator; left alone where that would not be so."""

import copy

import numpy as np
import onnxruntime
import pytest

from sottovoce.export.graph import Graph
from sottovoce.export.norms import fold_norms_behind_relu
from sottovoce.export.trace import fold_norms


def chain(gain: list[float], bias: bool = True) -> Graph:
    rng = np.random.default_rng(0)
    graph = Graph()
    graph.inputs, graph.outputs = {"x": [1, 3, "frames"]}, {"y": [1, 2, "frames"]}
    graph.constants = {
        "a.weight": rng.normal(size=(2, 3, 3)).astype(np.float32),
        "gain": np.float32(gain).reshape(2, 1),
        "shift": np.float32([[0.4], [-0.7]]),
    }
    if bias:
        graph.constants["a.bias"] = np.float32([0.2, -0.3])
    conv = graph.add("Conv", "x", "a.weight", *(["a.bias"] if bias else []), kernel_shape=[3], pads=[1, 1])
    graph.add("Add", graph.add("Mul", graph.add("Relu", conv), "gain"), "shift", output="y")
    return graph


def run(graph: Graph) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(1, 3, 20)).astype(np.float32)
    content = graph.model().SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("bias", [True, False])
def test_folding_changes_no_value(bias):
    graph = chain([2.5, 0.01], bias)
    folded, gains = copy.deepcopy(graph), {}
    fold_norms_behind_relu(folded, gains)
    assert [node.op_type for node in folded.nodes] == ["Conv", "Max"]
    np.testing.assert_array_equal(gains["a.weight"], np.float32([2.5, 0.01]))
    np.testing.assert_allclose(run(folded), run(graph), atol=1e-6)


@pytest.mark.parametrize("gain", [[2.5, -0.01], [2.5, 0.0]])
def test_factors_that_are_not_positive_stay_behind_the_relu(gain):
    graph, gains = chain(gain), {}
    fold_norms_behind_relu(graph, gains)
    assert [node.op_type for node in graph.nodes] == ["Conv", "Relu", "Mul", "Add"]
    assert gains == {}


def test_a_relu_that_something_else_reads_stays():
    graph = chain([1.0, 2.0])
    relu = next(node for node in graph.nodes if node.op_type == "Relu")
    graph.outputs["z"] = [1, 2, "frames"]
    graph.add("Neg", relu.output[0], output="z")
    fold_norms_behind_relu(graph, {})
    assert "Relu" in [node.op_type for node in graph.nodes]


def reshaped(op: str) -> Graph:
    """Reshape by a computed shape, whose axes shape inference does not tell → convolution → ReLU → `op` → norm."""
    rng = np.random.default_rng(3)
    graph = Graph()
    graph.inputs, graph.outputs = {"x": [1, 3, "frames"]}, {"y": [1, 2, "frames"]}
    graph.constants = {"a.weight": rng.normal(size=(2, 3, 3)).astype(np.float32), "same": np.array([0, 3, -1])}
    graph.constants.update({name: rng.uniform(0.5, 1.5, size=2).astype(np.float32) for name in ("g", "b", "m", "v")})
    shape = graph.add("Add", "same", graph.add("Sub", graph.add("Shape", "x"), graph.add("Shape", "x")))
    conv = graph.add("Conv", graph.add("Reshape", "x", shape), "a.weight", kernel_shape=[3], pads=[1, 1])
    graph.add("BatchNormalization", graph.add(op, graph.add("Relu", conv)), "g", "b", "m", "v", output="y")
    return graph


def test_axes_that_inference_does_not_tell_follow_from_the_convolution():
    graph = reshaped("Relu")
    folded = copy.deepcopy(graph)
    assert graph.producer("y").input[0] not in graph.ranks()
    fold_norms(folded)
    assert "BatchNormalization" not in [node.op_type for node in folded.nodes]
    np.testing.assert_allclose(run(folded), run(graph), atol=1e-6)


def test_a_norm_whose_axes_nobody_can_tell_stays():
    graph = reshaped("Softsign")
    fold_norms(graph)
    assert "BatchNormalization" in [node.op_type for node in graph.nodes]
