"""A graph computed layer by layer on several inputs at once, its layers left to the caller.

What a layer reads is computed by onnxruntime from what the caller gave as the outputs of the layers before it. Tensors
are kept only as long as a node that has not been computed reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnx import NodeProto

from sottovoce.errors import BadModel
from sottovoce.export.graph import Array, Graph
from sottovoce.export.standard import quiet

Live = dict[str, Array]  # tensors by name, of one input


class Walk:
    """Several computations of one graph that advance together, from layer to layer."""

    def __init__(self, graph: Graph, layers: Sequence[NodeProto], inputs: Sequence[Live]) -> None:
        self.graph, self.live = graph, [dict(one) for one in inputs]
        self._waiting = [node for node in graph.sorted() if not any(node is layer for layer in layers)]
        self._later = list(layers)

    def reach(self, tensor: str) -> list[Array]:
        """A tensor of every computation, from what is known; every layer it depends on must have been passed."""
        part = self._ancestors(tensor)
        if part:
            self._compute(part)
        return [one[tensor] for one in self.live]

    def passed(self, layer: NodeProto, outputs: Sequence[Array]) -> None:
        """Go on with these as a layer's outputs."""
        self._later = [node for node in self._later if node is not layer]
        for one, array in zip(self.live, outputs, strict=True):
            one[layer.output[0]] = array
        self._forget()

    def _ancestors(self, tensor: str) -> list[NodeProto]:
        """Nodes that have not been computed and that a tensor needs, in order."""
        wanted, part = {tensor}, []
        for node in reversed(self._waiting):
            if wanted.intersection(node.output) and not set(node.output) <= self._known():
                part.append(node)
                wanted.update(node.input)
        return part[::-1]

    def _known(self) -> set[str]:
        return set(self.live[0])

    def _compute(self, part: list[NodeProto]) -> None:
        done = {id(node) for node in part}
        made = {name for node in part for name in node.output if name}
        self._waiting = [node for node in self._waiting if id(node) not in done]
        read = {name for node in [*self._waiting, *self._later] for name in node.input} | set(self.graph.outputs)
        outputs = [name for node in part for name in node.output if name in read]
        inputs = sorted({name for node in part for name in node.input} & self._known() - made)
        piece = Graph()
        piece.nodes, piece.constants, piece.opset = part, self.graph.constants, self.graph.opset
        session = _session(piece, outputs, {name: self.live[0][name] for name in inputs})
        for one in self.live:
            arrays = session.run(outputs, {name: one[name] for name in inputs})
            one.update({name: np.asarray(array) for name, array in zip(outputs, arrays, strict=True)})
        self._forget()

    def _forget(self) -> None:
        read = {name for node in [*self._waiting, *self._later] for name in node.input} | set(self.graph.outputs)
        for one in self.live:
            for name in [name for name in one if name not in read]:
                del one[name]


def _session(piece: Graph, outputs: Sequence[str], fed: Live) -> onnxruntime.InferenceSession:
    try:
        model = piece.typed_model(outputs, fed).SerializeToString()
        return onnxruntime.InferenceSession(model, quiet(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no public base class for its errors
        raise BadModel(f"the graph cannot be run ({' '.join(str(error).split())[:200]}); export it again") from None
