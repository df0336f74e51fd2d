"""Data-aware rounding of an ONNX graph: what its layers read comes from onnxruntime, codes and scales from `quant`.

Every layer of the graph has a shell here, a layer of torch with its weight and bias. A plan is attached to the shells
as to a network, and two computations of the graph advance together, one with float weights and one with what is rounded
so far, as in `quant.sequential`. All shells together are a network that computes embeddings, in onnxruntime.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from torch import Tensor, nn

from sottovoce.errors import BadModel
from sottovoce.export.graph import Graph
from sottovoce.export.standard import BIAS, WEIGHT, attributes, layer_nodes, quiet
from sottovoce.export.trace import EMBEDDING, FEATURES
from sottovoce.export.walk import Walk
from sottovoce.quant.attach import attached, stored
from sottovoce.quant.sequential import WIDEST, round_layer

Features = NDArray[np.float32]


class Shells(nn.Module):
    """The layers of a graph as layers of torch; as a whole it computes what the graph does with their weights.

    No gradients pass through it.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, NodeProto]) -> None:
        super().__init__()
        self._graph, self._names = graph, list(layers)
        self._seen: list[Tensor] = []
        self._session: onnxruntime.InferenceSession | None = None

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Embeddings (batch, dim), of any length, of features (batch, rows, frames). Raises BadModel."""
        session = self._opened()
        found = [session.run([EMBEDDING], {FEATURES: one.numpy()})[0].reshape(1, -1) for one in features.split(1)]
        return torch.from_numpy(np.concatenate(found))

    def _opened(self) -> onnxruntime.InferenceSession:
        """A session of the graph with the weights as they are now."""
        shown = [self.get_submodule(name) for name in self._names]
        now = [tensor.detach() for layer in shown for tensor in (layer.weight, layer.bias) if tensor is not None]
        if self._session is None or not all(map(torch.equal, now, self._seen)):
            self._session = opened(rewritten(self._graph, self))
            self._seen = [tensor.clone() for tensor in now]
        return self._session


def opened(graph: Graph) -> onnxruntime.InferenceSession:
    """A session of a float graph. Raises BadModel."""
    try:
        content = graph.model().SerializeToString()
        return onnxruntime.InferenceSession(content, quiet(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no public base class for its errors
        raise BadModel(f"the graph cannot be run ({' '.join(str(error).split())[:200]}); export it again") from None


def rewritten(graph: Graph, network: nn.Module) -> Graph:
    """A copy of a graph that computes with the weights that the shells see, and with their biases."""
    other = copy.copy(graph)
    other.constants, other.nodes = dict(graph.constants), copy.deepcopy(graph.nodes)
    layers = {name: node for name, node in layer_nodes(other).items() if _has(network, name)}
    write_back(other, layers, network)
    return other


def _has(network: nn.Module, name: str) -> bool:
    return any(name == known for known, _ in network.named_modules())


def shells(graph: Graph, layers: Mapping[str, NodeProto], kind: type[Shells] = Shells) -> Shells:
    """One layer of torch for every layer of a graph, under its name, with its weight and bias."""
    root = kind(graph, layers)
    for name, node in layers.items():
        weight = torch.from_numpy(graph.constants[name + WEIGHT].copy())
        layer = _shell(node, weight)
        layer.weight.data = weight
        bias = _bias(graph, node)
        if layer.bias is not None:
            layer.bias.data = torch.zeros(len(weight)) if bias is None else torch.from_numpy(bias.copy())
        _place(root, name, layer)
    return root.eval()


def can_be_named(name: str) -> bool:
    """Whether a layer of a network can have this name: attributes of every network are taken."""
    taken = nn.Conv2d(1, 1, 1)
    return not any(hasattr(taken, part) or part.startswith("_") for part in name.split("."))


def can_round(graph: Graph, node: NodeProto) -> bool:
    """Whether torch has a layer that computes what a node does; others keep their float weights."""
    known = attributes(node)
    if node.op_type != "Conv":
        return len(node.input) < 3 or node.input[2] in graph.constants
    resolved = known.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    return (
        resolved
        and graph.constants[node.input[1]].ndim in (3, 4)
        and (len(node.input) < 3 or node.input[2] in graph.constants)
    )


def _shell(node: NodeProto, weight: Tensor) -> nn.Module:
    if node.op_type != "Conv":
        return nn.Linear(weight.shape[1], weight.shape[0], bias=node.op_type == "Gemm")
    known = attributes(node)
    axes = weight.dim() - 2
    groups = int(known.get("group", 1))  # type: ignore[call-overload]
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    return kind(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(known.get("strides", [1] * axes)),  # type: ignore[arg-type]
        padding=tuple(list(known.get("pads", [0] * axes))[:axes]),  # type: ignore[call-overload]
        dilation=tuple(known.get("dilations", [1] * axes)),  # type: ignore[arg-type]
        groups=groups,
    )


def _bias(graph: Graph, node: NodeProto) -> NDArray[np.float32] | None:
    return graph.constants[node.input[2]] if len(node.input) > 2 else None


def _place(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Make `layer` the submodule with a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, layer)


@torch.no_grad()
def round_graph(
    graph: Graph,
    layers: Mapping[str, NodeProto],
    network: nn.Module,
    features: Sequence[Features],
    *,
    rounding: bool = True,
    seed: int = 0,
    each: Callable[[str], None] = lambda name: None,
) -> None:
    """Round the shells of a graph on inputs (1, rows, frames), all of one length; biases take up changed means.

    network: the shells, a plan attached.   rounding: off keeps the nearest levels.   each: told the name of every layer
    that is done.
    """
    floats, quantized = shells(graph, layers), attached(network)
    nodes = list(layers.values())
    fed = [{FEATURES: one} for one in features]
    plain, rounded = Walk(graph, nodes, fed), Walk(graph, nodes, fed)
    for count, (name, node) in enumerate(layers.items()):
        x_float, x_seen = (_joined(walk.reach(node.input[0])) for walk in (plain, rounded))
        layer, twin = network.get_submodule(name), floats.get_submodule(name)
        if name in quantized and rounding and quantized[name].spec.bits < WIDEST:
            generator = torch.Generator().manual_seed(seed + count)
            movable = layer.bias is not None
            round_layer(layer, quantized[name], x_float, x_seen, centred=movable, generator=generator)
        out_float, out_seen = twin(x_float), layer(x_seen)
        if layer.bias is not None and name in quantized:
            shift = _means(node, out_float) - _means(node, out_seen)
            layer.bias += shift.float()
            out_seen = out_seen + shift.float().reshape(-1, *[1] * (out_seen.dim() - 2))
        plain.passed(node, _apart(out_float, len(features)))
        rounded.passed(node, _apart(out_seen, len(features)))
        each(name)


def _joined(arrays: Sequence[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def _apart(joined: Tensor, count: int) -> list[NDArray[np.float32]]:
    return [part.numpy() for part in joined.chunk(count)]


def _means(node: NodeProto, out: Tensor) -> Tensor:
    """Mean of every channel over all else: (channels,) float64."""
    return out.double().mean(dim=[axis for axis in range(out.dim()) if axis != 1])


def write_back(graph: Graph, layers: Mapping[str, NodeProto], network: nn.Module) -> None:
    """Let the graph compute with the weights that the shells see, and with their biases."""
    for name, node in layers.items():
        layer = network.get_submodule(name)
        graph.constants[name + WEIGHT] = layer.weight.detach().numpy().copy()
        if layer.bias is not None and (len(node.input) > 2 or bool(layer.bias.any())):
            node.input[:] = [*node.input[:2], graph.constant(layer.bias.detach().numpy().copy(), name + BIAS)]


def multiply_adds(network: nn.Module, sizes: Mapping[str, int]) -> int:
    """Multiply-adds of all shells; sizes: numbers in each layer's output."""
    return sum(size * stored(network.get_submodule(name))[0].numel() for name, size in sizes.items())
