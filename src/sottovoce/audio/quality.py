"""How good is a recording? Net speech, signal-to-noise ratio, clipping, level, bandwidth: each a number with a unit.

Nothing here knows what speech is: energy that comes and goes is taken for it. Each measure says where it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from sottovoce.errors import NotAudio

FRAME_S, HOP_S = 0.025, 0.010
_BAND_HZ = 250.0  # width of the bands that noise is followed in
_LOWEST_HZ = 100.0  # hum and handling noise below are no part of speech or noise
_SMOOTHED = 5  # frames that a band's power is averaged over before its floor is taken
_FLOOR_PERCENTILE = 10.0
_FLOOR_OF_MEAN = 0.70  # that percentile of the smoothed power of steady Gaussian noise, as a share of its mean
_SILENCE = 1e-10  # power of a frame, full scale squared; nothing is quieter than -100 dB
_ABOVE_NOISE_DB = 2.0  # a frame of speech stands out of the noise by so much
_SEEN_DB = (-0.5, 3.0, 4.5, 7.0, 11.0, 15.3, 20.0)  # what the loudest frames alone say, medians over development speech
_TRUE_DB = (-5.0, 0.0, 2.0, 5.0, 10.0, 15.0, 20.0)  # in white and pink noise at these SNRs
_BELOW_LOUD_DB = 30.0  # and is not farther below the recording's loud frames than this
_EMPTY_DB = -66.0  # a band this far below the loudest holds nothing
_LEAST_PEAK = 0.02  # full scale; below, equal samples come from coarse steps, not from clipping
_FLAT = 2.0**-9  # of the peak: samples this near to it, neighbours of their like, are cut off
_CLIP_BLOCK = 1 << 18  # samples read at a time

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """What was measured on one recording."""

    seconds: float  # whole length
    net_speech_s: float  # of it, seconds of speech
    snr_db: float | None  # speech over noise; None where there is no speech
    clipped: float  # share of samples, 0..1, that are cut off
    level_dbfs: float  # root mean square of the speech, of everything where there is none; 0 is full scale
    bandwidth_hz: float  # nothing is heard above
    rate_in: int  # samples per second of the file

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, rounded to what they can tell."""
        return {name: round(value, 4) if value is not None else None for name, value in asdict(self).items()}


SIDES: Mapping[str, Callable[[Quality], float]] = {  # side information of one recording; a pair's is the lower of two
    "log_net_speech": lambda quality: float(np.log(max(quality.net_speech_s, 0.05))),
    "log_duration": lambda quality: float(np.log(max(quality.seconds, 0.05))),
    "snr": lambda quality: float(np.clip(-5.0 if quality.snr_db is None else quality.snr_db, -5.0, 30.0)),
    "bandwidth_khz": lambda quality: quality.bandwidth_hz / 1000.0,
}


def measures(a: Quality, b: Quality, names: tuple[str, ...] | list[str]) -> dict[str, float]:
    """Side information of a pair: for each name of SIDES the value of the worse recording, the lower one."""
    return {name: min(SIDES[name](a), SIDES[name](b)) for name in names}


def of_file(path: str | Path, wave: NDArray[np.float32], rate: int) -> Quality:
    """The quality of a recording as read from a file; clipping is looked for in the samples before resampling.

    wave: (samples,) what `wav.read` made of the file, at `rate` Hz. Raises NotAudio.
    """
    clipped, rate_in = clipped_in_file(path)
    return of_wave(wave, rate, clipped=clipped, rate_in=rate_in)


def of_wave(
    wave: NDArray[np.floating[Any]], rate: int, *, clipped: float | None = None, rate_in: int | None = None
) -> Quality:
    """The quality of samples in -1..1: (samples,) at `rate` Hz, finite, at least one.

    clipped, rate_in: known from the file that they came from; left out, measured here.
    """
    samples = np.asarray(wave, dtype=np.float64)
    bands = band_power(samples - samples.mean(), rate)
    power, noise = bands.sum(axis=1), noise_power(bands)
    spoken = speech_frames(power, noise)
    heard = power[spoken] if spoken.any() else power
    return Quality(
        seconds=len(samples) / rate,
        net_speech_s=float(min(spoken.sum() * HOP_S, len(samples) / rate)),
        snr_db=snr_db(power, noise, spoken),
        clipped=clipped_share(samples) if clipped is None else clipped,
        level_dbfs=_db(float(heard.mean())),
        bandwidth_hz=bandwidth_hz(bands[spoken] if spoken.any() else bands, rate),
        rate_in=rate if rate_in is None else rate_in,
    )


def band_power(samples: Real, rate: int) -> Real:
    """Mean power in bands of 250 Hz from 100 Hz on, frame by frame: (frames, bands), full scale squared.

    Frames of 25 ms every 10 ms under a Hann window; the rows' sums are the power of the frames without what lies below
    100 Hz. samples: (n,) at `rate` Hz; fewer than a frame are filled up with zeros.
    """
    length, hop = round(FRAME_S * rate), round(HOP_S * rate)
    padded = np.pad(samples, (0, max(0, length - len(samples))))
    window = np.hanning(length + 2)[1:-1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]
    spectrum = np.abs(np.fft.rfft(frames * window)) ** 2
    spectrum *= 2.0 / (length * np.sum(window**2))
    hertz = np.fft.rfftfreq(length, 1.0 / rate)
    kept = hertz >= _LOWEST_HZ
    edges = np.arange(_LOWEST_HZ, rate / 2, _BAND_HZ)
    starts = np.searchsorted(hertz[kept], edges)
    return np.asarray(np.add.reduceat(spectrum[:, kept], starts, axis=1))


def noise_power(bands: Real) -> float:
    """Power of the steady noise, full scale squared: the floor of each band, followed through the gaps of speech.

    bands: (frames, bands). The floor is a low percentile over time of the smoothed power, which speech leaves free even
    where it has no pauses, divided by what that percentile is in steady noise. Fails where noise itself comes and goes,
    and reads too high where speech is shorter than about half a second. In the manner of Martin 2001, "Noise power
    spectral density estimation based on optimal smoothing and minimum statistics"; the percentile is our reading.
    """
    total = np.cumsum(np.vstack([np.zeros(bands.shape[1]), bands]), axis=0)
    width = min(_SMOOTHED, len(bands))
    smooth = (total[width:] - total[:-width]) / width
    floor = np.percentile(smooth, _FLOOR_PERCENTILE, axis=0) / _FLOOR_OF_MEAN
    return max(float(floor.sum()), _SILENCE)


def speech_frames(power: Real, noise: float) -> NDArray[np.bool_]:
    """Which frames hold speech: 2 dB above the noise, and at most 30 dB below the loud frames (the 95th percentile).

    power: (frames,)   noise: as `noise_power`. The threshold goes with the recording, so level does not matter. Music,
    barking, clicks count as speech: whatever comes and goes; a steady tone or hiss does not.
    """
    loud = float(np.percentile(power, 95.0))
    threshold = max(noise * 10 ** (_ABOVE_NOISE_DB / 10), loud * 10 ** (-_BELOW_LOUD_DB / 10))
    return np.asarray(power > threshold)


def snr_db(power: Real, noise: float, spoken: NDArray[np.bool_]) -> float | None:
    """Power of the speech in its frames over that of the noise, in dB; None where there is no speech.

    In noise only the loud frames are seen; what that adds below 20 dB is taken off again as measured, down to -5 dB.
    Pauses too short for a floor and weak sounds count as noise, so clean speech rarely reads above 40 dB. Noise that
    comes and goes is taken for speech, and reverberation is not seen.
    """
    if not spoken.any():
        return None
    seen = _db(max(float(power[spoken].mean()) - noise, 0.01 * noise) / noise)
    return seen if seen >= _SEEN_DB[-1] else float(np.interp(seen, _SEEN_DB, _TRUE_DB))


def clipped_share(samples: NDArray[np.floating[Any]]) -> float:
    """Share of samples, 0..1, that are cut off: within 1/512 of the peak in a row of two or more.

    samples: (n,). Level does not matter, down to a peak of 0.02. Resampling and lossy coding after the cut bend the
    flat tops and hide it; in pure tones a few samples lie there by nature (2.8 % or so of a sine).
    """
    size = np.abs(samples)
    peak = float(size.max(initial=0.0))
    if peak < _LEAST_PEAK:
        return 0.0
    top = size >= peak * (1.0 - _FLAT)
    same = np.sign(samples[1:]) == np.sign(samples[:-1])
    pairs = top[1:] & top[:-1] & same
    flat = np.zeros(len(samples), dtype=bool)
    flat[1:] |= pairs
    flat[:-1] |= pairs
    return float(flat.mean())


def clipped_in_file(path: str | Path) -> tuple[float, int]:
    """Clipped share of the worst channel of a file, before any resampling, and its rate in Hz. Raises NotAudio."""
    try:
        with soundfile.SoundFile(path) as file:
            rate, cut, seen = int(file.samplerate), np.zeros(file.channels), 0
            for block in file.blocks(_CLIP_BLOCK // file.channels, dtype="float32", always_2d=True):
                seen += len(block)
                cut += [clipped_share(channel) * len(block) for channel in block.T]
    except (soundfile.SoundFileError, TypeError) as error:
        raise NotAudio(f"{path}: libsndfile cannot decode it ({error}); convert it to WAV or FLAC") from None
    return (float(cut.max()) / seen if seen else 0.0), rate


def bandwidth_hz(bands: Real, rate: int) -> float:
    """Upper edge, in Hz, of the highest band that is not empty: not 66 dB or more below the loudest.

    bands: (frames, bands). 8 kHz content brought to 16 kHz ends near 4000. Noise added afterwards, also that of 16-bit
    steps in a very quiet recording, fills the upper bands and hides it.
    """
    mean = bands.mean(axis=0)
    there = np.flatnonzero(mean > mean.max() * 10 ** (_EMPTY_DB / 10))
    last = int(there[-1]) if len(there) else len(mean) - 1
    return min(_LOWEST_HZ + (last + 1) * _BAND_HZ, rate / 2)


def _db(power: float) -> float:
    return 10.0 * float(np.log10(max(power, _SILENCE)))
