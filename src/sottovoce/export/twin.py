"""Other forms of a file, made from it alone: with plain int8 weights, which it must equal bit for bit, and in float."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto

from sottovoce.export import metadata as about
from sottovoce.export.context import resolve
from sottovoce.export.graph import Array, Graph
from sottovoce.export.joins import part_codes
from sottovoce.export.weights import CODES, look_ups, read


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Decode every weight with NumPy and store it as an ordinary initializer, int8 or, for float operators, float32.

    For engines that dislike the look-up, and as the reference in tests and benchmarks.
    """
    graph, known = Graph.of(model), about.read(model)
    ends = look_ups(graph)
    for layer, coded in read(graph, known["layers"]).items():
        if ends[layer] != layer + CODES:
            integer = all(node.op_type in ("DequantizeLinear", "Split") for node in graph.consumers(ends[layer]))
            values = coded.integers().astype(np.int8 if integer else np.float32)
            graph.redirect(ends[layer], graph.constant(np.ascontiguousarray(values), f"{layer}.weight"))
    resolve(graph)
    graph.prune()
    twin = graph.model()
    twin.producer_name = model.producer_name
    twin.metadata_props.extend(model.metadata_props)
    return twin


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 graph behind a file: the decoded weights, and no rounding of activations. A peer for benchmarks."""
    graph = Graph.of(plain(model))
    part_codes(graph)
    for node in list(graph.nodes):
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
            integers, scale = graph.constants[node.input[0]], _value(graph, node.input[1])
            zero = graph.constants[node.input[2]].astype(np.float32) if len(node.input) > 2 else np.float32(0)
            rows = scale.reshape(-1, *[1] * (integers.ndim - 1)) if scale.ndim else scale
            graph.redirect(node.output[0], graph.constant((integers.astype(np.float32) - zero) * rows))
    for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        graph.redirect(node.output[0], _clipped(graph, node))
    for node in [node for node in graph.nodes if node.op_type == "DequantizeLinear"]:
        graph.redirect(node.output[0], node.input[0])
    graph.prune()
    return graph.model()


def _value(graph: Graph, tensor: str) -> Array:
    """A constant, or the product of constants."""
    if tensor in graph.constants:
        return graph.constants[tensor]
    node = graph.producer(tensor)
    assert node is not None
    assert node.op_type == "Mul"
    left, right = (_value(graph, name) for name in node.input)
    return np.asarray(left * right, dtype=np.float32)


def _clipped(graph: Graph, rounding: NodeProto) -> str:
    """The tensor before rounding; behind a ReLU where the grid begins at zero and so stood for one."""
    producer = graph.producer(rounding.input[0])
    stood = (
        producer is not None and producer.op_type in ("Conv", "Add") and not graph.constants[rounding.input[2]].any()
    )
    return graph.add("Relu", rounding.input[0]) if stood else str(rounding.input[0])
