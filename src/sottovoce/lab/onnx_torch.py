"""A graph computed by torch, operator by operator, so that gradients pass through it and batches do.

Only what published speaker networks use is known; the meaning of each operator is that of the ONNX specification,
opset 13 to 17. Whoever uses a replay first compares it with onnxruntime.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from sottovoce.errors import BadInput
from sottovoce.export.graph import Graph
from sottovoce.export.standard import attributes
from sottovoce.export.trace import EMBEDDING, FEATURES
from sottovoce.lab.onnx_rounding import Shells

Said = Mapping[str, Any]  # attributes of a node
Operator = Callable[..., Any]  # (attributes, *inputs) → output, or outputs


class Replay(Shells):
    """The shells of a graph between its other operators: features (batch, rows, frames) → embeddings (batch, dim).

    Raises BadInput, at once, for an operator that is not in OPERATORS.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, NodeProto]) -> None:
        super().__init__(graph, layers)
        self._steps = _needed(graph, layers)
        self._by_output = {node.output[0]: name for name, node in layers.items()}
        self._constants = {name: _tensor(array) for name, array in graph.constants.items()}
        unknown = sorted({n.op_type for n in self._steps if n.output[0] not in self._by_output} - set(OPERATORS))
        if unknown:
            raise BadInput(f"the graph has {', '.join(unknown)}, through which no gradients are known to pass")
        self._said = [_said(node) for node in self._steps]
        self._readers = Counter(name for node in self._steps for name in node.input)

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings (batch, dim), of any length."""
        known: dict[str, Tensor] = {FEATURES: features}
        left = self._readers.copy()
        for node, said in zip(self._steps, self._said, strict=True):
            layer = self._by_output.get(node.output[0])
            if layer is not None:
                known[node.output[0]] = self.get_submodule(layer)(self._value(known, node.input[0]))
            else:
                found = OPERATORS[node.op_type](said, *(self._value(known, name) for name in node.input))
                several = found if isinstance(found, (tuple, list)) else (found,)
                known.update(zip(node.output, several, strict=False))
            for name in node.input:
                left[name] -= 1
                if not left[name]:
                    known.pop(name, None)
        return known[EMBEDDING]

    def _value(self, known: Mapping[str, Tensor], name: str) -> Tensor | None:
        if not name:
            return None
        return known[name] if name in known else self._constants[name]


def _needed(graph: Graph, layers: Mapping[str, NodeProto]) -> list[NodeProto]:
    """Nodes in order; of a layer only its input counts, so that what makes its weight is left out."""
    own = {id(node) for node in layers.values()}
    wanted, steps = set(graph.outputs), []
    for node in reversed(graph.sorted()):
        if wanted.intersection(node.output):
            steps.append(node)
            wanted.update(node.input[:1] if id(node) in own else node.input)
    return steps[::-1]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def _said(node: NodeProto) -> dict[str, Any]:
    """Attributes; tensors among them as tensors, bytes as text."""
    known: dict[str, Any] = {"outputs": len(node.output)}
    for name, value in attributes(node).items():
        if isinstance(value, TensorProto):
            value = _tensor(numpy_helper.to_array(value))
        known[name] = value.decode() if isinstance(value, bytes) else value
    return known


def _ints(given: Tensor | Sequence[int] | None) -> list[int]:
    if given is None:
        return []
    return [int(n) for n in (given.reshape(-1).tolist() if isinstance(given, Tensor) else given)]


# ---- operators: arithmetic


def _divide(_: Said, a: Tensor, b: Tensor) -> Tensor:
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _power(_: Said, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _clip(said: Said, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _gemm(said: Said, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    left, right = a.T if said.get("transA") else a, b.T if said.get("transB") else b
    product = said.get("alpha", 1.0) * (left @ right)
    return product if c is None else product + said.get("beta", 1.0) * c


def _norm(said: Said, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, var, gain, bias, eps=said.get("epsilon", 1e-5))


def _layer_norm(said: Said, x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[said.get("axis", -1) :]
    return functional.layer_norm(x, shape, gain.reshape(shape), bias, said.get("epsilon", 1e-5))


# ---- operators: windows


def _windows(said: Said, axes: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, padding and dilation of so many axes; pads that differ between sides are not known."""
    pads = list(said.get("pads", [0] * 2 * axes))
    if pads[:axes] != pads[axes:] or said.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise BadInput("a window has another padding on one side than on the other")
    return list(said.get("strides", [1] * axes)), pads[:axes], list(said.get("dilations", [1] * axes))


def _conv(said: Said, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    stride, pad, dilation = _windows(said, weight.dim() - 2)
    run = functional.conv1d if weight.dim() == 3 else functional.conv2d
    return run(x, weight, bias, stride, pad, dilation, int(said.get("group", 1)))


def _average_pool(said: Said, x: Tensor) -> Tensor:
    stride, pad, _ = _windows(said, x.dim() - 2)
    cut, counted = bool(said.get("ceil_mode", 0)), bool(said.get("count_include_pad", 0))
    if cut and counted:
        raise BadInput("engines disagree on what the mean of a window that is cut short is divided by")
    run = functional.avg_pool1d if x.dim() == 3 else functional.avg_pool2d
    return run(x, said["kernel_shape"], stride, pad, cut, counted)


def _max_pool(said: Said, x: Tensor) -> Tensor:
    stride, pad, dilation = _windows(said, x.dim() - 2)
    run = functional.max_pool1d if x.dim() == 3 else functional.max_pool2d
    return run(x, said["kernel_shape"], stride, pad, dilation, bool(said.get("ceil_mode", 0)))


def _resize(said: Said, x: Tensor, roi: Tensor | None, scales: Tensor | None, sizes: Tensor | None = None) -> Tensor:
    """Nearest neighbours, as repeating what a coarser time scale gave is written."""
    how = said.get("mode", "nearest"), said.get("coordinate_transformation_mode"), said.get("nearest_mode")
    if how != ("nearest", "asymmetric", "floor"):
        raise BadInput(f"a Resize by {', '.join(map(str, how))} is not known, only by nearest, asymmetric, floor")
    for axis, length in enumerate(list(x.shape)):
        made = int(length * float(scales[axis])) if scales is not None and len(scales) else _ints(sizes)[axis]
        factor = float(scales[axis]) if scales is not None and len(scales) else made / length
        if made != length:
            places = torch.floor(torch.arange(made) / torch.tensor(factor, dtype=torch.float32)).to(torch.int64)
            x = x.index_select(axis, places.clamp(max=length - 1))
    return x


def _everywhere(run: Callable[..., Tensor]) -> Operator:
    return lambda said, x: run(x, dim=tuple(range(2, x.dim())), keepdim=True)


# ---- operators: shapes


def _axes(said: Said, given: Tensor | None, rank: int) -> list[int]:
    found = _ints(given if given is not None else said.get("axes"))
    return [axis % rank for axis in found] or list(range(rank))


def _reduced(run: Callable[..., Tensor]) -> Operator:
    def reduce(said: Said, x: Tensor, axes: Tensor | None = None) -> Tensor:
        if axes is None and "axes" not in said and said.get("noop_with_empty_axes"):
            return x
        return run(x, dim=_axes(said, axes, x.dim()), keepdim=bool(said.get("keepdims", 1)))

    return reduce


def _product(x: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    for axis in sorted(dim, reverse=True):
        x = x.prod(dim=axis, keepdim=keepdim)
    return x


def _reshape(said: Said, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _ints(shape)
    return x.reshape([x.shape[i] if n == 0 and not said.get("allowzero") else n for i, n in enumerate(sizes)])


def _flatten(said: Said, x: Tensor) -> Tensor:
    axis = said.get("axis", 1) % (x.dim() + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(said: Said, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(said, axes, x.dim()) if axes is not None or "axes" in said else range(x.dim())
    return x.reshape([n for axis, n in enumerate(x.shape) if axis not in chosen or n != 1])


def _unsqueeze(said: Said, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = _ints(axes if axes is not None else said["axes"])
    rank = x.dim() + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


def _split(said: Said, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = said.get("axis", 0)
    given = _ints(sizes if sizes is not None else said.get("split"))
    return torch.split(x, given or -(-x.shape[axis] // said["outputs"]), dim=axis)


def _slice(
    said: Said, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    first, last = _ints(starts), _ints(ends)
    chosen = _ints(axes) if axes is not None else list(range(len(first)))
    for axis, start, end, step in zip(chosen, first, last, _ints(steps) or [1] * len(first), strict=True):
        places = range(x.shape[axis])[start:end:step] if step > 0 else _backwards(x.shape[axis], start, end, step)
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _backwards(size: int, start: int, end: int, step: int) -> range:
    """What a negative step takes: an end before the first place, as ONNX writes it, is the front."""
    return range(size)[start : None if end < -size else end : step]


def _gather(said: Said, x: Tensor, places: Tensor) -> Tensor:
    axis = said.get("axis", 0) % x.dim()
    chosen = torch.where(places < 0, places + x.shape[axis], places)
    found = x.index_select(axis, chosen.reshape(-1))
    return found.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


def _expand(_: Said, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(_ints(shape))))


def _pad(said: Said, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    amounts, rank = _ints(pads), x.dim()
    chosen = [axis % rank for axis in _ints(axes)] if axes is not None else list(range(rank))
    sides = {axis: (amounts[i], amounts[i + len(chosen)]) for i, axis in enumerate(chosen)}
    pairs = [amount for axis in reversed(range(rank)) for amount in sides.get(axis, (0, 0))]
    mode = said.get("mode", "constant")
    if mode == "constant":
        return functional.pad(x, pairs, value=0.0 if value is None else float(value))
    if not any(pairs):
        return x
    last = max(index for index, amount in enumerate(pairs) if amount) // 2 + 1
    return functional.pad(x, pairs[: 2 * max(last, rank - 2)], mode={"edge": "replicate"}.get(mode, mode))


def _shape(said: Said, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[said.get("start", 0) : said.get("end")], dtype=torch.int64)


def _cast(said: Said, x: Tensor) -> Tensor:
    return x.to(torch.from_numpy(np.zeros(0, helper.tensor_dtype_to_np_dtype(said["to"]))).dtype)


def _filled(said: Said, shape: Tensor) -> Tensor:
    value = said.get("value", torch.zeros(1))
    return value.reshape(-1)[0].expand(_ints(shape)).clone()


def _constant(said: Said) -> Tensor:
    return next(torch.as_tensor(value) for name, value in said.items() if name.startswith("value"))


def _of(run: Callable[..., Tensor], **named: float) -> Operator:
    """A function of its inputs alone, or of attributes with these defaults too."""
    return lambda said, *inputs: run(*inputs, *(said.get(name, default) for name, default in named.items()))


def _folded(run: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def fold(_: Said, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = run(first, other)
        return first

    return fold


OPERATORS: dict[str, Operator] = {
    "Abs": _of(torch.abs),
    "Add": _of(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda said, *inputs: torch.cat(inputs, dim=said["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "Div": _divide,
    "Elu": _of(functional.elu, alpha=1.0),
    "Equal": _of(torch.eq),
    "Erf": _of(torch.erf),
    "Exp": _of(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _everywhere(torch.mean),
    "GlobalMaxPool": _everywhere(torch.amax),
    "Greater": _of(torch.gt),
    "HardSigmoid": _of(lambda x, a, b: torch.clamp(a * x + b, 0, 1), alpha=0.2, beta=0.5),
    "HardSwish": _of(functional.hardswish),
    "Identity": lambda said, x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _of(functional.leaky_relu, alpha=0.01),
    "Less": _of(torch.lt),
    "Log": _of(torch.log),
    "MatMul": _of(torch.matmul),
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _folded(torch.minimum),
    "Mul": _of(torch.mul),
    "Neg": _of(torch.neg),
    "PRelu": _of(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "Pad": _pad,
    "Pow": _power,
    "Range": _of(lambda start, end, step: torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)),
    "Reciprocal": _of(torch.reciprocal),
    "ReduceL2": _reduced(lambda x, **how: torch.linalg.vector_norm(x, **how)),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin),
    "ReduceProd": _reduced(_product),
    "ReduceSum": _reduced(torch.sum),
    "ReduceSumSquare": _reduced(lambda x, **how: torch.sum(x * x, **how)),
    "Relu": _of(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _of(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda said, x: torch.softmax(x, dim=said.get("axis", -1)),
    "Softplus": _of(functional.softplus),
    "Split": _split,
    "Sqrt": _of(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _of(torch.sub),
    "Sum": _folded(torch.add),
    "Tanh": _of(torch.tanh),
    "Tile": lambda said, x, times: x.repeat(_ints(times)),
    "Transpose": lambda said, x: x.permute(list(said.get("perm", range(x.dim() - 1, -1, -1)))),
    "Unsqueeze": _unsqueeze,
    "Where": _of(torch.where),
}
