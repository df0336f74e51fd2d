"""A folder of .onnx files that must be refused, each made here: python tests/hostile/onnx_files.py FOLDER"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def honest() -> onnx.ModelProto:
    """(B, T, 80) → mean over time → matrix product → (B, 4); it is taken."""
    weight = np.random.default_rng(0).standard_normal((80, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["m", "w"], ["e"]),
        ],
        "honest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", 80])],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["B", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="framework", value="wespeaker")
    return model


def external_data(model: onnx.ModelProto) -> None:
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def custom_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def local_function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("local", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))


def sparse_constant(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [80, 4]))


def control_flow(model: onnx.ModelProto) -> None:
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["m"], ["o"])], "branch", [], [output])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(1, helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch))


def nan_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((80, 4), np.nan, np.float32), "w"))


def half_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((80, 4), np.float16), "w"))


def wrong_length(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 81


def giant_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def negative_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -80


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def giant_fill(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**12]), "shape"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["unused"]))
    model.graph.node.append(helper.make_node("ReduceMax", ["unused"], ["other"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, []))


def giant_tile(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**10]), "times"))
    model.graph.node.append(helper.make_node("Tile", ["w", "times"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, None))


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def ancient_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 5


def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


EDITS: tuple[Callable[[onnx.ModelProto], None], ...] = (
    external_data,
    custom_domain,
    local_function,
    sparse_constant,
    control_flow,
    nan_weights,
    half_weights,
    wrong_length,
    giant_shape,
    negative_shape,
    unknown_type,
    giant_fill,
    giant_tile,
    no_opset,
    ancient_opset,
    no_nodes,
)


def make(folder: Path) -> list[Path]:
    """Write them all; returns their paths. Files of gigabytes are sparse and take no room."""
    for edit in EDITS:
        model = honest()
        edit(model)
        (folder / f"{edit.__name__}.onnx").write_bytes(model.SerializeToString())
    whole = honest().SerializeToString()
    contents = {
        "empty": b"",
        "text": b"not a network\n",
        "truncated": whole[: len(whole) // 2],
        "two_gigabyte_field": b"\x08\x08\x3a\xff\xff\xff\xff\x07" + whole,
        "endless_number": b"\xff" * 64,
    }
    for name, content in contents.items():
        (folder / f"{name}.onnx").write_bytes(content)
    for name, start, size in (("zeros", b"", 2**30), ("zeros_behind", whole, 2**30), ("too_large", whole, 2**31 + 5)):
        with (folder / f"{name}.onnx").open("wb") as file:
            file.write(start)
            file.truncate(size)
    return sorted(folder.glob("*.onnx"))


if __name__ == "__main__":
    print(*make(Path(sys.argv[1])), sep="\n")
