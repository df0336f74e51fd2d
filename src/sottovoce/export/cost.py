"""What a file costs to run: MACs and bit-operations of its layers, counted on the graph itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from sottovoce.audio.features import FrontEndConfig
from sottovoce.bits.formats import Coded
from sottovoce.export.graph import Graph, session
from sottovoce.export.weights import CODES

FLOAT_BITS, ROUNDED_BITS = 32, 8
WEIGHT = ".weight"


@dataclass(frozen=True)
class Cost:
    """Of one layer: shape of its weight, MACs, and bits of the weights and activations that are multiplied."""

    shape: tuple[int, ...]
    macs: int
    weight_bits: int
    activation_bits: int

    @property
    def bit_operations(self) -> int:
        """MACs × bits of weights × bits of activations (BOPs; 32 bits where a side is in float)."""
        return self.macs * self.weight_bits * self.activation_bits


def costs(graph: Graph, coded: Mapping[str, Coded], front_end: FrontEndConfig, seconds: float) -> dict[str, Cost]:
    """Cost of every convolution and linear layer for `seconds` of audio, by layer name.

    Products of two tensors that both depend on the input, and with weights that several nodes share, are left out.
    The sizes are those that onnxruntime computes when it runs the graph on so much silence. Biases, norms, pooling,
    the decoding of weights and the front end are not counted. `graph` gets further nodes.
    """
    nodes = [node for node in graph.nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    placed = [(layer, node) for node in nodes if (layer := _layer(graph, node)) is not None]
    sizes = _sizes(graph, [node for _, node in placed], front_end, seconds)
    found: dict[str, Cost] = {}
    for (layer, node), size in zip(placed, sizes, strict=True):
        entry = coded.get(layer)
        shape = tuple(entry.shape if entry else graph.constants[layer + WEIGHT].shape)
        columns = _columns(graph, node) or shape[1]
        macs = size * columns * int(np.prod(shape[2:])) + (found[layer].macs if layer in found else 0)
        found[layer] = Cost(shape, macs, entry.bits if entry else FLOAT_BITS, _activation_bits(graph, node))
    return found


def _columns(graph: Graph, node: NodeProto) -> int | None:
    """Columns of the part of a weight that a node multiplies with, where the file cuts it; None where it is whole."""
    scaled = graph.producer(node.input[1])
    cut = graph.producer(scaled.input[0]) if scaled is not None and scaled.op_type == "DequantizeLinear" else None
    if cut is None or cut.op_type != "Split":
        return None
    return int(graph.constants[cut.input[1]][list(cut.output).index(scaled.input[0])])


def _layer(graph: Graph, node: NodeProto) -> str | None:
    """The layer whose weight a node multiplies with, through whatever decodes it; None where it is no weight."""
    makers = {name: maker for maker in graph.nodes for name in maker.output}
    waiting, seen, layer = [node.input[1]], {node.input[1]}, None
    while waiting:
        name = waiting.pop()
        for suffix in (CODES, WEIGHT):
            if name in graph.constants and name.endswith(suffix):
                layer = str(name.removesuffix(suffix))
        if name in graph.inputs:
            return None
        waiting += [other for other in makers[name].input if other not in seen] if name in makers else []
        seen.update(waiting)
    return layer


def _activation_bits(graph: Graph, node: NodeProto) -> int:
    """8 where an engine can compute in integers: both factors come out of a DequantizeLinear."""
    makers = [graph.producer(name) for name in node.input[:2]]
    integers = node.op_type == "Conv" and all(m is not None and m.op_type == "DequantizeLinear" for m in makers)
    return ROUNDED_BITS if integers else FLOAT_BITS


def _sizes(graph: Graph, placed: Sequence[NodeProto], front_end: FrontEndConfig, seconds: float) -> list[int]:
    """Number of outputs of each node, by running the graph."""
    samples = round(seconds * front_end.rate)
    ((name, shape),) = graph.inputs.items()
    length = samples if len(shape) == 2 else front_end.frames(samples)
    silence = np.zeros([1, *shape[1:-1], length], dtype=np.float32)
    outputs = [graph.add("Cast", graph.add("Shape", node.output[0]), to=TensorProto.FLOAT) for node in placed]
    found = session(graph.model(extra_outputs=outputs)).run(outputs, {name: silence})
    return [int(np.prod(axes)) for axes in found]
