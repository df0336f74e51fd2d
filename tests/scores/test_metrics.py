"""Error rates against values worked by hand, brute-force loops, and scikit-learn where it is installed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.metrics import (
    act_dcf,
    bayes_threshold,
    bootstrap,
    cllr,
    curve,
    det,
    eer,
    equal_error,
    errors_at,
    intervals,
    least_cost,
    min_cllr,
    min_dcf,
    probit,
    too_few,
)

Trials = tuple[np.ndarray, np.ndarray]


@st.composite
def trials(draw: st.DrawFn) -> Trials:
    """Scores on a coarse grid, so that ties within and between the classes are common."""
    labels = draw(st.lists(st.sampled_from([0, 1]), min_size=2, max_size=40).filter(lambda x: 0 < sum(x) < len(x)))
    scores = draw(st.lists(st.integers(-12, 12), min_size=len(labels), max_size=len(labels)))
    return np.array(scores) / 8.0, np.array(labels)


def rates_at(scores: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float]:
    accepted = scores >= threshold
    return float(np.mean(~accepted[labels == 1])), float(np.mean(accepted[labels == 0]))


def brute_eer(scores: np.ndarray, labels: np.ndarray) -> float:
    """Walk the thresholds upwards; where misses overtake false accepts, cross the two straight lines."""
    points = [rates_at(scores, labels, t) for t in [*sorted(set(scores)), np.inf]]
    for (m0, f0), (m1, f1) in pairwise(points):
        if m0 <= f0 and m1 > f1:
            return m0 + (m1 - m0) * (f0 - m0) / ((f0 - m0) + (m1 - f1))
    raise AssertionError("the curves always cross")


def test_eer_by_hand() -> None:
    # thresholds 1 2 3 4 5: misses 0 0 1/2 1/2 1, false accepts 1 1/2 1/2 0 0: equal at 3, where both are 1/2
    rate, threshold = eer([1, 2, 3, 4], [0, 1, 0, 1])
    assert rate == pytest.approx(1 / 2)
    assert threshold == pytest.approx(3.0)


def test_eer_between_points_by_hand() -> None:
    # targets 2 4 6, nontargets 1 3: misses 0, accepts 1/2 at 2; 1/3 and 1/2 at 3; 1/3 and 0 at 4. Between 3 and 4 the
    # misses stay at 1/3 while the accepts fall from 1/2 to 0: equal a third of the way.
    rate, threshold = eer([2, 4, 6, 1, 3], [1, 1, 1, 0, 0])
    assert rate == pytest.approx(1 / 3)
    assert threshold == pytest.approx(3 + 1 / 3)


def test_perfect_inverted_and_constant_scores() -> None:
    assert eer([1, 2, 3, 4], [0, 0, 1, 1]) == (0.0, 3.0)
    assert eer([1, 2, 3, 4], [1, 1, 0, 0])[0] == pytest.approx(1.0)
    assert eer([7, 7, 7, 7], [0, 1, 0, 1])[0] == pytest.approx(0.5)


def test_min_dcf_by_hand() -> None:
    # targets 2 4 6, nontargets 1 3; prior 1/4: cost (misses / 4 + 3 accepts / 4) / (1/4) = misses + 3 accepts.
    # at 1: 3; at 2: 1.5; at 3: 1/3 + 1.5; at 4: 1/3; at 6: 2/3; above: 1.
    assert min_dcf([2, 4, 6, 1, 3], [1, 1, 1, 0, 0], 0.25) == (pytest.approx(1 / 3), 4.0)
    # costs 10 and 1 at the same prior: (2.5 misses + 0.75 accepts) / 0.75; at 2: 0.5; at 4: 2.5 / 3 / 0.75 > 1
    assert min_dcf([2, 4, 6, 1, 3], [1, 1, 1, 0, 0], 0.25, c_miss=10.0)[0] == pytest.approx(0.5)


def test_useless_scores_cost_one() -> None:
    assert min_dcf([7, 7, 7, 7], [0, 1, 0, 1], 0.01)[0] == 1.0


@settings(max_examples=300, deadline=None)
@given(trials())
def test_eer_equals_brute_force(drawn: Trials) -> None:
    assert eer(*drawn)[0] == pytest.approx(brute_eer(*drawn), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(trials(), st.floats(0.01, 0.99), st.floats(0.1, 10), st.floats(0.1, 10))
def test_min_dcf_equals_brute_force_and_is_reached_at_its_threshold(
    drawn: Trials, prior: float, c_miss: float, c_fa: float
) -> None:
    scores, labels = drawn

    def cost(threshold: float) -> float:
        miss, accept = rates_at(scores, labels, threshold)
        return (c_miss * prior * miss + c_fa * (1 - prior) * accept) / min(c_miss * prior, c_fa * (1 - prior))

    value, threshold = min_dcf(scores, labels, prior, c_miss, c_fa)
    assert value == pytest.approx(min(cost(t) for t in [*set(scores), np.inf]), abs=1e-12)
    assert cost(threshold) == pytest.approx(value, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(trials())
def test_monotone_maps_change_nothing(drawn: Trials) -> None:
    scores, labels = drawn
    for mapped in (np.exp(3 * scores), 5 * scores - 2, np.arctan(scores)):
        assert eer(mapped, labels)[0] == pytest.approx(eer(scores, labels)[0], abs=1e-12)
        assert min_dcf(mapped, labels, 0.05)[0] == pytest.approx(min_dcf(scores, labels, 0.05)[0], abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(trials(), st.floats(0.01, 0.99))
def test_swapping_labels_and_signs_swaps_the_errors(drawn: Trials, prior: float) -> None:
    scores, labels = drawn
    assert eer(-scores, 1 - labels)[0] == pytest.approx(eer(scores, labels)[0], abs=1e-12)
    swapped = min_dcf(-scores, 1 - labels, 1 - prior)[0]
    assert swapped == pytest.approx(min_dcf(scores, labels, prior)[0], abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(trials())
def test_order_of_trials_does_not_matter(drawn: Trials) -> None:
    scores, labels = drawn
    assert eer(scores[::-1], labels[::-1]) == eer(scores, labels)


@pytest.mark.parametrize("grid", [None, 20])
def test_curve_and_eer_agree_with_scikit_learn(grid: int | None) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is an oracle of the development install")
    rng = np.random.default_rng(4)
    labels = (rng.random(3000) < 0.2).astype(int)
    scores = rng.normal(size=3000) + 1.5 * labels
    scores = scores if grid is None else np.round(scores * grid) / grid  # ties
    fpr, tpr, thresholds = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    ours = curve(scores, labels)
    np.testing.assert_allclose(ours.accepts[::-1], fpr, atol=1e-12)
    np.testing.assert_allclose(ours.misses[::-1], 1 - tpr, atol=1e-12)
    np.testing.assert_array_equal(ours.thresholds[:-1][::-1], thresholds[1:])
    gap = (1 - tpr) - fpr  # falls from 1 to -1; the crossing by linear interpolation
    after = int(np.argmax(gap <= 0))
    part = gap[after - 1] / (gap[after - 1] - gap[after])
    assert eer(scores, labels)[0] == pytest.approx(fpr[after - 1] + part * (fpr[after] - fpr[after - 1]), abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "labels", "what"),
    [
        ([1.0, 2.0], [1, 1], "both classes"),
        ([1.0, 2.0], [0, 0], "both classes"),
        ([], [], "both classes"),
        ([1.0, np.nan], [0, 1], "finite"),
        ([1.0, np.inf], [0, 1], "finite"),
        ([1.0, 2.0], [0, 1, 1], "length"),
        ([1.0, 2.0], [0, 2], "labels"),
    ],
)
def test_what_cannot_be_measured(scores: list, labels: list, what: str) -> None:
    for measured in (eer, lambda s, y: min_dcf(s, y, 0.01), lambda s, y: bootstrap(s, y, s, s), cllr, min_cllr):
        with pytest.raises(BadInput, match=what):
            measured(scores, labels)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, np.nan])
def test_a_prior_is_between_0_and_1(prior: float) -> None:
    for cost in (min_dcf, act_dcf):
        with pytest.raises(BadInput, match="prior"):
            cost([1, 2], [0, 1], prior)


# ---- DET


@pytest.mark.parametrize("grid", [None, 20])
def test_det_agrees_with_scikit_learn(grid: int | None) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is an oracle of the development install")
    rng = np.random.default_rng(5)
    labels = (rng.random(2000) < 0.3).astype(int)
    scores = rng.normal(size=2000) + labels
    scores = scores if grid is None else np.round(scores * grid) / grid
    fpr, tpr, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    fnr = 1 - tpr
    inside = (fpr > 0) & (fpr < 1) & (fnr > 1e-12) & (fnr < 1)
    found = det(scores, labels)
    np.testing.assert_allclose(found.accepts[::-1], fpr[inside], atol=1e-9)
    np.testing.assert_allclose(found.misses[::-1], fnr[inside], atol=1e-9)


def test_det_of_normal_scores_is_a_straight_line() -> None:
    """Nontargets N(0, 1), targets N(2, 1): y = -x - 2, whatever the threshold."""
    rng = np.random.default_rng(6)
    labels = np.repeat([0, 1], 20_000)
    found = det(rng.normal(size=40_000) + 2 * labels, labels, most=50)
    middle = (found.accepts > 0.02) & (found.misses > 0.02)
    assert middle.sum() > 5
    np.testing.assert_allclose(
        found.y[middle], -found.x[middle] - 2, atol=0.06
    )  # 0.06: three deviations at a rate of 2 %


@settings(max_examples=50, deadline=None)
@given(trials(), st.integers(2, 9))
def test_a_thinned_det_keeps_points_and_ends(drawn: Trials, most: int) -> None:
    full, thin = det(*drawn), det(*drawn, most=most)
    assert len(thin.x) <= most
    points = list(zip(full.accepts.tolist(), full.misses.tolist(), strict=True))
    kept = list(zip(thin.accepts.tolist(), thin.misses.tolist(), strict=True))
    assert set(kept) <= set(points)
    assert (kept[:1], kept[-1:]) == (points[:1], points[-1:])
    assert np.isfinite(full.x).all()
    assert np.isfinite(full.y).all()


def test_perfect_scores_have_no_place_on_probit_axes() -> None:
    assert det([1, 2, 3, 4], [0, 0, 1, 1]).x.size == 0


def test_probit() -> None:
    np.testing.assert_allclose(probit([0.5, 0.975, 0.001]), [0.0, 1.959963984540054, -3.090232306167813], atol=1e-12)
    for rate in (0.0, 1.0, np.nan):
        with pytest.raises(BadInput, match="probit"):
            probit([0.5, rate])


def test_errors_are_counted_and_thirty_are_enough() -> None:
    assert errors_at([1, 2, 3, 1, 2, 3], [1, 1, 1, 0, 0, 0], 2) == (1, 2)
    assert not too_few(30, 30)
    assert too_few(29.9, 100)
    assert too_few(100, 29)


# ---- log-likelihood ratios


def test_act_dcf_by_hand() -> None:
    # prior 1/4: threshold ln 3 = 1.0986; of the targets 1.0 is missed, of the nontargets 1.2 accepted:
    # (1/4 · 1/2 + 3/4 · 1/3) / (1/4) = 1/2 + 1
    llrs, labels = [1.0, 2.0, 1.2, 0.5, -3.0], [1, 1, 0, 0, 0]
    assert bayes_threshold(0.25) == pytest.approx(np.log(3))
    assert act_dcf(llrs, labels, 0.25) == pytest.approx(1.5)
    # a miss that costs 3 times as much moves the threshold to 0: no miss, accepts 2/3, over 3/4
    assert bayes_threshold(0.25, c_miss=3.0) == pytest.approx(0.0, abs=1e-12)
    assert act_dcf(llrs, labels, 0.25, c_miss=3.0) == pytest.approx(2 / 3)
    at = bayes_threshold(0.25)
    assert act_dcf([at, 0.0], [1, 0], 0.25) == 0.0  # the threshold itself is accepted
    assert act_dcf([9.0, at], [1, 0], 0.25) == pytest.approx(3.0)


def test_cllr_by_hand() -> None:
    # targets ln 3 and 0: log2(4/3) and 1; nontarget -ln 7: log2(8/7)
    wanted = (np.mean([np.log2(4 / 3), 1.0]) + np.log2(8 / 7)) / 2
    assert cllr([np.log(3), 0.0, -np.log(7)], [1, 1, 0]) == pytest.approx(wanted)
    assert cllr([0.0, 0.0, 0.0], [1, 0, 0]) == pytest.approx(1.0)
    assert cllr([800.0, -800.0], [1, 0]) == 0.0
    assert cllr([-800.0, 800.0], [1, 0]) == pytest.approx(800 / np.log(2))  # wrong and sure: large, not infinite


def test_min_cllr_by_hand() -> None:
    # in rising order 0 | 1 0 | 1: shares 0, 1/2, 1/2, 1; at even numbers of both classes the llrs are -inf, 0, 0, inf
    assert min_cllr([1, 2, 3, 4], [0, 1, 0, 1]) == pytest.approx(0.5)
    assert min_cllr([1, 2, 3, 4], [0, 0, 1, 1]) == 0.0
    assert min_cllr([4, 3, 2, 1], [0, 0, 1, 1]) == pytest.approx(1.0)
    assert min_cllr([7, 7, 7], [0, 1, 0]) == pytest.approx(1.0)  # a tie is one llr, whatever the order
    assert min_cllr([7, 7, 7], [1, 0, 0]) == pytest.approx(1.0)


@settings(max_examples=100, deadline=None)
@given(trials(), st.floats(-2, 2), st.floats(0.01, 0.99))
def test_calibration_costs_never_less_than_none(drawn: Trials, shift: float, prior: float) -> None:
    scores, labels = drawn
    assert cllr(scores + shift, labels) >= min_cllr(scores, labels) - 1e-12
    assert act_dcf(scores + shift, labels, prior) >= min_dcf(scores, labels, prior)[0] - 1e-12


@settings(max_examples=100, deadline=None)
@given(trials(), st.floats(0.01, 0.99))
def test_llrs_swap_with_labels_and_signs(drawn: Trials, prior: float) -> None:
    scores, labels = drawn
    assert cllr(-scores, 1 - labels) == pytest.approx(cllr(scores, labels), abs=1e-12)
    assert min_cllr(-scores, 1 - labels) == pytest.approx(min_cllr(scores, labels), abs=1e-12)
    moved = scores + 1e-4  # off the threshold, where accepting wins
    assert act_dcf(-moved, 1 - labels, 1 - prior) == pytest.approx(act_dcf(moved, labels, prior), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(trials())
def test_llrs_equal_loops(drawn: Trials) -> None:
    llrs, labels = drawn
    costs: tuple[list[float], list[float]] = ([], [])
    for llr, label in zip(llrs, labels, strict=True):
        costs[label].append(np.log2(1 + np.exp(-llr if label else llr)))
    assert cllr(llrs, labels) == pytest.approx((np.mean(costs[0]) + np.mean(costs[1])) / 2, abs=1e-12)
    for prior in (0.01, 0.5):
        miss, accept = rates_at(llrs, labels, np.log((1 - prior) / prior))
        wanted = (prior * miss + (1 - prior) * accept) / min(prior, 1 - prior)
        assert act_dcf(llrs, labels, prior) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(trials())
def test_min_cllr_agrees_with_scikit_learn(drawn: Trials) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic", reason="scikit-learn is an oracle of the development install")
    scores, labels = drawn
    posterior = isotonic.IsotonicRegression().fit(scores, labels).predict(scores)
    with np.errstate(divide="ignore"):
        llrs = np.log(posterior / (1 - posterior)) - np.log(labels.mean() / (1 - labels.mean()))
    targets, nontargets = llrs[labels == 1], llrs[labels == 0]
    wanted = (np.logaddexp2(0, -targets / np.log(2)).mean() + np.logaddexp2(0, nontargets / np.log(2)).mean()) / 2
    assert min_cllr(scores, labels) == pytest.approx(wanted, abs=1e-9)


# ---- intervals


def speaker_trials(speakers: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of `each` recordings a speaker; a recording's score shift belongs to its speaker."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(speakers), each)
    a, b = np.triu_indices(len(of), 1)
    labels = (of[a] == of[b]).astype(int)
    ease = rng.normal(size=speakers)
    return rng.normal(size=len(a)) + 2 * labels + ease[of[a]] * labels, labels, of[a], of[b]


def test_intervals_equal_a_loop_that_repeats_trials() -> None:
    """The same draws, with every trial written out as often as its speakers were drawn."""
    scores, labels, a, b = speaker_trials(6, 3, seed=0)
    scores = np.round(scores, 1)  # ties
    rng = np.random.default_rng(9)
    rates, costs = [], []
    for _ in range(40):
        times = np.bincount(rng.integers(6, size=6), minlength=6)
        copies = np.where(a == b, times[a], times[a] * times[b])
        s, y = np.repeat(scores, copies), np.repeat(labels, copies)
        rates.append(eer(s, y)[0])
        costs.append(min_dcf(s, y, 0.05)[0])
    names = np.array([f"speaker {i}" for i in range(6)])
    found = intervals(scores, labels, names[a], names[b], [equal_error, least_cost(0.05)], draws=40, seed=9)
    np.testing.assert_allclose(
        found, [np.percentile(rates, [2.5, 97.5]), np.percentile(costs, [2.5, 97.5])], atol=1e-12
    )


def test_interval_is_wider_than_that_of_independent_trials() -> None:
    """Trials of one speaker stand or fall together; an interval that treats them as independent is too narrow."""
    scores, labels, a, b = speaker_trials(12, 6, seed=3)
    low, high = bootstrap(scores, labels, a, b, draws=200)
    assert low < eer(scores, labels)[0] < high
    rng = np.random.default_rng(0)
    picks = rng.integers(len(scores), size=(200, len(scores)))
    alone = np.percentile([eer(scores[p], labels[p])[0] for p in picks], [2.5, 97.5])
    assert high - low > 1.5 * (alone[1] - alone[0])


def test_interval_depends_on_the_seed_only() -> None:
    scores, labels, a, b = speaker_trials(5, 3, seed=1)
    first = bootstrap(scores, labels, a, b, draws=50, seed=1)
    assert first == bootstrap(scores, labels, a, b, draws=50, seed=1)
    assert first != bootstrap(scores, labels, a, b, draws=50, seed=2)


def test_intervals_need_two_speakers_and_matching_lengths() -> None:
    with pytest.raises(BadInput, match="two or more"):
        bootstrap([1, 2], [0, 1], ["a", "a"], ["a", "a"])
    with pytest.raises(BadInput, match="speakers for 2 trials"):
        bootstrap([1, 2], [0, 1], ["a"], ["a", "b"])


def test_draws_without_a_class_are_left_out() -> None:
    """Two speakers, targets of the first only: half of the draws have lost one class."""
    low, high = bootstrap([3, 1, 2], [1, 0, 0], ["a", "a", "b"], ["a", "b", "a"], draws=60)
    assert (low, high) == (0.0, 0.0)
