"""Ways of scoring end to end, with a model whose embeddings are known, against scores written out pair by pair."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sottovoce.errors import BadInput, BadList, SilentAudio
from sottovoce.lab.embedding import Viewed
from sottovoce.lab.evaluate import evaluate, evaluate_many
from sottovoce.lab.scored import read_scores
from sottovoce.lab.scoring import Scoring
from sottovoce.scores.views import WAYS

RATE = 1000  # samples per second: a segment has 4000 samples
ANGLES = {"ann/1.wav": 0.0, "ann/2.wav": 0.1, "bob/1.wav": 0.6, "bob/2.wav": 0.3, "cid/1.wav": 0.9, "cid/2.wav": 0.7}
PAIRS = list(combinations(ANGLES, 2))
STRANGERS = {"x/1.wav": 0.2, "x/2.wav": 0.5, "y/1.wav": 1.4, "y/2.wav": 1.1, "z/1.wav": -0.3}


class Mean:
    """Embeds a recording as the angle that is its mean; remembers what it was given."""

    dim = 2
    rate = RATE
    min_samples = 10
    id = "mean"
    path = None

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def embed(self, wave: np.ndarray) -> np.ndarray:
        self.lengths.append(len(wave))
        if not np.ptp(wave):
            raise SilentAudio("recording: silence")
        return point(float(wave.astype(np.float64).mean()))


def point(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


def record(path: Path, angle: float, samples: int = 1000, drift: float = 0.0) -> None:
    """A recording whose mean begins at `angle` and rises by `drift` over all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = angle + drift * np.arange(samples) / samples
    soundfile.write(path, ramp + np.where(np.arange(samples) % 2, 0.05, -0.05), RATE, subtype="FLOAT")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for index, (name, angle) in enumerate(ANGLES.items()):
        record(tmp_path / name, angle, 6000 + 1500 * index, drift=0.5)
    for name, angle in STRANGERS.items():
        record(tmp_path / "cohort" / name, angle)
    lines = [f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in PAIRS]
    (tmp_path / "trials.txt").write_text("".join(lines))
    table = [f"{name}\t{name[:3]}\t{3 + i}\t{'f' if i < 2 else 'm'}\n" for i, name in enumerate(ANGLES)]
    (tmp_path / "all.tsv").write_text("path\tspeaker\tseconds\tgender\n" + "".join(table))
    return tmp_path


def scores_of(corpus: Path, model: Any = None, **settings: Any) -> np.ndarray:
    """Every score of the list, through the file that `evaluate` writes."""
    out = corpus / "scores.npz"
    evaluate(model or Mean(), corpus / "trials.txt", corpus, draws=0, quiet=True, scores_out=out, **settings)
    (scored,), _ = read_scores(out)
    assert [
        (scored.utterances[a], scored.utterances[b]) for a, b in zip(scored.enrol, scored.test, strict=True)
    ] == PAIRS
    return scored.scores


def waves(corpus: Path) -> dict[str, np.ndarray]:
    return {name: soundfile.read(corpus / name, dtype="float32")[0] for name in ANGLES}


def test_segments_are_compared_pair_by_pair(corpus: Path) -> None:
    cut = {
        n: [w[s : s + 4000] for s in [*range(0, len(w) - 4000, 3000), len(w) - 4000]] for n, w in waves(corpus).items()
    }
    wanted = [np.mean([[point(x.mean()) @ point(y.mean()) for y in cut[b]] for x in cut[a]]) for a, b in PAIRS]
    np.testing.assert_allclose(scores_of(corpus, scoring=Scoring("segments")), wanted, atol=1e-6)


def test_crops_and_whole_are_averaged(corpus: Path) -> None:
    cut = {}
    for name, wave in waves(corpus).items():
        cut[name] = [wave[int(start) : int(start) + 3015] for start in np.linspace(0, len(wave) - 3015, 5)]
    whole = {name: point(wave.mean()) for name, wave in waves(corpus).items()}
    pairs = [np.mean([[point(x.mean()) @ point(y.mean()) for y in cut[b]] for x in cut[a]]) for a, b in PAIRS]
    wanted = [(pair + whole[a] @ whole[b]) / 2 for pair, (a, b) in zip(pairs, PAIRS, strict=True)]
    np.testing.assert_allclose(scores_of(corpus, scoring=Scoring("crops")), wanted, atol=1e-6)


def test_silent_pieces_are_left_out_and_a_silent_recording_is_not_used() -> None:
    wave = np.concatenate([np.zeros(4000), np.tile([0.25, 0.35], 2000)]).astype(np.float32)
    model = Viewed(Mean(), WAYS["segments"])
    found = model.embed(wave)  # 0-4 s is silent; 3-7 s and 4-8 s are not
    halves = [wave[3000:7000], wave[4000:]]
    np.testing.assert_allclose(found, np.mean([point(half.mean()) for half in halves], axis=0), atol=1e-6)
    with pytest.raises(SilentAudio):
        model.embed(np.zeros(9000, dtype=np.float32))


def by_hand(corpus: Path, members: np.ndarray, top: int, less: int, centre: np.ndarray | None = None) -> list[float]:
    """AS-norm as a loop over trials."""
    points = {name: point(wave.mean()).astype(float) for name, wave in waves(corpus).items()}
    if centre is not None:
        points = {name: (one - centre) / np.linalg.norm(one - centre) for name, one in points.items()}

    def side(one: np.ndarray, score: float) -> float:
        highest = np.sort(members @ one)[-top:]
        return (score - highest.mean()) / highest.std(ddof=less)

    return [(side(points[a], points[a] @ points[b]) + side(points[b], points[a] @ points[b])) / 2 for a, b in PAIRS]


def test_as_norm_equals_a_loop(corpus: Path) -> None:
    strangers = np.array([point(angle) for angle in STRANGERS.values()]).astype(float)
    found = scores_of(corpus, scoring=Scoring(cohort=corpus / "cohort", top=3))
    np.testing.assert_allclose(found, by_hand(corpus, strangers, 3, 0), rtol=1e-4)  # differences of float32 cosines
    means = np.array([strangers[:2].mean(axis=0), strangers[2:4].mean(axis=0), strangers[4]])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    settings = Scoring(cohort=corpus / "cohort", top=2, cohort_by="speaker", deviation="sample")
    np.testing.assert_allclose(scores_of(corpus, scoring=settings), by_hand(corpus, means, 2, 1), rtol=1e-4)


def test_the_mean_of_the_cohort_is_subtracted_everywhere(corpus: Path) -> None:
    strangers = np.array([point(angle) for angle in STRANGERS.values()]).astype(float)
    centre = strangers.mean(axis=0)
    moved = strangers - centre
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    found = scores_of(corpus, scoring=Scoring(cohort=corpus / "cohort", top=3, subtract_mean=True))
    np.testing.assert_allclose(found, by_hand(corpus, moved, 3, 0, centre), rtol=1e-4)
    points = {name: point(wave.mean()) - centre for name, wave in waves(corpus).items()}
    wanted = [points[a] @ points[b] / np.linalg.norm(points[a]) / np.linalg.norm(points[b]) for a, b in PAIRS]
    found = scores_of(corpus, scoring=Scoring(cohort=corpus / "cohort", top=0, subtract_mean=True))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.fixture
def enrolled(tmp_path: Path) -> Path:
    for name, (angle, samples) in {"s1/a": (0.0, 900), "s1/b": (0.4, 300), "s2/a": (0.8, 500)}.items():
        record(tmp_path / f"{name}.wav", angle, samples)
    for name, angle in {"s1": 0.25, "s2": 0.7}.items():
        record(tmp_path / "test" / f"{name}-x.wav", angle)
    (tmp_path / "enroll.map").write_text("s1-enroll s1/a.wav s1/b.wav s1/none.wav\ns2-enroll s2/a.wav\n")
    lines = [f"{m}-enroll test/{t}-x.wav {int(m == t)}\n" for m in ("s1", "s2") for t in ("s1", "s2")]
    (tmp_path / "trials.txt").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize(
    ("enrolment", "first"),
    [
        ("mean", lambda t: np.cos(0.2 - t)),  # the mean of two unit vectors points half way
        ("scores", lambda t: (np.cos(0.0 - t) + np.cos(0.4 - t)) / 2),
        ("concatenate", lambda t: np.cos(0.1 - t)),  # 900 samples at 0 and 300 at 0.4
    ],
)
def test_several_recordings_enrol_one_speaker(enrolled: Path, enrolment: str, first: Any) -> None:
    out = enrolled / "scores.npz"
    settings: dict[str, Any] = {"enrolments": enrolled / "enroll.map", "scoring": Scoring(enrolment=enrolment)}
    result = evaluate(Mean(), enrolled / "trials.txt", enrolled, draws=0, quiet=True, scores_out=out, **settings)
    wanted = [first(0.25), first(0.7), np.cos(0.8 - 0.25), np.cos(0.8 - 0.7)]
    np.testing.assert_allclose(read_scores(out)[0][0].scores, wanted, atol=1e-6)
    assert result["enrolment"].endswith("by enroll.map")
    assert result["excluded"] == []
    assert [one["path"] for one in result["enrolment_excluded"]] == ["s1/none.wav"]


def test_every_choice_is_named_in_the_result(corpus: Path) -> None:
    settings = Scoring("segments", cohort=corpus / "cohort", top=2, subtract_mean=True)
    result = evaluate(Mean(), corpus / "trials.txt", corpus, draws=0, quiet=True, scoring=settings, priors=(0.2,))
    assert "segments of 4 s" in result["scoring"]
    assert result["enrolment"] == "one recording a model"
    assert result["normalisation"] == (
        "mean of cohort subtracted; AS-norm, top 2 utterances of cohort, population deviation"
    )
    assert result["priors"] == [0.2]
    assert list(result["min_dcf"]) == ["0.2"]
    plain = evaluate(Mean(), corpus / "trials.txt", corpus, draws=0, quiet=True)
    assert (plain["normalisation"], list(plain["min_dcf"])) == ("none", ["0.01", "0.05"])
    assert plain["few_errors"] is True  # 3 targets
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_calibrated_costs_are_given_where_scores_become_llrs(corpus: Path) -> None:
    plain = evaluate(Mean(), corpus / "trials.txt", corpus, draws=0, quiet=True)
    assert not {"act_dcf", "cllr"} & set(plain)
    sure = evaluate(Mean(), corpus / "trials.txt", corpus, draws=0, quiet=True, calibrate=np.zeros_like)
    assert sure["cllr"] == pytest.approx(1.0)
    assert sure["act_dcf"] == {"0.01": pytest.approx(1.0), "0.05": pytest.approx(1.0)}  # rejects all


def test_groups_have_rates_of_their_own(corpus: Path) -> None:
    settings: dict[str, Any] = {"manifest": corpus / "all.tsv", "by": ("gender", "seconds:5")}
    result = evaluate(Mean(), corpus / "trials.txt", corpus, draws=20, quiet=True, **settings)
    gender = {row["group"]: row for row in result["groups"]["gender"]}
    assert {name: (row["trials"], row["targets"]) for name, row in gender.items()} == {
        "f": (1, 1),
        "m": (6, 2),
        "mixed": (8, 0),
    }
    assert (gender["f"]["eer"], gender["f"]["few_errors"]) == (None, True)
    assert gender["m"]["eer"] is not None
    assert [row["group"] for row in result["groups"]["seconds:5"]] == ["< 5", "≥ 5", "mixed"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(
    ("settings", "error", "what"),
    [
        ({"scoring": {"cohort": "cohort", "top": 6}}, BadInput, "5 members, fewer than the top 6"),
        ({"scoring": {"cohort": "cohort", "top": 4, "cohort_by": "speaker"}}, BadInput, "3 members"),
        ({"scoring": {"cohort": "cohort/x", "top": 2, "cohort_by": "speaker"}}, BadInput, "no speaker"),
        ({"scoring": {"cohort": "nowhere", "top": 2}}, BadList, "no such file"),
        ({"manifest": "all.tsv", "by": ("age",)}, BadList, "no column 'age'; it has: speaker, seconds, gender"),
        ({"manifest": "few.tsv", "by": ("gender",)}, BadList, "does not name utterance 'ann/2.wav'"),
        ({"by": ("gender",)}, BadInput, "name a manifest"),
        ({"priors": (0.01, 1.0)}, BadInput, "prior 1.0"),
        ({"priors": ()}, BadInput, "at least one prior"),
        ({"scoring": {"enrolment": "scores"}}, BadInput, "--enrolments"),
        ({"scores_out": "nowhere/s.npz"}, BadInput, "no folder"),
        ({"strict": True}, BadList, "1 of 6 recordings of the trial list are not there, the first 'cid/2.wav'"),
        ({"strict": True, "scoring": {"cohort": "cohort", "top": 2}}, BadList, "1 of 6 recordings"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    corpus: Path, settings: dict[str, Any], error: type[Exception], what: str
) -> None:
    (corpus / "cid/2.wav").unlink()
    (corpus / "few.tsv").write_text("path\tgender\nann/1.wav\tf\n")
    asked = dict(settings)
    if "scoring" in asked:
        named = {key: corpus / value for key, value in asked["scoring"].items() if key == "cohort"}
        asked["scoring"] = Scoring(**{**asked["scoring"], **named})
    if "manifest" in asked:
        asked["manifest"] = corpus / asked["manifest"]
    model = Mean()
    with pytest.raises(error, match=what):
        evaluate_many(model, [corpus / "trials.txt"], corpus, quiet=True, **asked)
    assert model.lengths == []


def test_a_cohort_that_turns_out_too_small_is_refused(corpus: Path) -> None:
    (corpus / "cohort/z/1.wav").write_text("not audio")
    with pytest.raises(BadInput, match=r"what can be used of .*4 members, fewer than the top 5"):
        scores_of(corpus, scoring=Scoring(cohort=corpus / "cohort", top=5))


def test_a_score_that_is_nan_is_named(corpus: Path) -> None:
    class Odd(Mean):
        def embed(self, wave: np.ndarray) -> np.ndarray:
            return super().embed(wave) * (np.nan if len(wave) == 6000 else 1)

    with pytest.raises(BadInput, match=r"score of ann/1\.wav and ann/2\.wav is nan, as are 4 more"):
        scores_of(corpus, Odd())


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"way": "halves"}, "whole, segments, crops"),
        ({"enrolment": "first"}, "mean, scores, concatenate"),
        ({"cohort_by": "channel"}, "utterance, speaker"),
        ({"deviation": "median"}, "population, sample"),
        ({"subtract_mean": True}, "name one"),
        ({"cohort": "c", "top": 0}, "for nothing"),
    ],
)
def test_unknown_words_are_refused_at_once(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        Scoring(**settings)
