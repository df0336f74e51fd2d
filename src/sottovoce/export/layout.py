"""What engines do late or wrong, stated in the graph: the order in memory that pooling reads, the ends of windows.

Integer convolutions write channels last; sums over time and a softmax want time last. OpenVINO turns the float tensors
in between, one before every reduction. A Reshape to the same shape, which only time-last order can do, turns the codes
instead, a quarter of the bytes and once; to onnxruntime it is nothing.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from sottovoce.export.graph import Graph, attributes, replace


def turn_codes(graph: Graph) -> None:
    """Let what is computed in float between the last roundings and the output read codes with time last, in place."""
    ranks = graph.ranks()
    for node in _last_roundings(graph):
        axes = ranks.get(node.input[0], 0)
        if axes > 2:
            same = graph.constant(np.array([0] * (axes - 1) + [-1], dtype=np.int64))
            turned = graph.add("Reshape", node.input[0], same)
            read = graph.add("DequantizeLinear", turned, *node.input[1:])
            graph.redirect(node.output[0], read, keep=_integer_readers(graph, node.output[0]))


def close_windows(graph: Graph) -> None:
    """Give average pooling whose last window may be cut short (`ceil_mode`) that window's rest as padding, in place.

    The same means of the same values. Without it OpenVINO 2026.4 reads beyond the input where that is shorter than one
    window: its embeddings of CAM++ were garbage for recordings under 2 s.
    """
    for node in [node for node in graph.nodes if node.op_type == "AveragePool"]:
        known = attributes(node)
        kernel = list(known["kernel_shape"])
        apart = list(known.get("strides", [1] * len(kernel))) == kernel and not any(known.get("pads", [0]))
        if known.get("ceil_mode") and apart and not known.get("count_include_pad"):
            known.update(ceil_mode=0, pads=[0] * len(kernel) + [length - 1 for length in kernel])
            replace(node, "AveragePool", list(node.input), **known)


def _last_roundings(graph: Graph) -> list[NodeProto]:
    """The DequantizeLinear nodes from which a way leads to an output past no other."""
    makers = {name: node for node in graph.nodes for name in node.output}
    found: dict[str, NodeProto] = {}
    waiting, known = list(graph.outputs), set(graph.outputs)
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.op_type == "DequantizeLinear":
            found[node.output[0]] = node
        elif node is not None:
            waiting += set(node.input) - known
            known |= set(node.input)
    return [found[name] for name in sorted(found)]


def _integer_readers(graph: Graph, tensor: str) -> list[NodeProto]:
    """Convolutions, and nodes whose output is rounded at once."""
    return [
        node
        for node in graph.consumers(tensor)
        if node.op_type == "Conv"
        or any(reader.op_type == "QuantizeLinear" for name in node.output for reader in graph.consumers(name))
    ]
