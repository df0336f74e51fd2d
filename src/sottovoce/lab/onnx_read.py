"""A published .onnx, features in → its graph in our form, its layers and its front end; nothing in it is trusted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from sottovoce.audio.features import PRESETS, FrontEndConfig, preset
from sottovoce.errors import BadInput, BadModel, SottoError
from sottovoce.export import metadata as about
from sottovoce.export import source, standard
from sottovoce.export.activations import find_region
from sottovoce.export.graph import Graph
from sottovoce.export.trace import EMBEDDING, FEATURES
from sottovoce.lab import onnx_rounding

FRAMEWORKS = {"wespeaker": "wespeaker", "3d-speaker": "3dspeaker", "nemo": "nemo"}  # sherpa-onnx's → our preset
FEWEST_FRAMES = 256  # a network that needs more is refused
PROBED = 200  # frames of the run that tells dim and sizes
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
MOVING = {
    "Shape",
    "Gather",
    "Unsqueeze",
    "Squeeze",
    "Concat",
    "Slice",
    "Cast",
    "Reshape",
    "Flatten",
    "Split",
    "Transpose",
}

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """A published network in our form."""

    path: Path
    graph: Graph
    layers: dict[str, NodeProto]
    front_end: FrontEndConfig
    min_frames: int
    dim: int
    notes: dict[str, str]  # the metadata that the file came with
    float_operators: dict[str, int]  # how often an operator occurs that stays in float
    unreached: list[str]  # weights of convolutions and products that no plan can reach


def read(path: str | Path, front_end: str | None = None) -> Source:
    """Read an .onnx and find its layers. front_end: a preset; else the file's metadata say which.

    Raises BadModel for a file that cannot be used, BadInput for a front end that is unknown or does not fit.
    """
    model = source.read_source(path)
    notes = {entry.key: entry.value for entry in model.metadata_props}
    config = _front_end(notes, front_end, path)
    taken, turned = source.choose_input(model, config.rows, path)
    given, counts = source.choose_output(model), source.lengths(model)
    graph = Graph.of(model)
    try:
        standard.standardise(graph, taken, turned, given, config.rows, counts)
        layers = {
            name: node
            for name, node in standard.layer_nodes(graph).items()
            if onnx_rounding.can_round(graph, node) and onnx_rounding.can_be_named(name)
        }
    except SottoError as error:
        raise BadModel(f"{path}: {error}") from None
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise BadModel(f"{path}: its graph contradicts itself ({error!r}); the file is damaged") from None
    if not layers:
        raise BadModel(f"{path}: has no convolution or matrix product with a constant weight; nothing to quantize")
    embed = embedder(graph)
    dim, fewest = _probe(embed, config.rows, path)
    return Source(
        Path(path), graph, layers, config, fewest, dim, notes, _left_in_float(graph, layers), _unreached(graph, layers)
    )


def embedder(graph: Graph) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What a float graph computes: features (1, rows, frames) → embedding (dim,) of unit length. Raises BadModel."""
    session = onnx_rounding.opened(graph)

    def embed(features: NDArray[np.float32]) -> NDArray[np.float32]:
        raw = session.run([EMBEDDING], {FEATURES: features})[0].reshape(-1)
        return np.asarray(raw / max(float(np.linalg.norm(raw)), 1e-12), dtype=np.float32)

    return embed


def _front_end(notes: dict[str, str], named: str | None, path: str | Path) -> FrontEndConfig:
    if f"{about.PREFIX}layers" in notes and json.loads(notes[f"{about.PREFIX}layers"]):
        raise BadModel(f"{path}: is compressed already; give the float network it was made of")
    if named is not None:
        return preset(named)
    if f"{about.PREFIX}front_end" in notes:
        return FrontEndConfig(**json.loads(notes[f"{about.PREFIX}front_end"]))
    framework = notes.get("framework", "").lower()
    if framework in FRAMEWORKS:
        return preset(FRAMEWORKS[framework])
    raise BadInput(f"{path}: does not say how its features are made; name a front end: {', '.join(PRESETS)}")


def _probe(embed: Callable[[Wave], Wave], rows: int, path: str | Path) -> tuple[int, int]:
    """Numbers of an embedding, and fewest frames for which it is finite, found by halving. Raises BadModel."""
    rng = np.random.default_rng(0)

    def tried(frames: int) -> int:
        try:
            found = embed(rng.standard_normal((1, rows, frames)).astype(np.float32))
        except Exception:  # onnxruntime has no public base class; too short an input is what is looked for
            return 0
        return found.size if np.isfinite(found).all() else 0

    dim = tried(PROBED)
    if dim == 0 or tried(PROBED + 37) != dim:
        raise BadModel(
            f"{path}: does not give one finite embedding for {PROBED} and for {PROBED + 37} frames; a network with "
            "dynamic time and no state is needed"
        )
    low, high = 0, PROBED
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tried(middle) == dim else (middle, high)
    return dim, high


def _left_in_float(graph: Graph, layers: dict[str, NodeProto]) -> dict[str, int]:
    """Operators that compute in float whatever the plan, by kind; those that only move values are not counted."""
    region = find_region(graph, {name + standard.WEIGHT for name in layers})
    rounded = {tensor for group in region.groups for tensor in group}
    absorbed = {id(node) for node in (*layers.values(), *region.relus, *region.floors)}
    left: Counter[str] = Counter()
    for node in graph.nodes:
        inputs = {name for name in node.input if name and name not in graph.constants}
        integer = inputs <= rounded and rounded.issuperset(node.output)
        if id(node) not in absorbed and node.op_type not in MOVING and not integer:
            left[node.op_type] += 1
    return dict(sorted(left.items()))


def _unreached(graph: Graph, layers: dict[str, NodeProto]) -> list[str]:
    """Weights that several nodes share, of convolutions back, or of a kind that torch has no layer for."""
    known = {id(node) for node in layers.values()}
    nodes = [node for node in graph.nodes if node.op_type in WEIGHTED and id(node) not in known]
    names = [node.input[1].removeprefix(standard.THEIRS) for node in nodes if node.input[1] in graph.constants]
    return list(dict.fromkeys(names))
