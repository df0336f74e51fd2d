"""What happens to a crop in training: noise, babble, reverberation, speed. NumPy; deterministic given a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import soxr
from numpy.typing import NDArray

from sottovoce.lab.recipe import Augment

if TYPE_CHECKING:
    from sottovoce.lab.data import Corpus

RATE = 16000
Wave = NDArray[np.float32]


class Augmenter:
    """Applies one of noise, babble, reverberation, or noise in a room, with the probabilities of a recipe.

    Kinds whose recordings are missing are left out. Babble is made of other speakers of the same corpus.
    """

    def __init__(
        self, recipe: Augment, talkers: Corpus, noises: Corpus | None, rooms: Corpus | None, seed: int = 0
    ) -> None:
        self.recipe, self.talkers, self.noises = recipe, talkers, noises
        self.speeds = recipe.speeds
        measured = [rooms.piece(i, 0, rooms.length(i)) for i in range(len(rooms))] if rooms else []
        rng = np.random.default_rng([seed, 7])
        simulated = [simulate_room(rng) for _ in range(recipe.simulated_rooms)]
        self.rooms = [[direct_first(room) for room in group] for group in (measured, simulated) if group]
        self.kinds = ["babble"] + ["noise"] * bool(noises) + ["room"] * bool(self.rooms)
        self.kinds += ["noise in a room"] * bool(noises and self.rooms)

    def speed(self, wave: Wave, speed: float, length: int) -> Wave:
        """Play `wave` faster by a factor (pitch changes too) and cut it to `length` samples."""
        if speed != 1.0:
            wave = soxr.resample(wave, RATE * speed, RATE, quality="LQ").astype(np.float32)
        return wave[:length] if len(wave) >= length else np.resize(wave, length)

    def __call__(self, wave: Wave, rng: np.random.Generator, avoid: str = "") -> Wave:
        """wave: (samples,)   avoid: the speaker, kept out of babble; "" = unknown   returns: the same length."""
        if rng.random() >= self.recipe.probability:
            return wave
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        if kind in ("room", "noise in a room"):
            group = self.rooms[int(rng.integers(len(self.rooms)))]
            wave = reverberate(wave, group[int(rng.integers(len(group)))])
        if kind in ("noise", "noise in a room"):
            return add(wave, self._noise(len(wave), rng), rng.uniform(*self.recipe.noise_snr))
        if kind == "babble":
            return add(wave, self._babble(len(wave), rng, avoid), rng.uniform(*self.recipe.babble_snr))
        return wave

    def _noise(self, length: int, rng: np.random.Generator) -> Wave:
        assert self.noises is not None
        index = int(rng.integers(len(self.noises)))
        return self.noises.piece(index, int(rng.integers(max(1, self.noises.length(index) - length + 1))), length)

    def _babble(self, length: int, rng: np.random.Generator, avoid: str) -> Wave:
        low, high = self.recipe.babble_talkers
        total, wanted = np.zeros(length, np.float32), int(rng.integers(low, high + 1))
        for _ in range(20 * wanted):
            index = int(rng.integers(len(self.talkers)))
            if avoid and self.talkers.speakers[index] == avoid:
                continue
            piece = self.talkers.random_piece(index, length, rng)
            total += piece / max(1e-4, level(piece))
            wanted -= 1
            if not wanted:
                break
        return total


def masked(recipe: Augment, shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which features SpecAugment (arXiv 1904.08779) hides: one stretch of frames and one of channels in a crop.

    shape: (batch, channels, frames)   returns: the same shape, true where hidden. Widths are drawn from 0 to the
    recipe's most, so a mask may hide nothing; a crop is masked with the recipe's probability.
    """
    batch, channels, frames = shape
    used = rng.random(batch) < recipe.mask_probability
    in_time = _stretches(frames, recipe.mask_frames, batch, rng)
    in_channel = _stretches(channels, recipe.mask_channels, batch, rng)
    hidden: NDArray[np.bool_] = (in_time[:, None, :] | in_channel[:, :, None]) & used[:, None, None]
    return hidden


def _stretches(size: int, most: int, batch: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """One stretch of 0 to `most` places among `size` for each row: (batch, size)."""
    width = rng.integers(0, min(most, size) + 1, batch)
    start = rng.integers(0, size - width + 1)[:, None]
    at = np.arange(size)
    inside: NDArray[np.bool_] = (at >= start) & (at < start + width[:, None])
    return inside


def level(wave: Wave) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(wave)) + 1e-12))


def add(wave: Wave, other: Wave, snr_db: float) -> Wave:
    """Mix `other` into `wave` at a signal-to-noise ratio in dB over the crop; a silent `other` changes nothing."""
    if level(other) < 2e-6:
        return wave
    return wave + other * np.float32(level(wave) / level(other) * 10.0 ** (-snr_db / 20.0))


def direct_first(room: Wave) -> Wave:
    """Cut an impulse response to start at its direct sound and give it unit energy."""
    room = room[int(np.argmax(np.abs(room))) :][:RATE]
    return room / np.float32(np.sqrt(np.sum(np.square(room))) + 1e-9)


def reverberate(wave: Wave, room: Wave) -> Wave:
    """Convolve with an impulse response that starts at its direct sound; same length, same level."""
    size = 1 << int(len(wave) + len(room) - 2).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(room, size), size)[: len(wave)].astype(np.float32)
    return wet * np.float32(level(wave) / level(wet))


def simulate_room(rng: np.random.Generator, order: int = 6) -> Wave:
    """Impulse response of a random shoebox room by the image-source method (Allen and Berkley 1979), up to 0.6 s.

    Sides 3 to 10 m, height 2.4 to 4 m, walls that absorb 15 to 80 % of the energy, talker and microphone anywhere.
    """
    size = np.array([rng.uniform(3, 10), rng.uniform(3, 10), rng.uniform(2.4, 4)])
    source, microphone = rng.uniform(0.15, 0.85, (2, 3)) * size
    reflection = np.sqrt(1.0 - rng.uniform(0.15, 0.8))
    n = np.arange(-order, order + 1)
    grid = np.stack(np.meshgrid(n, n, n, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.abs(grid).sum(1) <= order * 2]
    image = np.where(grid % 2 == 0, grid * size + source, (grid + 1) * size - source)
    distance = np.linalg.norm(image - microphone, axis=1)
    gain = reflection ** np.abs(grid).sum(1) / np.maximum(distance, 0.3)
    delay = distance / 343.0 * RATE
    whole = np.round(delay).astype(int)
    keep = whole < int(0.6 * RATE)
    room = np.bincount(whole[keep], weights=gain[keep], minlength=int(0.6 * RATE))
    return room.astype(np.float32)
