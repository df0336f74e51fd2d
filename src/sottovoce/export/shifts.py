"""What rounding activations does to the mean of every layer's output, and how biases take it back.

A dead zone above zero and a clip move the mean of a channel, always to the same side, so that over many layers such
errors add up where those of rounding to either side cancel out. (Bias correction of arXiv 1906.04721, section 4.2, for
activations in the place of weights.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from sottovoce.export.activations import add_to_bias
from sottovoce.export.graph import Array, Graph, attributes, session

ROUNDED = "~rounded/"  # prefix of tensors behind a rounding, beside the float ones of the same name
LAYERS = ("Conv", "Gemm")


def mean_shifts(plain: Graph, rounded: Graph, waves: Sequence[NDArray[np.float32]]) -> dict[str, Array]:
    """Mean over recordings and positions of what rounding adds to each layer's output: (rows,) float32 by output name.

    plain, rounded: one graph before and after `round_tensors`, weights still in float.   waves: recordings, (samples,)
    each. Every layer is judged alone: what it reads is computed with rounding from float outputs of the layers before
    it, so that one pass over the recordings suffices and each layer corrects only what happened since the last.
    """
    both, touched = _side_by_side(plain, rounded)
    layers = [node for node in plain.nodes if _is_layer(plain, node) and node.output[0] in touched]
    if not layers:
        return {}
    turned = _turned(plain)
    shifts = {node.output[0]: _shift(both, node, touched[node.output[0]], node.input[0] in turned) for node in layers}
    both.outputs = {name: ["rows"] for name in shifts.values()}
    both.prune()
    runner = session(both.model())
    (name,) = both.inputs
    total = [np.zeros(1)] * len(shifts)
    for wave in waves:
        total = [old + new for old, new in zip(total, runner.run(None, {name: wave[None]}), strict=True)]
    return {layer: (sums / len(waves)).astype(np.float32) for layer, sums in zip(shifts, total, strict=True)}


def remove_shifts(graph: Graph, shifts: dict[str, Array]) -> None:
    """Subtract shifts, (rows,) by output name, from the biases of the layers; a layer without a bias gets one."""
    for node in graph.nodes:
        if node.output[0] in shifts:
            add_to_bias(graph, node, -shifts[node.output[0]])


def _is_layer(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in LAYERS and node.input[1] in graph.constants


def _side_by_side(plain: Graph, rounded: Graph) -> tuple[Graph, dict[str, str]]:
    """Both graphs as one; returns it and, by a layer's output name, what the layer reads in the rounded graph.

    The rounded side has no layers: it goes on with their float outputs.
    """
    both = copy.deepcopy(rounded)  # which knows all names
    both.nodes, both.constants = copy.deepcopy(plain.nodes), {**rounded.constants, **plain.constants}
    touched: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for node in rounded.sorted():
        if _is_layer(rounded, node):
            if node.input[0] in renamed:
                touched[node.output[0]] = renamed[node.input[0]]
            moved = _moved_bias(plain, rounded, node)
            if moved is not None:
                renamed[node.output[0]] = both.add("Add", node.output[0], both.constant(moved))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") or any(name in renamed for name in node.input):
            copied = NodeProto()
            copied.CopyFrom(node)
            renamed.update({name: ROUNDED + name for name in node.output})
            copied.input[:] = [renamed.get(name, name) for name in node.input]
            copied.output[:] = [renamed[name] for name in node.output]
            copied.name = ""
            both.nodes.append(copied)
    return both, touched


def _moved_bias(plain: Graph, rounded: Graph, layer: NodeProto) -> Array | None:
    """By how much rounding was told to move a layer's output, shaped to be added to it; None for not at all."""
    if len(layer.input) < 3:
        return None
    name, weight = layer.input[2], rounded.constants[layer.input[1]]
    moved = np.asarray(rounded.constants[name] - plain.constants.get(name, np.float32(0)))
    return moved.reshape(-1, *[1] * (weight.ndim - 2)) if moved.any() else None


def _turned(graph: Graph) -> set[str]:
    """The tensors whose last axis is not time: behind a Transpose that moves the last axis, and not behind two."""
    found: set[str] = set()
    for node in graph.sorted():
        moved = False
        if node.op_type == "Transpose":
            perm = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), [0])
            moved = perm[-1] != len(perm) - 1
        read = next((name for name in node.input if name not in graph.constants), "")
        if (read in found) != moved:
            found.update(node.output)
    return found


def _shift(graph: Graph, layer: NodeProto, rounded: str, turned: bool) -> str:
    """Add nodes that compute the mean of what a layer makes of the difference of its inputs: (rows,).

    turned: time is the last axis but one of what the layer reads, not the last.
    """
    difference = graph.add("Sub", rounded, layer.input[0])
    if layer.op_type == "Gemm":
        moved = graph.add("Gemm", difference, layer.input[1], **attributes(layer))
        return graph.add("ReduceMean", moved, axes=[0], keepdims=0)
    weight = graph.constants[layer.input[1]]
    time = weight.ndim - (2 if turned and weight.ndim > 3 else 1)
    mean = graph.add("ReduceMean", difference, axes=[time], keepdims=1)
    summed = graph.constant(weight.sum(axis=time, keepdims=True))
    moved = graph.add("Conv", mean, summed, **_without_time(layer, time - 2))
    return graph.add("ReduceMean", moved, axes=[0, *range(2, weight.ndim)], keepdims=0)


def _without_time(conv: NodeProto, place: int) -> dict[str, object]:
    """Attributes of a convolution over its axes but one; there, where the input is a mean, nothing moves."""
    numbers = attributes(conv)
    axes = len(numbers["kernel_shape"])
    for name, still in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in numbers:
            values = list(numbers[name])
            values[place::axes] = [still] * len(values[place::axes])
            numbers[name] = values
    return numbers
