"""What a front end computes, as numbers: presets, windows, mel filters, the linear map of a frame.

The torch module and the constant nodes of the shipped file are both made from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput


@dataclass(frozen=True)
class FrontEndConfig:
    """What a front end computes; frequencies in Hz, lengths in samples. The defaults are Kaldi's way.

    With `energy` the first row is the logarithm of the energy of a frame without its mean, before pre-emphasis and
    window, as Kaldi's `use-energy`; the mels follow.

    edges: "snip" keeps whole frames only; "zero" and "reflect" lay the middle of frame i on sample i · hop, and what is
    beyond the recording is silence, or the recording mirrored.   pre_emphasis_of: "frame", each on its own, its first
    sample before itself; "wave", once for the recording, mirrored at its start.   filters: a name in FILTERS.
    Features are log_factor · ln(max(mels, log_floor) + log_offset); with `range_below_peak` none is further than that
    below the highest of the recording; then `remove_mean`, over time.
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
    edges: str = "snip"
    remove_dc: bool = True  # the mean of each frame
    pre_emphasis_of: str = "frame"
    filters: str = "mel"
    log_offset: float = 0.0
    log_factor: float = 1.0
    range_below_peak: float = 0.0  # 0: no limit

    @property
    def rows(self) -> int:
        """Features of a frame: the mels, and the energy where there is one."""
        return self.mels + int(self.energy)

    def frames(self, samples: int) -> int:
        """Number of frames in `samples` samples."""
        return max(0, 1 + (samples + 2 * self.padding - self.window_length) // self.hop)

    def samples(self, frames: int) -> int:
        """Fewest samples that give `frames` frames; what is mirrored must be there."""
        needed = self.window_length - 2 * self.padding + (frames - 1) * self.hop
        return max(needed, self.padding + 1) if self.edges == "reflect" else max(needed, 1)

    @property
    def padding(self) -> int:
        """Samples added at both ends of a recording."""
        return 0 if self.edges == "snip" else self.window_length // 2


DECIBEL = float(10 / np.log(10))  # of a power, for one unit of its natural logarithm


_CLOVA: dict[str, Any] = {"edges": "reflect", "pre_emphasis_of": "wave", "log_floor": 0.0, "log_offset": 1e-6}
_PLAIN: dict[str, Any] = {"pre_emphasis_of": "frame", "preemphasis": 0.0}


def _torchaudio(name: str, **settings: Any) -> FrontEndConfig:
    """What torch.stft and torchaudio's MelSpectrogram (HTK mels, no norm) share."""
    shared = {"window": "periodic-hamming", "input_scale": 1.0, "remove_dc": False, "filters": "hertz"}
    return FrontEndConfig(name, **{**shared, **settings})


# What paper-c and kiwano do not say (mel range, pre-emphasis, input scale, that the energy comes first) is our reading:
# Kaldi's defaults.
PRESETS: dict[str, FrontEndConfig] = {
    config.name: config
    for config in (
        FrontEndConfig("wespeaker"),
        FrontEndConfig("wespeaker-72", mels=72),  # ReDimNet
        FrontEndConfig("wespeaker-60", mels=60),  # ReDimNet B0
        FrontEndConfig("paper-c", mels=64),  # Li 2023, arXiv 2210.17326, section 3.1
        FrontEndConfig("kiwano", window="povey", energy=True),  # 81 rows
        FrontEndConfig("3dspeaker", window="povey", input_scale=1.0),
        _torchaudio(  # speechbrain.lobes.features.Fbank(n_mels=80), sentence mean removed
            "speechbrain",
            fft_length=400,
            low_hz=0.0,
            preemphasis=0.0,
            edges="zero",
            filters="hertz-left",
            log_floor=1e-10,
            log_factor=DECIBEL,
            range_below_peak=80.0,
        ),
        _torchaudio("taoruijie", high_hz=7600.0, **_CLOVA),
        # clovaai's voxceleb_trainer; its networks divide by the deviation themselves (InstanceNorm1d)
        _torchaudio("voxceleb_trainer", low_hz=0.0, mels=64, **_CLOVA),
        _torchaudio("voxceleb_trainer-40", low_hz=0.0, mels=40, **_CLOVA),
        # without pre-emphasis, as its ResNetSE34L has it
        _torchaudio("voxceleb_trainer-plain", **{**_CLOVA, **_PLAIN}, low_hz=0.0, mels=40),
    )
}


def window_shape(name: str, length: int) -> NDArray[np.float64]:
    """Analysis windows of Kaldi, and the one of torch that ends a sample before it repeats: (length,) float64."""
    period = length if name == "periodic-hamming" else length - 1
    phase = 2 * np.pi * np.arange(length) / period
    if name in ("hamming", "periodic-hamming"):
        return 0.54 - 0.46 * np.cos(phase)
    if name == "povey":
        povey: NDArray[np.float64] = (0.5 - 0.5 * np.cos(phase)) ** 0.85
        return povey
    raise BadInput(f"front end: window {name!r} is unknown; known: hamming, periodic-hamming, povey")


@dataclass(frozen=True)
class Triangles:
    """Filters as triangles over an axis: each rises from `left` to 1 at `centre` and falls to 0 at `right`."""

    places: NDArray[np.float64]  # (fft_length / 2,) of the bins on that axis
    left: NDArray[np.float64]  # (mels,), as are the two that follow
    centre: NDArray[np.float64]
    right: NDArray[np.float64]


def triangles(config: FrontEndConfig) -> Triangles:
    """The filters of a front end, their corners evenly spaced in mel (1127 ln(1 + f/700)). Raises BadInput.

    filters "mel": straight sides over mel (Kaldi); "hertz": over Hz (torchaudio); "hertz-left": over Hz, the right side
    as wide as the left one (SpeechBrain).
    """
    if config.filters not in FILTERS:
        raise BadInput(f"front end: filters {config.filters!r} are unknown; known: {', '.join(FILTERS)}")
    hertz = np.arange(config.fft_length // 2) * config.rate / config.fft_length
    corners = np.linspace(_mel(config.low_hz), _mel(config.high_hz), config.mels + 2)
    if config.filters == "mel":
        return Triangles(_mel(hertz), corners[:-2], corners[1:-1], corners[2:])
    left, centre, right = (700.0 * np.expm1(corners[i : config.mels + i] / 1127.0) for i in range(3))
    return Triangles(hertz, left, centre, 2 * centre - left if config.filters == "hertz-left" else right)


FILTERS = ("mel", "hertz", "hertz-left")


def _mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return 1127.0 * np.log1p(np.asarray(hz, dtype=np.float64) / 700.0)


def mel_matrix(config: FrontEndConfig) -> NDArray[np.float32]:
    """The filters as a matrix: (mels, fft_length / 2) float32."""
    of = triangles(config)
    left, centre, right = of.left[:, None], of.centre[:, None], of.right[:, None]
    rising, falling = (of.places - left) / (centre - left), (right - of.places) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def dft_kernel(config: FrontEndConfig) -> NDArray[np.float32]:
    """The linear part of a frame as a matrix: (fft_length, window_length) float32, real parts above imaginary ones.

    Row k of the upper half gives the real part of bin k, of the lower half its imaginary part, for bins 0 to
    fft_length / 2 - 1 (the mel filters never reach the last bin). Applied to raw samples in [-1, 1], or to those of a
    wave with pre-emphasis.
    """
    n, k = np.arange(config.window_length), np.arange(config.fft_length // 2)[:, None]
    phase = 2 * np.pi * ((n * k) % config.fft_length) / config.fft_length
    rows = np.concatenate([np.cos(phase), np.sin(phase)]) * window_shape(config.window, config.window_length)
    if config.pre_emphasis_of == "frame":  # y[n] = x[n] - p x[n-1], y[0] = x[0] (1 - p), seen from the side of x
        rows, plain = rows.copy(), rows
        rows[:, :-1] -= config.preemphasis * plain[:, 1:]
        rows[:, 0] -= config.preemphasis * plain[:, 0]
    if config.remove_dc:
        rows = rows - rows.mean(axis=1, keepdims=True)
    kernel: NDArray[np.float32] = (rows * config.input_scale).astype(np.float32)
    return kernel


def preset(name: str) -> FrontEndConfig:
    """The front end of a toolkit by its name; raises BadInput with the known names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise BadInput(f"front end: {name!r} is unknown; known: {', '.join(PRESETS)}") from None
