"""Other toolkits' checkpoints → ours: recognised by names and shapes, given their front end, run once, compared.

LAYOUTS says what is known. A kind is added there in one entry: how its Config is read off names and shapes, and what
its tensors are called where they differ from ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
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
from sottovoce.lab.pickles import Stored, listing
from sottovoce.networks.frontend import FrontEnd

Shapes = Mapping[str, tuple[int, ...]]
Tensors = dict[str, NDArray[Any]]
Settings = dict[str, Any]

OUTER = ("module.", "speaker_encoder.")  # prefixes of wrappers around a network
HEADS = ("projection.", "classifier.", "speaker_loss.", "loss.", "torchfbank.", "specaug.")  # of what is left out
COUNTER = "num_batches_tracked"  # float after averaging, absent in old files; training alone reads it
SHOWN = 5  # tensors of an error
TOLERANCE = 1e-3  # of the largest difference of unit embeddings
SMALLEST_NORM = 1e-6  # of an embedding


@dataclass(frozen=True)
class Layout:
    """How a toolkit stores one architecture."""

    name: str  # toolkit and architecture
    settings: Callable[[Shapes], Settings]  # arguments of networks.build from their shapes; KeyError: another network
    front_ends: tuple[str, ...]  # that networks of this layout are trained with
    prefixes: Mapping[str, str] = field(default_factory=dict)  # our beginnings of names: theirs, where they differ
    prefix: str = ""  # before every name
    arrange: Callable[[Tensors, nn.Module], None] = lambda tensors, network: None  # in place, under our names

    def theirs(self, ours: str) -> str:
        """What a tensor of ours is called there."""
        fitting = [start for start in self.prefixes if ours.startswith(start)]
        start = max(fitting, key=len, default="")
        return self.prefix + (self.prefixes[start] if start else "") + ours[len(start) :]


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
    _check_values(path, found.tensors)
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
    inner = _inner(stored)
    shapes = {name: _squeezed(tensor.shape) for name, tensor in inner.items()}
    nearest: tuple[int, Layout, list[str]] | None = None
    for layout in LAYOUTS:
        wanted, settings, network = _expected(layout, shapes)
        dropped = [name for name in inner if name not in wanted.values() and name.startswith(HEADS)]
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


def _inner(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Without the prefixes of wrappers; what lies outside a wrapper keeps its name."""
    inner = dict(stored)
    for outer in OUTER:
        inner = {name.removeprefix(outer): tensor for name, tensor in inner.items()}
    return inner


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without ones at the end: a linear layer is a convolution of kernel 1."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _expected(layout: Layout, shapes: Shapes) -> tuple[dict[str, str], Settings, nn.Module]:
    """Their names by ours, of the network that shapes ask for or else of the layout's usual one, and that network."""
    own = {name.removeprefix(layout.prefix): shape for name, shape in shapes.items() if name.startswith(layout.prefix)}
    try:
        settings = layout.settings(own)
        network = _on_meta(settings)
    except (KeyError, IndexError, ZeroDivisionError, BadInput, RuntimeError, ValueError):
        settings = layout.settings(_Usual())
        network = _on_meta(settings)
    return {ours: layout.theirs(ours) for ours in network.state_dict()}, settings, network


class _Usual(dict[str, tuple[int, ...]]):
    """Shapes of which nothing is known."""


def _on_meta(settings: Settings) -> nn.Module:
    with torch.device("meta"):
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
    """The front end a network was trained with: asked for, told by a configuration, or the only one of its layout.

    Raises BadInput with the choices where it is none of these, or where its rows are not those the network reads.
    """
    choices = found.layout.front_ends
    if asked is not None:
        preset(asked)
        if told is not None and told.front_end in choices and told.front_end != asked:
            raise BadInput(f"{told.path}: says {told.front_end}, --front-end {asked}; leave one out")
        chosen = asked
    elif len(choices) == 1:
        chosen = choices[0]
    elif told is not None and told.front_end in choices:
        chosen = told.front_end
    else:
        raise BadInput(
            f"{path}: {found.layout.name} is used with several front ends, and nothing beside the file says which one; "
            f"give --front-end: {' or '.join(choices)}"
        )
    rows, reads = preset(chosen).rows, int(found.settings.get("mels", 80))
    if rows != reads:
        raise BadInput(f"{path}: the network reads {reads} rows, the front end {chosen} makes {rows}")
    if told is not None:
        told.check(chosen)
    return chosen


def _check_values(path: Path, tensors: Mapping[str, Stored]) -> None:
    for name, tensor in tensors.items():
        if not tensor.finite():
            raise BadCheckpoint(f"{path}: tensor {name} has NaN or infinite values")
        if name.endswith("running_var") and tensor.read().min(initial=0) < 0:
            raise BadCheckpoint(f"{path}: tensor {name}, a variance, has negative values")


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


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers stand where a pattern has its group."""
    return len({match.group(1) for name in shapes if (match := re.match(pattern, name))})


def resnet_settings(shapes: Shapes) -> Settings:
    """WeSpeaker's ResNet: depth, width and dimension; the mels are eight times the rows that pooling reads."""
    if isinstance(shapes, _Usual):
        return {"kind": "resnet34"}
    blocks = tuple(_count(shapes, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
    width, bottleneck = shapes["conv1.weight"][0], "layer1.0.conv3.weight" in shapes
    dim, pooled = shapes["seg_1.weight"]
    settings = {
        "kind": "resnet",
        "blocks": blocks,
        "width": width,
        "block": "bottleneck" if bottleneck else "basic",
        "mels": 8 * (pooled // (2 * 8 * width * (4 if bottleneck else 1))),
        "dim": dim,
    }
    return {**settings, "two_layers": True} if "seg_2.weight" in shapes else settings


def gemini_settings(shapes: Shapes) -> Settings:
    """WeSpeaker's Gemini-DF-ResNet: depths and widths; the mels are 16 times the rows that pooling reads."""
    if isinstance(shapes, _Usual):
        return {"kind": "gemini60"}
    depths = tuple(_count(shapes, rf"stages\.{stage}\.(\d+)\.") for stage in range(4))
    dims = tuple(shapes[f"downsample_layers.{i}.0.weight"][0] for i in range(5))
    dim, pooled = shapes["seg_1.weight"]
    return {"kind": "dfresnet", "depths": depths, "dims": dims, "mels": 16 * (pooled // (2 * dims[-1])), "dim": dim}


def ecapa_settings(shapes: Shapes) -> Settings:
    """WeSpeaker's ECAPA; the attention's input tells whether it sees the recording's statistics (GLOB)."""
    if isinstance(shapes, _Usual):
        return {"kind": "ecapa512"}
    aggregate = shapes["conv.weight"][0]
    return {
        "kind": "ecapa",
        "width": shapes["layer1.conv.weight"][0],
        "context": shapes["pool.linear1.weight"][1] > aggregate,
        "mels": shapes["layer1.conv.weight"][1],
        "dim": shapes["linear.weight"][0],
        "aggregate": aggregate,
        "attention": shapes["pool.linear1.weight"][0],
        "scale": 1 + _count(shapes, r"layer2\.se_res2block\.1\.convs\.(\d+)\."),
    }


def speechbrain_settings(shapes: Shapes) -> Settings:
    """SpeechBrain's ECAPA, which 3D-Speaker's is a copy of."""
    if isinstance(shapes, _Usual):
        return {"kind": "ecapa1024-speechbrain"}
    aggregate = shapes["mfa.conv.conv.weight"][0]
    return {
        "kind": "ecapa1024-speechbrain",
        "width": shapes["blocks.0.conv.conv.weight"][0],
        "context": shapes["asp.tdnn.conv.conv.weight"][1] > aggregate,
        "mels": shapes["blocks.0.conv.conv.weight"][1],
        "dim": shapes["fc.conv.weight"][0],
        "aggregate": aggregate,
        "attention": shapes["asp.tdnn.conv.conv.weight"][0],
        "scale": 1 + _count(shapes, r"blocks\.1\.res2net_block\.blocks\.(\d+)\."),
    }


def taoruijie_settings(shapes: Shapes) -> Settings:
    """TaoRuijie's ECAPA."""
    usual = {"kind": "ecapa1024-a", "statistics": "taoruijie"}
    if isinstance(shapes, _Usual):
        return usual
    return {
        **usual,
        "width": shapes["conv1.weight"][0],
        "mels": shapes["conv1.weight"][1],
        "dim": shapes["fc6.weight"][0],
        "aggregate": shapes["layer4.weight"][0],
        "attention": shapes["attention.0.weight"][0],
        "scale": 1 + _count(shapes, r"layer1\.convs\.(\d+)\."),
    }


def roll_parts(tensors: Tensors, network: nn.Module) -> None:
    """Channels around each Res2 convolution, the untouched part from the first place to the last."""
    config: Any = network.config
    part = config.width // config.scale
    for block in (f"layer{i}.se_res2block" for i in (2, 3, 4)):
        for name in [name for name in tensors if name.startswith(f"{block}.0.")]:
            tensors[name] = np.roll(tensors[name], -part, axis=0)
        tensors[f"{block}.2.conv.weight"] = np.roll(tensors[f"{block}.2.conv.weight"], -part, axis=1)


def _blocks(ours: Iterable[tuple[str, str]], first: int, theirs: str) -> dict[str, str]:
    """Prefixes inside the three blocks, which are theirs `theirs`1 to 3 counted from `first`."""
    return {
        f"layer{index + 2}.se_res2block.{start}": f"{theirs}{index + first}.{other}"
        for index in range(3)
        for start, other in ours
    }


SPEECHBRAIN = {
    "layer1.conv.": "blocks.0.conv.conv.",
    "layer1.bn.": "blocks.0.norm.norm.",
    **_blocks(
        [
            ("0.conv.", "tdnn1.conv.conv."),
            ("0.bn.", "tdnn1.norm.norm."),
            *((f"1.convs.{i}.", f"res2net_block.blocks.{i}.conv.conv.") for i in range(16)),
            *((f"1.bns.{i}.", f"res2net_block.blocks.{i}.norm.norm.") for i in range(16)),
            ("2.conv.", "tdnn2.conv.conv."),
            ("2.bn.", "tdnn2.norm.norm."),
            ("3.linear1.", "se_block.conv1.conv."),
            ("3.linear2.", "se_block.conv2.conv."),
        ],
        1,
        "blocks.",
    ),
    "conv.": "mfa.conv.conv.",
    "conv_bn.": "mfa.norm.norm.",
    "pool.linear1.": "asp.tdnn.conv.conv.",
    "pool.hidden.1.": "asp.tdnn.norm.norm.",
    "pool.linear2.": "asp.conv.conv.",
    "bn.": "asp_bn.norm.",
    "linear.": "fc.conv.",
}
TAORUIJIE = {
    "layer1.conv.": "conv1.",
    "layer1.bn.": "bn1.",
    **_blocks(
        [
            ("0.conv.", "conv1."),
            ("0.bn.", "bn1."),
            ("1.convs.", "convs."),
            ("1.bns.", "bns."),
            ("2.conv.", "conv3."),
            ("2.bn.", "bn3."),
            ("3.linear1.", "se.se.1."),
            ("3.linear2.", "se.se.3."),
        ],
        1,
        "layer",
    ),
    "conv.": "layer4.",
    "pool.linear1.": "attention.0.",
    "pool.hidden.1.": "attention.2.",
    "pool.linear2.": "attention.4.",
    "bn.": "bn5.",
    "linear.": "fc6.",
    "bn2.": "bn6.",
}
LAYOUTS = (
    Layout("WeSpeaker ResNet", resnet_settings, ("wespeaker", "3dspeaker")),
    Layout("pyannote ResNet", resnet_settings, ("wespeaker",), prefix="resnet."),
    Layout("WeSpeaker ECAPA", ecapa_settings, ("wespeaker",)),
    Layout("WeSpeaker Gemini-DF-ResNet", gemini_settings, ("wespeaker",)),
    Layout("SpeechBrain ECAPA", speechbrain_settings, ("speechbrain", "3dspeaker"), SPEECHBRAIN, arrange=roll_parts),
    Layout("TaoRuijie ECAPA", taoruijie_settings, ("taoruijie",), TAORUIJIE),
)
