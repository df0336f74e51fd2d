"""A torch encoder → a float graph with batch norms folded into the convolutions before them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from sottovoce.errors import BadInput
from sottovoce.export.graph import OPSET, Graph, attributes

if TYPE_CHECKING:
    from torch import nn

FEATURES, EMBEDDING = "features", "embedding"
KEEP_RANK = ("Relu", "Add", "Mul", "Concat")  # operators on one number of axes, as they follow convolutions


def trace(encoder: nn.Module, rows: int) -> Graph:
    """The encoder as a graph, features (1, rows, frames) → embedding (1, dim), constants under their torch names."""
    import torch  # here, so that files of others are read, and refused, without it

    frames = max(64, int(getattr(encoder, "min_frames", 1)))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (torch.zeros(1, rows, frames),),
            buffer,
            dynamo=False,  # the tracer of TorchScript keeps parameter names and needs no further package
            opset_version=OPSET,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # keeps batch norms apart; they are folded below
            input_names=[FEATURES],
            output_names=[EMBEDDING],
            dynamic_axes={FEATURES: {2: "frames"}},
        )
    graph = Graph.of(onnx.load_model_from_string(buffer.getvalue()))
    graph.inputs = {FEATURES: [1, rows, "frames"]}
    simplify(graph)
    return graph


def simplify(graph: Graph) -> None:
    """Resolve Constant, Identity, constant Cast and whole-number nodes, and drop what no output depends on."""
    for node in list(graph.nodes):
        array = _value(graph, node)
        if array is not None:
            graph.constants[node.output[0]] = array
            graph.remove(node)
    graph.prune()


def _value(graph: Graph, node: NodeProto) -> np.ndarray | None:
    """What a node without real inputs computes; None when it must stay."""
    known = attributes(node)
    if node.op_type == "Constant" and "value" in known:
        return numpy_helper.to_array(known["value"])
    if node.op_type == "Identity":
        return graph.constants.get(node.input[0])
    if node.input and all(name in graph.constants and graph.constants[name].dtype == np.int64 for name in node.input):
        feeds = {name: graph.constants[name] for name in node.input}
        return np.asarray(ReferenceEvaluator(node).run(None, feeds)[0])  # how far to pad, written as a computation
    if node.op_type == "Cast" and node.input[0] in graph.constants:
        return graph.constants[node.input[0]].astype(helper.tensor_dtype_to_np_dtype(known["to"]))
    return None


def fold_norms(graph: Graph, signed: bool = False) -> dict[str, np.ndarray]:
    """Fold every batch norm that directly follows a convolution; returns gains (rows,) float32 by weight name.

    The weight constant becomes weight × gain and the bias takes the shift. A gain must be positive, because it becomes
    part of the scale of quantized weights: raises BadInput. Other batch norms become a multiplication and an addition,
    but for those of which nobody can tell how many axes they have: they stay.
    signed: weights are quantized only after this, so that a gain may have either sign, and a Gemm is folded into too.
    """
    layers = ("Conv", "Gemm") if signed else ("Conv",)
    gains: dict[str, np.ndarray] = {}
    norms = [node for node in graph.nodes if node.op_type == "BatchNormalization"]
    ranks = graph.ranks() if norms else {}
    for norm in norms:
        if not all(name in graph.constants for name in norm.input[1:5]):
            continue
        gain, shift = _affine(graph, norm)
        conv = graph.producer(norm.input[0])
        if conv is not None and signed and not _is_single(graph, conv):
            conv = None
        if conv is not None and conv.op_type in layers and len(graph.consumers(norm.input[0])) == 1:
            gains[conv.input[1]] = gain
            _fold_into(graph, conv, gain, shift, signed)
            graph.remove(norm)
            graph.redirect(norm.output[0], conv.output[0])
        elif (rank := _rank(graph, norm.input[0], ranks)) is not None:
            _replace_by_affine(graph, norm, gain, shift, rank)
    graph.prune()
    return gains


def _is_single(graph: Graph, layer: NodeProto) -> bool:
    """Whether a node's weight and bias are constants that a norm may be folded into: no other node reads the weight."""
    known = all(name in graph.constants for name in layer.input[1:])
    return len(layer.input) > 1 and known and len(graph.consumers(layer.input[1])) == 1


def _affine(graph: Graph, norm: NodeProto) -> tuple[np.ndarray, np.ndarray]:
    weight, bias, mean, variance = (graph.constants[name].astype(np.float64) for name in norm.input[1:5])
    epsilon = next((entry.f for entry in norm.attribute if entry.name == "epsilon"), 1e-5)
    gain = weight / np.sqrt(variance + epsilon)
    return gain.astype(np.float32), (bias - mean * gain).astype(np.float32)


def _fold_into(graph: Graph, conv: NodeProto, gain: np.ndarray, shift: np.ndarray, signed: bool) -> None:
    name = conv.input[1]
    if not signed and not (gain > 0).all():
        raise BadInput(
            f"export: {int((gain <= 0).sum())} batch-norm gains after {name} are not positive; "
            "call sottovoce.quant.positive_gains on the network before its weights are quantized"
        )
    if len(graph.consumers(name)) > 1:
        raise BadInput(f"export: {name} is used by two convolutions; a batch norm can be folded into only one")
    weight = graph.constants[name]
    graph.constants[name] = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    bias = graph.constants[conv.input[2]] * gain if len(conv.input) > 2 else np.float32(0)
    named = f"{name.removesuffix('.weight')}.bias"
    graph.constants[named] = (bias + shift).astype(np.float32)
    conv.input[:] = [conv.input[0], name, named]


def _rank(graph: Graph, tensor: str, ranks: Mapping[str, int]) -> int | None:
    """Number of axes: as inferred, else, behind a Reshape of computed shape, from the convolution it comes from."""
    node = graph.producer(tensor)
    if tensor in ranks or node is None:
        return ranks.get(tensor)
    if node.op_type == "Conv":
        return int(graph.constants[node.input[1]].ndim)
    return _rank(graph, node.input[0], ranks) if node.op_type in KEEP_RANK else None


def _replace_by_affine(graph: Graph, norm: NodeProto, gain: np.ndarray, shift: np.ndarray, rank: int) -> None:
    shape = (-1, *[1] * (rank - 2))
    scaled = graph.add("Mul", norm.input[0], graph.constant(gain.reshape(shape)))
    graph.add("Add", scaled, graph.constant(shift.reshape(shape)), output=norm.output[0])
    graph.remove(norm)
