"""A graph of somebody else in our form: features → embedding, constants folded, every weight `<layer>.weight`.

Afterwards a layer is a Conv, a Gemm (weight (rows, columns), transposed by the operator) or a MatMul whose right side
is a Transpose of its weight. All other operators stay as they came.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnx import NodeProto, helper

from sottovoce.errors import BadModel
from sottovoce.export.graph import Array, Graph, attributes, replace
from sottovoce.export.norms import fold_norms_behind_relu
from sottovoce.export.trace import EMBEDDING, FEATURES, fold_norms, simplify

LARGEST_FOLDED = 2**24  # numbers that folding a constant may make
LARGEST_SHAPE = 64  # numbers of a shape or of places
RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
)
THEIRS = "~."  # in front of the file's own names
WEIGHT, BIAS = ".weight", ".bias"


def standardise(
    graph: Graph, taken: str, turned: bool, given: str, rows: int, counts: Sequence[tuple[str, int]]
) -> None:
    """Bring a graph into our form, in place.

    taken, given: its input and its output.   turned: whether the input is (batch, frames, rows).   counts: inputs that
    hold the number of frames, with their number of axes. Raises BadModel for operators no engine would know.
    """
    taken, given, counts = THEIRS + taken, THEIRS + given, [(THEIRS + name, axes) for name, axes in counts]
    _set_apart(graph)
    _drop_dropout(graph)
    simplify(graph)
    _ends(graph, taken, turned, given, rows, counts)
    fold_constants(graph)
    _separate_pads(graph)
    _matrix_products(graph)
    name_layers(graph)
    fold_norms(graph, signed=True)
    _fold_affine(graph)
    fold_norms_behind_relu(graph, {})
    _cancel_transposes(graph)
    graph.prune()


def layer_nodes(graph: Graph) -> dict[str, NodeProto]:
    """The node of every layer by its name, in order of execution; of a weight that several nodes read, none."""
    found: dict[str, NodeProto] = {}
    for node in graph.sorted():
        weight = weight_of(graph, node)
        if weight is not None and weight.endswith(WEIGHT):
            found[weight.removesuffix(WEIGHT)] = node
    return found


def weight_of(graph: Graph, node: NodeProto) -> str | None:
    """The constant that a Conv, Gemm or MatMul multiplies with and no other node reads, in our form; else None."""
    name = node.input[1] if node.op_type in ("Conv", "Gemm", "MatMul") else ""
    if node.op_type == "MatMul":
        turn = graph.producer(name)
        name = turn.input[0] if turn is not None and turn.op_type == "Transpose" else ""
    array = graph.constants.get(name)
    if array is None or array.dtype != np.float32 or array.ndim not in (2, 3, 4) or array.size < 2:
        return None
    return name if len(graph.consumers(name)) == 1 else None


def fold_constants(graph: Graph, shapes_only: bool = False) -> None:
    """Compute every node that depends on constants alone, with onnxruntime. Raises BadModel.

    shapes_only: keep only what is a shape or a place, whole numbers and few, so that weights stay packed.
    """
    known, foldable = set(graph.constants), []
    for node in graph.sorted():
        if node.op_type not in RANDOM and node.input and all(name in known or not name for name in node.input):
            foldable.append(node)
            known.update(node.output)
    made = {id(node) for node in foldable}
    read = {name for node in graph.nodes if id(node) not in made for name in node.input} | set(graph.outputs)
    wanted = [name for node in foldable for name in node.output if name in read]
    if not wanted:
        return
    part = Graph()
    part.nodes, part.constants, part.opset = foldable, graph.constants, graph.opset
    found = {
        name: array for name, array in zip(wanted, run(part, wanted, {}), strict=True) if _is_kept(array, shapes_only)
    }
    graph.constants.update(found)
    graph.nodes = [node for node in graph.nodes if not set(node.output) & found.keys()]
    graph.prune()


def _is_kept(array: Array, shapes_only: bool) -> bool:
    if shapes_only:
        return array.dtype == np.int64 and array.size <= LARGEST_SHAPE
    return array.size <= LARGEST_FOLDED


def run(graph: Graph, wanted: Sequence[str], fed: dict[str, Array]) -> list[Array]:
    """What a graph computes, once. Raises BadModel when onnxruntime cannot."""
    try:
        model = graph.typed_model(wanted, fed).SerializeToString()
        session = onnxruntime.InferenceSession(model, quiet(), providers=["CPUExecutionProvider"])
        return [np.asarray(array) for array in session.run(list(wanted), fed)]
    except Exception as error:  # onnxruntime has no public base class for its errors
        raise BadModel(f"the graph cannot be run ({' '.join(str(error).split())[:200]}); export it again") from None


def quiet() -> onnxruntime.SessionOptions:
    """Options of a session that computes in float, on one thread, and prints nothing."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def _drop_dropout(graph: Graph) -> None:
    """Dropout does nothing outside training."""
    for node in [node for node in graph.nodes if node.op_type == "Dropout"]:
        graph.remove(node)
        graph.redirect(node.output[0], node.input[0])


def _ends(graph: Graph, taken: str, turned: bool, given: str, rows: int, counts: Sequence[tuple[str, int]]) -> None:
    """Let the graph read FEATURES (1, rows, frames) and give EMBEDDING (1, dim)."""
    graph.inputs = {FEATURES: [1, rows, "frames"]}
    graph.redirect(taken, graph.add("Transpose", FEATURES, perm=[0, 2, 1]) if turned else FEATURES)
    for name, axes in counts:
        frames = graph.add("Gather", graph.add("Shape", FEATURES), graph.constant(np.full([1] * axes, 2, np.int64)))
        graph.redirect(name, frames)
    graph.add("Flatten", given, axis=1, output=EMBEDDING)
    graph.outputs = {EMBEDDING: [1, "dim"]}
    graph.prune()


def _set_apart(graph: Graph) -> None:
    """Give every tensor of the file a name that no tensor of ours has, and that `shorten` may change."""
    for node in graph.nodes:
        node.input[:] = [name and THEIRS + name for name in node.input]
        node.output[:] = [name and THEIRS + name for name in node.output]
    graph.constants = {THEIRS + name: array for name, array in graph.constants.items()}
    graph.inputs = {THEIRS + name: shape for name, shape in graph.inputs.items()}
    graph.outputs = {THEIRS + name: shape for name, shape in graph.outputs.items()}


def _separate_pads(graph: Graph) -> None:
    """Padding that differs between the two sides of an axis becomes a Pad of its own in front of the convolution."""
    for conv in [node for node in graph.nodes if node.op_type == "Conv"]:
        known = attributes(conv)
        pads = [int(number) for number in known.get("pads", [])]
        half = len(pads) // 2
        if pads[:half] == pads[half:]:
            continue
        amounts = graph.constant(np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], dtype=np.int64))
        conv.input[0] = graph.add("Pad", conv.input[0], amounts)
        _set(conv, pads=[0] * len(pads))


def _set(node: NodeProto, **changed: object) -> None:
    kept = {name: value for name, value in attributes(node).items() if name not in changed}
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in {**kept, **changed}.items())


def _matrix_products(graph: Graph) -> None:
    """Gemm with its weight as (rows, columns) and factors 1; MatMul with a constant as Gemm, Conv or by a Transpose."""
    ranks = graph.ranks()
    for node in list(graph.nodes):
        if node.op_type == "Gemm" and graph.constants.get(node.input[1]) is not None:
            _plain_gemm(graph, node)
        elif node.op_type == "MatMul":
            left, right = (graph.constants.get(name) for name in node.input)
            if right is not None and right.ndim == 2:
                _from_right(graph, node, right, ranks.get(node.input[0], 0))
            elif left is not None and left.ndim == 2 and ranks.get(node.input[1]) == 3:
                weight = graph.constant(np.ascontiguousarray(left[:, :, None]), graph.fresh())
                replace(node, "Conv", [node.input[1], weight], kernel_shape=[1])


def _plain_gemm(graph: Graph, node: NodeProto) -> None:
    known = attributes(node)
    if known.get("transA"):
        return
    weight = graph.constants[node.input[1]]
    weight = weight if known.get("transB") else weight.T
    inputs = [
        node.input[0],
        graph.constant(np.ascontiguousarray(weight * np.float32(known.get("alpha", 1.0))), graph.fresh()),
    ]
    if len(node.input) > 2:
        bias = graph.constants.get(node.input[2])
        if bias is None:
            return
        flat = np.broadcast_to(bias * np.float32(known.get("beta", 1.0)), (1, len(weight)))[0]
        inputs.append(graph.constant(np.array(flat, dtype=np.float32), graph.fresh()))
    replace(node, "Gemm", inputs, transB=1)


def _from_right(graph: Graph, node: NodeProto, right: Array, rank: int) -> None:
    weight = graph.constant(np.ascontiguousarray(right.T), graph.fresh())
    if rank != 2:
        node.input[1] = graph.add("Transpose", weight, perm=[1, 0])
        return
    inputs, output = [node.input[0], weight], node.output[0]
    readers = graph.consumers(output)
    if len(readers) == 1 and readers[0].op_type == "Add":
        bias = next((graph.constants[name] for name in readers[0].input if name in graph.constants), None)
        if bias is not None and bias.size in (1, len(right.T)):
            inputs.append(graph.constant(np.array(np.broadcast_to(bias.reshape(-1), len(right.T))), graph.fresh()))
            graph.remove(readers[0])
            node.output[0] = readers[0].output[0]
    replace(node, "Gemm", inputs, transB=1)


def name_layers(graph: Graph) -> None:
    """Name the weight and bias of every layer after what the file calls them, or after their node."""
    taken: set[str] = set()
    for index, node in enumerate(graph.sorted()):
        weight = weight_of(graph, node)
        if weight is None:
            continue
        layer = _unique(_layer_name(weight, node, index), taken)
        _rename(graph, weight, layer + WEIGHT)
        if len(node.input) > 2 and node.input[2] in graph.constants:
            bias = graph.constants[node.input[2]]
            node.input[2] = graph.constant(bias, layer + BIAS)


def _layer_name(weight: str, node: NodeProto, index: int) -> str:
    """`a.b` of the weight `a.b.weight` or of the node `/a/a.b/Conv`."""
    if weight.endswith(WEIGHT):
        return _clean(weight.removeprefix(THEIRS).removesuffix(WEIGHT))
    parts = [part for part in node.name.split("/")[:-1] if part]
    path = ""
    for part in parts:
        path = part if part.startswith(f"{path}.") else f"{path}.{part}".strip(".")
    return _clean(path) or f"{node.op_type.lower()}{index}"


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip(".")


def _unique(name: str, taken: set[str]) -> str:
    tried, count = name, 1
    while tried in taken:
        count += 1
        tried = f"{name}.{count}"
    taken.add(tried)
    return tried


def _rename(graph: Graph, old: str, new: str) -> None:
    if old != new:
        if new in graph.constants:  # another layer's weight that has this name and gets a new one in its turn
            _rename(graph, new, graph.fresh())
        graph.constants[new] = graph.constants.pop(old)
        graph.redirect(old, new)


def _fold_affine(graph: Graph) -> None:
    """A product and then a sum with constants for each channel, directly behind a convolution, go into it."""
    for node in graph.sorted():
        if node.op_type not in ("Mul", "Add"):
            continue
        value = next((name for name in node.input if name in graph.constants), None)
        other = next((name for name in node.input if name not in graph.constants), None)
        conv = graph.producer(other) if other is not None and value is not None else None
        if conv is None or value is None or conv.op_type != "Conv" or len(graph.consumers(conv.output[0])) > 1:
            continue
        weight = weight_of(graph, conv)
        array = graph.constants[value]
        if weight is None or not _one_a_channel(array, graph.constants[weight]):
            continue
        _fold_one(graph, conv, node, weight, array.reshape(-1))


def _one_a_channel(array: Array, weight: Array) -> bool:
    shape = (1,) * (weight.ndim - array.ndim) + array.shape
    return array.size == 1 or shape in ((1, len(weight), *[1] * (weight.ndim - 2)),)


def _fold_one(graph: Graph, conv: NodeProto, node: NodeProto, weight: str, array: Array) -> None:
    bias = graph.constants[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(graph.constants[weight]), np.float32)
    if node.op_type == "Mul":
        graph.constants[weight] = graph.constants[weight] * array.reshape(-1, *[1] * (graph.constants[weight].ndim - 1))
        bias = bias * array
    else:
        bias = bias + array
    named = graph.constant(np.asarray(bias, dtype=np.float32), weight.removesuffix(WEIGHT) + BIAS)
    conv.input[:] = [*conv.input[:2], named]
    graph.remove(node)
    graph.redirect(node.output[0], conv.output[0])


def _cancel_transposes(graph: Graph) -> None:
    """Two transpositions in a row that undo each other read what lies before both."""
    for node in [node for node in graph.nodes if node.op_type == "Transpose"]:
        first = graph.producer(node.input[0])
        if first is not None and first.op_type == "Transpose":
            before, after = (list(attributes(one)["perm"]) for one in (first, node))
            if [before[axis] for axis in after] == sorted(before) and node.output[0] not in graph.outputs:
                graph.redirect(node.output[0], first.input[0])
