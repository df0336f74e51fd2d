"""Operating points worked out by counting, and refused by the rule of 30."""

from __future__ import annotations

import numpy as np
import pytest

from sottovoce.scores.metrics import eer
from sottovoce.scores.points import operating_points, point


def drawn(targets: int, nontargets: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([1, 0], [targets, nontargets])
    return np.random.default_rng(seed).normal(2.0 * labels, 1.0), labels


def test_a_point_accepts_as_many_as_its_name_says() -> None:
    scores, labels = drawn(500, 40000)
    points, refused = operating_points(scores, labels)
    assert refused == {}
    falses = np.sort(scores[labels == 0])[::-1]
    for name, allowed in (("convenience", 400), ("secure", 40)):
        threshold = points[name]["threshold"]
        assert (falses >= threshold).sum() == allowed
        assert points[name]["false_accepts"] == pytest.approx(allowed / 40000)
        assert points[name]["misses"] == pytest.approx((scores[labels == 1] < threshold).mean())
    rate, threshold = eer(scores, labels)
    assert points["balanced"]["threshold"] == threshold
    assert points["balanced"]["false_accepts"] == pytest.approx(rate, abs=0.002)


@pytest.mark.parametrize(
    ("nontargets", "kept"),
    [(30000, {"convenience", "balanced", "secure"}), (29999, {"convenience", "balanced"}), (2999, {"balanced"})],
)
def test_a_point_is_refused_where_fewer_than_30_false_accepts_stand_behind_it(nontargets: int, kept: set[str]) -> None:
    points, refused = operating_points(*drawn(300, nontargets))
    assert set(points) == kept
    assert set(refused) == {"convenience", "balanced", "secure"} - kept
    assert all("fewer than 30" in reason for reason in refused.values())
    if "secure" in refused:
        assert "30,000 nontarget trials are needed" in refused["secure"]


def test_without_errors_there_is_no_equal_error_rate_to_speak_of() -> None:
    points, refused = operating_points([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert points == {}
    assert "0.0 false accepts in 2 nontarget trials" in refused["balanced"]


def test_intervals_hold_the_rate_and_are_null_where_speakers_are_too_few() -> None:
    scores, labels = drawn(1000, 4000)
    rng = np.random.default_rng(0)
    first, second = rng.integers(20, size=5000), rng.integers(20, size=5000)
    found = operating_points(scores, labels, first, np.where(labels == 1, first, second), draws=200)[0]["convenience"]
    low, high = found["false_accepts_interval"]
    assert low < found["false_accepts"] < high
    assert found["misses_interval"][0] < found["misses"] < found["misses_interval"][1]
    alone = operating_points(scores, labels, np.zeros(5000), np.zeros(5000), draws=5)[0]["convenience"]
    assert alone["misses_interval"] is None


def test_a_threshold_on_other_trials_is_only_counted() -> None:
    found = point([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1], 0.5)
    assert (found["false_accepts"], found["misses"], found["nontargets"]) == (0.0, 0.0, 2)
