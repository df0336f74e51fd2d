"""The trivial baseline every model is printed beside: statistics of cepstra, standardised, compared by cosine.

19 cepstra without the zeroth (a DCT of 128 log mel bands, Slaney's scale, 80 dB below the loudest at most), their mean
and standard deviation over time. NumPy only; nothing is learned.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.lab.evaluate import embed_names, identity, measure, readable

WINDOW = 2048  # samples, also the length of the transform
HOP = 512
BANDS = 128
CEPSTRA = 19
RANGE_DB = 80.0

Real = NDArray[np.float64]


class Mfcc:
    """A model to `lab.evaluate`, except that its vectors must be standardised over a set of recordings before use."""

    dim = 2 * CEPSTRA
    rate = 16000
    min_samples = WINDOW
    id = "mfcc baseline"
    path = None

    def embed(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """(samples,) → (38,): mean of each cepstrum over time, then standard deviations."""
        found = cepstra(wave, self.rate)
        return np.concatenate([found.mean(axis=0), found.std(axis=0)]).astype(np.float32)


def cepstra(wave: NDArray[np.float32], rate: int = 16000) -> Real:
    """Cepstra 1 to 19 of Hann windows of 2048 samples, every 512, centred, the ends padded with zeros: (frames, 19)."""
    padded = np.pad(wave.astype(np.float64), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    decibels = 10.0 * np.log10(np.maximum(power @ _bands(rate).T, 1e-10))
    return np.asarray(np.maximum(decibels, decibels.max() - RANGE_DB) @ _cosines())


def standardise(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each column to mean 0 and deviation 1 over the rows, then each row to unit length: (n, dim)."""
    spread = table.std(axis=0)
    scaled = (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(length > 0, length, 1.0), dtype=np.float32)


def baseline(
    trials_path: str | Path, root: str | Path, *, draws: int = 1000, seed: int = 0, quiet: bool = False
) -> dict[str, Any]:
    """One trial list, in the form of `evaluate`: standardised over the recordings the list names."""
    trials = readable(Path(trials_path))
    known, failed = embed_names(Mfcc(), trials.utterances, root, quiet=quiet)
    units = standardise(np.stack(list(known.values())))
    vectors = dict(zip(known, units, strict=True))
    return {**identity(Mfcc()), **measure(trials, vectors, failed, draws=draws, seed=seed)}


@lru_cache
def _bands(rate: int) -> Real:
    """Triangles of equal area, evenly spaced on Slaney's scale (linear to 1 kHz, then logarithmic): (128, 1025)."""
    step = np.log(6.4) / 27.0  # 27 steps from 1 to 6.4 kHz; below, a step is 200/3 Hz
    top = 15.0 + np.log(rate / 2 / 1000.0) / step
    marks = np.linspace(0.0, top, BANDS + 2)
    edges = np.where(marks < 15.0, marks * 200.0 / 3.0, 1000.0 * np.exp((marks - 15.0) * step))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.arange(WINDOW // 2 + 1) * rate / WINDOW
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return np.asarray(np.maximum(0.0, triangles) * 2.0 / (right - left))


@lru_cache
def _cosines() -> Real:
    """Columns 1 to 19 of the orthonormal DCT-II: (128, 19)."""
    angles = np.pi / BANDS * (np.arange(BANDS)[:, None] + 0.5) * np.arange(1, CEPSTRA + 1)
    return np.asarray(np.cos(angles) * np.sqrt(2.0 / BANDS))
