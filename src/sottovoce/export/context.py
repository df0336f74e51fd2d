"""A convolution that also reads what is the same at every frame, in two parts, each computed as often as it changes.

    W · [x; c] + b  =  (W_x · x + b)  +  W_c · c        x (channels, frames), c (channels, 1)

Attention over frames that sees the whole recording (ECAPA-TDNN, section 3.1) is such a convolution: two thirds of its
products are the same at every frame. What engines would repeat, join and multiply for each frame they compute once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from sottovoce.export.graph import Array, Graph, attributes

WEIGHT = ".weight"
PARTS = ".frames", ".context"  # of a layer's name


@dataclass(frozen=True)
class Part:
    """Columns `first` to `last` (exclusive) of the weight named `whole`."""

    whole: str
    first: int
    last: int


def split_contexts(graph: Graph, weights: Collection[str]) -> dict[str, Part]:
    """Compute 1 × 1 convolutions of [x; expanded c] in two parts, wherever there are any; returns their new weights.

    graph: FEATURES → EMBEDDING, in float; changed.   weights: names of those that will be coded.   returns: by the
    name of the part, a new constant. The deviation inside c is computed from one pass over x.
    """
    shapes = graph.shapes() if any(node.op_type == "Expand" for node in graph.nodes) else {}
    found: dict[str, Part] = {}
    for conv in [node for node in graph.nodes if node.op_type == "Conv" and node.input[1] in weights]:
        frames, context = _halves(graph, conv, shapes)
        if frames and context:
            found.update(_split(graph, conv, frames, context, shapes))
            for tensor in context:
                _one_pass(graph, tensor, shapes)
    graph.prune()
    return found


def _halves(graph: Graph, conv: NodeProto, shapes: Mapping[str, list[int | None]]) -> tuple[list[str], list[str]]:
    """What a convolution reads at every frame, and behind it what it reads once; ([], []) where it does not."""
    joined = graph.producer(conv.input[0])
    numbers, weight = attributes(conv), graph.constants[conv.input[1]]
    single = numbers.get("group", 1) == 1 and weight[0, 0].size == 1
    still = set(numbers.get("strides", [1])) == {1} and not any(numbers.get("pads", [0]))
    if joined is None or joined.op_type != "Concat" or not single or not still:
        return [], []
    if attributes(joined)["axis"] not in (1, 1 - weight.ndim):
        return [], []
    once = [_once(graph, name, shapes) for name in joined.input]
    count = next((index for index, name in enumerate(once) if name is not None), len(once))
    context = [name for name in once[count:] if name is not None]
    known = all(len(shapes.get(name, [])) > 1 and shapes[name][1] for name in [*joined.input[:count], *context])
    return (list(joined.input[:count]), context) if known and count + len(context) == len(once) else ([], [])


def _once(graph: Graph, tensor: str, shapes: Mapping[str, list[int | None]]) -> str | None:
    """The tensor of length 1 on every axis behind the channels that a tensor repeats; None where it repeats none."""
    node = graph.producer(tensor)
    if node is None or node.op_type != "Expand":
        return None
    axes = shapes.get(node.input[0], [])
    return str(node.input[0]) if len(axes) > 2 and all(length == 1 for length in axes[2:]) else None


def _split(
    graph: Graph, conv: NodeProto, frames: list[str], context: list[str], shapes: Mapping[str, list[int | None]]
) -> dict[str, Part]:
    whole, given = conv.input[1], conv.output[0]
    weight = graph.constants[whole]
    middle = sum(shapes[name][1] or 0 for name in frames)
    parts = [Part(whole, 0, middle), Part(whole, middle, weight.shape[1])]
    names = [whole.removesuffix(WEIGHT) + part + WEIGHT for part in PARTS]
    for name, part in zip(names, parts, strict=True):
        graph.constant(np.ascontiguousarray(weight[:, part.first : part.last]), name)
    conv.input[0], conv.input[1], conv.output[0] = _join(graph, frames), names[0], graph.fresh()
    apart = [graph.add("Identity", name) for name in context]  # what is rounded here is not where it comes from
    once = graph.add("Conv", _join(graph, apart), names[1], kernel_shape=[1] * (weight.ndim - 2))
    graph.add("Sum", conv.output[0], once, output=given)  # an Add would be rounded: see `activations`
    return dict(zip(names, parts, strict=True))


def _join(graph: Graph, tensors: list[str]) -> str:
    return tensors[0] if len(tensors) == 1 else graph.add("Concat", *tensors, axis=1)


def _one_pass(graph: Graph, tensor: str, shapes: Mapping[str, list[int | None]]) -> None:
    """Σ(x - mean)² as Σx² - n · mean², where a context tensor is computed from it.

    In float32 that is right to about a millionth of Σx²; the tensor is rounded to 8 bits where it is used.
    """
    node = graph.producer(tensor)
    while node is not None and node.op_type in ("Sqrt", "Add", "Max", "Clip", "Div"):
        node = graph.producer(node.input[0])
    if node is None or node.op_type != "ReduceSum":
        return
    square = graph.producer(node.input[0])
    distance = graph.producer(square.input[0]) if square is not None and square.op_type == "Mul" else None
    if distance is None or square is None or distance.op_type != "Sub" or square.input[0] != square.input[1]:
        return
    x, mean = distance.input
    maker = graph.producer(mean)
    if maker is None or maker.op_type != "ReduceMean" or maker.input[0] != x or len(shapes.get(x, [])) != 3:
        return
    if not np.isin(graph.constants.get(node.input[1], np.array([0])), (2, -1)).all():
        return
    axis = graph.constant(np.array(2, dtype=np.int64))
    length = graph.add("Cast", graph.add("Gather", graph.add("Shape", x), axis), to=1)
    squares = graph.add("ReduceSumSquare", x, axes=[2], keepdims=1)
    rest = graph.add("Sub", squares, graph.add("Mul", graph.add("Mul", mean, mean), length))
    given = node.output[0]
    graph.remove(node)
    graph.add("Max", rest, graph.constant(np.float32(0)), output=given)


def cut(graph: Graph, integers: str, parts: list[Part]) -> list[str]:
    """Nodes that cut a decoded weight into its parts; returns the names of these."""
    sizes = graph.constant(np.array([part.last - part.first for part in parts], dtype=np.int64))
    names = [graph.fresh() for _ in parts]
    graph.nodes.append(helper.make_node("Split", [integers, sizes], names, axis=1))
    return names


def resolve(graph: Graph) -> None:
    """Cut constants that a Split would cut when the file is loaded."""
    for node in [node for node in graph.nodes if node.op_type == "Split" and node.input[0] in graph.constants]:
        sizes: Array = graph.constants[node.input[1]]
        cuts = np.split(graph.constants[node.input[0]], np.cumsum(sizes)[:-1], axis=attributes(node)["axis"])
        for name, array in zip(node.output, cuts, strict=True):
            graph.constants[name] = np.ascontiguousarray(array)
        graph.remove(node)
