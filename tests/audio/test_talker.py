"""The synthetic talker: the same numbers everywhere, and enough like speech to be useful."""

from __future__ import annotations

import numpy as np
import pytest

from sottovoce.audio.talker import _uniform, talker


def test_numbers_are_those_of_splitmix64() -> None:
    """The first outputs of the published generator from state 1234567 (Vigna's splitmix64.c)."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    seed = 1234567 * pow(0xD1342543DE82EF95, -1, 1 << 64) % (1 << 64)  # the seed whose origin is that state
    np.testing.assert_array_equal(_uniform(seed, 0, 5), [(value >> 11) * 2.0**-53 for value in known])


GOLDEN = [0.00037639, -0.09827436, -0.02647635, -0.08917028]  # samples 0, 1000, 5000 and 15999 of voice 1


def test_golden_samples() -> None:
    """What every machine must give; 1e-6 leaves room for sine and exponential of other libraries."""
    wave = talker(1.0, seed=1)
    np.testing.assert_allclose(wave[[0, 1000, 5000, 15999]], GOLDEN, atol=1e-6)


@pytest.mark.parametrize(("seconds", "rate", "samples"), [(3.0, 16000, 48000), (0.5, 8000, 4000), (0.0, 16000, 0)])
def test_length_and_level(seconds: float, rate: int, samples: int) -> None:
    wave = talker(seconds, seed=3, rate=rate)
    assert wave.dtype == np.float32
    assert wave.shape == (samples,)
    assert not samples or np.abs(wave).max() == pytest.approx(0.5)


def test_is_repeatable_and_differs_by_voice_and_text() -> None:
    wave = talker(1.0, seed=5)
    np.testing.assert_array_equal(wave, talker(1.0, seed=5))
    assert np.abs(wave - talker(1.0, seed=6)).max() > 0.1
    assert np.abs(wave - talker(1.0, seed=5, text=1)).max() > 0.1


def test_pitch_stays_for_a_voice_and_lies_in_the_human_range() -> None:
    for seed in range(6):
        pitches = [pitch_of(talker(4.0, seed=seed, text=text)) for text in range(2)]
        assert min(pitches) > 70
        assert max(pitches) < 280
        assert max(pitches) / min(pitches) < 1.2


def pitch_of(wave: np.ndarray) -> float:
    """Hz: median over windows of 64 ms of the first peak that nearly reaches the autocorrelation's largest."""
    frames = wave[: len(wave) // 1024 * 1024].reshape(-1, 1024)
    frames = frames[frames.std(axis=1) > 0.3 * frames.std()]
    lags = np.fft.irfft(np.abs(np.fft.rfft(frames, 2048)) ** 2)[:, 50:230]
    first = np.argmax(lags > 0.85 * lags.max(axis=1, keepdims=True), axis=1)
    return float(np.median(16000 / (50 + first)))


def test_has_pauses_and_syllables() -> None:
    wave = talker(6.0, seed=2)
    level = np.sqrt((wave[: len(wave) // 800 * 800].reshape(-1, 800) ** 2).mean(axis=1))  # 50 ms each
    assert np.percentile(level, 5) < 0.05 * np.percentile(level, 90)
    assert level.min() > 0  # a floor of noise: never digital silence
