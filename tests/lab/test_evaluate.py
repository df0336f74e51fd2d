"""Evaluation with a model whose embeddings are known, so that every figure can be worked out."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce.errors import BadList, BadModel
from sottovoce.lab.evaluate import embed_files, evaluate, evaluate_many
from sottovoce.scores.metrics import eer, min_dcf


class Levels:
    """Embeds a recording as an angle: its first sample. Counts how often it was asked."""

    dim = 2
    rate = 16000
    min_samples = 400
    id = "levels"

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.calls = 0
        self.lock = threading.Lock()

    def embed(self, wave: np.ndarray) -> np.ndarray:
        with self.lock:
            self.calls += 1
        return np.array([np.cos(wave[0]), np.sin(wave[0])], dtype=np.float32)


ANGLES = {"ann/1.wav": 0.0, "ann/2.wav": 0.1, "bob/1.wav": 0.6, "bob/2.wav": 0.3, "cid/1.wav": 0.9, "cid/2.wav": 0.7}
PAIRS = [(a, b) for i, a in enumerate(ANGLES) for b in list(ANGLES)[i + 1 :]]


def record(path: Path, angle: float, samples: int = 800) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.full(samples, angle)
    wave[1::2] = -0.5
    soundfile.write(path, wave, 16000, subtype="FLOAT")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, angle in ANGLES.items():
        record(tmp_path / name, angle)
    lines = [f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in PAIRS]
    (tmp_path / "trials.txt").write_text("".join(lines))
    return tmp_path


def test_figures_are_those_of_the_angles(corpus: Path) -> None:
    result = evaluate(Levels(), corpus / "trials.txt", corpus, draws=50, quiet=True)
    scores = np.array([np.cos(ANGLES[a] - ANGLES[b]) for a, b in PAIRS])
    labels = np.array([int(a[:3] == b[:3]) for a, b in PAIRS])
    rate, threshold = eer(scores, labels)
    assert 0 < rate < 1
    assert result["eer"] == pytest.approx(rate, abs=1e-9)
    assert result["eer_threshold"] == pytest.approx(threshold, abs=1e-6)
    assert result["min_dcf"] == {
        "0.01": pytest.approx(min_dcf(scores, labels, 0.01)[0]),
        "0.05": pytest.approx(min_dcf(scores, labels, 0.05)[0]),
    }
    assert (result["trials"], result["targets"], result["speakers"], result["utterances"]) == (15, 3, 3, 6)
    assert result["eer_interval"][0] <= rate <= result["eer_interval"][1]
    assert result["list"] == "trials.txt"
    assert result["model"] == "levels"
    assert result["model_sha256"] is None
    assert result["excluded"] == []
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_each_recording_is_embedded_once_over_all_lists(corpus: Path) -> None:
    (corpus / "few.txt").write_text("1 ann/1.wav ann/2.wav\n0 ann/1.wav bob/1.wav\n")
    model = Levels()
    result = evaluate_many(model, [corpus / "trials.txt", corpus / "few.txt"], corpus, draws=10, quiet=True)
    assert model.calls == len(ANGLES)
    assert [one["list"] for one in result["lists"]] == ["trials.txt", "few.txt"]
    assert result["mean_eer"] == pytest.approx(np.mean([one["eer"] for one in result["lists"]]))


def test_threads_do_not_change_the_result(corpus: Path) -> None:
    alone, four = (
        evaluate(Levels(), corpus / "trials.txt", corpus, draws=20, workers=workers, quiet=True) for workers in (1, 4)
    )
    assert alone == four


def test_bad_recordings_are_listed_and_their_trials_left_out(corpus: Path) -> None:
    (corpus / "bob/2.wav").write_text("not audio")
    (corpus / "cid/2.wav").unlink()
    record(corpus / "ann/2.wav", 0.1, samples=399)
    (corpus / "trials.txt").open("a").write("1 ann/1.wav ann/1.wav\n")
    result = evaluate(Levels(), corpus / "trials.txt", corpus, draws=0, quiet=True)
    assert {one["path"]: one["error"].split(":")[0] for one in result["excluded"]} == {
        "ann/2.wav": "TooShort",
        "bob/2.wav": "NotAudio",
        "cid/2.wav": "MissingAudio",
    }
    assert (result["trials"], result["trials_excluded"], result["targets"]) == (4, 12, 1)
    assert result["eer_interval"] is None


def test_lists_that_cannot_be_measured_are_refused_before_any_work(corpus: Path) -> None:
    model = Levels()
    (corpus / "one.txt").write_text("1 ann/1.wav ann/2.wav\n")
    (corpus / "out.txt").write_text("1 ann/1.wav ann/2.wav\n0 ann/1.wav ../bob.wav\n")
    for name, what in [("one.txt", "both kinds"), ("out.txt", "outside"), ("none.txt", "no such file")]:
        with pytest.raises(BadList, match=what):
            evaluate(model, corpus / name, corpus, quiet=True)
    with pytest.raises(BadList, match="not a folder"):
        evaluate(model, corpus / "trials.txt", corpus / "elsewhere", quiet=True)
    assert model.calls == 0


def test_a_wrong_root_and_a_class_that_is_lost(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadList, match="none of the 6 recordings"):
        evaluate(Levels(), corpus / "trials.txt", tmp_path / "empty", quiet=True)
    for name in ("ann/2.wav", "bob/2.wav", "cid/2.wav"):
        (corpus / name).unlink()
    with pytest.raises(BadList, match="0 of the 3 trials left"):
        evaluate(Levels(), corpus / "trials.txt", corpus, quiet=True)


def test_an_interval_that_cannot_be_known_is_null(corpus: Path) -> None:
    """One speaker against unlabelled others is two speakers; one name for everybody is one."""
    (corpus / "x").mkdir()
    for index, name in enumerate(("ann/1.wav", "ann/2.wav", "bob/1.wav")):
        (corpus / name).rename(corpus / "x" / f"{index}.wav")
    (corpus / "flat.txt").write_text("1 x/0.wav x/1.wav\n0 x/0.wav x/1.wav\n")
    assert evaluate(Levels(), corpus / "flat.txt", corpus, quiet=True)["eer_interval"] is None


def test_kaldi_keys_are_found_through_wav_scp(corpus: Path) -> None:
    (corpus / "wav.scp").write_text("".join(f"{name[:3]}-{name[4]} {name}\n" for name in ANGLES))
    (corpus / "keys.txt").write_text("ann-1 ann-2 target\nann-1 bob-1 nontarget\nbob-1 bob-2 target\n")
    result = evaluate(Levels(), corpus / "keys.txt", corpus, draws=10, quiet=True)
    assert (result["form"], result["trials"], result["speakers"]) == ("kaldi", 3, 2)
    (corpus / "keys.txt").write_text("ann-1 ann-2 target\nann-1 bob-9 nontarget\n")
    with pytest.raises(BadList, match="no utterance 'bob-9'"):
        evaluate(Levels(), corpus / "keys.txt", corpus, quiet=True)


def test_the_model_is_named_by_its_file(corpus: Path) -> None:
    path = corpus / "m.onnx"
    path.write_bytes(b"abc")
    result = evaluate(Levels(path), corpus / "trials.txt", corpus, draws=0, quiet=True)
    assert (result["model"], result["model_id"]) == ("m.onnx", "levels")
    assert result["model_sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2


@pytest.mark.parametrize("workers", [1, 3])
def test_a_thousand_files_with_four_bad_ones(tmp_path: Path, workers: int) -> None:
    paths = [tmp_path / f"{index}.wav" for index in range(1000)]
    for index, path in enumerate(paths):
        record(path, index / 1000, samples=400)
    paths[10].write_bytes(b"")
    paths[500].write_bytes(paths[500].read_bytes()[:20])
    paths[501].unlink()
    soundfile.write(paths[999], np.zeros(800), 16000)
    seen: list[dict[str, str]] = []
    kept, embeddings, errors = embed_files(Levels(), paths, workers=workers, on_error=seen.append, quiet=True)
    assert len(kept) == 996
    assert embeddings.shape == (996, 2)
    assert embeddings.dtype == np.float32
    assert kept == [str(path) for index, path in enumerate(paths) if index not in (10, 500, 501, 999)]
    np.testing.assert_allclose(embeddings[kept.index(str(paths[700]))], [np.cos(0.7), np.sin(0.7)], atol=1e-6)
    assert errors == seen
    assert [one["path"] for one in errors] == [str(paths[index]) for index in (10, 500, 501, 999)]
    assert [one["error"].split(":")[0] for one in errors] == ["EmptyAudio", "NotAudio", "MissingAudio", "SilentAudio"]


def test_a_recording_that_the_model_cannot_stand_is_one_failure(corpus: Path) -> None:
    class Picky(Levels):
        def embed(self, wave: np.ndarray) -> np.ndarray:
            if wave[0] > 0.8:
                raise BadModel("not of unit length")
            return super().embed(wave)

    result = evaluate(Picky(), corpus / "trials.txt", corpus, draws=0, quiet=True)
    assert [one["path"] for one in result["excluded"]] == ["cid/1.wav"]
    assert result["trials"] == 10


def test_no_usable_file_gives_an_empty_table(tmp_path: Path) -> None:
    kept, embeddings, errors = embed_files(Levels(), [tmp_path / "none.wav"], quiet=True)
    assert (kept, embeddings.shape, len(errors)) == ([], (0, 2), 1)


def test_models_of_several_recordings_are_averaged(tmp_path: Path) -> None:
    """CN-Celeb: eval/ is the root, the recordings of a model lie in data/ beside it."""
    for name, angle in {"s1/a.wav": 0.0, "s1/b.wav": 0.4, "s2/a.wav": 0.8, "s2/b.wav": 1.0}.items():
        record(tmp_path / "data" / name, angle)
    for name, angle in {"s1": 0.25, "s2": 0.7}.items():
        record(tmp_path / "eval" / "test" / f"{name}-x.wav", angle)
    (tmp_path / "enroll.map").write_text("s1-enroll s1/a.wav s1/b.wav\ns2-enroll s2/a.wav s2/b.wav s2/none.wav\n")
    trials = tmp_path / "trials.lst"
    trials.write_text("".join(f"{m}-enroll test/{t}-x.wav {int(m == t)}\n" for m in ("s1", "s2") for t in ("s1", "s2")))
    result = evaluate(Levels(), trials, tmp_path / "eval", draws=0, quiet=True, enrolments=tmp_path / "enroll.map")
    scores = np.cos([0.2 - 0.25, 0.2 - 0.7, 0.9 - 0.25, 0.9 - 0.7])
    assert result["eer"] == pytest.approx(eer(scores, np.array([1, 0, 0, 1]))[0])
    assert result["eer_threshold"] == pytest.approx(eer(scores, np.array([1, 0, 0, 1]))[1], abs=1e-6)
    assert (result["trials"], result["excluded"]) == (4, [])
    assert "enroll.map" in result["enrolment"]
