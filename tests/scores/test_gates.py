"""Where gates stand: against exhaustive loops, SciPy's beta distribution, and draws from a population that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.cascade import SAME, Gate, fit_map, run
from sottovoce.scores.gates import (
    STEP,
    Trade,
    at_most,
    best_within,
    cheapest,
    distances,
    doubts,
    fewest_trials,
    front,
    safe_gates,
    stop_gates,
    trades,
)
from sottovoce.scores.metrics import eer


def drawn(trials: int, seed: int, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a first and a last stage, and labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(trials) < 0.5).astype(int)
    last = np.clip(0.4 * labels + 0.15 * rng.standard_normal(trials), -1, 1)
    return np.clip(last + spread * rng.standard_normal(trials), -1, 1), last, labels


def test_every_trade_is_what_it_says() -> None:
    first, last, labels = drawn(300, 0)
    mapped = [first, last]
    tried = distances(mapped, 0.2, most=12)
    assert tried[0] == (0.0,)
    assert tried[-1] == (math.inf,)
    for trade in trades(mapped, labels, 0.2, (2, 4), tried):
        answers = np.abs(first - 0.2) > trade.distances[0]
        assert trade.eer == eer(np.where(answers, first, last), labels)[0]
        assert trade.cost == pytest.approx(2 + 4 * (~answers).mean())
        assert trade.stopped == pytest.approx((answers.mean(), (~answers).mean()))


def test_with_three_stages_all_pairs_of_gates_are_tried() -> None:
    first, last, _ = drawn(300, 0)
    tried = distances([first, first + 0.01, last], 0.2, most=30)
    assert len(tried) == len(set(tried)) <= 30
    assert len(tried) == len({one for one, _ in tried}) * len({two for _, two in tried})


TRADES = st.lists(
    st.builds(
        Trade,
        st.tuples(st.integers(0, 3).map(float), st.integers(0, 3).map(float)),
        st.integers(0, 9).map(float),
        st.integers(0, 9).map(float),
        st.just(()),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(TRADES)
def test_no_trade_beats_the_front(tried: list[Trade]) -> None:
    best = front(tried)
    for trade in tried:
        assert any(one.eer <= trade.eer and one.cost <= trade.cost for one in best)
        assert not any(trade.eer < one.eer and trade.cost <= one.cost for one in best)


@settings(deadline=None)
@given(TRADES, st.integers(0, 5))
def test_the_cheapest_that_keeps_near_the_last_stage(tried: list[Trade], most: int) -> None:
    tried = [*tried, Trade((math.inf, math.inf), 4.0, 99.0, ())]
    chosen = cheapest(tried, 4.0, most)

    def keeps(trade: Trade) -> bool:
        wider = [one for one in tried if all(a >= b for a, b in zip(one.distances, trade.distances, strict=True))]
        return all(one.eer - 4.0 <= most for one in wider)

    assert keeps(chosen)
    assert chosen.cost == min(trade.cost for trade in tried if keeps(trade))


@settings(deadline=None)
@given(TRADES, st.integers(0, 9))
def test_the_least_loss_within_a_cost(tried: list[Trade], most: int) -> None:
    fit = [max(trade.eer - 4.0, 0.0) for trade in tried if trade.cost <= most]
    if fit:
        chosen = best_within(tried, 4.0, most)
        assert chosen.cost <= most
        assert max(chosen.eer - 4.0, 0.0) == min(fit)
        alike = [one.cost for one in tried if one.cost <= most and max(one.eer - 4.0, 0.0) == min(fit)]
        assert chosen.cost == max(alike), "of equals the dearest follows the last stage best"
    else:
        with pytest.raises(BadInput, match="the first stage alone costs"):
            best_within(tried, 4.0, most)


def test_a_target_out_of_reach_is_named() -> None:
    tried = [Trade((0.0,), 0.05, 2.0, ()), Trade((1.0,), 0.04, 5.0, ())]
    with pytest.raises(BadInput, match="infinite gates must be tried"):
        cheapest(tried, 0.01, 0.001)
    with pytest.raises(BadInput, match=r"costs 1 a trial; the first stage alone costs 2"):
        best_within(tried, 0.04, 1.0)


def pairs(speakers: int, seed: int, digits: int = 2) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Scores of three stages on two trials of every pair of speakers, alone or together, and who they are."""
    rng = np.random.default_rng(seed)
    enrol, test = (side.ravel().repeat(2) for side in np.meshgrid(range(speakers), range(speakers)))
    last = 0.5 * (enrol == test) + 0.1 * rng.standard_normal(len(enrol)) + 0.2 * rng.standard_normal(speakers)[enrol]
    noisy = [np.round(last + spread * rng.standard_normal(len(last)), digits) for spread in (0.2, 0.05)]
    return [*noisy, last], enrol, test


@pytest.mark.parametrize("digits", [2, 9])  # with ties and without
@pytest.mark.parametrize(("share", "confidence"), [(0.75, 0.95), (0.5, 0.5), (0.9, 0.8)])
def test_the_widest_gates_that_let_a_share_through_in_so_many_draws(
    share: float, confidence: float, digits: int
) -> None:
    scores, enrol, test = pairs(9, 1, digits)
    draws, threshold = 60, 0.25
    first, second = stop_gates(scores, threshold, enrol, test, share, confidence, draws, seed=3)
    rng = np.random.default_rng(3)
    drawn = [np.bincount(rng.integers(9, size=9), minlength=9) for _ in range(draws)]

    def reached(distance: float) -> float:
        """The share of draws in which enough trials stop, drawn speaker by speaker."""
        enough = 0
        for times in drawn:
            answered = total = 0
            for score, a, b in zip(scores[0], enrol, test, strict=True):
                weight = times[a] if a == b else times[a] * times[b]
                total += weight
                answered += weight * (abs(score - threshold) > distance)
            enough += answered >= share * total
        return enough / draws

    distance = (first.high - first.low) / 2
    wider = [one for one in np.unique(np.abs(scores[0] - threshold)) if one > distance]
    assert reached(distance) > confidence
    assert reached(wider[0]) <= confidence
    spread = [np.sqrt(np.mean((row - scores[2]) ** 2)) for row in scores[:2]]
    assert doubts(scores) == pytest.approx(spread, abs=1e-12)
    assert second.high - second.low == pytest.approx(2 * distance * spread[1] / spread[0], abs=1e-12)


def test_shares_on_new_speakers_are_as_promised() -> None:
    """Gates of one crowd on another of the same kind: with a confidence of 0.9 the share is reached mostly."""
    reached = []
    for seed in range(40):
        scores, enrol, test = pairs(12, seed)
        (gate, _) = stop_gates(scores, 0.25, enrol, test, 0.6, 0.9, 200)
        reached.append(gate.stops(pairs(12, 1000 + seed)[0][0]).mean() >= 0.6)
    assert np.mean(reached) >= 0.75


@pytest.mark.parametrize(("share", "confidence"), [(0.0, 0.9), (1.0, 0.9), (0.5, 1.0), (math.nan, 0.9)])
def test_shares_that_are_none_are_refused(share: float, confidence: float) -> None:
    scores, enrol, test = pairs(4, 0)
    with pytest.raises(BadInput, match="between 0 and 1"):
        stop_gates(scores, 0.2, enrol, test, share, confidence)


def test_one_speaker_is_too_few_for_a_share() -> None:
    scores, enrol, _ = pairs(4, 0)
    with pytest.raises(BadInput, match="two or more"):
        stop_gates(scores, 0.2, enrol * 0, enrol * 0, 0.5)


@pytest.mark.parametrize(("errors", "trials"), [(0, 1), (0, 300), (1, 10), (7, 500), (120, 400), (9, 9), (40, 20000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_upper_bounds_are_those_of_clopper_and_pearson(errors: int, trials: int, confidence: float) -> None:
    beta = pytest.importorskip("scipy.stats").beta
    wanted = 1.0 if errors == trials else beta.ppf(confidence, errors + 1, trials - errors)
    assert at_most(errors, trials, confidence) == pytest.approx(wanted, abs=1e-9)


def test_trials_that_are_needed_by_hand() -> None:
    assert fewest_trials(0.01, 0.95) == 299  # the rule of three: 0.99^299 = 0.0495
    assert at_most(0, 299, 0.95) <= 0.01 < at_most(0, 298, 0.95)
    assert at_most(0, 0, 0.95) == 1.0


@pytest.mark.parametrize("risk", [0.02, 0.05])
def test_safe_gates_as_a_plain_walk(risk: float) -> None:
    first, last, _ = drawn(3000, 1)
    to_last, threshold = fit_map(first, last), 0.2
    (gate,) = safe_gates([first, last], [to_last, SAME], threshold, risk, 0.9)
    level = 0.1 / 2

    def walk(accepts: bool) -> float:
        edge = math.inf
        for step in range(800):
            at = 1 - step * STEP
            mapped = to_last(at if accepts else -at)
            if (mapped < threshold) if accepts else (mapped > threshold):
                return edge
            beyond = first > at if accepts else first < -at
            wrong = (last < threshold) if accepts else (last >= threshold)
            if beyond.sum() < fewest_trials(risk, 1 - level):
                continue
            if at_most(int((beyond & wrong).sum()), int(beyond.sum()), 1 - level) > risk + 1e-9:
                return edge
            edge = at
        return edge

    assert gate.high == pytest.approx(float(to_last(walk(True))), abs=1e-12)
    assert gate.low == pytest.approx(float(to_last(-walk(False))), abs=1e-12)
    assert gate.low < threshold < gate.high
    assert gate.below is not None
    assert gate.above is not None
    assert max(gate.below, gate.above) <= risk + 1e-9


def test_a_larger_share_lets_more_answers_through() -> None:
    first, last, _ = drawn(4000, 2)
    gates = [safe_gates([first, last], [SAME, SAME], 0.2, risk)[0] for risk in (0.005, 0.02, 0.1)]
    shares = [gate.stops(first).mean() for gate in gates]
    assert shares[0] < shares[1] < shares[2]


def test_the_promise_is_kept_as_often_as_it_says() -> None:
    """Of two cells of scores the outer one disagrees in 4 %, the inner in 30 %: a gate may reach the outer one only."""
    broken = answered = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        first = np.where(rng.random(1200) < 0.5, 0.5, 0.1) * rng.choice([-1, 1], 1200)
        changed = rng.random(1200) < np.where(np.abs(first) == 0.5, 0.04, 0.3)
        try:
            (gate,) = safe_gates([first, first * np.where(changed, -1, 1)], [SAME, SAME], 0.0, 0.05, 0.5)
        except BadInput:
            continue
        answered += 1
        broken += gate.low > -0.1 or gate.high < 0.1
    assert answered >= 10
    assert broken == 0


def test_a_share_that_is_too_large_passes_no_more_often_than_it_may() -> None:
    """All answers are changed in 6 %, where 5 % are allowed: with confidence 0.8, at most one tuning in five passes."""
    passed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        first = rng.choice([-0.5, 0.5], 1000)
        try:
            safe_gates([first, first * np.where(rng.random(1000) < 0.06, -1, 1)], [SAME, SAME], 0.0, 0.05, 0.8)
            passed += 1
        except BadInput:
            pass
    assert 0 < passed <= 20


def test_a_later_stage_is_judged_on_what_reaches_it() -> None:
    first, last, _ = drawn(4000, 4, spread=0.15)
    middle = np.clip(last + 0.03 * np.random.default_rng(5).standard_normal(4000), -1, 1)
    gates = safe_gates([first, middle, last], [SAME] * 3, 0.2, 0.02)
    left = ~gates[0].stops(first)
    alone = safe_gates([middle[left], middle[left], last[left]], [SAME] * 3, 0.2, 0.02)[0]
    assert gates[1] == alone
    scores = [first, middle, last]
    found = run(lambda stage, rows: scores[stage][rows], 4000, [SAME] * 3, gates)
    assert ((found.scores >= 0.2) != (last >= 0.2)).mean() <= 0.02


def test_too_few_trials_are_refused() -> None:
    first, last, _ = drawn(100, 6)
    with pytest.raises(BadInput, match=r"takes 368 trials of one answer or more, of 100"):
        safe_gates([first, last], [SAME, SAME], 0.2, 0.01)


def test_gates_answer_only_beyond_the_threshold() -> None:
    """Where the stages always agree, a gate closes in on the threshold and not past it."""
    last = np.linspace(-0.9, 0.9, 5000)
    (gate,) = safe_gates([last, last], [SAME, SAME], 0.2, 0.01)
    assert isinstance(gate, Gate)
    assert gate.low == pytest.approx(0.2, abs=1.01 * STEP)
    assert gate.high == pytest.approx(0.2, abs=1.01 * STEP)
    assert gate.low <= gate.high
