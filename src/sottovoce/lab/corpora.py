"""Folders of recordings: corpora in their usual layout, recognised by looking at them, else speakers by folder.

VoxCeleb1 and 2     [wav/]id10001/<video>/00001.wav; the speaker is the part id10001
VoxTube             <speaker>/<video>/<utterance>; our reading: as any folder, the speaker is the first that differs
CN-Celeb 1          data/id00000/<genre>-01-001.flac, of which those speakers that dev/dev.lst names; eval/ apart
CN-Celeb 2          data/id10000/..., of which those speakers that spk.lst names
MUSAN               music/, noise/, speech/; column `kind` says which
RIRS_NOISES         simulated_rirs/ and what real_rirs_isotropic_noises/rir_list names; column `kind`: simulated, real
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sottovoce.errors import BadList
from sottovoce.lab.trials import AUDIO_SUFFIXES, text_lines, vox_id

MUSAN_KINDS = ("music", "noise", "speech")
AAC = (".m4a", ".aac", ".mp4")  # as VoxCeleb2 is distributed; libsndfile has no decoder


@dataclass(frozen=True)
class Utterance:
    """One recording of a manifest."""

    path: str  # relative to the manifest's folder, or absolute
    speaker: str  # empty where not labelled
    seconds: float | None = None
    fields: dict[str, str] = field(default_factory=dict)  # the other columns


@dataclass(frozen=True)
class Layout:
    """How a corpus looks on disk, and what is read from it."""

    name: str
    marks: tuple[str, ...]  # files or folders that are all there
    read: Callable[[Path], list[Utterance]]


def read(root: Path) -> list[Utterance]:
    """The recordings of a corpus; paths relative to `root`. Raises BadList, with advice for AAC."""
    layout = recognise(root)
    return layout.read(root) if layout else _by_folder(root)


def recognise(root: Path) -> Layout | None:
    """The layout of a folder, None for one that is not special."""
    return next((layout for layout in LAYOUTS if all((root / mark).exists() for mark in layout.marks)), None)


def _by_folder(root: Path) -> list[Utterance]:
    """Recordings below a folder; the speaker is the part `id12345` of a path, else the first folder that differs."""
    paths = _audio(root)
    folders = [path.parent.parts for path in paths]
    levels = [len(set(parts)) for parts in zip(*folders, strict=False)]
    shared = next((level for level, different in enumerate(levels) if different > 1), len(levels))
    return [Utterance(path.as_posix(), _folder_speaker(path, shared)) for path in paths]


def _folder_speaker(path: Path, shared: int) -> str:
    folders = path.parent.parts[shared:]
    return vox_id(path.as_posix()) or (folders[0] if folders else "")


def _audio(root: Path, below: str = ".") -> list[Path]:
    """Paths of all recordings in a folder of `root`, relative to `root`, sorted. Raises BadList when there are none."""
    paths: list[Path] = []
    aac: Path | None = None
    for folder, inner, files in os.walk(root / below):
        inner.sort()
        paths += [Path(folder, name).relative_to(root) for name in sorted(files) if _ends(name, AUDIO_SUFFIXES)]
        aac = aac or next((Path(folder, name) for name in sorted(files) if _ends(name, AAC)), None)
    if not paths and aac is not None:
        raise BadList(
            f"{aac}: AAC, which libsndfile cannot decode; convert the folder once, each file by "
            f"`ffmpeg -i {aac.name} -ac 1 -ar 16000 {aac.stem}.wav`, and name the folder of the .wav files"
        )
    if not paths:
        raise BadList(f"{root / below}: no recordings below this folder ({' '.join(AUDIO_SUFFIXES)})")
    return paths


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)


def _named(root: Path, listed: str) -> list[Utterance]:
    """The recordings in data/ of the speakers that a list names, one a line."""
    speakers = dict.fromkeys(line.strip() for line in text_lines(root / listed) if line.strip())
    missing = next((speaker for speaker in speakers if not (root / "data" / speaker).is_dir()), None)
    if missing is not None:
        raise BadList(f"{root / listed}: speaker {missing!r} has no folder in {root / 'data'}; is the corpus complete?")
    return [Utterance(path.as_posix(), speaker) for speaker in speakers for path in _audio(root, f"data/{speaker}")]


def _cnceleb1(root: Path) -> list[Utterance]:
    return _named(root, "dev/dev.lst")


def _cnceleb2(root: Path) -> list[Utterance]:
    return _named(root, "spk.lst")


def _musan(root: Path) -> list[Utterance]:
    return [row for kind in MUSAN_KINDS for row in _of_kind(_audio(root, kind), kind)]


def _rirs(root: Path) -> list[Utterance]:
    """Impulse responses only: beside them lie isotropic and point-source noises."""
    real = root / "real_rirs_isotropic_noises" / "rir_list"
    simulated = list(_of_kind(_audio(root, "simulated_rirs"), "simulated"))
    return simulated + (list(_of_kind(_listed(root, real), "real")) if real.is_file() else [])


def _listed(root: Path, path: Path) -> list[Path]:
    """Paths in Kaldi's rir_list, the last field of each line, written from the folder above RIRS_NOISES."""
    lasts = [Path(line.split()[-1]) for line in text_lines(path) if line.strip()]
    return [Path(*last.parts[1:]) if last.parts[0] in (root.name, "RIRS_NOISES") else last for last in lasts]


def _of_kind(paths: Iterable[Path], kind: str) -> Iterable[Utterance]:
    return (Utterance(path.as_posix(), "", None, {"kind": kind}) for path in paths)


LAYOUTS = (
    Layout("CN-Celeb 1", ("data", "dev/dev.lst"), _cnceleb1),
    Layout("CN-Celeb 2", ("data", "spk.lst"), _cnceleb2),
    Layout("MUSAN", MUSAN_KINDS, _musan),
    Layout("RIRS_NOISES", ("simulated_rirs",), _rirs),
)
