"""Encoder + codes + recordings → the file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto
from torch import nn

from sottovoce.audio.features import FrontEndConfig
from sottovoce.bits.formats import Coded
from sottovoce.errors import BadInput
from sottovoce.export import metadata as about
from sottovoce.export.activations import find_region, round_tensors
from sottovoce.export.frontend import add_front_end
from sottovoce.export.graph import Array, Graph
from sottovoce.export.ranges import observe, uint8_range
from sottovoce.export.trace import EMBEDDING, FEATURES, fold_norms, trace
from sottovoce.export.weights import float_weight, quantized_weight

LEAST_NORM = 1e-12
LARGEST_BIAS = 2.0**30  # of an integer convolution: half of int32 is left to its sums


def build(
    encoder: nn.Module,
    front_end: FrontEndConfig,
    coded: Mapping[str, Coded],
    waves: Iterable[NDArray[np.float32]],
    *,
    metadata: Mapping[str, Any],
    activations: str = "uint8",
    front_end_inside: bool = True,
) -> onnx.ModelProto:
    """Build the deployed model: wave (1, samples) float32 → embedding (1, dim) of unit length.

    encoder: in evaluation mode, with decoded weights in place.   coded: weights by layer name; other layers stay float.
    waves: recordings, (samples,) at the model's rate, on which activation ranges are observed (unused for
    activations="float").   front_end_inside=False: features (1, mels, frames) in.   metadata: JSON-able entries beside
    those that every file has.   Raises BadInput.
    """
    if activations not in ("uint8", "float"):
        raise BadInput(f"export: activations {activations!r} are unknown; known: uint8, float")
    graph = trace(encoder, front_end.mels)
    gains = fold_norms(graph)
    _check_weights(graph, coded)
    _normalise(graph)
    weights = {f"{layer}.weight": layer for layer in coded}
    add_front_end(graph, front_end, FEATURES)
    if activations == "uint8" and coded:
        region = find_region(graph, set(weights))
        grids = [uint8_range(histogram) for histogram in observe(graph, region.groups, waves)]
        scales = round_tensors(graph, region, grids)
    else:
        scales = {}
    for node in list(graph.nodes):
        for index, name in enumerate(node.input):
            if name in weights:
                layer = weights[name]
                _code(graph, node, index, layer, coded[layer], gains.get(name), scales.get(node.input[0]))
    if not front_end_inside:
        graph.inputs = {FEATURES: [1, front_end.mels, "frames"]}
        graph.nodes = [node for node in graph.nodes if FEATURES not in node.output]
    graph.prune()
    graph.shorten()
    model = graph.model()
    model.producer_name = "sottovoce"
    min_frames, dim = int(encoder.min_frames), int(encoder.dim)  # type: ignore[arg-type]
    known = {**about.standard(front_end, coded, min_frames, dim), "activations": activations}
    if front_end_inside:
        known["self_test"] = about.self_test(model)
    about.write(model, {**known, **metadata})
    return model


def save(model: onnx.ModelProto, path: str | Path) -> None:
    """Write a model under a temporary name in the same folder, then rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(model.SerializeToString())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_weights(graph: Graph, coded: Mapping[str, Coded]) -> None:
    missing = [layer for layer in coded if f"{layer}.weight" not in graph.constants]
    if missing:
        raise BadInput(f"export: the network does not use {missing[0]}.weight; its codes cannot be placed")


def _normalise(graph: Graph) -> None:
    """Scale the output to unit length."""
    raw = graph.fresh()
    for node in graph.nodes:
        node.output[:] = [raw if name == EMBEDDING else name for name in node.output]
    length = graph.add("ReduceL2", raw, axes=[1], keepdims=1)
    graph.add("Div", raw, graph.add("Max", length, graph.constant(np.float32(LEAST_NORM))), output=EMBEDDING)


def _code(
    graph: Graph, node: NodeProto, index: int, layer: str, coded: Coded, gain: Array | None, step: str | None
) -> None:
    """Replace one float weight by its codes; step: the scale of the node's rounded input, None in a float region."""
    if step is None or node.op_type != "Conv":
        node.input[index] = float_weight(graph, layer, coded, gain)
        return
    if len(node.input) < 3:
        node.input[1], _ = quantized_weight(graph, layer, coded, gain)
        return
    bias, gain = _integer_bias(graph.constants[node.input[2]], coded.scale, gain, graph.constants[step])
    node.input[1], scale = quantized_weight(graph, layer, coded, gain)
    name = graph.constant(bias, f"{layer}.bias")
    node.input[2] = graph.add("DequantizeLinear", name, graph.add("Mul", scale, step), axis=0)


def _integer_bias(bias: Array, scale: Array, gain: Array | None, step: Array) -> tuple[Array, Array | None]:
    """A bias in units of the sums of an integer convolution, int32 (rows,), and the gain to use.

    A gain so small that its bias would not fit is raised until it does: what the convolution adds in that row stays
    below a thousandth of the bias in practice.
    """
    if gain is not None:
        gain = np.maximum(gain, np.abs(bias) / (scale * step * LARGEST_BIAS)).astype(np.float32)
    unit = (scale if gain is None else scale * gain) * step
    sums = np.rint(bias.astype(np.float64) / unit)
    if np.abs(sums).max(initial=0) > 1.01 * LARGEST_BIAS:
        raise BadInput(
            "export: a bias is a billion times the step of its weights; keep that layer in float by the plan"
        )
    return sums.astype(np.int32), gain
