"""Batches are a pure function of (seed, epoch, position); unusable recordings are passed over."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce.errors import BadList
from sottovoce.lab.augment import Augmenter
from sottovoce.lab.data import Batches, load_corpus
from sottovoce.lab.recipe import Augment


def batches(corpus: Path, cache: Path, **settings) -> Batches:
    speech = load_corpus("train.tsv", corpus, cache)
    augmenter = Augmenter(Augment(simulated_rooms=1, speeds=(0.9,)), speech, None, None)
    return Batches(speech, augmenter, **{"batch": 8, "crops": [6400], "longest_repeat_s": 4.0, "seed": 0, **settings})


def test_decoded_samples_are_those_of_the_file(corpus: Path, tmp_path: Path) -> None:
    speech = load_corpus("train.tsv", corpus, tmp_path)
    index = speech.paths.index("speech/s3/2.wav")
    wave, _ = soundfile.read(corpus / "speech/s3/2.wav", dtype="float32")
    assert speech.speakers[index] == "s3"
    assert np.allclose(speech.piece(index, 100, 5000), wave[100:5100], atol=1 / 32768)


def test_short_recordings_repeat(corpus: Path, tmp_path: Path) -> None:
    speech = load_corpus("train.tsv", corpus, tmp_path)
    long = speech.piece(0, 0, 3 * speech.length(0))
    assert np.array_equal(long[: speech.length(0)], long[speech.length(0) : 2 * speech.length(0)])


def test_column_use_selects(corpus: Path, tmp_path: Path) -> None:
    assert load_corpus("noise.tsv", corpus, tmp_path, use="train").paths == ["n0.wav"]
    assert len(load_corpus("noise.tsv", corpus, tmp_path)) == 2


def test_batches_repeat_and_epochs_differ(corpus: Path, tmp_path: Path) -> None:
    one, two = batches(corpus, tmp_path), batches(corpus, tmp_path)
    assert np.array_equal(one.make(0, 1).waves, two.make(0, 1).waves)
    assert not np.array_equal(one.make(0, 1).waves, one.make(1, 1).waves)
    assert one.classes == 12
    assert one.make(0, 0).waves.shape == (8, 6400)


def test_clean_crops_are_what_is_augmented(corpus: Path, tmp_path: Path) -> None:
    one, unasked = batches(corpus, tmp_path, clean=True).make(0, 1), batches(corpus, tmp_path).make(0, 1)
    assert np.array_equal(one.waves, unasked.waves)
    assert unasked.clean is None
    changed = np.any(one.waves != one.clean, axis=1)
    assert changed.any()
    assert not changed.all()  # augmented with a probability
    bare = batches(corpus, tmp_path)
    bare.augmenter.recipe = Augment(probability=0.0)
    assert np.array_equal(one.clean, bare.make(0, 1).waves)


def test_an_epoch_draws_every_recording_once(corpus: Path, tmp_path: Path) -> None:
    made = batches(corpus, tmp_path)
    assert sorted(made._order(4)) == list(range(24))


def test_starting_late_gives_the_same_batches(corpus: Path, tmp_path: Path) -> None:
    made = batches(corpus, tmp_path)
    whole = [b.labels for b in made.run(0)]
    late = [b.labels for b in made.run(0, first=2)]
    assert len(whole) == 3
    assert np.array_equal(whole[2], late[0])


def test_processes_share_the_batch_of_one(corpus: Path, tmp_path: Path) -> None:
    whole = batches(corpus, tmp_path).make(0, 0)
    parts = [batches(corpus, tmp_path, rank=rank, world=2).make(0, 0) for rank in (0, 1)]
    assert np.array_equal(np.stack([parts[0].waves, parts[1].waves], 1).reshape(8, -1), whole.waves)
    with pytest.raises(BadList, match="cannot be shared"):
        batches(corpus, tmp_path, world=3)


def test_a_broken_recording_is_passed_over(corpus: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "copy"
    shutil.copytree(corpus, root)
    (root / "speech/s0/0.wav").write_bytes(b"not audio at all")
    speech = load_corpus("train.tsv", root, tmp_path / "cache")
    assert len(speech) == 23
    assert [e["path"] for e in speech.excluded] == ["speech/s0/0.wav"]
    assert "speech/s0/0.wav" in capsys.readouterr().err


def test_fewer_crops_than_a_batch_is_an_error(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(BadList, match="fewer than one batch"):
        batches(corpus, tmp_path, batch=64)
