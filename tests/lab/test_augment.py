"""Augmentation: levels, lengths, and the same result for the same generator."""

from types import SimpleNamespace

import numpy as np
import pytest

from sottovoce.lab.augment import Augmenter, add, direct_first, level, masked, reverberate, simulate_room
from sottovoce.lab.recipe import Augment


def corpus(speakers: list[str], value: float | None = None):
    """A corpus of one-second recordings; constant ones when a value is given."""
    rng = np.random.default_rng(0)
    waves = [
        np.full(16000, value or 0, np.float32) if value else rng.normal(0, 0.1, 16000).astype(np.float32)
        for _ in speakers
    ]

    class Fake(SimpleNamespace):
        def __len__(self) -> int:
            return len(waves)

        def length(self, index: int) -> int:
            return len(waves[index])

        def piece(self, index: int, start: int, length: int) -> np.ndarray:
            return np.resize(waves[index][start:], length)

        def random_piece(self, index: int, length: int, rng: np.random.Generator) -> np.ndarray:
            return self.piece(index, int(rng.integers(max(1, len(waves[index]) - length + 1))), length)

    return Fake(speakers=speakers)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_is_added_at_its_level(snr: float) -> None:
    rng = np.random.default_rng(0)
    wave, noise = rng.normal(0, 0.3, 8000).astype(np.float32), rng.normal(0, 0.01, 8000).astype(np.float32)
    added = add(wave, noise, snr) - wave
    assert 20 * np.log10(level(wave) / level(added)) == pytest.approx(snr, abs=1e-3)


def test_silent_noise_changes_nothing() -> None:
    wave = np.random.default_rng(0).normal(size=100).astype(np.float32)
    assert np.array_equal(add(wave, np.zeros(100, np.float32), 0.0), wave)


def test_reverberation_equals_direct_convolution() -> None:
    rng = np.random.default_rng(1)
    wave, room = rng.normal(size=500).astype(np.float32), rng.normal(size=80).astype(np.float32)
    expected = np.convolve(wave, room)[:500]
    wet = reverberate(wave, room)
    assert np.allclose(wet, expected * level(wave) / level(expected), atol=1e-5)


def test_a_room_that_is_only_direct_sound_does_nothing() -> None:
    wave = np.random.default_rng(2).normal(size=300).astype(np.float32)
    impulse = np.zeros(50, np.float32)
    impulse[7] = -0.3
    assert np.allclose(np.abs(reverberate(wave, direct_first(impulse))), np.abs(wave), atol=1e-5)


def test_simulated_rooms_start_with_the_direct_sound_and_decay() -> None:
    for seed in range(5):
        room = simulate_room(np.random.default_rng(seed))
        assert len(room) == 9600
        assert level(room[:2400]) > 3 * level(room[-2400:])


def test_same_generator_same_crop() -> None:
    augmenter = Augmenter(Augment(probability=1.0, simulated_rooms=2), corpus(["a", "b"]), corpus(["", ""]), None)
    wave = np.random.default_rng(3).normal(size=16000).astype(np.float32)
    one, two, other = (augmenter(wave, np.random.default_rng(seed), "a") for seed in (5, 5, 6))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_probability_zero_changes_nothing() -> None:
    augmenter = Augmenter(Augment(probability=0.0, simulated_rooms=1), corpus(["a", "b"]), None, None)
    wave = np.ones(10, np.float32)
    assert augmenter(wave, np.random.default_rng(0)) is wave


def test_babble_never_holds_the_speaker_itself() -> None:
    talkers = corpus(["a"], value=1.0)
    augmenter = Augmenter(Augment(simulated_rooms=1), talkers, None, None)
    assert not augmenter._babble(100, np.random.default_rng(0), avoid="a").any()
    assert augmenter._babble(100, np.random.default_rng(0), avoid="b").all()


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_speed_moves_a_tone(speed: float) -> None:
    augmenter = Augmenter(Augment(simulated_rooms=1), corpus(["a"]), None, None)
    wave = np.sin(2 * np.pi * 1000 * np.arange(20000) / 16000).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(augmenter.speed(wave, speed, 16000) * np.hanning(16000)))
    assert int(np.argmax(spectrum)) == pytest.approx(1000 * speed, abs=2)


def test_masks_hide_at_most_one_stretch_of_frames_and_one_of_channels() -> None:
    recipe = Augment(mask_probability=0.6, mask_frames=10, mask_channels=8)
    hidden = masked(recipe, (4000, 81, 40), np.random.default_rng(0))
    frames, channels = hidden.all(axis=1), hidden.all(axis=2)  # hidden in every channel, hidden in every frame
    assert np.array_equal(hidden, frames[:, None, :] | channels[:, :, None])
    for stretches, most in ((frames, 10), (channels, 8)):
        assert set(stretches.sum(axis=1)) == set(range(most + 1))
        begins = np.diff(np.pad(stretches, ((0, 0), (1, 0))).astype(int), axis=1) == 1
        assert begins.sum(axis=1).max() == 1
        assert stretches[:, 0].any()
        assert stretches[:, -1].any()
    untouched = 0.4 + 0.6 / (11 * 9)
    assert np.mean(~hidden.any(axis=(1, 2))) == pytest.approx(untouched, abs=0.03)
    assert not masked(Augment(), (8, 5, 5), np.random.default_rng(0)).any()


def test_babble_of_recordings_without_labels() -> None:
    talkers = corpus(["", ""])
    augmenter = Augmenter(Augment(probability=1.0, simulated_rooms=0), talkers, None, None)
    wave = np.zeros(1000, np.float32) + 0.1
    assert not np.array_equal(augmenter(wave, np.random.default_rng(0)), wave)
