"""What is compressed: a float network that came as a checkpoint of ours or as a published .onnx, asked the same way."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from sottovoce import export as writer
from sottovoce import quant
from sottovoce.audio.features import FrontEndConfig
from sottovoce.bits.formats import Coded
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab import posttraining
from sottovoce.lab.onnx_in import Published
from sottovoce.networks.frontend import FrontEnd

Wave = NDArray[np.float32]


class Subject(Protocol):
    """A network in float, or trained with a plan, and the file it becomes."""

    @property
    def path(self) -> Path: ...
    @property
    def front_end(self) -> FrontEndConfig: ...
    @property
    def min_frames(self) -> int: ...
    @property
    def plan(self) -> str: ...  # that it was trained with; empty: float
    @property
    def network(self) -> nn.Module: ...  # features (batch, rows, frames) → (batch, dim); its layers can have a plan

    @property
    def differentiable(self) -> bool: ...  # whether gradients pass through the network

    def embeddings(self, waves: Sequence[Wave]) -> NDArray[np.float32]: ...  # of the network, unit length
    def improve(self, plan: Plan, waves: Sequence[Wave], method: str | None, seed: int) -> list[posttraining.Stage]: ...
    def coded(self) -> dict[str, Coded]: ...  # what the layers see; the plan is taken off
    def file(
        self, coded: Mapping[str, Coded], waves: Sequence[Wave], metadata: Mapping[str, Any], activations: str
    ) -> onnx.ModelProto: ...
    def metadata(self) -> dict[str, Any]: ...
    def told(self) -> dict[str, Any]: ...  # what a report says beside


class Trained:
    """A checkpoint of ours. Raises BadCheckpoint."""

    differentiable = True

    def __init__(self, path: str | Path) -> None:
        self.loaded = checkpoints.load(path)
        self.path, self.network, self.plan = self.loaded.path, self.loaded.network, self.loaded.plan
        self.front_end = self.loaded.front_end
        self.min_frames = int(self.network.min_frames)  # type: ignore[arg-type]
        if not self.plan:
            quant.positive_gains(self.network, torch.randn(2, self.front_end.rows, 64))

    def embeddings(self, waves: Sequence[Wave]) -> NDArray[np.float32]:
        """Unit embeddings of recordings of any length: (waves, dim)."""
        features = FrontEnd(self.front_end)
        with torch.no_grad():
            out = torch.cat([self.network(features(torch.from_numpy(wave)[None])) for wave in waves])
        return np.asarray(nn.functional.normalize(out).numpy())

    def improve(self, plan: Plan, waves: Sequence[Wave], method: str | None, seed: int) -> list[posttraining.Stage]:
        """Attach a plan and bring the weights nearer to the float network's, as `posttraining.improve`; None: not."""
        teacher = copy.deepcopy(self.network)
        quant.attach(self.network, plan)
        if method is None:
            return []
        return posttraining.improve(self.network, teacher, self.front_end, waves, method=method, seed=seed)

    def coded(self) -> dict[str, Coded]:
        """The weights as stored, by layer; afterwards the network computes with them as plain weights."""
        coded = quant.coded(self.network)
        quant.detach(self.network)
        return coded

    def file(
        self,
        coded: Mapping[str, Coded],
        waves: Sequence[Wave],
        metadata: Mapping[str, Any],
        activations: str = "uint8",
        front_end_inside: bool = True,
    ) -> onnx.ModelProto:
        """The file of these weights, as `export.build`; of a network that still has its plan, with decoded weights."""
        network = self.network
        if quant.attached(network):  # a copy would share the classes that taking the plan off changes
            network = checkpoints.load(self.path).network
            quant.detach(network)
            quant.positive_gains(network, torch.randn(2, self.front_end.rows, 64))
        how = {"metadata": metadata, "activations": activations, "front_end_inside": front_end_inside}
        return writer.build(network.eval(), self.front_end, coded, waves, **how)

    def metadata(self) -> dict[str, Any]:
        """Provenance and licence, as the checkpoint tells them."""
        about = self.loaded.about
        known = ("trained_on", "licence", "note", "recipe_sha256", "name")
        provenance = {key: about[key] for key in known if about.get(key)}
        provenance["checkpoint_sha256"] = hashlib.sha256(self.path.read_bytes()).hexdigest()
        provenance["network"] = about["network"]
        return {
            "provenance": provenance,
            "licence": about.get("licence", "unknown: ask whoever trained the checkpoint"),
        }

    def told(self) -> dict[str, Any]:
        """Nothing more: every operator of ours is known."""
        return {}


def opened(path: str | Path, front_end: str | None = None) -> Subject:
    """The subject in a file, an .onnx by its suffix. front_end: preset of a published .onnx.

    Raises BadCheckpoint, BadModel, BadInput.
    """
    if str(path).endswith(".onnx"):
        return Published(path, front_end)
    if front_end is not None:
        raise BadInput("--front-end is for a published .onnx; a checkpoint says how its features are made")
    return Trained(path)
