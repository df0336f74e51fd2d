"""Checkpoints: tensors in safetensors, what they are in its metadata. Written atomically; nothing in them executes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sottovoce import networks, quant
from sottovoce.audio.features import FrontEndConfig, preset
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadCheckpoint

KEY = "sottovoce"


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights, float or with a plan attached, and what is known of it."""

    network: nn.Module
    about: dict[str, Any]  # network, front_end, plan (text, "" = float), licence, trained_on, ...
    path: Path

    @property
    def plan(self) -> str:
        """Text of the attached plan; empty for a float network."""
        return str(self.about.get("plan", ""))

    @property
    def front_end(self) -> FrontEndConfig:
        """What makes the features that the network takes."""
        return preset(self.about["front_end"])


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able description under a temporary name, then rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        temporary.write_bytes(to_bytes(flat, metadata={KEY: json.dumps(dict(about), sort_keys=True)}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises BadCheckpoint."""
    path = Path(path)
    if not path.is_file():
        raise BadCheckpoint(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadCheckpoint(f"{path}: not a readable safetensors file ({error})") from None
    if about is None:
        raise BadCheckpoint(f"{path}: safetensors, but not written by sottovoce (no {KEY!r} in its metadata)")
    return tensors, about


def save(path: str | Path, network: nn.Module, about: Mapping[str, Any]) -> None:
    """Write a network's state (attached or plain) and its description."""
    save_tensors(path, network.state_dict(), about)


def load(path: str | Path) -> Checkpoint:
    """Build the network that a file describes, attach its plan if it has one, load weights. Raises BadCheckpoint."""
    tensors, about = load_tensors(path)
    try:
        network = networks.build(**about["network"])
        if about.get("plan"):
            quant.attach(network, Plan.parse(about["plan"]))
        network.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise BadCheckpoint(f"{path}: does not fit the network it names ({str(error)[:300]})") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadCheckpoint(f"{path}: tensor {name} has NaN or infinite values")
    return Checkpoint(network.eval(), about, Path(path))
