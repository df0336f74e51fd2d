"""Every operator that torch replays, against onnxruntime on a model of that one node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from sottovoce.errors import BadInput
from sottovoce.export.graph import Graph
from sottovoce.lab.onnx_torch import OPERATORS, _said

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6, 5)).astype(np.float32)
Y = RNG.standard_normal((2, 4, 6, 5)).astype(np.float32)
ROW = RNG.standard_normal((1, 4, 1, 1)).astype(np.float32)
POSITIVE = np.abs(X) + 0.5
N = RNG.integers(-9, 9, (3, 4))


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}

CASES: list[tuple[str, dict[str, Any], list[np.ndarray | None]]] = [
    *((name, {}, [X]) for name in ("Abs", "Erf", "Exp", "Identity", "Neg", "Relu", "Shape", "Sigmoid", "Tanh")),
    *((name, {}, [X]) for name in ("Elu", "HardSigmoid", "LeakyRelu", "Softplus", "HardSwish", "Transpose", "Flatten")),
    *((name, {}, [POSITIVE]) for name in ("Log", "Sqrt", "Reciprocal")),
    *((name, {}, [X, ROW]) for name in ("Add", "Sub", "Mul", "Div", "PRelu", "Greater", "Less")),
    *((name, {}, [X, Y, ROW]) for name in ("Max", "Min", "Sum")),
    *((name, {}, [X]) for name in ("GlobalAveragePool", "GlobalMaxPool", "Softmax", "ReduceMean", "ReduceL2")),
    *((name, {"axes": [1, -1], "keepdims": 0}, [X]) for name in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")),
    *((name, {"axes": [2]}, [X]) for name in ("ReduceMean", "ReduceL2", "ReduceSumSquare")),
    ("Elu", {"alpha": 0.5}, [X]),
    ("HardSigmoid", {"alpha": 0.1, "beta": 0.3}, [X]),
    ("LeakyRelu", {"alpha": 0.3}, [X]),
    ("Div", {}, [N, np.array(4)]),
    ("Equal", {}, [N, N * (N > 0)]),
    ("Where", {}, [X > 0, X, Y]),
    ("Pow", {}, [POSITIVE, np.array(2.5, np.float32)]),
    ("ReduceSum", {"keepdims": 0}, [X, ints(-1)]),
    ("ReduceSum", {}, [X]),
    ("ReduceSum", {"noop_with_empty_axes": 1}, [X]),
    ("Softmax", {"axis": 1}, [X]),
    ("Transpose", {"perm": [0, 2, 1, 3]}, [X]),
    ("Flatten", {"axis": 2}, [X]),
    ("Shape", {"start": 1, "end": 3}, [X]),
    ("Clip", {}, [X, np.array(-0.5, np.float32), np.array(0.7, np.float32)]),
    ("Clip", {}, [X, None, np.array(0.7, np.float32)]),
    ("Concat", {"axis": 1}, [X, Y]),
    ("Cast", {"to": 7}, [3 * X]),
    ("Cast", {"to": 1}, [N]),
    ("Gather", {"axis": 1}, [X, np.array([[0, -1], [2, 2]])]),
    ("Gather", {"axis": -1}, [X, np.array(1)]),
    ("Slice", {}, [X, ints(1), ints(-1), ints(2)]),
    ("Slice", {}, [X, ints(0, 4), ints(9, -10), ints(1, 2), ints(2, -1)]),
    ("Slice", {}, [X, ints(-1), ints(-(2**62)), ints(3), ints(-2)]),
    ("Split", {"axis": 1, "outputs": 2}, [X]),
    ("Split", {"axis": 2, "outputs": 2}, [X, ints(1, 5)]),
    ("Squeeze", {}, [floats(1, 3, 1, 2)]),
    ("Squeeze", {}, [floats(1, 3, 1, 2), ints(-2)]),
    ("Unsqueeze", {}, [floats(3, 2), ints(0, -1)]),
    ("Reshape", {}, [X, ints(0, -1, 5)]),
    ("Expand", {}, [floats(4, 1), ints(2, 1, 3)]),
    ("Tile", {}, [floats(2, 3), ints(2, 2)]),
    ("Pad", {}, [X, ints(0, 0, 1, 2, 0, 0, 3, 0), np.array(0.5, np.float32)]),
    ("Pad", {"mode": "reflect"}, [X, ints(0, 0, 1, 2, 0, 0, 3, 1)]),
    ("Pad", {"mode": "edge"}, [X, ints(0, 0, 0, 2, 0, 0, 0, 1)]),
    ("ConstantOfShape", {}, [ints(2, 3)]),
    ("Range", {}, [np.array(1), np.array(9), np.array(3)]),
    ("MatMul", {}, [X, floats(5, 3)]),
    ("Gemm", {"transB": 1, "alpha": 0.5, "beta": 2.0}, [floats(3, 5), floats(4, 5), floats(4)]),
    ("Gemm", {"transA": 1}, [floats(5, 3), floats(5, 2)]),
    ("Conv", {"pads": [1, 1, 1, 1], "strides": [2, 1], "group": 2}, [X, floats(6, 2, 3, 3), floats(6)]),
    ("Conv", {"dilations": [2]}, [X[0], floats(3, 6, 2)]),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}, [X]),
    ("AveragePool", {"kernel_shape": [3], "pads": [1, 1]}, [X[0]]),
    ("AveragePool", {"kernel_shape": [4], "strides": [4], "ceil_mode": 1}, [X[0]]),
    ("AveragePool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1}, [X]),
    ("MaxPool", {"kernel_shape": [4], "strides": [4], "ceil_mode": 1}, [X[0]]),
    ("Resize", NEAREST, [X, None, np.array([1, 1, 2, 3], np.float32)]),
    ("Resize", NEAREST, [X[0], None, np.array([1, 1, 100], np.float32)]),
    ("Resize", NEAREST, [X, None, None, np.array([2, 4, 13, 2])]),
    ("MaxPool", {"kernel_shape": [2, 3], "pads": [0, 1, 0, 1], "strides": [2, 1]}, [X]),
    ("BatchNormalization", {"epsilon": 1e-3}, [X, floats(4), floats(4), floats(4), POSITIVE[0, :, 0, 0]]),
    ("LayerNormalization", {"axis": -2}, [X, floats(6, 5), floats(6, 5)]),
]


@pytest.mark.parametrize(("op", "said", "inputs"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_it_computes_what_onnxruntime_does(op: str, said: dict[str, Any], inputs: list[np.ndarray | None]) -> None:
    said = dict(said)
    outputs = [f"o{index}" for index in range(said.pop("outputs", 1))]
    names = [f"i{index}" if array is not None else "" for index, array in enumerate(inputs)]
    node = helper.make_node(op, names, outputs, **said)
    graph, fed = Graph(), {name: array for name, array in zip(names, inputs, strict=True) if name}
    graph.nodes, graph.opset = [node], 17
    if op == "Resize":  # onnxruntime wants its sizes in the file
        graph.constants = {name: fed.pop(name) for name in list(fed)[1:]}
    model = graph.typed_model(outputs, fed).SerializeToString()
    wanted = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(outputs, fed)
    given = [torch.from_numpy(np.array(array)) if array is not None else None for array in inputs]
    found = OPERATORS[op](_said(node), *given)
    several = found if isinstance(found, (tuple, list)) else (found,)
    for one, expected in zip(several, wanted, strict=True):
        assert one.numpy().dtype == expected.dtype
        np.testing.assert_allclose(one.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_every_operator_is_tried() -> None:
    assert {case[0] for case in CASES} | {"Constant"} == set(OPERATORS)
    node = helper.make_node("Constant", [], ["o"], value_floats=[1.0, 2.0])
    assert torch.equal(OPERATORS["Constant"](_said(node)), torch.tensor([1.0, 2.0]))


def test_what_engines_disagree_on_is_not_known() -> None:
    x = torch.from_numpy(X[0])
    with pytest.raises(BadInput, match="cut short"):
        OPERATORS["AveragePool"]({"kernel_shape": [4], "ceil_mode": 1, "count_include_pad": 1}, x)
    with pytest.raises(BadInput, match="linear, asymmetric"):
        OPERATORS["Resize"]({**NEAREST, "mode": "linear"}, x, None, torch.ones(3))


def test_windows_that_differ_between_sides_are_not_known() -> None:
    with pytest.raises(BadInput, match="one side"):
        OPERATORS["MaxPool"]({"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, torch.from_numpy(X))
