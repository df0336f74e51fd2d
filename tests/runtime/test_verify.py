"""Verification with a model whose scores are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput, BadModel, MissingAudio, TooShort
from sottovoce.runtime.verify import NO_CALIBRATION, Embedder, verify
from sottovoce.scores.calibration import Calibration

POINTS = {
    "balanced": {"threshold": 0.5, "eer": 0.05, "measured_on": "four lists"},
    "secure": {"threshold": 0.9, "measured_on": "four lists"},
}


class Angles:
    """Embeds a recording as an angle, its first sample, so that a score is the cosine of a difference."""

    rate = 16000
    min_samples = 400
    id = "0123456789ab"

    def __init__(self, points: dict[str, Any] | None = POINTS, **metadata: Any) -> None:
        self.metadata = {"operating_points": points, **metadata} if points is not None else metadata

    def embed(self, wave: np.ndarray) -> np.ndarray:
        return np.array([np.cos(wave[0]), np.sin(wave[0])], dtype=np.float32)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two good recordings whose score is cos(0.8 - 0.1), 0.7648."""
    return record(tmp_path / "a.wav", 0.8), record(tmp_path / "b.wav", 0.1)


def record(path: Path, angle: float, wave: np.ndarray | None = None) -> Path:
    wave = talker(3.0, seed=1) if wave is None else wave
    soundfile.write(path, np.concatenate([[angle], wave]), 16000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(("point", "decision", "threshold"), [("balanced", "accept", 0.5), ("secure", "reject", 0.9)])
def test_a_score_is_judged_at_the_named_point(
    pair: tuple[Path, Path], point: str, decision: str, threshold: float
) -> None:
    found = verify(Angles(), *pair, point=point)
    assert found.score == pytest.approx(np.cos(0.7), abs=1e-6)
    assert (found.decision, found.threshold, found.accepted) == (decision, threshold, decision == "accept")
    assert found.point["measured_on"] == "four lists"


def test_as_json(pair: tuple[Path, Path]) -> None:
    """A file that was made before there were calibrations: what it cannot say is null, and said."""
    found = json.loads(json.dumps(verify(Angles(), *pair).as_dict(), allow_nan=False))
    quality = found.pop("quality")
    assert found == {
        "score": pytest.approx(np.cos(0.7), abs=1e-6),
        "decision": "accept",
        "reason": None,
        "llr": None,
        "probability": None,
        "prior": 0.5,
        "threshold": 0.5,
        "point": "balanced",
        "expected_false_accepts": None,
        "expected_misses": None,
        "measured_on": "four lists",
        "warnings": [NO_CALIBRATION],
        "model": "0123456789ab",
        "a": str(pair[0]),
        "b": str(pair[1]),
        "antispoofing": False,
    }
    assert set(quality) == {"a", "b"}
    assert quality["a"]["net_speech_s"] > 1.5
    assert quality["b"]["rate_in"] == 16000


AFFINE = Calibration("affine", 900, 9000, scale=10.0, offset=-5.0)


def calibrated(calibration: Calibration = AFFINE, **metadata: Any) -> Embedder:
    return Angles(calibration={**calibration.as_dict(), "measured_on": "my hall"}, **metadata)


@pytest.mark.parametrize("prior", [0.5, 0.01])
def test_llr_and_probability_at_the_stated_prior(pair: tuple[Path, Path], prior: float) -> None:
    found = verify(calibrated(), *pair, prior=prior)
    assert found.llr == pytest.approx(10 * np.cos(0.7) - 5, abs=1e-5)
    odds = np.exp(found.llr) * prior / (1 - prior)
    assert found.probability == pytest.approx(odds / (1 + odds))
    assert (found.prior, found.decision, found.warnings) == (prior, "accept", ())


@pytest.mark.parametrize(("prior", "decision"), [(0.5, "accept"), (0.05, "reject")])
def test_the_point_bayes_accepts_what_is_likelier_than_not(
    pair: tuple[Path, Path], prior: float, decision: str
) -> None:
    found = verify(calibrated(), *pair, point="bayes", prior=prior)
    assert found.decision == decision
    assert (found.probability > 0.5) == (decision == "accept")
    assert found.threshold == pytest.approx((5 + np.log((1 - prior) / prior)) / 10)
    assert found.point["measured_on"] == "my hall"


def test_side_information_moves_the_threshold_of_a_pair(pair: tuple[Path, Path], tmp_path: Path) -> None:
    beside = Calibration("affine", 900, 9000, scale=10.0, offset=-5.0, weights={"log_net_speech": 2.0})
    points = {"balanced": {"threshold": 0.3, "llr": 1.0, "measured_on": "my hall"}}
    model = Angles(points, calibration=beside.as_dict())
    long = verify(model, *pair)
    short = verify(model, pair[0], record(tmp_path / "c.wav", 0.1, talker(1.2, seed=1)))
    for found in (long, short):
        least = min(one.net_speech_s for one in found.quality.values())
        assert found.llr == pytest.approx(10 * found.score - 5 + 2 * np.log(least), abs=1e-5)
        assert found.threshold == pytest.approx((1 + 5 - 2 * np.log(least)) / 10, abs=1e-6)
        assert found.accepted == (found.llr >= 1.0)
    assert short.threshold > long.threshold


NOISE = np.random.default_rng(0).normal(0, 1, 48000)
SPEECH = talker(3.0, seed=1)
BAD = {
    "net speech": np.concatenate([1e-4 * NOISE[:16000], SPEECH[:4000], 1e-4 * NOISE[:16000]]),
    "clipped": np.clip(40 * SPEECH, -1, 1),
    "signal-to-noise": SPEECH + 0.9 * np.sqrt(np.mean(SPEECH**2)) * NOISE,
}


@pytest.mark.parametrize("why", BAD)
@pytest.mark.parametrize("threshold", [None, -1.0])
def test_what_cannot_be_judged_is_inconclusive_with_its_reason(
    pair: tuple[Path, Path], tmp_path: Path, why: str, threshold: float | None
) -> None:
    bad = record(tmp_path / "bad.wav", 0.1, BAD[why])
    found = verify(calibrated(), pair[0], bad, threshold=threshold)
    assert (found.decision, found.llr, found.probability) == ("inconclusive", None, None)
    assert not found.accepted
    assert found.reason is not None
    assert why in found.reason
    assert str(bad) in found.reason
    assert "is needed;" in found.reason, "measure, limit and what to do"
    assert found.score == pytest.approx(np.cos(0.7), abs=1e-6)


def test_softer_limits_only_warn(pair: tuple[Path, Path], tmp_path: Path) -> None:
    quiet = record(tmp_path / "quiet.wav", 0.1, 1e-3 * talker(1.4, seed=1))
    found = verify(calibrated(), pair[0], quiet)
    assert found.decision == "accept"
    assert any("net speech" in warning and "advised" in warning for warning in found.warnings)
    assert any("dBFS" in warning for warning in found.warnings)


def test_a_refused_point_says_why_and_what_there_is(pair: tuple[Path, Path]) -> None:
    model = calibrated(operating_points_refused={"convenience": "too few trials"})
    with pytest.raises(BadInput, match="too few trials; it has: balanced, secure, bayes"):
        verify(model, *pair, point="convenience")


@pytest.mark.parametrize("prior", [0.0, 1.0, -1.0, float("nan")])
def test_priors_are_between_0_and_1(pair: tuple[Path, Path], prior: float) -> None:
    with pytest.raises(BadInput, match="prior"):
        verify(calibrated(), *pair, prior=prior)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [({"method": "affine"}, "damaged"), ({**AFFINE.as_dict(), "weights": {"mood": 1.0}}, "'mood'"), (3, "damaged")],
)
def test_a_damaged_calibration_is_refused(pair: tuple[Path, Path], calibration: Any, message: str) -> None:
    with pytest.raises(BadModel, match=message):
        verify(Angles(calibration=calibration), *pair)


def test_a_threshold_of_ones_own_needs_no_points(pair: tuple[Path, Path]) -> None:
    found = verify(Angles(points=None), *pair, threshold=0.77)
    assert (found.decision, found.threshold, found.point) == ("reject", 0.77, {"name": "given", "threshold": 0.77})
    assert found.as_dict()["measured_on"] is None


def test_the_threshold_itself_is_accepted(pair: tuple[Path, Path]) -> None:
    score = verify(Angles(), *pair).score
    assert verify(Angles(), *pair, threshold=score).accepted


@pytest.mark.parametrize("points", [None, {}])
def test_a_model_without_points_says_what_to_do(pair: tuple[Path, Path], points: dict[str, Any] | None) -> None:
    with pytest.raises(BadModel, match="give a threshold"):
        verify(Angles(points), *pair)


def test_unknown_points_are_refused_with_the_known_ones(pair: tuple[Path, Path]) -> None:
    with pytest.raises(BadInput, match="balanced, secure"):
        verify(Angles(), *pair, point="strict")


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_thresholds_are_numbers(pair: tuple[Path, Path], threshold: float) -> None:
    with pytest.raises(BadInput, match="threshold"):
        verify(Angles(), *pair, threshold=threshold)


def test_recordings_that_cannot_be_used(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingAudio):
        verify(Angles(), pair[0], tmp_path / "none.wav")
    soundfile.write(tmp_path / "short.wav", np.linspace(-1, 1, 399), 16000)
    with pytest.raises(TooShort, match=r"short\.wav"):
        verify(Angles(), tmp_path / "short.wav", pair[1])


def test_a_model_that_gives_nan_is_no_model(pair: tuple[Path, Path]) -> None:
    class Broken(Angles):
        def embed(self, wave: np.ndarray) -> np.ndarray:
            return np.full(2, np.nan, dtype=np.float32)

    with pytest.raises(BadModel, match="nan"):
        verify(Broken(), *pair)
