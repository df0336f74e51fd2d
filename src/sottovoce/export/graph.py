"""An ONNX graph that can be edited: constants as arrays, nodes in order, tensors by name."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from sottovoce.errors import BadInput

OPSET = 13  # the first with per-channel DequantizeLinear: onnxruntime 1.16 and later read it
NEWEST_OPSET = 17  # the last in which reductions have their axes as attributes, as our nodes do
IR_VERSION = 8

Array = NDArray[Any]


class Graph:
    """Nodes in order of execution and constants by tensor name. One node's outputs are other nodes' inputs, by name."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs: dict[str, list[int | str]] = {}
        self.outputs: dict[str, list[int | str]] = {}
        self.opset = OPSET
        self._count = 0

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Graph:
        """The graph of a model, nodes and constants as they are; the model itself is never changed."""
        graph, model = cls(), copy.deepcopy(model)
        graph.inputs = {value.name: _shape(value) for value in model.graph.input}
        graph.outputs = {value.name: _shape(value) for value in model.graph.output}
        graph.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        graph.nodes = list(model.graph.node)
        graph.opset = max([OPSET, *(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))])
        return graph

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        output = output or self.fresh()
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, array: Array, name: str = "") -> str:
        """A constant tensor. Without a name, equal small constants are shared."""
        array = np.asarray(array)
        if not name:
            small = array.nbytes <= 64
            name = f"~{array.dtype}{array.shape}{array.tobytes().hex()}" if small else self.fresh()
        self.constants[name] = array
        return name

    def fresh(self) -> str:
        """A tensor name that is not taken; it starts with ~, so `shorten` may change it."""
        self._count += 1
        return f"~{self._count}"

    def producer(self, tensor: str) -> NodeProto | None:
        """The node that computes a tensor; None for inputs and constants."""
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read a tensor."""
        return [node for node in self.nodes if tensor in node.input]

    def rank(self, tensor: str) -> int:
        """Number of axes of a tensor, by shape inference."""
        return self.ranks()[tensor]

    def ranks(self) -> dict[str, int]:
        """Number of axes of every tensor whose shape can be inferred."""
        return {name: len(axes) for name, axes in self.shapes().items()}

    def shapes(self) -> dict[str, list[int | None]]:
        """Length of each axis of every tensor whose shape can be inferred, None where it is not fixed."""
        inferred = onnx.shape_inference.infer_shapes(self.model()).graph
        known = [*inferred.value_info, *inferred.input, *inferred.output]
        kinds = {value.name: value.type.tensor_type for value in known}
        found = {
            name: [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
            for name, kind in kinds.items()
            if kind.HasField("shape")
        }
        return {**found, **{name: list(array.shape) for name, array in self.constants.items()}}

    def redirect(self, old: str, new: str, keep: Iterable[NodeProto] = ()) -> None:
        """Let every reader of `old` read `new`, except the nodes in `keep`."""
        kept = [id(node) for node in keep]
        for node in self.nodes:
            if id(node) not in kept:
                for index, name in enumerate(node.input):
                    if name == old:
                        node.input[index] = new

    def remove(self, node: NodeProto) -> None:
        """Take a node out; its outputs must have no readers left."""
        self.nodes = [other for other in self.nodes if other is not node]

    def prune(self) -> None:
        """Drop nodes and constants that no output depends on."""
        makers = {name: node for node in self.nodes for name in node.output}
        wanted: set[str] = set()
        waiting = list(self.outputs)
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting += makers[name].input if name in makers else []
        self.nodes = [node for node in self.nodes if wanted.intersection(node.output)]
        self.constants = {name: array for name, array in self.constants.items() if name in wanted}

    def sorted(self) -> list[NodeProto]:
        """Nodes in an order in which every input exists before it is read."""
        ready = {"", *self.inputs, *self.constants}
        waiting, done = list(self.nodes), []
        while waiting:
            later = []
            for node in waiting:
                if ready.issuperset(node.input):
                    ready.update(node.output)
                    done.append(node)
                else:
                    later.append(node)
            if len(later) == len(waiting):
                raise BadInput(f"graph: {later[0].op_type} reads what nothing computes: {list(later[0].input)}")
            waiting = later
        return done

    def model(self, extra_outputs: Iterable[str] = ()) -> onnx.ModelProto:
        """The graph as an ONNX model; `extra_outputs` are intermediate tensors to return as well."""
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.inputs.items()]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in self.outputs.items()]
        outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in extra_outputs]
        constants = [numpy_helper.from_array(np.asarray(a, order="C"), name) for name, a in self.constants.items()]
        graph = helper.make_graph(self.sorted(), "sottovoce", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=IR_VERSION)

    def typed_model(self, outputs: Iterable[str], fed: Mapping[str, Array]) -> onnx.ModelProto:
        """The part of the graph that computes `outputs` from the arrays `fed`, their types and axes as inputs.

        Types of outputs are left open, which onnxruntime accepts.
        """
        part = Graph()
        part.nodes, part.constants, part.opset = self.nodes, self.constants, self.opset
        part.inputs, part.outputs = {name: [] for name in fed}, {name: [] for name in outputs}
        part.nodes = [node for node in part.nodes if not set(node.output) & set(fed)]
        part.prune()
        model = part.model()
        del model.graph.input[:], model.graph.output[:]
        for name, array in fed.items():
            kind, axes = helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
            model.graph.input.append(helper.make_tensor_value_info(name, kind, axes))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return model

    def shorten(self, keep: Iterable[str] = ()) -> None:
        """Give intermediate tensors and anonymous constants short names, and nodes none: names are bytes too.

        keep: intermediate tensors that stay as they are called.
        """
        short: dict[str, str] = {}
        for node in self.sorted():
            node.name, node.doc_string = "", ""
            for name in node.output:
                if name not in self.outputs and name not in keep:
                    short[name] = f"{len(short):x}"
        anonymous = [name for name in self.constants if name.startswith("~")]
        short.update({name: f"k{index:x}" for index, name in enumerate(anonymous)})
        for node in self.nodes:
            node.input[:] = [short.get(name, name) for name in node.input]
            node.output[:] = [short.get(name, name) for name in node.output]
        self.constants = {short.get(name, name): array for name, array in self.constants.items()}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """onnxruntime on a graph in the making: silent, and threads that wait sleep, so that a busy machine gets on."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def replace(node: NodeProto, op: str, inputs: list[str], **settings: Any) -> None:
    """Make another operator of a node, in its place."""
    changed = helper.make_node(op, inputs, list(node.output), name=node.name, **settings)
    node.CopyFrom(changed)


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
