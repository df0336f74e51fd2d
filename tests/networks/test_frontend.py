"""The front end against kaldi-native-fbank, and what it refuses."""

import kaldi_native_fbank
import numpy as np
import pytest
import torch

from sottovoce.audio.features import PRESETS, FrontEndConfig, dft_kernel, preset
from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput
from sottovoce.networks.frontend import FrontEnd


def kaldi(wave: np.ndarray, window: str = "hamming", mels: int = 80, energy: bool = False) -> np.ndarray:
    """(rows, frames) by the independent implementation, dither 0, mean removed."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = window
    options.mel_opts.num_bins = mels
    options.use_energy = energy
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, (wave * 32768.0).tolist())
    fbank.input_finished()
    features = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)], axis=1)
    return features - features.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wespeaker", {}),
        ("paper-c", {"mels": 64}),
        ("kiwano", {"window": "povey", "energy": True}),
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
def test_frames_are_those_that_fit(samples: int) -> None:
    config = PRESETS["wespeaker"]
    features = FrontEnd(config)(torch.randn(2, samples))
    assert features.shape == (2, 80, config.frames(samples))
    assert config.samples(config.frames(samples)) <= samples


def test_too_short_is_an_error() -> None:
    with pytest.raises(BadInput, match="399 samples"):
        FrontEnd("wespeaker")(torch.zeros(1, 399))


def test_unknown_names_are_errors() -> None:
    with pytest.raises(BadInput, match="wespeaker, paper-c, kiwano"):
        FrontEnd("kaldi")
    with pytest.raises(BadInput, match="hamming"):
        dft_kernel(FrontEndConfig("x", window="gauss"))


def test_half_precision_does_not_reach_the_features() -> None:
    wave = torch.randn(1, 8000) * 0.1
    front_end = FrontEnd("wespeaker")
    with torch.autocast("cpu", torch.bfloat16):
        inside = front_end(wave)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, front_end(wave))
