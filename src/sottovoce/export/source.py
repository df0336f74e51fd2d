"""An .onnx of somebody else → a graph in our form; nothing in it is trusted and nothing in it is run to find out.

What is refused: files that cannot be parsed or lie about their sizes, external data, operators of other domains,
functions, sparse constants, control flow, weights that are not finite float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import NodeProto, TensorProto, helper, shape_inference, version_converter

from sottovoce.errors import BadInput, BadModel
from sottovoce.export.graph import NEWEST_OPSET, OPSET

LARGEST_FILE = 2**31 - 1  # bytes; protobuf cannot read more
LARGEST_TENSOR = 2**28  # numbers that a constant or an intermediate tensor of fixed shape may have
GRAPH_FIELD = 7  # of a model, in onnx.proto
OLDEST_OPSET = 9  # from here on the converter of the onnx package is dependable
DOMAINS = ("", "ai.onnx")
EMBEDDING_NAME = re.compile("emb|xvec|x-vec", re.IGNORECASE)


def read_source(path: str | Path) -> onnx.ModelProto:
    """Read an .onnx made elsewhere, with shapes inferred and its opset brought to 13 … 17. Raises BadModel."""
    place = Path(path)
    model = _parse(place)
    _check_whole(model, place)
    _check_nodes(model.graph.node, place)
    _check_constants(model, place)
    return _checked_sizes(to_opset(model, place), place)


def _parse(place: Path) -> onnx.ModelProto:
    if not place.is_file():
        raise BadModel(f"{place}: there is no such file; check the path")
    if (size := place.stat().st_size) > LARGEST_FILE:
        raise BadModel(f"{place}: {size} bytes are more than an .onnx can hold ({LARGEST_FILE}); it is no .onnx")
    try:
        with place.open("rb") as file:
            _check_fields(file, size, (GRAPH_FIELD,))
        model = onnx.load_model_from_string(place.read_bytes())
    except (DecodeError, OSError, ValueError) as error:
        raise BadModel(f"{place}: not an .onnx, or cut short ({_line(error)}); get it again") from None
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise BadModel(f"{place}: holds no graph with nodes, inputs and outputs; it is no .onnx of a network")
    return model


def _check_fields(file: BinaryIO, end: int, into: tuple[int, ...]) -> None:
    """Go from field to field of a protobuf message without reading what is in them. Raises ValueError.

    So that a large file which is none, such as one of zeros, is refused before its bytes are in memory.   end: where
    the message ends.   into: number of the field to go into, and so on.
    """
    while file.tell() < end:
        tag = _varint(file)
        kind, number = tag & 7, tag >> 3
        if number == 0 or kind not in (0, 1, 2, 5):
            raise ValueError(f"no field begins at byte {file.tell()}")
        if kind == 0:
            _varint(file)
            continue
        length = _varint(file) if kind == 2 else {1: 8, 5: 4}[kind]
        after = file.tell() + length
        if after > end:
            raise ValueError(f"a field of {length} bytes is cut short")
        if kind == 2 and into and number == into[0]:
            _check_fields(file, after, into[1:])
        file.seek(after)


def _varint(file: BinaryIO) -> int:
    """A number in protobuf's variable length: seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("the end comes in the middle of a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number has more than ten bytes")


def _check_whole(model: onnx.ModelProto, place: Path) -> None:
    """Refuse what lies outside the plain graph."""
    foreign = sorted({entry.domain for entry in model.opset_import} - set(DOMAINS))
    used = {node.domain for node in model.graph.node} - set(DOMAINS)
    if used:
        raise BadModel(f"{place}: has operators of the domain {min(used)!r}; export it with standard ONNX operators")
    if model.functions:
        raise BadModel(f"{place}: defines functions ({model.functions[0].name}); export it with them inlined")
    if model.graph.sparse_initializer:
        raise BadModel(f"{place}: has sparse constants; export it with dense ones")
    if not any(entry.domain in DOMAINS for entry in model.opset_import):
        raise BadModel(f"{place}: does not say which ONNX opset it is in (it names {foreign}); export it again")


def _check_nodes(nodes: Iterable[NodeProto], place: Path) -> None:
    for node in nodes:
        for entry in node.attribute:
            if entry.HasField("g") or entry.graphs:
                raise BadModel(
                    f"{place}: {node.op_type} {node.name!r} has a graph inside (control flow), which cannot be "
                    "quantized; export the network by tracing one input"
                )
            if entry.HasField("sparse_tensor") or entry.sparse_tensors:
                raise BadModel(
                    f"{place}: {node.op_type} {node.name!r} has a sparse constant; export it with dense ones"
                )


def _check_constants(model: onnx.ModelProto, place: Path) -> None:
    tensors = [*model.graph.initializer]
    tensors += [entry.t for node in model.graph.node for entry in node.attribute if entry.HasField("t")]
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise BadModel(f"{place}: {tensor.name!r} lies in another file (external data); save it as one file")
        count = math.prod(tensor.dims)
        if min(tensor.dims, default=0) < 0 or count > LARGEST_TENSOR:
            raise BadModel(f"{place}: {tensor.name!r} says it has {count} numbers; the file is damaged")
        if tensor.HasField("raw_data") and len(tensor.raw_data) != _bytes(tensor, count, place):
            raise BadModel(f"{place}: {tensor.name!r} has {len(tensor.raw_data)} bytes, its shape {list(tensor.dims)}")
        if tensor.data_type == TensorProto.FLOAT and not np.isfinite(_array(tensor, place)).all():
            raise BadModel(f"{place}: {tensor.name!r} has NaN or infinite values; the network is broken")
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE) and count > 1:
            raise BadModel(f"{place}: {tensor.name!r} is not float32; convert the network to float32 first")


def _bytes(tensor: TensorProto, count: int, place: Path) -> int:
    try:
        return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:
        raise BadModel(f"{place}: {tensor.name!r} has an unknown type of numbers; the file is damaged") from None


def _array(tensor: TensorProto, place: Path) -> np.ndarray:
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise BadModel(f"{place}: {tensor.name!r} cannot be read ({_line(error)}); the file is damaged") from None


def to_opset(
    model: onnx.ModelProto, place: str | Path, oldest: int = OPSET, newest: int = NEWEST_OPSET
) -> onnx.ModelProto:
    """The model in an opset from `oldest` to `newest`, metadata kept.

    Raises BadModel where an operator has no form in those.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain in DOMAINS)
    if oldest <= opset <= newest:
        return model
    if opset < OLDEST_OPSET:
        raise BadModel(f"{place}: opset {opset} is older than {OLDEST_OPSET}; export the network again")
    try:
        converted = version_converter.convert_version(model, newest if opset > newest else oldest)
    except Exception as error:  # the converter raises RuntimeError and others of its own
        raise BadModel(
            f"{place}: cannot be brought from opset {opset} to {oldest} … {newest} ({_line(error)}); export it with "
            f"opset {newest}"
        ) from None
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    return converted


def _checked_sizes(model: onnx.ModelProto, place: Path) -> onnx.ModelProto:
    """The model with inferred shapes; refuses graphs that contradict themselves or would make giant tensors."""
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except Exception as error:
        raise BadModel(f"{place}: its shapes do not fit together ({_line(error)}); the file is damaged") from None
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        sizes = [max(1, axis.dim_value) for axis in value.type.tensor_type.shape.dim]
        if math.prod(sizes) > LARGEST_TENSOR:
            raise BadModel(f"{place}: {value.name!r} would have {math.prod(sizes)} numbers; it is no speaker network")
    return inferred


def choose_input(model: onnx.ModelProto, rows: int, place: str | Path) -> tuple[str, bool]:
    """The tensor that takes features, and whether frames come before rows; from shapes, never from names.

    rows: features of a frame. Raises BadModel, BadInput.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    floats = [value for value in inputs if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    if len(floats) != 1 or any(not _is_length(value) for value in inputs if value is not floats[0]):
        told = ", ".join(value.name for value in inputs)
        raise BadModel(
            f"{place}: takes {told}; a network that takes float32 features alone (and their length) is needed"
        )
    (value,) = floats
    shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    if len(shape) != 3:
        raise BadModel(
            f"{place}: {value.name} has {len(shape)} axes; features (batch, frames, mels) or (batch, mels, frames) are "
            "needed. A network that takes a waveform has its front end inside already and cannot be read here"
        )
    fits = [axis for axis in (1, 2) if shape[axis] == rows]
    if not fits:
        fixed = [length for length in shape[1:] if length > 0]
        raise BadInput(f"{place}: {value.name} has {fixed or 'no fixed number of'} rows, the front end makes {rows}")
    return value.name, fits[-1] == 2


def _is_length(value: onnx.ValueInfoProto) -> bool:
    """Whether an input holds the number of frames, as NeMo's networks want."""
    kind = value.type.tensor_type
    return kind.elem_type == TensorProto.INT64 and len(kind.shape.dim) <= 1


def lengths(model: onnx.ModelProto) -> list[tuple[str, int]]:
    """Inputs that hold the number of frames: name and number of axes."""
    known = {tensor.name for tensor in model.graph.initializer}
    found = [value for value in model.graph.input if value.name not in known and _is_length(value)]
    return [(value.name, len(value.type.tensor_type.shape.dim)) for value in found]


def choose_output(model: onnx.ModelProto) -> str:
    """The output that is the embedding: the one whose name says so, else the last (classifiers come first in NeMo)."""
    outputs = [value.name for value in model.graph.output]
    named = [name for name in outputs if EMBEDDING_NAME.search(name)]
    return named[0] if named else outputs[-1]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
