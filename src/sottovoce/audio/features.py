"""What a front end computes, as numbers: presets, windows, mel filters, the linear map of a frame.

The torch module and the constant nodes of the shipped file are both made from these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput


@dataclass(frozen=True)
class FrontEndConfig:
    """What a front end computes; frequencies in Hz, lengths in samples.

    With `energy` the first row is the logarithm of the energy of a frame without its mean, before pre-emphasis and
    window, as Kaldi's `use-energy`; the mels follow.
    """

    name: str
    rate: int = 16000
    window_length: int = 400
    hop: int = 160
    fft_length: int = 512
    mels: int = 80
    low_hz: float = 20.0
    high_hz: float = 8000.0
    window: str = "hamming"
    input_scale: float = 32768.0
    preemphasis: float = 0.97
    log_floor: float = float(np.finfo(np.float32).eps)
    remove_mean: bool = True
    energy: bool = False

    @property
    def rows(self) -> int:
        """Features of a frame: the mels, and the energy where there is one."""
        return self.mels + int(self.energy)

    def frames(self, samples: int) -> int:
        """Number of whole frames in `samples` samples."""
        return max(0, 1 + (samples - self.window_length) // self.hop)

    def samples(self, frames: int) -> int:
        """Fewest samples that give `frames` frames."""
        return self.window_length + (frames - 1) * self.hop


# What paper-c and kiwano do not say (mel range, pre-emphasis, input scale, that the energy comes first) is our reading:
# Kaldi's defaults.
PRESETS: dict[str, FrontEndConfig] = {
    config.name: config
    for config in (
        FrontEndConfig("wespeaker"),
        FrontEndConfig("paper-c", mels=64),  # Li 2023, arXiv 2210.17326, section 3.1
        FrontEndConfig("kiwano", window="povey", energy=True),  # 81 rows
    )
}


def window_shape(name: str, length: int) -> NDArray[np.float64]:
    """Kaldi's analysis windows: (length,) float64."""
    phase = 2 * np.pi * np.arange(length) / (length - 1)
    if name == "hamming":
        return 0.54 - 0.46 * np.cos(phase)
    if name == "povey":
        povey: NDArray[np.float64] = (0.5 - 0.5 * np.cos(phase)) ** 0.85
        return povey
    raise BadInput(f"front end: window {name!r} is unknown; known: hamming, povey")


def mel_matrix(config: FrontEndConfig) -> NDArray[np.float32]:
    """Triangular filters, evenly spaced in mel (1127 ln(1 + f/700)) as in Kaldi: (mels, fft_length / 2) float32."""

    def mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return 1127.0 * np.log1p(np.asarray(hz, dtype=np.float64) / 700.0)

    edges = np.linspace(mel(config.low_hz), mel(config.high_hz), config.mels + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = mel(np.arange(config.fft_length // 2) * config.rate / config.fft_length)[None, :]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def dft_kernel(config: FrontEndConfig) -> NDArray[np.float32]:
    """The linear part of a frame as a matrix: (fft_length, window_length) float32, real parts above imaginary ones.

    Row k of the upper half gives the real part of bin k, of the lower half its imaginary part, for bins 0 to
    fft_length / 2 - 1 (the mel filters never reach the last bin). Applied to raw samples in [-1, 1].
    """
    n, k = np.arange(config.window_length), np.arange(config.fft_length // 2)[:, None]
    phase = 2 * np.pi * ((n * k) % config.fft_length) / config.fft_length
    rows = np.concatenate([np.cos(phase), np.sin(phase)]) * window_shape(config.window, config.window_length)
    emphasised = rows.copy()  # y[n] = x[n] - p x[n-1], y[0] = x[0] (1 - p), seen from the side of x
    emphasised[:, :-1] -= config.preemphasis * rows[:, 1:]
    emphasised[:, 0] -= config.preemphasis * rows[:, 0]
    centred = emphasised - emphasised.mean(axis=1, keepdims=True)
    kernel: NDArray[np.float32] = (centred * config.input_scale).astype(np.float32)
    return kernel


def preset(name: str) -> FrontEndConfig:
    """The front end of a toolkit by its name; raises BadInput with the known names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise BadInput(f"front end: {name!r} is unknown; known: {', '.join(PRESETS)}") from None
