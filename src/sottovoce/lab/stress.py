"""Trials made harder: enrolment and test recordings are each degraded, independently of one another.

One of noise, a room, a codec or a telephone is drawn for each recording on each side, so that nearly every trial
compares two different channels. What is measured there depends less on luck than on clean trials of the same speakers:
more errors, the same number of trials.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import click
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sottovoce.audio.wav import read
from sottovoce.errors import BadList
from sottovoce.lab.augment import add, reverberate, simulate_room
from sottovoce.lab.lists import Trials, locate, read_manifest, read_trials

RATE = 16000
SNR_DB = (3.0, 12.0)  # of noise
MP3_LEVEL = 0.99  # compression level of libsndfile: about 22 kbit/s for speech of 16 kHz
MU = 255.0  # of the telephone's companding, ITU-T G.711

Wave = NDArray[np.float32]
Degradation = Callable[[Wave, np.random.Generator, Sequence[Wave]], Wave]


def in_noise(wave: Wave, rng: np.random.Generator, noises: Sequence[Wave]) -> Wave:
    """A noise over the whole recording at a signal-to-noise ratio drawn from SNR_DB."""
    noise = noises[int(rng.integers(len(noises)))]
    start = int(rng.integers(max(1, len(noise) - len(wave) + 1)))
    return add(wave, np.resize(noise[start:], len(wave)), float(rng.uniform(*SNR_DB)))


def in_room(wave: Wave, rng: np.random.Generator, _: Sequence[Wave]) -> Wave:
    """The sound of a random shoebox room."""
    room = simulate_room(rng)
    room = room[int(np.argmax(np.abs(room))) :]
    return reverberate(wave, room / np.float32(np.sqrt(np.sum(np.square(room)))))


def through_codec(wave: Wave, rng: np.random.Generator, _: Sequence[Wave]) -> Wave:
    """MP3 at a low bit rate, written and read back by libsndfile; the same length."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=MP3_LEVEL)
    buffer.seek(0)
    back = soundfile.read(buffer, dtype="float32")[0]
    return np.resize(back, len(wave)).astype(np.float32)


def by_telephone(wave: Wave, rng: np.random.Generator, _: Sequence[Wave]) -> Wave:
    """8 kHz and 8 bits in mu-law (ITU-T G.711), back to 16 kHz."""
    narrow = np.clip(soxr.resample(wave, RATE, RATE // 2), -1.0, 1.0)
    companded = np.sign(narrow) * np.log1p(MU * np.abs(narrow)) / np.log1p(MU)
    coarse = np.round(companded * 127.0) / 127.0
    wide = np.sign(coarse) * np.expm1(np.abs(coarse) * np.log1p(MU)) / MU
    return np.resize(soxr.resample(wide.astype(np.float32), RATE // 2, RATE), len(wave)).astype(np.float32)


KINDS: dict[str, Degradation] = {
    "noise": in_noise,
    "room": in_room,
    "codec": through_codec,
    "telephone": by_telephone,
}


def make_stressed(
    lists: Sequence[str | Path],
    root: str | Path,
    noise: str | Path,
    out: str | Path,
    *,
    use: str = "eval",
    seed: int = 0,
) -> list[Path]:
    """Write both sides of every trial, degraded, as FLAC below `out`, and lists that name them; returns the lists.

    root: the folder that the lists' paths start from   noise: manifest of noises, of which the rows whose column `use`
    says so are taken   out: gets enrol/, test/ and trials/NAME-stress.txt; files that are there are not made again.
    Every recording is degraded by a generator of its own, so a list added later changes nothing. Raises BadList,
    BadAudio.
    """
    loaded = {Path(path).stem: read_trials(Path(path)) for path in lists}
    noises = _noises(Path(noise), use)
    wanted = sorted(
        {("enrol", name) for trials in loaded.values() for name in trials.enrol}
        | {("test", name) for trials in loaded.values() for name in trials.test}
    )
    with click.progressbar(wanted, label="degrading", file=sys.stderr) as bar:
        for side, name in bar:
            _write(locate(Path(root), name), Path(out, _place(side, name)), side, name, noises, seed)
    folder = Path(out, "trials")
    folder.mkdir(parents=True, exist_ok=True)
    return [_list(folder / f"{stem}-stress.txt", trials) for stem, trials in loaded.items()]


def _noises(manifest: Path, use: str) -> list[Wave]:
    rows = [row for row in read_manifest(manifest) if not use or row.fields.get("use") == use]
    if not rows:
        raise BadList(f"{manifest}: no noise has {use!r} in its column 'use'")
    return [read(manifest.parent / row.path, RATE) for row in rows]


def _place(side: str, name: str) -> str:
    return f"{side}/{PurePosixPath(name).with_suffix('.flac')}"


def _write(source: Path, out: Path, side: str, name: str, noises: Sequence[Wave], seed: int) -> None:
    if out.exists():
        return
    rng = np.random.default_rng([seed, *f"{side}/{name}".encode()])
    kind = list(KINDS)[int(rng.integers(len(KINDS)))]
    wave = KINDS[kind](read(source, RATE), rng, noises)
    wave /= max(1.0, float(np.abs(wave).max()) / 0.99)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    soundfile.write(part, wave, RATE, format="FLAC", subtype="PCM_16")
    os.replace(part, out)


def _list(path: Path, trials: Trials) -> Path:
    rows = zip(trials.labels, trials.enrol, trials.test, strict=True)
    text = "".join(f"{label} {_place('enrol', a)} {_place('test', b)}\n" for label, a, b in rows)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path
