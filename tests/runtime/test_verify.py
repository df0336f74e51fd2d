"""Verification with a model whose scores are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sottovoce.errors import BadInput, BadModel, MissingAudio, TooShort
from sottovoce.runtime.verify import verify

POINTS = {
    "balanced": {"threshold": 0.5, "eer": 0.05, "measured_on": "four lists"},
    "secure": {"threshold": 0.9, "measured_on": "four lists"},
}


class Angles:
    """Embeds a recording as an angle, its first sample, so that a score is the cosine of a difference."""

    rate = 16000
    min_samples = 400
    id = "0123456789ab"

    def __init__(self, points: dict[str, Any] | None = POINTS) -> None:
        self.metadata = {"operating_points": points} if points is not None else {}

    def embed(self, wave: np.ndarray) -> np.ndarray:
        return np.array([np.cos(wave[0]), np.sin(wave[0])], dtype=np.float32)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two recordings whose score is cos(0.8 - 0.1), 0.7648."""
    for name, angle in (("a.wav", 0.8), ("b.wav", 0.1)):
        wave = np.full(500, angle)
        wave[1::2] = 0.0
        soundfile.write(tmp_path / name, wave, 16000, subtype="FLOAT")
    return tmp_path / "a.wav", tmp_path / "b.wav"


@pytest.mark.parametrize(("point", "decision", "threshold"), [("balanced", "accept", 0.5), ("secure", "reject", 0.9)])
def test_a_score_is_judged_at_the_named_point(
    pair: tuple[Path, Path], point: str, decision: str, threshold: float
) -> None:
    found = verify(Angles(), *pair, point=point)
    assert found.score == pytest.approx(np.cos(0.7), abs=1e-6)
    assert (found.decision, found.threshold, found.accepted) == (decision, threshold, decision == "accept")
    assert found.point["measured_on"] == "four lists"


def test_as_json(pair: tuple[Path, Path]) -> None:
    found = json.loads(json.dumps(verify(Angles(), *pair).as_dict()))
    assert found == {
        "score": pytest.approx(np.cos(0.7), abs=1e-6),
        "decision": "accept",
        "threshold": 0.5,
        "point": "balanced",
        "measured_on": "four lists",
        "model": "0123456789ab",
        "a": str(pair[0]),
        "b": str(pair[1]),
        "antispoofing": False,
    }


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
