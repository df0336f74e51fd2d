"""Other toolkits' checkpoints → ours: recognised by names and shapes, given their front end, run once, compared.

What is known is the table in layouts.py.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from sottovoce.errors import BadCheckpoint, BadInput, OtherEmbedding, UnknownCheckpoint
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab import toolkits
from sottovoce.lab.layouts import LAYOUTS, Layout
from sottovoce.lab.pickles import Stored, listing
from sottovoce.lab.shapes import Settings, Shapes, Usual
from sottovoce.networks.frontend import FrontEnd

COUNTER = "num_batches_tracked"  # float after averaging, absent in old files; training alone reads it
SHOWN = 5  # tensors of an error
TOLERANCE = 1e-3  # of the largest difference of unit embeddings
SMALLEST_NORM = 1e-6  # of an embedding


@dataclass(frozen=True)
class Recognised:
    """A checkpoint whose network is known."""

    layout: Layout
    settings: Settings
    network: nn.Module  # on the device "meta"
    tensors: dict[str, Stored]  # by our names
    dropped: list[str]  # names of theirs: classifiers, front ends


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
    path, told = toolkits.find(source)
    stored = listing(path)
    found = recognise(path, stored)
    chosen = choose_front_end(path, found, told, front_end)
    found = settled(found, chosen)
    toolkits.check_values(path, found.tensors)
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


def recognise(path: Path, stored: Mapping[str, Stored]) -> Recognised:
    """Find the network that a checkpoint's names and shapes are those of, whatever the file is called.

    Raises UnknownCheckpoint with the nearest known kind and the first tensors that differ.
    """
    inner = toolkits.inner(stored)
    shapes = {name: _squeezed(tensor.shape) for name, tensor in inner.items()}
    nearest: tuple[int, Layout, list[str]] | None = None
    read = [(layout, _read(layout, shapes)) for layout in LAYOUTS]
    for layout, known in sorted(read, key=lambda one: one[1] is None):  # what cannot be it is built for the error alone
        settings, network = known or _usual(layout)
        wanted = {ours: layout.theirs(ours) for ours in network.state_dict()}
        dropped = [name for name in inner if name not in wanted.values() and name.startswith(toolkits.HEADS)]
        differences = _differences(network, wanted, {n: s for n, s in shapes.items() if n not in dropped})
        if not differences:
            tensors = {ours: inner[name] for ours, name in wanted.items() if name in inner}
            return Recognised(layout, settings, network, tensors, dropped)
        if nearest is None or len(differences) < nearest[0]:
            nearest = len(differences), layout, differences
    assert nearest is not None
    count, layout, differences = nearest
    shown = "; ".join(differences[:SHOWN])
    raise UnknownCheckpoint(
        f"{path}: of no known network ({len(inner)} tensors). The nearest is {layout.name}, of which {count} tensors "
        f"differ: {shown}{'; ...' if count > SHOWN else ''}"
    )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without ones at the end: a linear layer is a convolution of kernel 1."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _read(layout: Layout, shapes: Shapes) -> tuple[Settings, nn.Module] | None:
    """The network that shapes ask for, if it is of the layout; None where they are those of another one."""
    own = {name.removeprefix(layout.prefix): shape for name, shape in shapes.items() if name.startswith(layout.prefix)}
    try:
        settings = layout.settings(own)
        return settings, _on_meta(settings)
    except (KeyError, IndexError, ZeroDivisionError, BadInput, RuntimeError, ValueError):
        return None


def _usual(layout: Layout) -> tuple[Settings, nn.Module]:
    settings = layout.settings(Usual())
    return settings, _on_meta(settings)


def _on_meta(settings: Settings) -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty tensors, where shapes are those of another network
        return networks.build(**settings)


def _differences(network: nn.Module, wanted: Mapping[str, str], shapes: Shapes) -> list[str]:
    """What their tensors lack, have too much or have in another shape, a phrase each."""
    ours = network.state_dict()
    found = []
    for name, theirs in wanted.items():
        shape = _squeezed(tuple(ours[name].shape))
        if theirs not in shapes and not theirs.endswith(COUNTER):
            found.append(f"{theirs} {list(shape)} is missing")
        elif theirs in shapes and shapes[theirs] != shape:
            found.append(f"{theirs} is {list(shapes[theirs])}, not {list(shape)}")
    known = set(wanted.values())
    return found + [f"{name} {list(shape)} is not of it" for name, shape in shapes.items() if name not in known]


def choose_front_end(path: Path, found: Recognised, told: toolkits.Told | None, asked: str | None) -> str:
    """The front end a network was trained with: asked for, told by a configuration, or the only one that fits.

    Raises BadInput with the choices where it is none of these, or where its rows are not those the network reads.
    """
    choices = fitting(found)
    if asked is not None:
        preset(asked)
        if told is not None and told.front_end in choices and told.front_end != asked:
            raise BadInput(f"{told.path}: says {told.front_end}, --front-end {asked}; leave one out")
        chosen = asked
    elif len(choices) == 1:
        chosen = choices[0]
    elif not choices:
        raise BadInput(
            f"{path}: {found.layout.name} is used with {', '.join(found.layout.front_ends)}, none of which fits: "
            f"{'; '.join(_clues(found))}. Give --front-end if another does"
        )
    elif told is not None and told.front_end in choices:
        chosen = told.front_end
    else:
        raise BadInput(
            f"{path}: {found.layout.name} is used with several front ends, and nothing beside the file says which one; "
            f"give --front-end: {' or '.join(choices)}"
        )
    rows, reads = preset(chosen).rows, _reads(found)
    if reads is not None and rows != reads:
        raise BadInput(f"{path}: the network reads {reads} rows, the front end {chosen} makes {rows}")
    if told is not None:
        told.check(chosen)
    return chosen


def _reads(found: Recognised) -> int | None:
    """Rows of features that the network reads; None where no tensor tells."""
    return found.settings.get("mels")


def fitting(found: Recognised) -> list[str]:
    """Front ends of the layout that make the rows the network reads and that the tensors left out are part of."""
    reads = _reads(found)
    fitting = [name for name in found.layout.front_ends if reads is None or preset(name).rows == reads]
    for sign, names in found.layout.signs.items():
        if sign in found.dropped:
            fitting = [name for name in fitting if name in names]
    return fitting


def _clues(found: Recognised) -> list[str]:
    """What a checkpoint tells of its front end, a phrase each."""
    signs = [name for name in found.layout.signs if name in found.dropped]
    return [f"the network reads {_reads(found)} rows", *(f"{name} is stored with it" for name in signs)]


def settled(found: Recognised, front_end: str) -> Recognised:
    """With the settings that only the front end tells."""
    settings = {"mels": preset(front_end).rows, **found.settings, **found.layout.follows.get(front_end, {})}
    return replace(found, settings=settings, network=_on_meta(settings))


def build(found: Recognised) -> nn.Module:
    """The network with its weights, in evaluation mode."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.network.state_dict().items()}
    arrays = {
        name: found.tensors[name].read().reshape(shape)
        for name, shape in shapes.items()
        if name in found.tensors and not name.endswith(COUNTER)
    }
    found.layout.arrange(arrays, found.network)
    network = networks.build(**found.settings)
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
