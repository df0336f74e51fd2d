"""A published .onnx, features in → the file that ships: no code for its architecture, no labels, no checkpoint."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from torch import nn

from sottovoce import quant
from sottovoce.audio.features import PRESETS, FrontEndConfig, preset
from sottovoce.bits.plan import Plan, plan_bytes
from sottovoce.errors import BadInput, BadModel, SottoError
from sottovoce.export import assemble, source, standard
from sottovoce.export import metadata as about
from sottovoce.export.activations import find_region
from sottovoce.export.graph import Graph
from sottovoce.export.trace import EMBEDDING, FEATURES
from sottovoce.lab import compress as files
from sottovoce.lab import onnx_rounding, posttraining
from sottovoce.networks.frontend import FrontEnd
from sottovoce.runtime.engine import load as load_model

FRAMEWORKS = {"wespeaker": "wespeaker", "3d-speaker": "3dspeaker", "nemo": "nemo"}  # sherpa-onnx's → our preset
FEWEST_FRAMES = 256  # a network that needs more is refused
PROBED = 200  # frames of the run that tells dim and sizes
METHODS = {"follow": "round"}  # there is no network to train: what stands for a method
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
            name: node for name, node in standard.layer_nodes(graph).items() if onnx_rounding.can_round(graph, node)
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


def compress(
    path: str | Path,
    *,
    out: str | Path,
    bits: int | None = None,
    plan: str | None = None,
    data: str | Path | None = None,
    trials: Sequence[str | Path] = (),
    audio: str | Path | None = None,
    utterances: int = 200,
    seed: int = 0,
    method: str = posttraining.DEFAULT,
    front_end: str | None = None,
) -> dict[str, Any]:
    """Quantize a published .onnx and write one file, wave in, embedding out; returns the report of `lab.compress`.

    front_end: preset to put in front; without it the file's metadata must say (sherpa-onnx's `framework`, or ours).
    Else as `lab.compress.compress`; following the float network needs a checkpoint, so that `follow` ends after
    `round`. The report has `float_operators` and `float_layers` too. Raises BadModel, BadPlan, BadList, BadInput before
    any work.
    """
    began = time.monotonic()
    posttraining.check_method(method)
    files.check_places(out, trials, audio)
    found = read(path, front_end)
    network = onnx_rounding.shells(found.graph, found.layers)
    shapes = quant.quantizable(network)
    chosen = _plan(bits, plan, shapes)
    waves = files.read_waves(data, utterances, seed, found.front_end.samples(found.min_frames))
    apart = posttraining.held_out(waves)[: files.JUDGED]
    front = FrontEnd(found.front_end)
    float_embed = embedder(found.graph)
    before = np.stack([float_embed(_features(front, wave)) for wave in apart])
    stages = _improve(found, network, chosen, front, waves, METHODS.get(method, method) if data else "nearest", seed)
    coded = quant.coded(network)
    onnx_rounding.write_back(found.graph, found.layers, network)
    told = f"{len(waves)} recordings, one in {files.STRESSED} under stress too" if data else "synthetic signal"
    proto = assemble.finish(
        found.graph,
        {},
        found.front_end,
        coded,
        files.observable(waves),
        min_frames=found.min_frames,
        dim=found.dim,
        metadata=_metadata(found, str(chosen), told),
    )
    report = files.deliver(proto, coded, Path(out), trials, audio)
    model = load_model(out)
    cosine = np.sum(before * np.stack([model.embed(wave) for wave in apart]), axis=1)
    return {
        **report,
        "checkpoint": str(path),
        "plan": str(chosen),
        "plan_bytes": plan_bytes(chosen, shapes),
        "trained_with_plan": False,
        "method": METHODS.get(method, method) if len(stages) > 1 else None,
        "stages": [asdict(stage) for stage in stages],
        "observed_on": str(data) if data is not None else "synthetic signal",
        "recordings": len(waves),
        "front_end": found.front_end.name,
        "min_frames": found.min_frames,
        "float_operators": found.float_operators,
        "float_layers": [name for name in shapes if name not in coded] + found.unreached,
        "cosine_to_checkpoint": {"mean": float(cosine.mean()), "least": float(cosine.min()), "recordings": len(cosine)},
        "seconds": round(time.monotonic() - began, 2),
    }


def embedder(graph: Graph) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What a float graph computes: features (1, rows, frames) → embedding (dim,) of unit length. Raises BadModel."""
    try:
        content = graph.model().SerializeToString()
        session = onnxruntime.InferenceSession(content, standard.quiet(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no public base class for its errors
        raise BadModel(f"the graph cannot be run ({' '.join(str(error).split())[:200]}); export it again") from None

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


def _plan(bits: int | None, plan: str | None, shapes: dict[str, tuple[int, ...]]) -> Plan:
    if (bits is None) == (plan is None):
        raise BadInput("give the number of bits or a plan, one of the two")
    chosen = Plan.parse(plan) if plan is not None else Plan.of_bits(int(bits or 0), shapes)
    chosen.resolve(shapes)
    return chosen


def _features(front: FrontEnd, wave: Wave) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(front(torch.from_numpy(wave)[None]).numpy())


def _improve(
    found: Source, network: nn.Module, plan: Plan, front: FrontEnd, waves: Sequence[Wave], method: str, seed: int
) -> list[posttraining.Stage]:
    """Attach the plan to the shells and let the stages of a method work on them; what does not help is dropped."""
    rng = np.random.default_rng([seed, 5])
    held = [_features(front, posttraining.crop(w, posttraining.HELD_S, rng)) for w in posttraining.held_out(waves)]
    wanted = _embeddings(found.graph, held)
    quant.attach(network, plan)
    if len(waves) < posttraining.LEAST and posttraining.METHODS[method]:
        print(f"warning: {len(waves)} recordings are too few to round on; give {posttraining.LEAST}", file=sys.stderr)
        method = "nearest"
    stages = [_judged("nearest", found, network, held, wanted, time.monotonic())]
    fit = [wave for index, wave in enumerate(waves) if index % posttraining.HELD_SHARE]
    for name in posttraining.METHODS[method]:
        began, before = time.monotonic(), copy.deepcopy(network.state_dict())
        _round(found, network, front, fit, seed, rounding=name == "round")
        stage = _judged(name, found, network, held, wanted, began)
        if stage.drift >= stages[0].drift:
            network.load_state_dict(before)
            stage = replace(stage, kept=False)
        stages.append(stage)
    return stages


def _round(
    found: Source, network: nn.Module, front: FrontEnd, waves: Sequence[Wave], seed: int, rounding: bool
) -> None:
    rng = np.random.default_rng([seed, 6])
    one = _features(front, posttraining.crop(waves[0], posttraining.CROP_S, rng))
    work = 2 * onnx_rounding.multiply_adds(network, _sizes(found, one))
    count = posttraining.between(posttraining.CROPS, posttraining.PASS_MACS / work)
    features = [one.numpy() for one in posttraining.crops(front, waves, count, rng).split(1)]
    with click.progressbar(length=len(found.layers), label="rounding on recordings", file=sys.stderr) as bar:
        onnx_rounding.round_graph(
            found.graph, found.layers, network, features, rounding=rounding, seed=seed, each=lambda _: bar.update(1)
        )


def _sizes(found: Source, features: NDArray[np.float32]) -> dict[str, int]:
    """Numbers in every layer's output for one input."""
    outputs = [node.output[0] for node in found.layers.values()]
    arrays = standard.run(found.graph, outputs, {FEATURES: features})
    return {name: array.size for name, array in zip(found.layers, arrays, strict=True)}


def _embeddings(graph: Graph, features: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    embed = embedder(graph)
    return np.stack([embed(one) for one in features])


def _judged(
    name: str, found: Source, network: nn.Module, held: Sequence[Wave], wanted: Wave, began: float
) -> posttraining.Stage:
    tried = copy.copy(found.graph)
    tried.constants, tried.nodes = dict(found.graph.constants), copy.deepcopy(found.graph.nodes)
    onnx_rounding.write_back(tried, standard.layer_nodes(tried), network)
    cosine = np.sum(_embeddings(tried, held) * wanted, axis=1)
    seconds = round(time.monotonic() - began, 1)
    return posttraining.Stage(name, float(1 - cosine.mean()), float(cosine.min()), True, seconds)


def _metadata(found: Source, plan: str, observed: str) -> dict[str, Any]:
    told = {key: value for key, value in found.notes.items() if not key.startswith(about.PREFIX)}
    provenance = {
        "source_sha256": hashlib.sha256(found.path.read_bytes()).hexdigest(),
        "source_metadata": told,
        "ranges_observed_on": observed,
    }
    licence = told.get("license") or told.get("licence") or "unknown: ask whoever published the network"
    return {"plan": plan, "provenance": provenance, "licence": licence}
