"""Make demo/corpus: synthetic talkers spoken by espeak-ng. Not speech of people; for trying the commands only.

A talker is an espeak-ng voice with a pitch, a pace and a length of the vocal tract. The tract is changed by playing the
voice faster or slower (which moves formants and pitch) while asking espeak-ng for the opposite change of pace. Each
recording then gets its own room, noise, tilt and level, so that a trial compares voices and not files.

Usage: python scripts/make_demo_corpus.py [--out demo/corpus]      (needs the program espeak-ng)
"""

from __future__ import annotations

import argparse
import io
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE = 16000
UTTERANCES = 7  # of each talker
SECONDS = (2.0, 4.0)
NONTARGETS = 2500
CLOSE_SHARE = 0.5  # of the nontarget trials, drawn from each talker's nearest talkers
NEAREST = 4

Wave = NDArray[np.float64]


@dataclass(frozen=True)
class Talker:
    """One synthetic voice; `pitch` 0 to 99 and `pace` in words a minute as espeak-ng counts them."""

    name: str
    voice: str
    pitch: int
    pace: int
    tract: float  # > 1: shorter tract, higher formants

    def distance(self, other: Talker) -> float:
        """How different two talkers sound, roughly: about 1 for a clear difference in one respect."""
        voices = 0.0 if self.voice == other.voice else 1.0
        return voices + abs(self.pitch - other.pitch) / 20 + abs(self.tract - other.tract) / 0.06


# voice, pitch, pace, tract. The same voice occurs two or three times, with a tract that differs by a few per cent.
VOICES = [
    ("en-us+m3", 38, 150, 0.96),
    ("en-us+m3", 46, 165, 1.03),
    ("en-us+m3", 42, 158, 1.10),
    ("en-gb+m7", 34, 145, 0.94),
    ("en-gb+m7", 44, 160, 1.00),
    ("en-gb-scotland+m1", 40, 155, 0.98),
    ("en-gb-scotland+m1", 48, 170, 1.06),
    ("en-029+m5", 36, 150, 0.95),
    ("en-029+m5", 45, 160, 1.02),
    ("en-gb-x-rp+Andy", 42, 150, 0.97),
    ("en-gb-x-rp+Andy", 50, 165, 1.04),
    ("en-us+Michael", 40, 155, 0.93),
    ("en-us+Michael", 48, 150, 1.01),
    ("en-us+f2", 52, 160, 1.00),
    ("en-us+f2", 60, 170, 1.07),
    ("en-us+f2", 56, 150, 0.94),
    ("en-gb+f4", 50, 155, 0.97),
    ("en-gb+f4", 58, 165, 1.04),
    ("en-gb-x-rp+Annie", 52, 150, 0.98),
    ("en-gb-x-rp+Annie", 60, 160, 1.05),
    ("en-gb-scotland+linda", 48, 160, 0.96),
    ("en-gb-scotland+linda", 56, 150, 1.03),
    ("en-029+f1", 54, 165, 0.95),
    ("en-029+f1", 62, 155, 1.02),
    ("en-us+steph", 50, 150, 0.99),
    ("en-us+steph", 58, 160, 1.06),
]

TEXTS = [
    "The ferry leaves the island at a quarter past seven.",
    "Put the blue folder back where you found it.",
    "We walked along the canal until the lamps came on.",
    "My neighbour grows tomatoes on her balcony.",
    "Please read the number on the back of the card.",
    "Nobody expected snow in the middle of April.",
    "The train to the coast was full of bicycles.",
    "I would like two tickets for the evening show.",
    "His grandfather repaired clocks in a small shop.",
    "Turn left after the bridge and follow the river.",
    "She forgot her umbrella at the library again.",
    "The kettle whistled while the radio played on.",
    "Our meeting has moved to Thursday afternoon.",
    "A grey cat slept under the kitchen table.",
    "They painted the garden fence a bright yellow.",
    "Could you send me the address of the hotel?",
    "The orchestra began to tune in the dark hall.",
    "Bread and olives are enough for lunch today.",
    "The map shows a footpath behind the old mill.",
    "He counted the steps up to the lighthouse.",
    "Every window in the street was open that night.",
    "The teacher wrote three questions on the board.",
    "Their boat needs a new sail before the summer.",
    "I can hear the wind in the tall dry grass.",
    "The parcel should arrive before the weekend.",
    "Ask the driver to stop near the market square.",
    "We found a quiet table at the back of the cafe.",
    "The last page of the notebook was still empty.",
]


def talkers() -> list[Talker]:
    """All talkers, named in the order of the table."""
    return [Talker(f"synthetic{i:02d}", *voice) for i, voice in enumerate(VOICES, 1)]


def speak(talker: Talker, text: str, rng: np.random.Generator) -> Wave:
    """One sentence as the talker says it today: (samples,) at 16 kHz."""
    pitch = int(np.clip(talker.pitch + rng.integers(-5, 6), 0, 99))
    pace = round(talker.pace * rng.uniform(0.92, 1.08) / talker.tract)
    command = ["espeak-ng", "-v", talker.voice, "-p", str(pitch), "-s", str(pace), "--stdout", text]
    made = subprocess.run(command, check=True, capture_output=True).stdout
    wave, rate = soundfile.read(io.BytesIO(made), dtype="float64")
    return np.asarray(soxr.resample(wave, rate * talker.tract, RATE, quality="VHQ"))


def trim(wave: Wave) -> Wave:
    """Without the silence around it, at most the longest length."""
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    return wave[loud[0] : loud[-1] + 1][: round(SECONDS[1] * RATE)]


def in_room(wave: Wave, rng: np.random.Generator) -> Wave:
    """Direct sound and a decaying tail of 0.1 to 0.35 s reverberation time, 8 to 18 dB below it."""
    time = np.arange(round(0.3 * RATE)) / RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rng.uniform(0.1, 0.35))
    tail *= 10 ** (-rng.uniform(8, 18) / 20) / np.sqrt((tail * tail).sum())
    tail[0] += 1.0
    length = len(wave) + len(tail) - 1
    return np.fft.irfft(np.fft.rfft(wave, length) * np.fft.rfft(tail, length), length)[: len(wave)]


def tilted(wave: Wave, decibels: float) -> Wave:
    """A straight slope over frequency, in dB from 100 Hz to 8 kHz, as microphones have."""
    hz = np.fft.rfftfreq(len(wave), 1 / RATE)
    octaves = np.log2(np.maximum(hz, 100.0) / 100.0) / np.log2(80.0)
    return np.fft.irfft(np.fft.rfft(wave) * 10 ** (decibels * (octaves - 0.5) / 20), len(wave))


def with_noise(wave: Wave, snr: float, rng: np.random.Generator) -> Wave:
    """Noise between white and pink at `snr` dB."""
    noise = tilted(rng.standard_normal(len(wave)), rng.uniform(-20, 0))
    return wave + noise * np.sqrt((wave * wave).mean() / (noise * noise).mean()) * 10 ** (-snr / 20)


def recording(talker: Talker, text: str, rng: np.random.Generator) -> Wave:
    """A sentence with its own room, tilt, noise (12 to 28 dB) and level (-30 to -20 dB)."""
    wave = in_room(trim(speak(talker, text, rng)), rng)
    wave = with_noise(tilted(wave, rng.uniform(-6, 6)), rng.uniform(12, 28), rng)
    level = 10 ** (rng.uniform(-30, -20) / 20) / np.sqrt((wave * wave).mean())
    return np.clip(wave * level, -0.99, 0.99)


def trials(people: list[Talker], rng: np.random.Generator) -> Iterator[tuple[int, str, str]]:
    """Every target pair, and nontarget pairs of which half are between close voices: (label, enrol, test)."""
    for talker in people:
        for a, b in combinations(range(UTTERANCES), 2):
            yield 1, path(talker, a), path(talker, b)
    pairs = list(combinations(people, 2))
    nearest = [p for p in pairs if any(_rank(people, a, b) < NEAREST for a, b in (p, p[::-1]))]
    for chosen, count in ((nearest, int(NONTARGETS * CLOSE_SHARE)), (pairs, NONTARGETS)):
        seen: set[tuple[str, str]] = set()
        while len(seen) < count - (0 if chosen is nearest else int(NONTARGETS * CLOSE_SHARE)):
            one, other = chosen[rng.integers(len(chosen))]
            trial = (path(one, rng.integers(UTTERANCES)), path(other, rng.integers(UTTERANCES)))
            if trial not in seen:
                seen.add(trial)
                yield 0, *trial


def _rank(people: list[Talker], talker: Talker, other: Talker) -> int:
    """How many talkers are closer to `talker` than `other` is."""
    limit = talker.distance(other)
    return sum(talker.distance(third) < limit for third in people if third is not talker)


def path(talker: Talker, utterance: int) -> str:
    """Name of a recording inside the corpus."""
    return f"{talker.name}/{utterance + 1:02d}.ogg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo" / "corpus")
    out = parser.parse_args().out
    people = talkers()
    for number, talker in enumerate(people):
        rng = np.random.default_rng([2024, number])
        (out / talker.name).mkdir(parents=True, exist_ok=True)
        for utterance, text in enumerate(rng.permutation(len(TEXTS))[:UTTERANCES]):
            wave = recording(talker, TEXTS[text], rng)
            soundfile.write(
                out / path(talker, utterance), wave, RATE, format="OGG", subtype="OPUS", compression_level=0.93
            )
    lines = dict.fromkeys(f"{label} {a} {b}\n" for label, a, b in trials(people, np.random.default_rng(2025)))
    (out / "trials.txt").write_text("".join(lines), encoding="utf-8")
    size = sum(file.stat().st_size for file in out.rglob("*.ogg"))
    print(f"{len(people)} talkers, {len(lines)} trials, {size / 1e6:.2f} MB of audio in {out}")


if __name__ == "__main__":
    main()
