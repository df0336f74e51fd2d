"""The baseline of cepstra: its parts against plain definitions, the whole on synthetic talkers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce.audio.talker import talker
from sottovoce.lab.mfcc import BANDS, Mfcc, _bands, _cosines, baseline, cepstra, standardise


def test_cepstra_of_one_frame_by_the_definition() -> None:
    """A loop over bands and bins for the middle frame of five."""
    wave = talker(0.13, seed=1)[:2048]
    frame = wave * np.hanning(2049)[:2048]
    spectrum = np.array(
        [abs(np.sum(frame * np.exp(-2j * np.pi * k * np.arange(2048) / 2048))) ** 2 for k in range(1025)]
    )
    energies = [sum(w * p for w, p in zip(row, spectrum, strict=True)) for row in _bands(16000)]
    logs = 10 * np.log10(energies)
    expected = [
        np.sqrt(2 / BANDS) * sum(x * np.cos(np.pi / BANDS * (i + 0.5) * k) for i, x in enumerate(logs))
        for k in range(1, 20)
    ]
    found = cepstra(wave)
    assert found.shape == (5, 19)
    np.testing.assert_allclose(found[2], expected, rtol=1e-6, atol=1e-6)


def test_bands_are_triangles_on_slaneys_scale() -> None:
    bands = _bands(16000)
    assert bands.shape == (128, 1025)
    assert bands.min() == 0
    peaks = np.argmax(bands, axis=1) * 16000 / 2048
    # 128 bands up to 8 kHz: the scale has 15 units below 1 kHz and 27 ln(8) / ln(6.4) above
    unit = (15 + 27 * np.log(8) / np.log(6.4)) / 129
    low = np.arange(1, 129) * unit < 15
    np.testing.assert_allclose(peaks[low], (np.arange(1, 129) * unit * 200 / 3)[low], atol=8)  # a bin is 7.8 Hz
    np.testing.assert_allclose(bands[100:].sum(axis=1) * 16000 / 2048, 1.0, rtol=0.02)  # equal areas


def test_the_cosines_are_orthonormal() -> None:
    np.testing.assert_allclose(_cosines().T @ _cosines(), np.eye(19), atol=1e-12)


def test_loudness_does_not_matter() -> None:
    wave = talker(1.0, seed=4)
    np.testing.assert_allclose(Mfcc().embed(wave * 0.1), Mfcc().embed(wave), atol=1e-3)


def test_standardise() -> None:
    table = np.random.default_rng(0).normal(3.0, 5.0, size=(30, 4)).astype(np.float32)
    table[:, 3] = 7.0  # a column that says nothing
    units = standardise(table)
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(units[:, 3], 0.0)
    expected = (table[:, :3] - table[:, :3].mean(axis=0)) / table[:, :3].std(axis=0)
    np.testing.assert_allclose(units[:, :3], expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_tells_synthetic_talkers_apart(tmp_path: Path) -> None:
    names = [(voice, f"{voice}/{text}.wav") for voice in range(6) for text in range(3)]
    for voice, name in names:
        (tmp_path / str(voice)).mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, talker(2.0, seed=voice, text=int(name[-5])), 16000)
    pairs = [(int(v == w), a, b) for i, (v, a) in enumerate(names) for w, b in names[i + 1 :]]
    (tmp_path / "trials.txt").write_text("".join(f"{label} {a} {b}\n" for label, a, b in pairs))
    result = baseline(tmp_path / "trials.txt", tmp_path, draws=20, quiet=True)
    assert result["model"] == "mfcc baseline"
    assert (result["trials"], result["targets"], result["speakers"]) == (153, 18, 6)
    assert result["eer"] < 0.25
    assert result["eer"] == pytest.approx(baseline(tmp_path / "trials.txt", tmp_path, draws=0, quiet=True)["eer"])
