"""The byte look-up pattern: weights as packed codes that constant nodes decode when the file is loaded.

    packed (bytes,) uint8 → Cast int32 → Gather in look-up (256, 8 / bits) → Reshape → DequantizeLinear → Conv

The look-up is itself made by a Gather: levels (2^bits,) at the digits of every byte value, a table that all layers of a
width share. With a codebook for each channel, levels (rows, 2^bits), the look-up gives the codes, and a Gather at
code + row · 2^bits their levels (GatherElements would be shorter, but OpenVINO does not fold it). onnxruntime and
OpenVINO fold all of it into a plain int8 weight. Where the operator stays in float, levels are cast to float32 and a
multiplication by the scale stands for DequantizeLinear, which onnxruntime would not fold.
Names in the file: <layer>.codes, .levels, .scale, .gain (of a folded batch norm), .bias.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from sottovoce.bits.formats import FORMATS, Coded, pack, unpack
from sottovoce.bits.plan import Spec, is_plain
from sottovoce.export.graph import Array, Graph

CODES = ".codes"
CHAIN = ("Cast", "Gather", "Reshape", "Slice", "Concat", "Add")  # operators of a look-up


def quantized_weight(graph: Graph, layer: str, coded: Coded, gain: Array | None) -> tuple[str, str]:
    """Write a weight for one integer convolution; returns the names of its dequantized tensor and of its scale."""
    return scaled(graph, integer_weight(graph, layer, coded), layer, coded, gain, layer)


def integer_weight(graph: Graph, layer: str, coded: Coded) -> str:
    """Write a weight for integer convolutions; returns the name of its int8 tensor."""
    return _lookup(graph, layer, coded, TensorProto.INT8)


def scaled(graph: Graph, integers: str, layer: str, coded: Coded, gain: Array | None, part: str) -> tuple[str, str]:
    """Scale a layer's int8 weight or a part of it; returns the names of the dequantized tensor and of its scale."""
    scale = graph.constant(_rows(coded.scale, 1), f"{layer}.scale")
    if gain is not None:
        scale = graph.add("Mul", scale, graph.constant(gain.astype(np.float32), f"{part}.gain"))
    return graph.add("DequantizeLinear", integers, scale, axis=0), scale


def float_weight(graph: Graph, layer: str, coded: Coded, gain: Array | None) -> str:
    """Write a weight for an operator that stays in float; returns the name of the decoded tensor."""
    axes = len(coded.shape)
    values = _lookup(graph, layer, coded, TensorProto.FLOAT)
    weight = graph.add("Mul", values, graph.constant(_rows(coded.scale, axes), f"{layer}.scale"))
    if gain is None:
        return weight
    return graph.add("Mul", weight, graph.constant(_rows(gain, axes), f"{layer}.gain"))


def _rows(scale: Array, axes: int) -> Array:
    """One number a row, shaped to multiply a weight of `axes` axes; a single number stays a scalar."""
    return scale.reshape(()) if scale.size == 1 else scale.reshape(-1, *[1] * (axes - 1))


def _lookup(graph: Graph, layer: str, coded: Coded, kind: int) -> str:
    """Levels at the codes, in the weight's shape, as int8 or float32."""
    bits = coded.bits
    if is_plain(coded.spec):
        return _as(graph, graph.constant(coded.integers(), layer + CODES), kind)
    axes = ((0, 0),) * (coded.levels.ndim - 1)
    levels = np.pad(coded.levels, (*axes, (0, 2**bits - coded.levels.shape[-1])), mode="edge")
    stored = _as(graph, graph.constant(levels, f"{layer}.levels"), kind)
    packed = graph.constant(pack(coded.codes, bits), layer + CODES)
    places = graph.constant(np.arange(2**bits, dtype=np.int32), f"places{bits}") if levels.ndim == 2 else stored
    decoded = _decode_triples(graph, places, packed) if bits == 3 else _decode_bytes(graph, places, packed, bits)
    decoded = _first(graph, decoded, coded.codes.size, bits)
    if levels.ndim == 2:
        codes = graph.add("Reshape", decoded, graph.constant(np.array([len(levels), -1])))
        flat = graph.add("Reshape", stored, graph.constant(np.array([-1])))
        decoded = graph.add("Gather", flat, graph.add("Add", codes, _row_starts(graph, *levels.shape)))
    return graph.add("Reshape", decoded, graph.constant(np.array(coded.shape)))


def _row_starts(graph: Graph, rows: int, size: int) -> str:
    """Where each row of a flattened (rows, size) begins: int32 (rows, 1), computed so that it takes no bytes."""
    ends = [graph.constant(np.array(number, dtype=np.int32)) for number in (0, rows * size, size)]
    return graph.add("Reshape", graph.add("Range", *ends), graph.constant(np.array([-1, 1])))


def _as(graph: Graph, integers: str, kind: int) -> str:
    return integers if kind == TensorProto.INT8 else graph.add("Cast", integers, to=kind)


def _decode_bytes(graph: Graph, table: str, packed: str, bits: int) -> str:
    """(bytes,) → (bytes, 8 / bits): every byte value stands for 8 / bits levels, the first code in the low bits."""
    values = np.arange(256, dtype=np.uint8)[:, None]
    digits = (values >> np.arange(0, 8, bits, dtype=np.uint8)) & (2**bits - 1)
    return graph.add("Gather", _byte_table(graph, table, f"digits{bits}", digits), _indices(graph, packed))


def _decode_triples(graph: Graph, table: str, packed: str) -> str:
    """(bytes,) → (bytes / 3, 8): the low 6 bits of a byte are two codes, the top 2 bits of three bytes two more."""
    values = np.arange(256, dtype=np.uint8)[:, None]
    pairs = (values >> np.array([0, 3], dtype=np.uint8)) & 7
    rows = graph.add("Reshape", _indices(graph, packed), graph.constant(np.array([-1, 3])))
    low = graph.add("Gather", _byte_table(graph, table, "digits3", pairs), rows)
    low = graph.add("Reshape", low, graph.constant(np.array([-1, 6])))
    tops = [_top(graph, rows, place) for place in range(3)]
    sixth = graph.add("Add", graph.add("Add", tops[0], tops[1]), tops[2])
    high = graph.add("Gather", _byte_table(graph, table, "digits3top", pairs[:64]), sixth)
    return graph.add("Concat", low, high, axis=1)


def _top(graph: Graph, rows: str, place: int) -> str:
    """The top two bits of byte `place` of every three, moved to their place in a number of six bits: (bytes / 3,)."""
    column = graph.add("Gather", rows, graph.constant(np.array(place)), axis=1)
    moved = (np.arange(256, dtype=np.int32) >> 6) << 2 * place
    return graph.add("Gather", graph.constant(moved.astype(np.int32), f"top{place}"), column)


def _byte_table(graph: Graph, table: str, name: str, digits: Array) -> str:
    """Levels at the digits of every byte value."""
    return graph.add("Gather", table, _indices(graph, graph.constant(digits.astype(np.uint8), name)))


def _indices(graph: Graph, codes: str) -> str:
    return graph.add("Cast", codes, to=TensorProto.INT32)


def _first(graph: Graph, decoded: str, count: int, bits: int) -> str:
    """Leave out the padding behind the last code."""
    if count % (8 if bits == 3 else 8 // bits) == 0:
        return decoded
    flat = graph.add("Reshape", decoded, graph.constant(np.array([-1])))
    return graph.add("Slice", flat, graph.constant(np.array([0])), graph.constant(np.array([count])))


def look_ups(graph: Graph) -> dict[str, str]:
    """The tensor in which each look-up ends, by layer; plain int8 weights are their own end."""
    ends = {name.removesuffix(CODES): name for name in graph.constants if name.endswith(CODES)}
    layers = {end: layer for layer, end in ends.items()}
    for node in graph.sorted():
        layer = next((layers[name] for name in node.input if name in layers), None)
        if layer is not None and node.op_type in CHAIN:
            layers[node.output[0]] = layer
            ends[layer] = node.output[0]
    return ends


def read(graph: Graph, specs: Mapping[str, str]) -> dict[str, Coded]:
    """Codes, levels and scale of every layer from the graph.

    specs: the text of each layer's spec. Raises KeyError, ValueError, BadInput when graph and specs do not fit.
    """
    ends = look_ups(graph)
    return {layer: _coded(graph, layer, Spec.parse(text), ends[layer]) for layer, text in specs.items()}


def _coded(graph: Graph, layer: str, spec: Spec, end: str) -> Coded:
    form, stored = FORMATS[spec.format], graph.constants[layer + CODES]
    scale = graph.constants[f"{layer}.scale"].reshape(-1)
    if stored.dtype == np.int8:
        levels = np.array(form.levels, dtype=np.int8)
        return Coded(spec, stored.shape, (stored.astype(np.int16) - levels[0]).astype(np.uint8), levels, scale)
    reshape = graph.producer(end)
    shape = tuple(int(length) for length in graph.constants[reshape.input[1]]) if reshape is not None else ()
    codes = unpack(stored, form.bits, int(np.prod(shape))).reshape(shape)
    return Coded(spec, shape, codes, graph.constants[f"{layer}.levels"][..., : form.size].astype(np.int8), scale)
