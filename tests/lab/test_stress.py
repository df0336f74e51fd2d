"""Trials under stress: every degradation does what its name says, sides are apart, nothing depends on order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce.audio.talker import talker
from sottovoce.errors import BadList
from sottovoce.lab.lists import read_trials, speakers_of
from sottovoce.lab.stress import KINDS, RATE, make_stressed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for speaker in (0, 1):
        for take in (0, 1):
            path = tmp_path / "dev" / f"s{speaker}" / f"{take}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, talker(1.0, seed=10 * speaker + take), RATE)
    (tmp_path / "noise").mkdir()
    for number in (0, 1):
        noise = np.random.default_rng(number).standard_normal(2 * RATE) * 0.1
        soundfile.write(tmp_path / "noise" / f"{number}.wav", noise, RATE)
    (tmp_path / "noise.tsv").write_text("path\tseconds\tuse\nnoise/0.wav\t2\ttrain\nnoise/1.wav\t2\teval\n")
    (tmp_path / "few.txt").write_text("1 dev/s0/0.wav dev/s0/1.wav\n0 dev/s0/0.wav dev/s1/0.wav\n")
    (tmp_path / "more.txt").write_text((tmp_path / "few.txt").read_text() + "1 dev/s0/1.wav dev/s0/0.wav\n")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_it_changes_the_recording_and_keeps_its_length(kind: str) -> None:
    wave, rng = talker(1.5, seed=3), np.random.default_rng(0)
    noises = [np.random.default_rng(1).standard_normal(RATE).astype(np.float32)]
    found = KINDS[kind](wave, rng, noises)
    assert found.shape == wave.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert not np.allclose(found, wave, atol=1e-3)


def test_a_telephone_has_no_high_band() -> None:
    wave = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * np.float32(0.1)
    power = np.abs(np.fft.rfft(KINDS["telephone"](wave, np.random.default_rng(0), []))) ** 2
    assert power[4200:].sum() < 1e-3 * power[:3800].sum()


def test_lists_name_both_sides_and_keep_labels_and_speakers(root: Path, tmp_path: Path) -> None:
    (path,) = make_stressed([root / "few.txt"], root, root / "noise.tsv", tmp_path / "out")
    trials = read_trials(path)
    assert trials.labels.tolist() == [1, 0]
    assert trials.enrol[0] == "enrol/dev/s0/0.flac"
    assert trials.test[0] == "test/dev/s0/1.flac"
    assert all((tmp_path / "out" / name).is_file() for name in trials.utterances)
    assert sorted(set(speakers_of(trials).values())) == ["s0", "s1"]


def test_a_recording_is_the_same_whatever_else_is_made(root: Path, tmp_path: Path) -> None:
    make_stressed([root / "few.txt"], root, root / "noise.tsv", tmp_path / "a")
    make_stressed([root / "more.txt"], root, root / "noise.tsv", tmp_path / "b")
    name = "test/dev/s1/0.flac"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    sides = [soundfile.read(tmp_path / "b" / side / "dev/s0/0.flac")[0] for side in ("enrol", "test")]
    assert not np.array_equal(*sides)


def test_noises_of_another_use_are_not_taken(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadList, match="'nobody'"):
        make_stressed([root / "few.txt"], root, root / "noise.tsv", tmp_path / "out", use="nobody")
