"""A deterministic, speech-like signal for self-tests and for observing ranges when no recording is at hand.

Glottal pulses excite four moving formants, with fricative noise, syllables and pauses: parallel formant synthesis,
a sum of damped sinusoids a pulse (Rodet 1984, "Time-domain formant-wave-function synthesis"). It is nobody's voice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_VOWELS_HZ = np.array(  # first four formants of a, e, i, o, u, schwa; an adult's vocal tract
    [
        [730, 1090, 2440, 3400],
        [530, 1840, 2480, 3500],
        [270, 2290, 3010, 3700],
        [570, 840, 2410, 3300],
        [300, 870, 2240, 3200],
        [500, 1500, 2500, 3500],
    ],
    dtype=np.float64,
)
_BANDWIDTHS_HZ = np.array([70.0, 90.0, 130.0, 180.0])
_GAINS = np.array([1.0, 0.6, 0.3, 0.15])
_PHRASE = 9  # syllables, the last two of them silent
_GRAIN_S = 0.03  # a pulse has decayed to a thousandth after this

Real = NDArray[np.float64]


def talker(seconds: float, seed: int, rate: int = 16000, text: int = 0) -> NDArray[np.float32]:
    """Speech-like samples: (round(seconds × rate),) float32, peak 0.5.

    seed: the voice (pitch, vocal-tract length, tempo); text: what it says. The same arguments give the same samples on
    every machine within 1e-6: random numbers come from integer arithmetic, and nothing is switched by a rounding.
    """
    count = round(seconds * rate)
    if not count:
        return np.zeros(0, dtype=np.float32)
    time = np.arange(count) / rate
    pitch, tract, tempo = _uniform(seed, 0, 3) * [140.0, 0.35, 2.0] + [90.0, 0.85, 3.5]
    syllables = int(np.ceil(seconds * tempo)) + 2
    draws = _uniform(seed, 1 + text, 4 * syllables).reshape(4, syllables)
    vowels = _VOWELS_HZ[(draws[0] * len(_VOWELS_HZ)).astype(int)] * tract
    loudness = (0.5 + 0.5 * draws[1]) * (np.arange(syllables) % _PHRASE < _PHRASE - 2)
    beat = time * tempo
    voiced = np.interp(beat, np.arange(syllables), loudness) * (0.3 + 0.7 * np.sin(np.pi * beat) ** 2)
    melody = pitch * (1.0 + 0.15 * np.sin(2 * np.pi * 0.4 * time + 6.0 * draws[2, 0]) + 0.02 * np.sin(11.0 * time))
    noise = 2.0 * _uniform(seed, 1_000_003 + text, count + 1) - 1.0
    hiss = np.interp(beat, np.arange(syllables), draws[3] ** 2) * np.cos(np.pi * beat) ** 8
    wave = _voice(melody, voiced, vowels, tempo, rate) + 0.25 * hiss * voiced * np.diff(noise) + 0.002 * noise[:-1]
    return np.asarray(0.5 * wave / np.abs(wave).max(), dtype=np.float32)


def _voice(melody: Real, loudness: Real, vowels: Real, tempo: float, rate: int) -> Real:
    """One grain of damped sinusoids for each pulse, overlapped and added.

    melody: (samples,) Hz   loudness: (samples,)   vowels: (syllables, 4) Hz   returns: (samples,)
    """
    cycles = np.cumsum(melody) / rate
    pulses = np.interp(np.arange(1.0, cycles[-1]), cycles, np.arange(len(cycles)))
    beat = pulses / rate * tempo
    formants = np.stack([np.interp(beat, np.arange(len(vowels)), column) for column in vowels.T], axis=1)
    gains = _GAINS * np.interp(pulses, np.arange(len(loudness)), loudness)[:, None]
    first = np.floor(pulses).astype(np.int64) + 1  # a grain begins at zero, so a rounding of the onset is not heard
    grains = _grains(formants, gains, first - pulses, rate)
    where = first[:, None] + np.arange(grains.shape[1])
    length = len(loudness) + grains.shape[1]
    return np.asarray(np.bincount(where.ravel(), grains.ravel(), length)[: len(loudness)], dtype=np.float64)


def _grains(formants: Real, gains: Real, delays: Real, rate: int) -> Real:
    """Impulse responses of four resonators a pulse: (pulses, 16 × ⌈grain / 16⌉).

    formants: (pulses, 4) Hz   gains: (pulses, 4)   delays: (pulses,) in samples. The exponential of a sum is the
    product of the exponentials: a grain is a matrix product of coarse steps and fine ones, not a sine a sample.
    """
    poles = (-np.pi * _BANDWIDTHS_HZ + 2j * np.pi * formants) / rate
    start = gains * np.exp(poles * delays[:, None])
    coarse = np.exp(poles[:, None, :] * np.arange(0, int(_GRAIN_S * rate), 16)[:, None]) * start[:, None, :]
    fine = np.exp(poles[:, :, None] * np.arange(16))
    return np.asarray((coarse @ fine).imag.reshape(len(formants), -1))


def _uniform(seed: int, stream: int, count: int) -> Real:
    """Numbers in [0, 1) by hashing a counter (SplitMix64, Steele et al. 2014): (count,), exact on every machine."""
    mask = (1 << 64) - 1
    origin = np.uint64((seed * 0xD1342543DE82EF95 + stream * 0x2545F4914F6CDD1D) & mask)
    state = origin + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53)
