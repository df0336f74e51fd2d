"""Measures of a recording on signals whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.audio.quality import (
    Quality,
    band_power,
    clipped_in_file,
    clipped_share,
    measures,
    noise_power,
    of_file,
    of_wave,
)
from sottovoce.audio.talker import talker
from sottovoce.errors import NotAudio

RATE = 16000


def noise(seconds: float, level: float = 0.05, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE))


def bursts(on: list[tuple[float, float]], seconds: float, level: float = 0.1) -> np.ndarray:
    """Noise that is loud between the given seconds and silent elsewhere: speech of known length and power."""
    time = np.arange(round(seconds * RATE)) / RATE
    return noise(seconds, level) * sum((time >= start) & (time < end) for start, end in on)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 4.0])
def test_the_power_of_steady_noise_is_found_and_is_no_speech(seconds: float) -> None:
    for seed in range(3):
        bands = band_power(noise(seconds, seed=seed), RATE)
        assert bands.sum(axis=1).mean() == pytest.approx(0.05**2, rel=0.08)
        assert 10 * np.log10(noise_power(bands) / bands.sum(axis=1).mean()) == pytest.approx(0.0, abs=0.5)
        found = of_wave(noise(seconds, seed=seed), RATE)
        assert (found.net_speech_s, found.snr_db) == (0.0, None)
        assert found.level_dbfs == pytest.approx(20 * np.log10(0.05), abs=0.3)


def test_a_steady_tone_is_no_speech() -> None:
    assert of_wave(0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE), RATE).net_speech_s == 0.0


@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_net_speech_is_the_length_of_what_comes_and_goes_at_any_level(gain: float) -> None:
    wave = bursts([(0.5, 1.1), (2.0, 2.9)], 4.0) + noise(4.0, 0.001, seed=1)
    assert of_wave(gain * wave, RATE).net_speech_s == pytest.approx(1.5, abs=0.08)


@pytest.mark.parametrize("snr", [10.0, 15.0, 20.0, 30.0])
def test_the_noise_ratio_of_bursts_in_steady_noise(snr: float) -> None:
    speech = bursts([(0.3, 1.2), (1.8, 3.0)], 4.0)
    wave = speech + noise(4.0, 0.1 * 10 ** (-snr / 20), seed=5)
    assert of_wave(wave, RATE).snr_db == pytest.approx(snr, abs=2.5)  # bursts are as loud as speech at its loudest


def test_more_noise_never_raises_the_estimate() -> None:
    clean = talker(4.0, seed=2)
    found = [of_wave(clean + noise(4.0, level, seed=3), RATE).snr_db for level in (1e-4, 1e-3, 1e-2, 3e-2, 0.1)]
    assert all(one is not None for one in found)
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] > 15


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_the_share_of_clipped_samples(share: float, gain: float) -> None:
    wave = noise(2.0, 0.2)
    low = np.convolve(wave, np.ones(32) / 32, "same")  # neighbours alike, as in speech
    low *= 0.8 / np.abs(low).max()
    edge = np.quantile(np.abs(low), 1 - share)
    assert clipped_share(gain * np.clip(low, -edge, edge)) == pytest.approx(share, rel=0.15)
    assert clipped_share(gain * low) < 0.002


def test_coarse_steps_of_a_quiet_recording_are_not_clipping() -> None:
    assert clipped_share(np.round(noise(1.0, 2e-5) * 32768) / 32768) == 0.0
    assert clipped_share(talker(2.0, seed=1)) < 0.005


def test_clipping_is_seen_before_resampling_and_in_the_worst_channel(tmp_path: Path) -> None:
    clean = soxr.resample(talker(2.0, seed=4), RATE, 48000)
    cut = np.clip(20 * clean, -1, 1)
    soundfile.write(tmp_path / "cut.wav", np.stack([clean, cut], axis=1), 48000, subtype="FLOAT")
    share, rate = clipped_in_file(tmp_path / "cut.wav")
    assert rate == 48000
    assert share == pytest.approx((np.abs(cut) >= 1).mean(), rel=0.1)
    assert share > 0.05
    found = of_file(tmp_path / "cut.wav", talker(2.0, seed=4), RATE)
    assert (found.clipped, found.rate_in) == (share, 48000)
    with pytest.raises(NotAudio, match="cannot decode"):
        clipped_in_file(Path(__file__))


def test_a_telephone_is_told_from_its_empty_upper_band() -> None:
    wave = talker(2.0, seed=6) + noise(2.0, 1e-3).astype(np.float32)
    assert of_wave(wave, RATE).bandwidth_hz > 7000
    narrow = soxr.resample(soxr.resample(wave, RATE, 8000), 8000, RATE)
    assert 3500 < of_wave(narrow, RATE).bandwidth_hz < 4500
    assert of_wave(np.round(narrow * 32768) / 32768, RATE).bandwidth_hz < 4500


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=900), st.sampled_from([8000, 16000, 48000]))
def test_any_samples_give_finite_values_in_their_ranges(samples: list[float], rate: int) -> None:
    found = of_wave(np.array(samples, dtype=np.float32), rate)
    assert 0.0 <= found.net_speech_s <= found.seconds == len(samples) / rate
    assert found.snr_db is None or -20 <= found.snr_db <= 120
    assert 0.0 <= found.clipped <= 1.0
    assert -100.0 <= found.level_dbfs <= 10.0
    assert 0.0 < found.bandwidth_hz <= rate / 2
    assert all(value is None or np.isfinite(value) for value in found.as_dict().values())


def test_a_pair_is_as_good_as_its_worse_side() -> None:
    good, bad = Quality(3.0, 2.0, 20.0, 0.0, -20.0, 8000.0, 16000), Quality(1.0, 0.5, None, 0.0, -20.0, 4000.0, 8000)
    expected = {"log_net_speech": np.log(0.5), "log_duration": 0.0, "snr": -5.0, "bandwidth_khz": 4.0}
    assert measures(good, bad, list(expected)) == pytest.approx(expected)
    assert measures(bad, good, list(expected)) == pytest.approx(expected)
    assert measures(good, good, ["snr"]) == {"snr": 20.0}
