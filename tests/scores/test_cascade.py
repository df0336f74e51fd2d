"""Cascades of scores: against a loop over trials, sums done by hand, and scikit-learn's isotonic regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.cascade import (
    RIDGE,
    SAME,
    Gate,
    Map,
    evidence,
    fit_map,
    fit_weights,
    mean_cost,
    reached,
    run,
    stopped,
)
from sottovoce.scores.metrics import eer

TRIALS = 400
REAL = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 6))


@pytest.fixture
def noisy() -> tuple[list[np.ndarray], np.ndarray]:
    """Scores of three stages, each nearer to the last, and labels."""
    rng = np.random.default_rng(3)
    labels = (rng.random(TRIALS) < 0.3).astype(int)
    last = 0.3 * labels + 0.2 * rng.standard_normal(TRIALS)
    return [np.tanh(2 * (last + spread * rng.standard_normal(TRIALS))) for spread in (0.1, 0.05)] + [last], labels


def asked(scores: list[np.ndarray]):
    return lambda stage, rows: scores[stage][rows]


def one_by_one(scores: list[np.ndarray], maps: list[Map], gates: list[Gate]) -> list[tuple[float, int]]:
    found = []
    for trial in range(len(scores[0])):
        for stage, row in enumerate(scores):
            value = float(maps[stage](row[trial]))
            if stage == len(gates) or value < gates[stage].low or value > gates[stage].high:
                found.append((value, stage))
                break
    return found


def test_as_a_loop_over_trials(noisy: tuple[list[np.ndarray], np.ndarray]) -> None:
    scores, _ = noisy
    maps = [*(fit_map(row, scores[-1]) for row in scores[:-1]), SAME]
    gates = [Gate.around(0.1, 0.2), Gate(-0.05, 0.3)]
    found = run(asked(scores), TRIALS, maps, gates)
    wanted = one_by_one(scores, maps, gates)
    assert set(found.stage.tolist()) == {0, 1, 2}
    assert found.stage.tolist() == [stage for _, stage in wanted]
    np.testing.assert_allclose(found.scores, [value for value, _ in wanted], rtol=0, atol=1e-15)


WEIGHTS = [(1.0,), (0.4, 0.6), (0.1, 0.0, 0.9)]


def test_weighed_evidence_as_a_loop_over_trials(noisy: tuple[list[np.ndarray], np.ndarray]) -> None:
    scores, _ = noisy
    sums = [
        np.array([sum(weight * scores[one][trial] for one, weight in enumerate(row)) for trial in range(TRIALS)])
        for row in WEIGHTS
    ]
    maps = [*(fit_map(row, sums[-1]) for row in sums[:-1]), SAME]
    gates = [Gate.around(0.1, 0.2), Gate(-0.05, 0.3)]
    found = run(asked(scores), TRIALS, maps, gates, WEIGHTS)
    wanted = one_by_one(sums, maps, gates)
    assert set(found.stage.tolist()) == {0, 1, 2}
    assert found.stage.tolist() == [stage for _, stage in wanted]
    np.testing.assert_allclose(found.scores, [value for value, _ in wanted], rtol=0, atol=1e-15)
    np.testing.assert_allclose(evidence(scores, WEIGHTS), sums, rtol=0, atol=1e-15)


def test_weights_of_the_last_stage_alone_are_no_weights(noisy: tuple[list[np.ndarray], np.ndarray]) -> None:
    scores, _ = noisy
    gates = [Gate.around(0.1, 0.2), Gate.around(0.1, 0.1)]
    alone = [(1.0,), (0.0, 1.0), (0.0, 0.0, 1.0)]
    for one, other in ((run(asked(scores), TRIALS, [SAME] * 3, gates, w) for w in (None, alone)),):
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.stage, other.stage)
    for one, other in zip(evidence(scores), scores, strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_are_those_of_scikit_learn(noisy: tuple[list[np.ndarray], np.ndarray]) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    _, labels = noisy
    rng = np.random.default_rng(9)
    scores = [size * (labels + rng.standard_normal(TRIALS)) for size in (0.1, 0.3, 0.2)]
    table = np.stack(scores, axis=1)
    scale = table.std(axis=0)
    heavy = np.where(labels == 1, 0.5 / labels.sum(), 0.5 / (1 - labels).sum())
    model = linear.LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=1000)
    slopes = model.fit(table / scale, labels, sample_weight=heavy).coef_[0] / scale
    assert slopes.min() > 0, "all stages must tell something for the test to say anything"
    found = fit_weights(scores, labels)
    np.testing.assert_allclose(found[-1], slopes / slopes.sum(), rtol=0, atol=1e-5)
    assert [len(row) for row in found] == [1, 2, 3]
    assert [sum(row) for row in found] == pytest.approx([1, 1, 1])


def test_what_two_stages_know_together_is_more() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random(3000) < 0.4).astype(int)
    scores = [labels + spread * rng.standard_normal(3000) for spread in (0.8, 0.6)]
    found = fit_weights(scores, labels)
    assert found[1][0] / found[1][1] == pytest.approx((0.6 / 0.8) ** 2, rel=0.15)  # as their variances say
    assert eer(evidence(scores, found)[1], labels)[0] < 0.9 * eer(scores[1], labels)[0]


def test_a_stage_that_misleads_weighs_nothing() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random(500) < 0.4).astype(int)
    last = labels + 0.5 * rng.standard_normal(500)
    assert fit_weights([-last, last + 0.1 * rng.standard_normal(500)][::-1], labels)[1] == (1.0, 0.0)
    with pytest.raises(BadInput, match="right way round"):
        fit_weights([-last, -last], labels)
    with pytest.raises(BadInput):
        fit_weights([last, last], np.ones(500))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([(1.0,), (0.5, 0.5), (1.0, 0.0)], "do not fit 3 stages"),
        ([(1.0,), (0.5, 0.5)], "do not fit 3 stages"),
        ([(1.0,), (0.5, -0.5), (0, 0, 1)], "0 or more"),
        ([(1.0,), (0.0, 0.0), (0, 0, 1)], "one above 0"),
        ([(1.0,), (math.nan, 1.0), (0, 0, 1)], "finite"),
        ([(1.0,), (1e308, 1e308), (0, 0, 1)], "finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: list[tuple[float, ...]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(asked([np.zeros(2)] * 3), 2, [SAME] * 3, [Gate.around(0, 1)] * 2, weights)


def test_a_stage_sees_only_what_is_left(noisy: tuple[list[np.ndarray], np.ndarray]) -> None:
    scores, _ = noisy
    seen: list[np.ndarray] = []

    def score(stage: int, rows: np.ndarray) -> np.ndarray:
        seen.append(rows)
        return scores[stage][rows]

    found = run(score, TRIALS, [SAME] * 3, [Gate.around(0.1, 0.4), Gate.around(0.1, 0.1)])
    assert seen[0].tolist() == list(range(TRIALS))
    for stage in (1, 2):
        assert seen[stage].tolist() == np.flatnonzero(found.stage >= stage).tolist()


@pytest.mark.parametrize(("distance", "stage"), [(0.0, 0), (math.inf, 2)])
def test_gates_that_always_and_never_answer(
    noisy: tuple[list[np.ndarray], np.ndarray], distance: float, stage: int
) -> None:
    scores, labels = noisy
    maps = [*(fit_map(row, scores[-1]) for row in scores[:-1]), SAME]
    found = run(asked(scores), TRIALS, maps, [Gate.around(0.1234567, distance)] * 2)
    assert (found.stage == stage).all()
    np.testing.assert_array_equal(found.scores, maps[stage](scores[stage]))
    assert eer(found.scores, labels)[0] == pytest.approx(eer(scores[stage], labels)[0], abs=1e-12)


def test_no_stage_is_asked_in_vain() -> None:
    found = run(lambda stage, rows: [[0.9, -0.9], None][stage], 2, [SAME, SAME], [Gate.around(0, 0.5)])
    assert (found.scores.tolist(), found.stage.tolist()) == ([0.9, -0.9], [0, 0])


def test_a_distance_at_the_gate_goes_on() -> None:
    found = run(asked([np.array([0.5, 0.75]), np.zeros(2)]), 2, [SAME] * 2, [Gate.around(0.0, 0.5)])
    assert found.stage.tolist() == [1, 0]


def test_cost_by_hand() -> None:
    stage = np.repeat([0, 1, 2], [85, 10, 5])
    assert reached(stage, 3).tolist() == [1.0, 0.15, 0.05]
    assert stopped(stage, 3).tolist() == [0.85, 0.10, 0.05]
    assert mean_cost((2, 3, 4), stage) == pytest.approx(2 + 3 * 0.15 + 4 * 0.05)
    assert mean_cost((2, 3, 4), np.zeros(9, dtype=int)) == 2
    assert mean_cost((2, 3, 4), np.full(9, 2)) == 9


@settings(deadline=None)
@given(st.lists(st.tuples(REAL, REAL), min_size=2, max_size=30), st.lists(st.floats(-3, 3), min_size=2, max_size=30))
def test_maps_rise(pairs: list[tuple[float, float]], asked_for: list[float]) -> None:
    low, last = map(list, zip(*pairs, strict=True))
    if len(set(low)) < 2:
        return
    to_last = fit_map(low, last)
    found = to_last(sorted(asked_for))
    assert (np.diff(found) >= -1e-12).all()
    np.testing.assert_allclose(to_last.back(found), sorted(asked_for), rtol=0, atol=1e-3)


def test_a_map_keeps_the_error_rate(noisy: tuple[list[np.ndarray], np.ndarray]) -> None:
    scores, labels = noisy
    mapped = fit_map(scores[0], scores[-1])(scores[0])
    assert (np.argsort(mapped) == np.argsort(scores[0])).all()
    assert eer(mapped, labels)[0] == pytest.approx(eer(scores[0], labels)[0], abs=1e-12)


def test_steps_are_those_of_scikit_learn(noisy: tuple[list[np.ndarray], np.ndarray]) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    scores, _ = noisy
    low = np.round(scores[0], 2)  # with ties
    steps = isotonic.IsotonicRegression().fit(low, scores[-1]).predict(low)
    found = fit_map(low, scores[-1])
    np.testing.assert_allclose(found.values, np.unique(steps.round(12)), rtol=0, atol=1e-9)
    for knot, value in zip(found.knots, found.values, strict=True):
        assert knot == pytest.approx(low[np.abs(steps - value) < 1e-9].mean(), abs=1e-9)


def test_a_map_by_hand() -> None:
    found = fit_map([0.0, 0.2, 0.4, 0.4, 1.0], [0.1, 0.5, 0.2, 0.2, 0.9])
    assert found.values == pytest.approx((0.1, 0.3, 0.9))  # 0.5, 0.2 and 0.2 fall: their mean
    assert found.knots == pytest.approx((0.0, (0.2 + 0.4 + 0.4) / 3, 1.0))
    assert found([-0.5, 0.5, 2.0]).tolist() == pytest.approx([-0.4, 0.3 + 0.6 * (0.5 - 1 / 3) / (2 / 3), 1.9])
    assert SAME([-0.3, 0.0, 0.7]).tolist() == [-0.3, 0.0, 0.7]


@pytest.mark.parametrize(
    ("stage", "value", "message"), [(0, np.nan, "trial 3 by stage 1 is nan"), (1, np.inf, "trial 3 by stage 2 is inf")]
)
def test_scores_that_are_none(stage: int, value: float, message: str) -> None:
    rows = [np.zeros(5), np.zeros(5)]
    rows[stage][3] = value
    with pytest.raises(BadInput, match=message):
        run(asked(rows), 5, [SAME] * 2, [Gate.around(0.0, 1.0)])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match="two stages"):
        run(asked([np.zeros(2)]), 2, [SAME], [])
    with pytest.raises(BadInput, match=r"gave \(1,\) scores for 2 trials"):
        run(lambda *_: [0.0], 2, [SAME] * 2, [Gate.around(0, 1)])
    for bad in ([0.0, np.nan], [0.0]):
        with pytest.raises(BadInput, match="map"):
            fit_map(bad, [0.0, 1.0])
    with pytest.raises(BadInput, match="1 different scores"):
        fit_map([0.5, 0.5], [0.0, 1.0])
    with pytest.raises(BadInput, match="must be finite and rise"):
        Map((0.0, 0.0), (0.0, 1.0))
    with pytest.raises(BadInput, match="distance"):
        Gate.around(0.0, -0.1)
    with pytest.raises(BadInput, match="not a range"):
        Gate(0.5, 0.4)
