"""Encoder + codes + recordings → the file."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from sottovoce.audio.features import FrontEndConfig
from sottovoce.bits.formats import Coded
from sottovoce.errors import BadInput
from sottovoce.export import metadata as about
from sottovoce.export.activations import find_region, round_tensors
from sottovoce.export.context import WEIGHT, Part, cut, split_contexts
from sottovoce.export.frontend import add_front_end
from sottovoce.export.graph import Array, Graph
from sottovoce.export.joins import join_codes
from sottovoce.export.layout import close_windows, turn_codes
from sottovoce.export.norms import fold_norms_behind_relu
from sottovoce.export.ranges import RULES, minmax_range, observe
from sottovoce.export.shifts import mean_shifts, remove_shifts
from sottovoce.export.trace import EMBEDDING, FEATURES, fold_norms, trace
from sottovoce.export.weights import float_weight, integer_weight, scaled

if TYPE_CHECKING:
    from torch import nn

LEAST_NORM = 1e-12
LARGEST_BIAS = 2.0**30  # of an integer convolution: half of int32 is left to its sums
CENTRED_ON = 64  # recordings: a mean needs fewer than a range

Wave = NDArray[np.float32]


def build(
    encoder: nn.Module,
    front_end: FrontEndConfig,
    coded: Mapping[str, Coded],
    waves: Iterable[NDArray[np.float32]],
    *,
    metadata: Mapping[str, Any],
    activations: str = "uint8",
    ranges: str = "mse",
    centred: bool = True,
    front_end_inside: bool = True,
) -> onnx.ModelProto:
    """Build the deployed model: wave (1, samples) float32 → embedding (1, dim) of unit length.

    encoder: in evaluation mode, with decoded weights in place.   coded: weights by layer name; other layers stay float.
    waves: recordings, (samples,) at the model's rate, on which activation ranges are observed (unused for
    activations="float").   ranges: "mse" (least squared error) or "minmax" (all that was observed).
    centred: whether biases take back by how much rounding activations moves the mean of each layer's output.
    front_end_inside=False: features (1, rows, frames) in.   metadata: JSON-able entries beside
    those that every file has.   Raises BadInput.
    """
    _check_how(activations, ranges)
    graph = trace(encoder, front_end.rows)
    gains = fold_norms(graph)
    fold_norms_behind_relu(graph, gains)
    return finish(
        graph,
        gains,
        front_end,
        coded,
        waves,
        min_frames=int(encoder.min_frames),  # type: ignore[arg-type]
        dim=int(encoder.dim),  # type: ignore[arg-type]
        metadata=metadata,
        activations=activations,
        ranges=ranges,
        centred=centred,
        front_end_inside=front_end_inside,
    )


def finish(
    graph: Graph,
    gains: Mapping[str, Array],
    front_end: FrontEndConfig,
    coded: Mapping[str, Coded],
    waves: Iterable[NDArray[np.float32]],
    *,
    min_frames: int,
    dim: int,
    metadata: Mapping[str, Any],
    activations: str = "uint8",
    ranges: str = "mse",
    centred: bool = True,
    front_end_inside: bool = True,
) -> onnx.ModelProto:
    """Build the deployed model of a float graph, FEATURES → EMBEDDING, norms folded; the rest as `build`.

    graph: with the decoded weights in place, named `<layer>.weight`; changed.   gains: what was folded into them after
    they were coded, (rows,) by weight name.   min_frames: fewest frames the network takes.   dim: numbers of an
    embedding.   Raises BadInput.
    """
    _check_how(activations, ranges)
    _check_weights(graph, coded)
    _normalise(graph)
    close_windows(graph)
    weights = {f"{layer}{WEIGHT}": layer for layer in coded}
    inside = activations == "uint8" and bool(coded)
    parts = split_contexts(graph, weights) if inside else {}
    add_front_end(graph, front_end, FEATURES)
    scales = _round(graph, {*weights, *parts}, list(waves), ranges, centred) if inside else {}
    decoded = {
        name: integers
        for whole in {part.whole for part in parts.values()}
        for name, integers in _cut_weight(graph, weights[whole], coded[weights[whole]], parts).items()
    }
    for node in list(graph.nodes):
        for index, name in enumerate(node.input):
            whole = parts[name].whole if name in parts else name
            if whole in weights:
                layer = weights[whole]
                _code(graph, node, index, layer, coded[layer], gains.get(whole), scales.get(node.input[0]), decoded)
    if not front_end_inside:
        graph.inputs = {FEATURES: [1, front_end.rows, "frames"]}
        graph.nodes = [node for node in graph.nodes if FEATURES not in node.output]
    graph.prune()
    graph.shorten(keep={FEATURES})
    model = graph.model()
    model.producer_name = "sottovoce"
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


def _check_how(activations: str, ranges: str) -> None:
    if activations not in ("uint8", "float"):
        raise BadInput(f"export: activations {activations!r} are unknown; known: uint8, float")
    if ranges not in RULES:
        raise BadInput(f"export: the range rule {ranges!r} is unknown; known: {', '.join(RULES)}")


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


def _round(graph: Graph, weights: set[str], waves: list[Wave], ranges: str, centred: bool) -> dict[str, str]:
    """Round activations around the weights named; returns what `round_tensors` does.

    What pooling reads keeps its whole range: its roundings average out over the recording, a clip does not.
    """
    region, plain = find_region(graph, weights), copy.deepcopy(graph)
    seen = observe(graph, region.groups, waves)
    grids = [minmax_range(h) if index in region.last else RULES[ranges](h) for index, h in enumerate(seen)]
    scales = round_tensors(graph, region, grids, settled=centred)
    if centred:
        remove_shifts(graph, mean_shifts(plain, graph, waves[:CENTRED_ON]))
    join_codes(graph)
    turn_codes(graph)
    return scales


def _cut_weight(graph: Graph, layer: str, coded: Coded, parts: Mapping[str, Part]) -> dict[str, str]:
    """Write a weight that two convolutions share; returns the names of its int8 parts by those of the parts."""
    mine = {name: part for name, part in parts.items() if part.whole == layer + WEIGHT}
    cuts = cut(graph, integer_weight(graph, layer, coded), list(mine.values()))
    return dict(zip(mine, cuts, strict=True))


def _code(
    graph: Graph,
    node: NodeProto,
    index: int,
    layer: str,
    coded: Coded,
    gain: Array | None,
    step: str | None,
    decoded: Mapping[str, str],
) -> None:
    """Replace one float weight, or a part of it, by its codes.

    step: the scale of the node's rounded input, None in a float region.   decoded: int8 tensors that are there already.
    """
    if step is None or node.op_type != "Conv":
        node.input[index] = float_weight(graph, layer, coded, gain)
        return
    name = node.input[1]
    part, integers = name.removesuffix(WEIGHT), decoded.get(name) or integer_weight(graph, layer, coded)
    if len(node.input) < 3:
        node.input[1], _ = scaled(graph, integers, layer, coded, gain, part)
        return
    bias, gain = _integer_bias(graph.constants[node.input[2]], coded.scale, gain, graph.constants[step])
    node.input[1], scale = scaled(graph, integers, layer, coded, gain, part)
    name = graph.constant(bias, f"{part}.bias")
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
