"""Kept batches: the same training with and without them, read back without decoding, safe when half written."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.audio.features import preset
from sottovoce.errors import BadInput
from sottovoce.lab import checkpoint, keep
from sottovoce.lab.augment import Augmenter
from sottovoce.lab.data import Batches, load_corpus
from sottovoce.lab.keep import Kept
from sottovoce.lab.recipe import Augment
from sottovoce.lab.train import train


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def batches(corpus: Path, tmp_path_factory) -> Batches:
    speech = load_corpus("train.tsv", corpus, tmp_path_factory.mktemp("decoded"))
    augmenter = Augmenter(Augment(simulated_rooms=1), speech, None, None)
    return Batches(speech, augmenter, batch=8, crops=[4000, 6400], longest_repeat_s=4.0, seed=0)


def kept(batches: Batches, folder: Path, epochs: int = 2) -> Kept:
    return Kept(folder, batches, {4000: (3, 5), 6400: (3, 9)}, epochs, "t", 4)


def features(batches: Batches, epoch: int, step: int) -> np.ndarray:
    frames = {4000: 5, 6400: 9}[batches.crop(epoch, step)]
    return np.random.default_rng([epoch, step]).normal(size=(8, 3, frames)).astype(np.float16)


@pytest.mark.parametrize("hears", ["augmented", "clean"])
def test_training_is_the_same_and_reads_instead_of_making(
    hears: str, corpus: Path, tmp_path: Path, monkeypatch
) -> None:
    plain = (corpus / "recipe.toml").read_text().replace("epochs = 3", "epochs = 2")
    (corpus / "plain.toml").write_text(plain)
    train(corpus / "plain.toml", tmp_path / "plain", corpus)
    teacher = tmp_path / "plain" / "model.safetensors"
    followed = plain.replace("[loss]", f'[loss]\nteacher = "{teacher}"\nteacher_weight = 1.0')
    followed = followed.replace("teacher_weight", f'teacher_hears = "{hears}"\nteacher_weight')
    (corpus / "unkept.toml").write_text(followed)
    (corpus / "kept.toml").write_text(followed.replace("[data]", "[data]\nkeep_epochs = 2"))
    train(corpus / "unkept.toml", tmp_path / "unkept", corpus)
    train(corpus / "kept.toml", tmp_path / "first", corpus, cache=tmp_path / "cache")
    assert losses(tmp_path / "first") == pytest.approx(losses(tmp_path / "unkept"), rel=2e-3)  # float16 features

    def made(*_):
        raise AssertionError("this batch was kept")

    monkeypatch.setattr(Batches, "make", made)
    monkeypatch.setattr(Kept, "add_followed", made)
    train(corpus / "kept.toml", tmp_path / "second", corpus, cache=tmp_path / "cache")
    assert losses(tmp_path / "second") == losses(tmp_path / "first")
    one, two = (checkpoint.load_tensors(tmp_path / run / "model.safetensors")[0] for run in ("first", "second"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_a_teacher_has_not_heard_clean_yet_is_made_again(batches: Batches, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(batches, "clean", True)
    store, made = kept(batches, tmp_path), batches.make(0, 1)
    store.add(0, 1, features(batches, 0, 1), made.labels)
    assert np.array_equal(list(store.run(0))[1].clean, made.clean)
    store.add_followed(0, 1, np.ones((8, 4), np.float32))
    back = list(store.run(0))[1]
    assert back.clean is None
    assert np.array_equal(back.followed, np.ones((8, 4)))


def test_a_step_comes_back_as_it_was_kept(batches: Batches, tmp_path: Path) -> None:
    store = kept(batches, tmp_path)
    wanted, labels, seen = features(batches, 1, 2), np.arange(8), np.ones((8, 4), np.float32)
    store.add(1, 2, wanted, labels)
    store.add_followed(1, 2, seen)
    found = list(kept(batches, tmp_path).run(1))
    assert np.array_equal(found[2].features, wanted)
    assert np.array_equal(found[2].labels, labels)
    assert np.array_equal(found[2].followed, seen)
    assert np.array_equal(found[0].waves, batches.make(1, 0).waves)
    assert store.count() == 1


def test_later_epochs_are_the_kept_ones_again(batches: Batches, tmp_path: Path) -> None:
    store = kept(batches, tmp_path)
    store.add(3, 0, features(batches, 1, 0), np.arange(8))
    assert np.array_equal(next(store.run(5)).features, features(batches, 1, 0))


@pytest.mark.parametrize("what", ["features", "steps"])
def test_a_half_written_step_is_made_again(batches: Batches, tmp_path: Path, what: str) -> None:
    store = kept(batches, tmp_path)
    store.add(0, 0, features(batches, 0, 0), np.arange(8))
    with open(tmp_path / f"000.{what}", "r+b") as file:
        file.seek(9)
        file.write(b"\xff")
    assert next(store.run(0)).features is None


def test_a_full_disk_is_told_before_training(batches: Batches, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(keep.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(100))
    with pytest.raises(BadInput, match="keep_epochs"):
        kept(batches, tmp_path)


def test_the_size_is_that_of_the_files(batches: Batches, tmp_path: Path) -> None:
    store = kept(batches, tmp_path)
    for epoch in range(2):
        for step in range(batches.steps):
            store.add(epoch, step, features(batches, epoch, step), np.arange(8))
            store.add_followed(epoch, step, np.zeros((8, 4), np.float32))
    assert store.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_the_key_names_what_features_depend_on(batches: Batches) -> None:
    front_end, corpora = preset("wespeaker"), [batches.corpus, None]
    known = keep.key(front_end, Augment(), batches, corpora)
    assert keep.key(front_end, Augment(mask_probability=0.5), batches, corpora) == known
    assert keep.key(front_end, Augment(probability=0.5), batches, corpora) != known
    assert keep.key(front_end, Augment(), batches, [batches.corpus, batches.corpus]) != known
