"""Trial lists, recognised by what is in them and never by their name.

The forms of VoxCeleb, of Kaldi and its variants, of CN-Celeb, of ESPnet.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadList

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".caf", ".au", ".sph", ".w64")
_LABELS = {  # form, where three fields end in a label → (nontarget, target); words before digits, which may be names
    "kaldi": ("nontarget", "target"),
    "kaldi tgt/imp": ("imp", "tgt"),
    "kaldi 1/0": ("0", "1"),
}
_DIGITS = _LABELS["kaldi 1/0"]
_CHUNK = 1 << 22  # bytes of a trial list that are split at a time
_OFFICIAL = {  # number of trials → published list
    37611: "VoxCeleb1-O cleaned",
    579818: "VoxCeleb1-E cleaned",
    550894: "VoxCeleb1-H cleaned",
    37720: "VoxCeleb1-O original, not cleaned",
    581480: "VoxCeleb1-E original, not cleaned",
    552536: "VoxCeleb1-H original, not cleaned",
    3484292: "CN-Celeb 1 evaluation",
}


@dataclass(frozen=True)
class Trials:
    """Pairs of utterances, and whether one person speaks in both."""

    enrol: list[str]
    test: list[str]
    labels: NDArray[np.uint8]  # 1 = target
    form: str
    name: str  # the file's, and the published list's where its size is known
    sha256: str

    def __len__(self) -> int:
        return len(self.enrol)

    @property
    def utterances(self) -> list[str]:
        """Every utterance named, once, in order of appearance."""
        return list(dict.fromkeys(name for pair in zip(self.enrol, self.test, strict=True) for name in pair))


def read_trials(path: str | Path) -> Trials:
    """A trial list of any known form. Raises BadList with file and line for what cannot be read or told apart."""
    path = Path(path)
    data = content(path)
    columns = _split(path, data.removeprefix(b"\xef\xbb\xbf"))  # a byte-order mark
    form, enrol, test, labels = _espnet(path, columns) if len(columns) == 2 else _three(path, columns)
    name = path.name
    if len(enrol) in _OFFICIAL and re.match(r"(enroll/)?id\d{5}[/@-]", enrol[0]):
        name = f"{path.name} ({_OFFICIAL[len(enrol)]})"
    return Trials(enrol, test, labels, form, name, hashlib.sha256(data).hexdigest())


def read_enrolments(path: str | Path) -> dict[str, list[str]]:
    """Models enrolled with several recordings, as CN-Celeb's enroll.map: lines `id00800-enroll file file …`.

    A model may stand there with or without `-enroll`; it is known by both names. Raises BadList with file and line.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text_lines(Path(path)), 1):
        model, *names = line.split() or [""]
        stem = model.removesuffix("-enroll")
        if model and (not names or stem in found):
            raise BadList(f"{path}, line {number}: expected a model, once, and its recordings, found {line.strip()!r}")
        if model:
            found[stem] = found[f"{stem}-enroll"] = names
    return found


def locate(root: Path, name: str) -> Path:
    """The file that a trial list names, under `root`.

    Where the exact name does not exist, other audio suffixes are tried, and for CN-Celeb `enroll/` and, beside the
    root, `data/`. Raises BadList for a name that leaves the root: absolute, or with `..`.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise BadList(f"trial list: {name!r} is outside the audio root; names must be relative to it, without '..'")
    exact = root / name
    if os.path.exists(exact):
        return exact
    stem = name[: -len(parts.suffix)] if parts.suffix.lower() in AUDIO_SUFFIXES else name
    folders = ("", "enroll", "../data")
    others = (root / folder / f"{stem}{suffix}" for folder in folders for suffix in AUDIO_SUFFIXES)
    return next((other for other in others if os.path.exists(other)), exact)


def speakers_of(trials: Trials) -> dict[str, str]:
    """The speaker of every utterance: by the first reading of the names that agrees with every label.

    Tried: VoxCeleb's `id12345`, the folder of the file, the folder above that, the name up to its first '-' or '_'.
    Where none agrees, utterances linked by target trials are one speaker.
    """
    names = trials.utterances
    for rule in (vox_id, _folder_of, _folder_above, _prefix):
        speaker = {name: rule(name) for name in names}
        same = np.fromiter((speaker[a] == speaker[b] for a, b in zip(trials.enrol, trials.test, strict=True)), bool)
        if all(speaker.values()) and np.array_equal(same, trials.labels.astype(bool)):
            return speaker
    return _linked(trials, names)


def _split(path: Path, data: bytes) -> list[list[str]]:
    """The columns of a list whose lines all have as many fields as the first; empty lines are skipped.

    Works on pieces of the file, and keeps one string for each distinct name: lists have millions of lines.
    """
    known: dict[str, str] = {}
    columns: list[list[str]] = []
    before = 0
    for piece in _pieces(data):
        width, wrong = _widths(piece, len(columns))
        if wrong is not None:
            raise BadList(f"{path}, line {before + wrong + 1}: {_line(piece, wrong)!r} does not have {width} fields")
        columns = columns or [[] for _ in range(width)]
        tokens = piece.split()
        for index, column in enumerate(columns):
            column.extend(known.setdefault(name, name) for name in _decoded(path, tokens[index::width]))
        before += piece.count(b"\n")
    if len(columns) not in (2, 3):
        raise BadList(f"{path}: {_fields(len(columns))}; a trial list has a label and two utterances a line")
    return columns


def _fields(count: int) -> str:
    if count in (4, 8):
        return f"{count} fields a line, as in a score file"
    return f"{count} fields a line" if count else "holds no trials"


def _pieces(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + _CHUNK) + 1 or len(data)
        yield data[start:end]
        start = end


def _widths(piece: bytes, width: int) -> tuple[int, int | None]:
    """Fields of a line (of the first one, unless `width` says), and the first line, from 0, with another number."""
    raw = np.frombuffer(piece, dtype=np.uint8)
    blank = (raw == 32) | ((raw >= 9) & (raw <= 13))
    begins = ~blank
    begins[1:] &= blank[:-1]
    ends = np.append(np.flatnonzero(raw == 10), len(raw))
    counts = np.diff(np.searchsorted(np.flatnonzero(begins), ends), prepend=0)
    filled = counts[counts > 0]
    width = width or (int(filled[0]) if len(filled) else 0)
    wrong = np.flatnonzero((counts != width) & (counts > 0))
    return width, int(wrong[0]) if len(wrong) else None


def _line(piece: bytes, index: int) -> str:
    return piece.split(b"\n", index + 1)[index].decode("utf-8", "replace").strip()[:120]


def _decoded(path: Path, tokens: list[bytes]) -> list[str]:
    try:
        return b"\n".join(tokens).decode("utf-8").split("\n") if tokens else []
    except UnicodeDecodeError:
        raise BadList(f"{path}: not UTF-8 text; is this a trial list?") from None


def _three(path: Path, columns: list[list[str]]) -> tuple[str, list[str], list[str], NDArray[np.uint8]]:
    """Three columns: the labels are the last or the first one, whichever the whole file allows."""
    first, middle, last = columns
    form, digits_first = _form_of(last), set(first) <= set(_DIGITS)
    if digits_first and form == "kaldi 1/0":  # names that look like labels: only one reading may contradict itself
        digits_first = _coherent(middle, last, first)
        form = form if _coherent(first, middle, last) else None
    if digits_first and form in (None, "kaldi 1/0"):
        if form:
            raise BadList(f"{path}: labels could be the first column or the last; write target/nontarget last")
        return "voxceleb", middle, last, _marks(first, _DIGITS)
    if form is None:
        raise BadList(_no_labels(path, columns))
    return form, first, middle, _marks(last, _LABELS[form])


def _form_of(column: list[str]) -> str | None:
    found = set(column)
    return next((form for form, words in _LABELS.items() if found <= set(words)), None)


def _marks(column: Sequence[str], words: tuple[str, str]) -> NDArray[np.uint8]:
    target = words[1]
    return np.fromiter((mark == target for mark in column), dtype=np.uint8, count=len(column))


def _coherent(enrol: list[str], test: list[str], marks: list[str]) -> bool:
    """Whether no pair has two labels, and no utterance paired with itself is a nontarget."""
    seen: dict[tuple[str, str], str] = {}
    return all(
        seen.setdefault((a, b), mark) == mark and not (a == b and mark == "0")
        for a, b, mark in zip(enrol, test, marks, strict=True)
    )


def _no_labels(path: Path, columns: list[list[str]]) -> str:
    """What is wrong with a list of three columns that has labels neither first nor last."""
    every = {word for words in _LABELS.values() for word in words}
    first, last = (sum(mark in every for mark in columns[index]) for index in (0, -1))
    marks = columns[0] if first > last else columns[-1]
    words = max(_LABELS.values(), key=lambda words: sum(mark in words for mark in marks))
    odd = next((index for index, mark in enumerate(marks) if mark not in words), None)
    if not max(first, last) or odd is None:
        return f"{path}: no column of labels found (1/0 first or last, target/nontarget or tgt/imp last)"
    return f"{path}, line {_line_number(path, odd)}: label {marks[odd]!r} is neither {words[1]!r} nor {words[0]!r}"


def _espnet(path: Path, columns: list[list[str]]) -> tuple[str, list[str], list[str], NDArray[np.uint8]]:
    """Two columns: `enrolment*test` and a label."""
    pairs = [key.split("*") for key in columns[0]]
    form = _form_of(columns[1])
    odd = next((index for index, pair in enumerate(pairs) if len(pair) != 2), None)
    if form is None or odd is not None:
        where = f", line {_line_number(path, odd)}" if odd is not None else ""
        raise BadList(f"{path}{where}: two fields a line must be `enrolment*test label`; are the labels missing?")
    return "espnet", [a for a, _ in pairs], [b for _, b in pairs], _marks(columns[1], _LABELS[form])


def _line_number(path: Path, trial: int) -> int:
    """The line, from 1, of a trial, from 0: empty lines hold none."""
    return [number for number, line in enumerate(content(path).split(b"\n"), 1) if line.strip()][trial]


def vox_id(name: str) -> str:
    """The part `id12345` of a path, the speaker in VoxCeleb and CN-Celeb; empty where there is none."""
    found = re.search(r"(?:^|[/@])(id\d{5})(?=[/@-])", name)
    return found[1] if found else ""


def _folder_of(name: str) -> str:
    return PurePosixPath(name).parent.name


def _folder_above(name: str) -> str:
    return PurePosixPath(name).parent.parent.name


def _prefix(name: str) -> str:
    stem = PurePosixPath(name).name
    return re.split(r"[-_]", stem)[0] if re.search(r"[-_]", stem) else ""


def _linked(trials: Trials, names: list[str]) -> dict[str, str]:
    """Union-find over the target trials."""
    parent = {name: name for name in names}

    def top(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for a, b, label in zip(trials.enrol, trials.test, trials.labels, strict=True):
        if label:
            parent[top(a)] = top(b)
    return {name: top(name) for name in names}


def content(path: Path) -> bytes:
    """The bytes of a list. Raises BadList."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadList(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise BadList(f"{path}: cannot be read ({error.strerror})") from None


def text_lines(path: Path, skip: bool = True) -> list[str]:
    """The lines of a list, UTF-8 with or without a byte-order mark; `skip`: an empty one is refused. Raises BadList."""
    try:
        lines = content(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BadList(f"{path}: not UTF-8 text; is this a list?") from None
    if skip and not any(line.strip() for line in lines):
        raise BadList(f"{path}: is empty")
    return lines
