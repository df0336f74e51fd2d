"""The front end against kaldi-native-fbank, and what it refuses."""

import kaldi_native_fbank
import numpy as np
import pytest
import scipy.signal
import torch

from sottovoce.audio.features import PRESETS, FrontEndConfig, dft_kernel, mel_matrix, preset
from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput
from sottovoce.networks.frontend import FrontEnd


def kaldi(
    wave: np.ndarray, window: str = "hamming", mels: int = 80, energy: bool = False, scale: float = 32768.0
) -> np.ndarray:
    """(rows, frames) by the independent implementation, dither 0, mean removed."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = window
    options.mel_opts.num_bins = mels
    options.use_energy = energy
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, (wave * scale).tolist())
    fbank.input_finished()
    features = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)], axis=1)
    return features - features.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wespeaker", {}),
        ("wespeaker-72", {"mels": 72}),
        ("wespeaker-60", {"mels": 60}),
        ("paper-c", {"mels": 64}),
        ("kiwano", {"window": "povey", "energy": True}),
        ("3dspeaker", {"window": "povey", "scale": 1.0}),
    ],
)
def test_equals_kaldi(name: str, options: dict, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 1e-3, 48000).astype(np.float32)
    wave = talker(3.0, seed=seed)[:48000] + noise
    ours = FrontEnd(name)(torch.from_numpy(wave)[None])[0].numpy()
    difference = np.abs(ours - kaldi(wave, **options))
    assert ours.shape == (preset(name).rows, 298)
    assert np.quantile(difference, 0.99) < 2e-4  # Kaldi places the filters in float32, and some bins lie at an edge
    assert np.quantile(difference, 0.999) < 6e-4
    assert difference.max() < 1e-2


def power(wave: np.ndarray, fft: int, mode: str) -> np.ndarray:
    """(frames, fft / 2 + 1) float64 by numpy: centred frames, a periodic Hamming window of 400 in their middle."""
    padded = np.pad(wave, fft // 2, mode=mode)
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft)[::160]
    window = np.pad(scipy.signal.get_window("hamming", 400), (fft - 400) // 2)
    return np.abs(np.fft.rfft(frames * window, axis=1)) ** 2


def hertz_filters(fft: int, mels: int, low: float, high: float, equal_sides: bool) -> np.ndarray:
    """(fft / 2 + 1, mels): triangles over Hz, HTK mels, as torchaudio (norm None) or SpeechBrain draw them."""
    corners = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + f / 700) for f in (low, high)), mels + 2) / 2595) - 1)
    filters = np.zeros((fft // 2 + 1, mels))
    for i in range(mels):
        left, centre, right = corners[i : i + 3]
        right = 2 * centre - left if equal_sides else right
        filters[:, i] = np.interp(np.arange(fft // 2 + 1) * 16000 / fft, [left, centre, right], [0, 1, 0])
    return filters


def test_equals_speechbrain_step_by_step() -> None:
    wave = talker(2.0, seed=8)
    wave[8000:12000] = 0  # which the limit of 80 dB is for
    mels = power(wave, 400, "constant") @ hertz_filters(400, 80, 0, 8000, equal_sides=True)
    decibel = 10 * np.log10(np.maximum(mels, 1e-10))
    limited = np.maximum(decibel, decibel.max() - 80)
    assert (limited > decibel).mean() > 0.1
    ours = FrontEnd("speechbrain")(torch.from_numpy(wave)[None])[0].numpy()
    assert ours.shape == (80, 201)
    np.testing.assert_allclose(ours, (limited - limited.mean(axis=0)).T, atol=0.01)  # of dB; float32 in quiet bins


@pytest.mark.parametrize(
    ("name", "mels", "low", "high", "emphasis"),
    [
        ("taoruijie", 80, 20, 7600, 0.97),
        ("voxceleb_trainer", 64, 0, 8000, 0.97),
        ("voxceleb_trainer-40", 40, 0, 8000, 0.97),
        ("voxceleb_trainer-plain", 40, 0, 8000, 0.0),
    ],
)
def test_equals_torchaudio_step_by_step(name: str, mels: int, low: float, high: float, emphasis: float) -> None:
    wave = talker(2.0, seed=9)
    emphasised = wave - emphasis * np.concatenate([wave[1:2], wave[:-1]])
    logs = np.log(power(emphasised, 512, "reflect") @ hertz_filters(512, mels, low, high, equal_sides=False) + 1e-6)
    ours = FrontEnd(name)(torch.from_numpy(wave)[None])[0].numpy()
    np.testing.assert_allclose(ours, (logs - logs.mean(axis=0)).T, atol=1e-3)


def test_kernel_equals_the_steps_it_stands_for() -> None:
    config = preset("wespeaker")
    frame = np.random.default_rng(0).normal(size=400)
    centred = frame - frame.mean()
    emphasised = centred - 0.97 * np.concatenate([centred[:1], centred[:-1]])
    windowed = emphasised * (0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 399))
    spectrum = np.fft.rfft(windowed * 32768.0, 512)[:256]
    rows = dft_kernel(config).astype(np.float64) @ frame
    scale = np.abs(spectrum).max()
    assert np.allclose(rows[:256], spectrum.real, atol=1e-5 * scale)
    assert np.allclose(-rows[256:], spectrum.imag, atol=1e-5 * scale)


@pytest.mark.parametrize("samples", [400, 559, 560, 561, 16000])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_frames_are_those_that_fit(name: str, samples: int) -> None:
    config = PRESETS[name]
    features = FrontEnd(config)(torch.randn(2, samples))
    assert features.shape == (2, config.rows, config.frames(samples))
    assert config.samples(config.frames(samples)) <= samples


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_fewest_samples_are_enough_and_one_less_is_not(name: str) -> None:
    config = PRESETS[name]
    for frames in (1, 5):
        samples = config.samples(frames)
        assert FrontEnd(config)(torch.randn(1, samples)).shape[2] >= frames
        fewer = samples - 1
        assert fewer == 0 or config.edges == "reflect" or config.frames(fewer) < frames
    with pytest.raises(BadInput):
        FrontEnd(config)(torch.randn(1, config.samples(1) - 1))


def test_too_short_is_an_error() -> None:
    with pytest.raises(BadInput, match="399 samples"):
        FrontEnd("wespeaker")(torch.zeros(1, 399))


def test_unknown_names_are_errors() -> None:
    with pytest.raises(BadInput, match="wespeaker, wespeaker-72, wespeaker-60, paper-c, kiwano, 3dspeaker"):
        FrontEnd("kaldi")
    with pytest.raises(BadInput, match="hamming"):
        dft_kernel(FrontEndConfig("x", window="gauss"))
    with pytest.raises(BadInput, match="hertz-left"):
        mel_matrix(FrontEndConfig("x", filters="bark"))


def test_half_precision_does_not_reach_the_features() -> None:
    wave = torch.randn(1, 8000) * 0.1
    front_end = FrontEnd("wespeaker")
    with torch.autocast("cpu", torch.bfloat16):
        inside = front_end(wave)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, front_end(wave))
