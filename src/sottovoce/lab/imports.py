"""Other toolkits' checkpoints → ours: what recognise.py has told, given its weights, run once, compared."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sottovoce import networks
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.audio.wav import read
from sottovoce.errors import BadCheckpoint, BadInput, OtherEmbedding
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab.recognise import COUNTER, Recognised, examine
from sottovoce.networks.frontend import FrontEnd

TOLERANCE = 1e-3  # of the largest difference of unit embeddings
SMALLEST_NORM = 1e-6  # of an embedding


def import_checkpoint(
    source: str | Path,
    *,
    out: str | Path,
    front_end: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    trained_on: str | None = None,
    check: str | Path | None = None,
    check_audio: str | Path | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Turn another toolkit's checkpoint, a file or the folder it was published as, into ours; returns a report.

    front_end: a preset, needed where toolkits with different ones share an architecture and no configuration beside
    the file tells.   check, check_audio: an embedding (.npy) that the original gave for a recording; further from ours
    than `tolerance` (largest difference of unit embeddings) nothing is written.   Raises UnsafeCheckpoint,
    UnknownCheckpoint, OtherEmbedding, BadCheckpoint, BadInput, BadAudio.
    """
    if (check is None) != (check_audio is None):
        raise BadInput("--check, an embedding, and --check-audio, the recording it is of, go together")
    path, found, chosen = examine(source, front_end)
    network = build(found)
    silent = embed(network, chosen, talker(2.0, seed=1))
    if not np.isfinite(silent).all():
        raise BadCheckpoint(f"{path}: the imported network gives NaN for a test signal; its weights are of no use")
    report: dict[str, Any] = {
        "toolkit": found.layout.name,
        "network": found.settings,
        "front_end": chosen,
        "parameters": sum(p.numel() for p in network.parameters()),
        "dim": int(network.dim),  # type: ignore[arg-type]
        "tensors": len(found.tensors),
        "dropped": found.dropped,
        "source": path.name,
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    if check is not None and check_audio is not None:
        report["check"] = compare(network, chosen, check, check_audio, tolerance)
    about = {
        **{key: value for key, value in (("licence", licence), ("trained_on", trained_on), ("name", name)) if value},
        "network": found.settings,
        "front_end": chosen,
        "plan": "",
        "note": f"imported: {found.layout.name}, {path.name}, sha256 {report['source_sha256']}",
        "imported": {key: report.get(key) for key in ("toolkit", "source", "source_sha256", "dropped", "check")},
    }
    checkpoints.save(out, network, about)
    return {"model": str(out), **report, "licence": licence or "unknown"}


def build(found: Recognised) -> nn.Module:
    """The network with its weights, in evaluation mode."""
    network = networks.build(**found.settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    arrays = {
        name: found.tensors[name].read().reshape(shape)
        for name, shape in shapes.items()
        if name in found.tensors and not name.endswith(COUNTER)
    }
    found.layout.arrange(arrays)
    counters = {name: torch.zeros((), dtype=torch.int64) for name in shapes if name.endswith(COUNTER)}
    network.load_state_dict({name: _float32(array) for name, array in arrays.items()} | counters)
    return network.eval()


def _float32(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def embed(network: nn.Module, front_end: str, wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embedding of a wave (samples,) of unit length: (dim,). NaN where it has no length."""
    with torch.no_grad():
        raw = network(FrontEnd(front_end)(torch.from_numpy(wave)[None]))[0]
    length = float(raw.norm())
    return (raw / (length if length > SMALLEST_NORM else float("nan"))).numpy()


def compare(
    network: nn.Module, front_end: str, reference: str | Path, audio: str | Path, tolerance: float
) -> dict[str, Any]:
    """Largest difference of unit embeddings, and cosine distance, to what the original gave for a recording.

    reference: .npy with dim numbers, of any length.   Raises OtherEmbedding above tolerance, BadInput.
    """
    expected = _reference(reference, int(network.dim))  # type: ignore[arg-type]
    config = preset(front_end)
    wave = read(audio, config.rate, config.samples(int(network.min_frames)))  # type: ignore[arg-type]
    found = embed(network, front_end, wave)
    difference = float(np.abs(found - expected).max())
    distance = float(0.5 * np.square(found.astype(np.float64) - expected).sum())
    measured = {"largest_difference": difference, "cosine_distance": distance, "tolerance": tolerance}
    if not difference <= tolerance:
        raise OtherEmbedding(
            f"{audio}: the embedding of {reference} and ours differ by {difference:.2e} (1 - cosine {distance:.2e}), "
            f"more than {tolerance:g}; is {front_end} the front end, and are both of the same channel and samples?"
        )
    return measured


def _reference(path: str | Path, dim: int) -> NDArray[np.float64]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path}: not a .npy of numbers ({str(error)[:100]})") from None
    if not isinstance(values, np.ndarray) or values.size != dim or not np.issubdtype(values.dtype, np.number):
        raise BadInput(f"{path}: has shape {getattr(values, 'shape', '?')}; one embedding of {dim} numbers is needed")
    flat = values.reshape(-1).astype(np.float64)
    length = float(np.linalg.norm(flat))
    if not np.isfinite(length) or length <= SMALLEST_NORM:
        raise BadInput(f"{path}: an embedding of length {length}")
    return flat / length
