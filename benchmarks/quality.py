"""Do the measures of a recording say what is true of it? Development speech with known noise, and cut to known lengths.

    python benchmarks/quality.py --root FOLDER --out results/quality.json

FOLDER holds dev.tsv and its recordings. White and pink noise is added at known ratios to the speech frames' power, the
telephone's band is made by resampling, and the EER of one list is measured on starts with so much net speech.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import soxr

from sottovoce.audio.quality import HOP_S, band_power, noise_power, of_wave, speech_frames
from sottovoce.audio.wav import read
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.lists import read_manifest
from sottovoce.lab.run import write_text
from sottovoce.runtime.engine import load
from sottovoce.scores.metrics import eer

RATE = 16000
RATIOS_DB = (-5, 0, 2, 5, 10, 15, 20, 30)
NET_S = (0.3, 0.5, 1.0, 1.5, 3.0)


def spoken(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power of every frame, and which hold speech."""
    bands = band_power(wave - wave.mean(), RATE)
    return bands.sum(axis=1), speech_frames(bands.sum(axis=1), noise_power(bands))


def noise(colour: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """White noise, or pink: its power falls with frequency."""
    white = np.fft.rfft(rng.normal(size=count))
    falling = np.sqrt(np.maximum(np.arange(len(white)), 1)) if colour == "pink" else 1.0
    return np.fft.irfft(white / falling, count)


def tracked(waves: list[np.ndarray], colour: str, ratio: int) -> dict[str, float]:
    """The estimate at one true ratio: median, 10th and 90th percentile; the share that has no speech left."""
    rng, found = np.random.default_rng(0), []
    for wave in waves:
        power, frames = spoken(wave)
        added = noise(colour, len(wave), rng)
        level = band_power(added, RATE).sum(axis=1).mean()
        scale = np.sqrt(power[frames].mean() / level / 10 ** (ratio / 10))
        found.append(of_wave(wave + scale * added, RATE).snr_db)
    known = [one for one in found if one is not None]
    low, middle, high = np.percentile(known, [10, 50, 90])
    return {"true_db": ratio, "median_db": middle, "p10_db": low, "p90_db": high, "lost": 1 - len(known) / len(found)}


def start(wave: np.ndarray, net_s: float) -> np.ndarray:
    """The recording from its first speech until so much of it was heard."""
    _, frames = spoken(wave)
    heard = np.cumsum(frames) * HOP_S
    hop = round(HOP_S * RATE)
    first = max(0, int(np.argmax(frames)) * hop - RATE // 20)
    return wave[first : int(np.searchsorted(heard, net_s)) * hop + RATE // 40]


@click.command()
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--corpus", default="speechocean", show_default=True, help="Whose recordings are cut.")
@click.option("--utterances", default=80, show_default=True, help="Of all corpora, for noise.")
def main(root: Path, out: Path, corpus: str, utterances: int) -> None:
    """Measure and write OUT."""
    rows = read_manifest(root / "dev.tsv")
    chosen = np.random.default_rng(0).permutation(len(rows))[:utterances]
    waves = [read(root / rows[index].path).astype(np.float64) for index in chosen]
    narrow = [of_wave(soxr.resample(soxr.resample(wave, RATE, 8000), 8000, RATE), RATE).bandwidth_hz for wave in waves]
    result: dict[str, Any] = {
        "what": "measures of quality against known truth, on development speech",
        "command": "python benchmarks/quality.py --root FOLDER --out results/quality.json",
        "machine": machine(),
        "versions": versions(),
        "snr": {colour: [tracked(waves, colour, ratio) for ratio in RATIOS_DB] for colour in ("white", "pink")},
        "bandwidth_hz": {
            "as recorded, least": min(of_wave(wave, RATE).bandwidth_hz for wave in waves),
            "through 8 kHz, largest": max(narrow),
        },
        "eer_by_net_speech": lengths(root, corpus),
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


def lengths(root: Path, corpus: str) -> list[dict[str, float]]:
    """EER of the shipped model on all pairs of one gender, when both sides hold so much net speech at most."""
    rows = [row for row in read_manifest(root / "dev.tsv") if row.speaker.startswith(corpus)]
    model, found = load(), []
    waves = [read(root / row.path) for row in rows]
    speaker, gender = np.array([row.speaker for row in rows]), np.array([row.fields["gender"] for row in rows])
    first, second = np.triu_indices(len(rows), 1)
    alike = gender[first] == gender[second]
    first, second = first[alike], second[alike]
    for net_s in NET_S:
        table = np.stack([model.embed(start(wave, net_s)) for wave in waves])
        scores = np.sum(table[first] * table[second], axis=1)
        found.append({"net_speech_s": net_s, "eer": eer(scores, speaker[first] == speaker[second])[0]})
    return found


if __name__ == "__main__":
    main()
