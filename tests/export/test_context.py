"""Convolutions over [x; expanded c] in two parts: the same numbers, computed once where they are the same."""

import numpy as np
import onnxruntime
import pytest

from sottovoce.export.context import cut, resolve, split_contexts
from sottovoce.export.graph import Graph

CHANNELS, ROWS = 6, 5


def attention(seed: int = 0, **settings: object) -> Graph:
    """x (1, CHANNELS, frames) → convolution of [x; mean; deviation]."""
    draw = np.random.default_rng(seed)
    graph = Graph()
    graph.inputs, graph.outputs = {"x": [1, CHANNELS, "frames"]}, {"y": [1, ROWS, "frames"]}
    mean = graph.add("ReduceMean", "x", axes=[-1], keepdims=1)
    distance = graph.add("Sub", "x", mean)
    total = graph.add("ReduceSum", graph.add("Mul", distance, distance), graph.constant(np.array([-1])), keepdims=1)
    variance = graph.add(
        "Add", graph.add("Div", total, graph.constant(np.float32(9))), graph.constant(np.float32(1e-7))
    )
    shape = graph.add("Shape", "x")
    expanded = [graph.add("Expand", tensor, shape) for tensor in (mean, graph.add("Sqrt", variance))]
    weight = draw.standard_normal((ROWS, 3 * CHANNELS, 1)).astype(np.float32)
    graph.constant(weight, "pool.weight")
    graph.constant(draw.standard_normal(ROWS).astype(np.float32), "pool.bias")
    joined = graph.add("Concat", "x", *expanded, axis=1)
    graph.add("Conv", joined, "pool.weight", "pool.bias", output="y", **{"kernel_shape": [1], **settings})
    return graph


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_two_parts_give_what_one_gave(offset: float) -> None:
    x = (np.random.default_rng(1).standard_normal((1, CHANNELS, 40)) + offset).astype(np.float32)
    graph = attention()
    before = run(graph, x)
    parts = split_contexts(graph, {"pool.weight"})
    assert {name: (part.first, part.last) for name, part in parts.items()} == {
        "pool.frames.weight": (0, CHANNELS),
        "pool.context.weight": (CHANNELS, 3 * CHANNELS),
    }
    np.testing.assert_allclose(run(graph, x), before, rtol=0, atol=2e-5)
    kinds = [node.op_type for node in graph.nodes]
    assert "Expand" not in kinds
    assert kinds.count("ReduceSumSquare") == 1
    assert kinds.count("Conv") == 2


def test_what_never_changes_has_no_negative_variance() -> None:
    x = np.full((1, CHANNELS, 50), 7.7, dtype=np.float32)
    graph = attention()
    split_contexts(graph, {"pool.weight"})
    assert np.isfinite(run(graph, x)).all()


@pytest.mark.parametrize("settings", [{"strides": [2]}, {"pads": [1, 1]}, {"group": 3}])
def test_other_convolutions_stay(settings: dict[str, object]) -> None:
    graph = attention(**settings)
    if "group" in settings:
        graph.constants["pool.weight"] = graph.constants["pool.weight"][:, :CHANNELS]
    assert split_contexts(graph, {"pool.weight"}) == {}


def test_weights_that_are_not_coded_stay() -> None:
    assert split_contexts(attention(), {"other.weight"}) == {}


def test_cuts_of_constants_are_resolved() -> None:
    graph, parts = attention(), split_contexts(attention(), {"pool.weight"})
    weight = graph.constants["pool.weight"]
    first, second = cut(graph, "pool.weight", list(parts.values()))
    resolve(graph)
    assert not [node for node in graph.nodes if node.op_type == "Split"]
    np.testing.assert_array_equal(np.concatenate([graph.constants[first], graph.constants[second]], axis=1), weight)
