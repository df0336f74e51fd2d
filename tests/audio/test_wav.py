"""Recordings as people have them, and files that only look like recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.audio.wav import check, read
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


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


def test_16_khz_mono_is_returned_sample_by_sample(tmp_path: Path) -> None:
    written = (tone(16000) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", written, 16000)
    wave = read(tmp_path / "a.wav")
    assert wave.dtype == np.float32
    np.testing.assert_array_equal(wave, written.astype(np.float32) / 32768)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_gives_the_same_tone(tmp_path: Path, rate: int, channels: int) -> None:
    soundfile.write(tmp_path / "a.flac", np.repeat(tone(rate)[:, None], channels, axis=1), rate)
    wave = read(tmp_path / "a.flac")
    assert len(wave) == pytest.approx(8000, abs=1)  # half a second is not a whole number of samples at 11025 Hz
    inner = slice(1000, -1000)  # the filter rings where the tone is switched on and off
    # 1e-3: the passband ripple and phase of soxr's HQ filter, far below a wrong rate or a doubled level
    np.testing.assert_allclose(wave[inner], tone(16000)[: len(wave)][inner], atol=1e-3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(16000, hz=300), tone(16000, hz=700)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read(tmp_path / "a.wav"), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff", "au", "caf"])
def test_formats_of_libsndfile(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", tone(16000), 16000)
    assert len(read(tmp_path / f"a.{suffix}")) == 8000


def test_long_recordings_are_the_same_whether_decoded_in_blocks_or_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, (48000, 2)), 48000, subtype="FLOAT")
    whole = read(tmp_path / "a.wav")
    monkeypatch.setattr("sottovoce.audio.wav._BLOCK", 1000)
    np.testing.assert_allclose(read(tmp_path / "a.wav"), whole, atol=1e-6)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingAudio, match="no such file"):
        read(tmp_path / "none.wav")


def test_a_folder_is_not_audio(tmp_path: Path) -> None:
    with pytest.raises(NotAudio):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.wav", "a.txt", "a.raw", "a"])
def test_text_is_not_audio_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is not a recording\n" * 50)
    with pytest.raises(NotAudio, match=name):
        read(tmp_path / name)


def test_empty_file_and_empty_recording(tmp_path: Path) -> None:
    (tmp_path / "zero.wav").touch()
    soundfile.write(tmp_path / "header.wav", np.zeros(0), 16000)
    for name in ("zero.wav", "header.wav"):
        with pytest.raises(EmptyAudio, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_samples(tmp_path: Path, value: float) -> None:
    samples = tone(44100)
    samples[777] = value
    soundfile.write(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")
    with pytest.raises(NonFiniteAudio):
        read(tmp_path / "a.wav")


def test_values_too_large_for_float32_are_not_finite(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000) * 1e300, 16000, subtype="DOUBLE")
    with pytest.raises(NonFiniteAudio):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize("level", [0.0, 0.25])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_digital_silence_is_any_constant_at_any_rate(tmp_path: Path, level: float, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(rate, level), rate)
    with pytest.raises(SilentAudio):
        read(tmp_path / "a.wav")


def test_the_minimum_counts_samples_after_resampling(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(8000), 8000)  # 4000 samples, 8000 at 16 kHz
    assert len(read(tmp_path / "a.wav", min_samples=8000)) == 8000
    with pytest.raises(TooShort, match=r"0\.500 s"):
        read(tmp_path / "a.wav", min_samples=8001)


def test_recordings_over_the_limit_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000, seconds=3.0), 16000)
    with pytest.raises(BadAudio, match="limit"):
        read(tmp_path / "a.wav", max_seconds=2.0)


def test_a_header_that_claims_hours_of_many_channels_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(16000), 16000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # STREAMINFO: the 36 bits of the total number of samples, all set: 50 days
    data[22:26] = b"\xff" * 4
    path.write_bytes(bytes(data))
    with pytest.raises(BadAudio, match="limit"):
        read(path)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 2000), byte=st.integers(0, 255), cut=st.integers(0, 2000))
def test_damaged_files_give_samples_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.flac"
    soundfile.write(path, tone(16000, 0.1), 16000)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(bytes(data[: len(data) - cut % len(data)]))
    try:
        usable, message = bool(np.isfinite(read(path)).all()), ""
    except BadAudio as error:
        usable, message = False, str(error)
    assert usable or str(path) in message


def test_check_returns_contiguous_float32() -> None:
    wave = check(tone(16000)[::2], "array")
    assert wave.dtype == np.float32
    assert wave.flags.c_contiguous


@pytest.mark.parametrize("wave", [np.zeros((2, 5)), np.arange(5), np.array(["a"])])
def test_check_refuses_other_arrays(wave: np.ndarray) -> None:
    with pytest.raises(BadInput, match="one row"):
        check(wave, "array")


@pytest.mark.parametrize(
    ("wave", "error"),
    [
        (np.zeros(0), EmptyAudio),
        (np.array([0.0, np.nan]), NonFiniteAudio),
        (np.array([0.1, 0.2]), TooShort),
        (np.zeros(400), SilentAudio),
    ],
)
def test_check_names_what_is_wrong(wave: np.ndarray, error: type[BadAudio]) -> None:
    with pytest.raises(error, match="the microphone"):
        check(wave, "the microphone", min_samples=3)
