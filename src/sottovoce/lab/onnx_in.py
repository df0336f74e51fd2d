"""A published .onnx, features in → what compression asks of a network: no code for its architecture, no checkpoint."""

from __future__ import annotations

import copy
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from sottovoce import quant
from sottovoce.bits.formats import Coded
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput
from sottovoce.export import assemble, standard
from sottovoce.export import metadata as about
from sottovoce.export.trace import FEATURES
from sottovoce.lab import onnx_rounding, posttraining
from sottovoce.lab.onnx_read import Source, embedder, read
from sottovoce.lab.onnx_rounding import Shells
from sottovoce.lab.onnx_torch import Replay
from sottovoce.networks.frontend import FrontEnd

METHODS = {"follow": "round"}  # where no gradients pass through the graph: what stands for a method
TRIED = (150, 187)  # frames that a replay is compared with onnxruntime on
CLOSE = 1e-4  # largest difference of unit embeddings that a replay may have

Wave = NDArray[np.float32]


class Published:
    """A published network as a subject of compression (`lab.subject`).

    front_end: preset to put in front; without it the file's metadata must say (sherpa-onnx's `framework`, or ours).
    Raises BadModel, BadInput.
    """

    plan = ""

    def __init__(self, path: str | Path, front_end: str | None = None) -> None:
        self.source = read(path, front_end)
        self.path, self.front_end, self.min_frames = self.source.path, self.source.front_end, self.source.min_frames
        self.network, self.not_followed = _network(self.source)

    @property
    def differentiable(self) -> bool:
        """Whether torch can compute the graph, so that gradients pass through it."""
        return self.not_followed is None

    def embeddings(self, waves: Sequence[Wave]) -> NDArray[np.float32]:
        """Unit embeddings of recordings of any length by the float graph: (waves, dim)."""
        embed, front = embedder(self.source.graph), FrontEnd(self.front_end)
        return np.stack([embed(_features(front, wave)) for wave in waves])

    def improve(self, plan: Plan, waves: Sequence[Wave], method: str | None, seed: int) -> list[posttraining.Stage]:
        """Attach a plan to the shells and let the stages of a method work on them; None: no stage.

        A stage that does not help is dropped. Where no gradients pass through the graph, `follow` ends after `round`,
        which onnxruntime alone can do.
        """
        if method is None or not self.differentiable:
            quant.attach(self.network, plan)
            return self._improve(waves, method, seed) if method is not None else []
        teacher = copy.deepcopy(self.network)
        quant.attach(self.network, plan)
        return posttraining.improve(self.network, teacher, self.front_end, waves, method=method, seed=seed)

    def _improve(self, waves: Sequence[Wave], method: str, seed: int) -> list[posttraining.Stage]:
        if method in METHODS:
            print(f"warning: {method} ends after {METHODS[method]}: {self.not_followed}", file=sys.stderr)
        names = posttraining.METHODS[METHODS.get(method, method)]
        if len(waves) < posttraining.LEAST and names:
            told = f"{len(waves)} recordings are too few to round on; give at least {posttraining.LEAST}"
            print(f"warning: {told}", file=sys.stderr)
            names = ()
        judge = _Judge(self, waves, seed)
        stages = [judge("nearest", time.monotonic())]
        fit = [wave for index, wave in enumerate(waves) if index % posttraining.HELD_SHARE]
        for name in names:
            began, before = time.monotonic(), copy.deepcopy(self.network.state_dict())
            self._round(fit, seed, rounding=name == "round")
            stage = judge(name, began)
            if stage.drift >= stages[0].drift:
                self.network.load_state_dict(before)
                stage = replace(stage, kept=False)
            stages.append(stage)
        return stages

    def coded(self) -> dict[str, Coded]:
        """The weights as stored, by layer; afterwards the graph computes with them."""
        coded = quant.coded(self.network)
        quant.detach(self.network)
        onnx_rounding.write_back(self.source.graph, self.source.layers, self.network)
        return coded

    def file(
        self, coded: Mapping[str, Coded], waves: Sequence[Wave], metadata: Mapping[str, Any], activations: str = "uint8"
    ) -> onnx.ModelProto:
        """The file of the graph as it computes now, waves in, as `export.build`."""
        graph = copy.copy(self.source.graph)
        graph.constants, graph.nodes = dict(graph.constants), copy.deepcopy(graph.nodes)
        graph.inputs, graph.outputs = dict(graph.inputs), dict(graph.outputs)
        sizes = {"min_frames": self.min_frames, "dim": self.source.dim}
        how = {"metadata": metadata, "activations": activations}
        return assemble.finish(graph, {}, self.front_end, coded, waves, **sizes, **how)  # type: ignore[arg-type]

    def metadata(self) -> dict[str, Any]:
        """Provenance and licence, as the file tells them."""
        told = {key: value for key, value in self.source.notes.items() if not key.startswith(about.PREFIX)}
        provenance = {
            "source_sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "source_metadata": told,
        }
        licence = told.get("license") or told.get("licence") or "unknown: ask whoever published the network"
        return {"provenance": provenance, "licence": licence}

    def told(self) -> dict[str, Any]:
        """Front end, fewest frames, and the operators and weights that stay in float whatever the plan."""
        return {
            "front_end": self.front_end.name,
            "min_frames": self.min_frames,
            "float_operators": self.source.float_operators,
            "unreached": self.source.unreached,
            "not_followed": self.not_followed,
        }

    def _round(self, waves: Sequence[Wave], seed: int, rounding: bool) -> None:
        rng, front = np.random.default_rng([seed, 6]), FrontEnd(self.front_end)
        one = _features(front, posttraining.crop(waves[0], posttraining.CROP_S, rng))
        work = 2 * onnx_rounding.multiply_adds(self.network, self._sizes(one))
        count = posttraining.between(posttraining.CROPS, posttraining.PASS_MACS / work)
        features = [one.numpy() for one in posttraining.crops(front, waves, count, rng).split(1)]
        graph, layers = self.source.graph, self.source.layers
        with click.progressbar(length=len(layers), label="rounding on recordings", file=sys.stderr) as bar:
            onnx_rounding.round_graph(
                graph, layers, self.network, features, rounding=rounding, seed=seed, each=lambda _: bar.update(1)
            )

    def _sizes(self, features: Wave) -> dict[str, int]:
        """Numbers in every layer's output for one input."""
        layers = self.source.layers
        arrays = standard.run(self.source.graph, [node.output[0] for node in layers.values()], {FEATURES: features})
        return {name: array.size for name, array in zip(layers, arrays, strict=True)}


def _network(source: Source) -> tuple[Shells, str | None]:
    """The layers of a graph as a network, in torch where that computes the same, and else why it does not."""
    plain = onnx_rounding.shells(source.graph, source.layers)
    try:
        replay = onnx_rounding.shells(source.graph, source.layers, Replay)
        difference = max(_difference(replay, plain, source, max(frames, source.min_frames)) for frames in TRIED)
    except BadInput as error:
        return plain, str(error)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
        told = " ".join(str(error).split())[:120]
        return plain, f"torch cannot compute the graph for several recordings at once ({told})"
    if not difference <= CLOSE:
        return plain, f"torch computes the graph otherwise than onnxruntime, by {difference:.1e}"
    return replay, None


@torch.no_grad()
def _difference(replay: Shells, plain: Shells, source: Source, frames: int) -> float:
    """Largest difference of unit embeddings between torch, several at once, and onnxruntime, one by one."""
    generator = torch.Generator().manual_seed(frames)
    features = torch.randn(3, source.front_end.rows, frames, generator=generator)
    found, wanted = (torch.nn.functional.normalize(network(features)) for network in (replay, plain))
    return float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")


class _Judge:
    """Stages are judged on recordings that none of them has seen, against the embeddings of the float graph."""

    def __init__(self, subject: Published, waves: Sequence[Wave], seed: int) -> None:
        rng, front = np.random.default_rng([seed, 5]), FrontEnd(subject.front_end)
        held = posttraining.held_out(waves)
        self.features = [_features(front, posttraining.crop(wave, posttraining.HELD_S, rng)) for wave in held]
        self.network = subject.network
        embed = embedder(subject.source.graph)
        self.wanted = np.stack([embed(one) for one in self.features])

    def __call__(self, name: str, began: float) -> posttraining.Stage:
        """What the network does now."""
        found = posttraining.embeddings(self.network, [torch.from_numpy(one) for one in self.features]).numpy()
        cosine = np.sum(found * self.wanted, axis=1)
        seconds = round(time.monotonic() - began, 1)
        return posttraining.Stage(name, float(1 - cosine.mean()), float(cosine.min()), True, seconds)


def _features(front: FrontEnd, wave: Wave) -> Wave:
    with torch.no_grad():
        return np.asarray(front(torch.from_numpy(wave)[None]).numpy())
