"""What toolkits publish: which file holds the network, which front end its configuration names, what is no network.

A configuration is data: lines of keys and plain values are read, and what YAML could run is never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sottovoce.audio.features import preset
from sottovoce.errors import BadCheckpoint, BadInput
from sottovoce.lab.pickles import Stored

LONGEST_CONFIG = 1 << 20  # bytes
CONFIGS = ("config.yaml", "hyperparams.yaml", "configuration.json")
USUAL = ("embedding_model.ckpt", "avg_model.pt", "pytorch_model.bin")  # SpeechBrain and 3D-Speaker, WeSpeaker, pyannote
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".model", ".safetensors")
OUTER = ("module.", "speaker_encoder.", "__S__.")  # prefixes of wrappers around a network
HEADS = (  # of what is left out
    *("projection.", "classifier.", "speaker_loss.", "loss.", "__L__."),
    *("torchfbank.", "torchfb.", "specaug."),
)
SIGNS = (  # what a configuration of a toolkit cannot do without
    ("speechbrain", re.compile(r"speechbrain\.lobes\.features\.Fbank")),
    ("3dspeaker", re.compile(r"speakerlab\.|damo/speech_|iic/speech_|speaker-verification")),
    ("wespeaker", re.compile(r"^\s*(fbank_args|frontend|resample_rate)\s*:", re.MULTILINE)),
)
NUMBERS = {  # keys of configurations: what of a front end they must equal
    "num_mel_bins": lambda config: config.mels,
    "n_mels": lambda config: config.mels,
    "sample_rate": lambda config: config.rate,
    "resample_rate": lambda config: config.rate,
    "frame_length": lambda config: 1000 * config.window_length / config.rate,
    "frame_shift": lambda config: 1000 * config.hop / config.rate,
}


@dataclass(frozen=True)
class Told:
    """What a configuration says of the front end."""

    path: Path
    front_end: str
    numbers: dict[str, float]

    def check(self, front_end: str) -> None:
        """Raises BadInput where a number of the configuration is not that of the front end."""
        for key, value in self.numbers.items():
            ours = float(NUMBERS[key](preset(front_end)))
            if value != ours:
                raise BadInput(f"{self.path}: {key} is {value:g}; the front end {front_end} has {ours:g}")


def find(source: str | Path) -> tuple[Path, Told | None]:
    """The file with the network, of a folder or given itself, and what a configuration beside it says.

    Raises BadCheckpoint where a folder has no such file or several.
    """
    source = Path(source)
    if not source.exists():
        raise BadCheckpoint(f"{source}: no such checkpoint or folder")
    path = _inside(source) if source.is_dir() else source
    return path, _told(path.parent)


def _inside(folder: Path) -> Path:
    files = sorted(entry for entry in folder.iterdir() if entry.suffix in SUFFIXES and entry.is_file())
    usual = [folder / name for name in USUAL if folder / name in files]
    if len(usual or files) != 1:
        names = ", ".join(entry.name for entry in (usual or files)[:5]) or "none"
        raise BadCheckpoint(f"{folder}: one file with a network is needed, found {names}; name the file itself")
    return (usual or files)[0]


def _told(folder: Path) -> Told | None:
    """By the first configuration that bears a toolkit's signs."""
    for path in (folder / name for name in CONFIGS):
        if path.is_file() and path.stat().st_size <= LONGEST_CONFIG:
            text = path.read_text(encoding="utf-8", errors="replace")
            for front_end, sign in SIGNS:
                if sign.search(text):
                    return Told(path, front_end, _numbers(text))
    return None


def _numbers(text: str) -> dict[str, float]:
    """Values of NUMBERS' keys: plain numbers behind `key:`, the first of each."""
    found: dict[str, float] = {}
    for key in NUMBERS:
        match = re.search(rf"""^\s*["']?{key}["']?\s*:\s*([0-9.]+)\s*,?\s*(#.*)?$""", text, re.MULTILINE)
        try:
            if match:
                found[key] = float(match.group(1))
        except ValueError:
            continue
    return found


def inner(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Without the prefixes of wrappers; what lies outside a wrapper keeps its name."""
    inner = dict(stored)
    for outer in OUTER:
        inner = {name.removeprefix(outer): tensor for name, tensor in inner.items()}
    return inner


def check_values(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Refuse NaN, infinite values, negative variances and tensors of no values. Raises BadCheckpoint."""
    for name, tensor in tensors.items():
        if 0 in tensor.shape:
            raise BadCheckpoint(f"{path}: tensor {name} of shape {list(tensor.shape)} holds no values")
        if not tensor.finite():
            raise BadCheckpoint(f"{path}: tensor {name} has NaN or infinite values")
        if name.endswith("running_var") and tensor.read().min(initial=0) < 0:
            raise BadCheckpoint(f"{path}: tensor {name}, a variance, has negative values")
