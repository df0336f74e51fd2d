"""Recordings from files: any rate, any number of channels → mono float32; the unusable refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sottovoce.errors import (
    BadAudio,
    BadInput,
    EmptyAudio,
    MissingAudio,
    NonFiniteAudio,
    NotAudio,
    SilentAudio,
    TooShort,
)

MAX_SECONDS = 3600.0
_BLOCK = 1 << 18  # samples over all channels that are decoded at a time

Wave = NDArray[np.float32]


def read(path: str | Path, rate: int = 16000, min_samples: int = 0, max_seconds: float = MAX_SECONDS) -> Wave:
    """The recording in a file, channels averaged, resampled to `rate` Hz: (samples,) float32, full scale ±1.

    Decoded block by block, so memory is bounded by `max_seconds` whatever the header says. Raises MissingAudio,
    NotAudio, EmptyAudio, NonFiniteAudio, SilentAudio, TooShort (fewer than `min_samples` after resampling), and
    BadAudio for a recording longer than `max_seconds`.
    """
    path = Path(path)
    _refuse_missing(path)
    try:
        with soundfile.SoundFile(path) as file:
            wave = _decode(file, path, rate, max_seconds)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a name that asks for headerless samples
        raise NotAudio(f"{path}: libsndfile cannot decode it ({error}); convert it to WAV or FLAC") from None
    return check(wave, str(path), min_samples, rate)


def check(wave: NDArray[Any], where: str, min_samples: int = 0, rate: int = 16000) -> Wave:
    """The samples as contiguous float32 (samples,), once they are known to be usable.

    where: named in the message; rate: Hz, for the message. Raises EmptyAudio, NonFiniteAudio, TooShort, SilentAudio,
    and BadInput for an array that is not one row of floating-point samples.
    """
    wave = np.asarray(wave)
    if wave.ndim != 1 or wave.dtype.kind != "f":
        found = f"{wave.dtype} of shape {wave.shape}"
        raise BadInput(f"{where}: samples must be one row of floats in -1..1, found {found}")
    if not wave.size:
        raise EmptyAudio(f"{where}: holds no samples; record it again")
    if not np.isfinite(wave).all():
        raise NonFiniteAudio(f"{where}: holds NaN or infinite samples; export it again from its source")
    if wave.size < min_samples:
        raise TooShort(
            f"{where}: {wave.size / rate:.3f} s of audio, at least {min_samples / rate:.3f} s needed; record more"
        )
    _refuse_silence(float(wave.min()), float(wave.max()), where)
    return np.ascontiguousarray(wave, dtype=np.float32)


def _refuse_missing(path: Path) -> None:
    if not path.exists():
        raise MissingAudio(f"{path}: there is no such file; check the path")
    if not path.is_file():
        raise NotAudio(f"{path}: not a file; name one recording")
    if not path.stat().st_size:
        raise EmptyAudio(f"{path}: the file has no content; record or copy it again")


def _refuse_silence(low: float, high: float, where: str) -> None:
    if low == high:
        raise SilentAudio(f"{where}: digital silence, every sample is {low:g}; check the microphone or the export")


def _decode(file: soundfile.SoundFile, path: Path, rate: int, max_seconds: float) -> Wave:
    """All samples of an open file, mono, at `rate` Hz.

    Silence is judged before resampling, which would put ripples at the edges of a constant.
    """
    resampler = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32", quality="HQ")
    low, high, pieces = np.inf, -np.inf, []
    for block in _mono_blocks(file, path, max_seconds):
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        pieces.append(block if file.samplerate == rate else resampler.resample_chunk(block))
    if not pieces:
        raise EmptyAudio(f"{path}: holds no samples; record it again")
    _refuse_silence(low, high, str(path))
    if file.samplerate != rate:
        pieces.append(resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    return np.concatenate(pieces)


def _mono_blocks(file: soundfile.SoundFile, path: Path, max_seconds: float) -> Iterator[Wave]:
    limit = int(max_seconds * file.samplerate)
    seen, longest = 0, file.frames if file.seekable() else 0
    while True:
        if max(seen, longest) > limit:
            minutes = max(seen, longest) / file.samplerate / 60
            raise BadAudio(f"{path}: {minutes:.1f} minutes or more, the limit is {max_seconds / 60:.1f}; cut it up")
        block = file.read(max(1, _BLOCK // file.channels), dtype="float32", always_2d=True)
        if not len(block):
            return
        seen += len(block)
        with np.errstate(all="ignore"):  # what overflows here is refused below
            mono = block.mean(axis=1)
        if not np.isfinite(mono).all():
            raise NonFiniteAudio(f"{path}: holds NaN or infinite samples; export it again from its source")
        yield mono
