"""Calibration against scikit-learn, known densities, and cases without a finite answer."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.calibration import (
    AFFINE_SPEAKERS,
    CELLS,
    RIDGE,
    Calibration,
    affine,
    from_dict,
    isotonic,
    minimum,
    probability,
    shrunk,
)
from sottovoce.scores.metrics import act_dcf, cllr, min_cllr, min_dcf

ORACLE = "scikit-learn is an oracle of the development install"


def drawn(targets: int, nontargets: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose llr is 6 * score - 1.5: normal densities 0.5 and 0 of equal deviation."""
    rng = np.random.default_rng(seed)
    deviation = math.sqrt(0.5 / 6)
    labels = np.repeat([1, 0], [targets, nontargets])
    return rng.normal(0.5 * labels, deviation), labels


@pytest.mark.parametrize("prior", [0.5, 0.1])
def test_the_minimum_is_that_of_scikit_learn(prior: float) -> None:
    scores, labels = drawn(200, 900)
    rng = np.random.default_rng(1)
    length = rng.normal(0, 1, len(scores)) + labels
    found = affine(scores, labels, prior, {"length": length})
    heavy = np.where(labels == 1, prior / 200, (1 - prior) / 900) * 1100
    linear = pytest.importorskip("sklearn.linear_model", reason=ORACLE)
    peer = linear.LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(
        np.c_[scores, length], labels, sample_weight=heavy
    )
    offset = peer.intercept_[0] - math.log(prior / (1 - prior))
    assert found.scale == pytest.approx(peer.coef_[0][0], rel=1e-4)
    assert found.weights["length"] == pytest.approx(peer.coef_[0][1], rel=1e-4)
    assert found.offset == pytest.approx(offset, rel=1e-4)
    assert found.ridge == 0.0


@pytest.mark.parametrize("prior", [0.5, 0.1])
def test_equal_scores_are_as_many_trials(prior: float) -> None:
    scores, labels = np.round(drawn(200, 900)[0], 1), drawn(200, 900)[1]
    found = affine(scores, labels, prior)
    heavy = np.where(labels == 1, prior / 200, (1 - prior) / 900) * 1100
    linear = pytest.importorskip("sklearn.linear_model", reason=ORACLE)
    peer = linear.LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(scores[:, None], labels, sample_weight=heavy)
    assert len(np.unique(scores)) < 30
    assert found.scale == pytest.approx(peer.coef_[0][0], rel=1e-4)
    assert found.offset == pytest.approx(peer.intercept_[0] - math.log(prior / (1 - prior)), rel=1e-4)


@pytest.mark.parametrize(("speakers", "prior"), [(12, 0.5), (150, 0.5), (40, 0.1)])
def test_shrunk_is_isotonic_regression_of_labels_drawn_to_the_line(speakers: int, prior: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [300, 1200])
    steps = np.clip(np.round(rng.normal(100 + 60 * labels, 25)), 0, CELLS - 1)
    steps[:2] = CELLS - 1, 0  # the range is then as wide as the cells are many, and each step of it a cell
    scores = steps / (CELLS - 1)
    linear = pytest.importorskip("sklearn.linear_model", reason=ORACLE)
    isotonics = pytest.importorskip("sklearn.isotonic", reason=ORACLE)
    heavy = np.where(labels == 1, prior / 300, (1 - prior) / 1200)
    line = linear.LogisticRegression(C=1e10, tol=1e-10, max_iter=1000)
    believed = line.fit(scores[:, None], labels, sample_weight=heavy * 1500).predict_proba(scores[:, None])[:, 1]
    mixed = (speakers * labels + AFFINE_SPEAKERS * believed) / (speakers + AFFINE_SPEAKERS)
    share = isotonics.IsotonicRegression().fit(scores, mixed, sample_weight=heavy).predict(scores)
    wanted = np.log(share / (1 - share)) - math.log(prior / (1 - prior))
    found = shrunk(scores, labels, speakers, prior)
    centres = [round(float(scores[np.abs(wanted - llr) < 1e-4].max(initial=-1)), 6) for _, llr in found.knots]
    assert min(centres) >= 0, "every knot has an llr that the oracle gives to some trials"
    inside = {round(float(llr), 4) for llr in wanted}
    assert len(inside) == len(found.knots)
    assert found.affine_speakers == AFFINE_SPEAKERS


def bent(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that no line makes llrs of: five times as steep below 0.25."""
    scores, labels = drawn(2000, 8000, seed)
    return np.where(scores < 0.25, 0.25 + 5.0 * (scores - 0.25), scores), labels


def test_one_speaker_is_given_the_line_and_many_the_shape() -> None:
    scores, labels = bent(0)
    line, shape = affine(scores, labels), isotonic(scores, labels)
    inside = np.linspace(*np.quantile(scores, [0.1, 0.9]), 50)
    apart = np.abs(line(inside) - shape(inside)).max()
    assert np.abs(shrunk(scores, labels, 1)(inside) - line(inside)).max() < 0.2 * apart
    assert np.abs(shrunk(scores, labels, 10**6)(inside) - shape(inside)).max() < 0.2 * apart
    new, kinds = bent(1)
    assert cllr(shrunk(scores, labels, 150)(new), kinds) < 1.02 * min_cllr(new, kinds)
    assert cllr(line(new), kinds) > 1.05 * min_cllr(new, kinds)


def test_a_shrunk_calibration_is_small_and_says_what_it_was_drawn_to() -> None:
    found = shrunk(*drawn(4000, 90000), speakers=149)
    assert len(json.dumps(found.as_dict())) < 8000
    assert from_dict(json.loads(json.dumps(found.as_dict()))) == found
    apart = shrunk([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], speakers=2)
    assert apart.ridge == RIDGE
    with pytest.raises(BadInput, match="0 speakers"):
        shrunk(*drawn(5, 5), speakers=0)
    with pytest.raises(BadInput, match="right way round"):
        shrunk([0.9, 0.8, 0.1, 0.2], [0, 0, 1, 1], speakers=2)
    with pytest.raises(BadInput, match="the same in all trials"):
        shrunk([0.5, 0.5, 0.5], [0, 0, 1], speakers=2)


def test_llrs_of_known_densities_are_found_and_hold_on_new_trials() -> None:
    found = affine(*drawn(20000, 60000))
    assert (found.scale, found.offset) == (pytest.approx(6.0, rel=0.03), pytest.approx(-1.5, rel=0.03))
    scores, labels = drawn(20000, 60000, seed=1)
    llrs = found(scores)
    assert cllr(llrs, labels) < 1.01 * min_cllr(scores, labels)
    for prior in (0.05, 0.5):
        assert act_dcf(llrs, labels, prior) < 1.05 * min_dcf(scores, labels, prior)[0]


def test_side_information_takes_back_what_it_causes() -> None:
    scores, labels = drawn(3000, 9000)
    noise = np.random.default_rng(3).uniform(0, 20, len(scores))
    shifted = scores - 0.05 * noise
    plain, helped = affine(shifted, labels), affine(shifted, labels, measures={"snr": noise})
    assert helped.weights["snr"] == pytest.approx(0.05 * helped.scale, rel=0.05)
    assert cllr(helped(shifted, {"snr": noise}), labels) < 0.9 * cllr(plain(shifted), labels)
    with pytest.raises(BadInput, match="'snr' is not measured"):
        helped(shifted)


def test_the_same_trials_in_another_order_and_unit_give_the_same_llrs() -> None:
    scores, labels = drawn(50, 200)
    turned = np.random.default_rng(0).permutation(250)
    there = affine(scores, labels)(scores)
    assert np.allclose(affine(scores[turned], labels[turned])(scores), there, atol=1e-9)
    assert np.allclose(affine(100 * scores - 7, labels)(100 * scores - 7), there, atol=1e-6)
    assert affine(scores, labels) == affine(scores, labels)


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.8, 0.9], [0.1, 0.5, 0.5, 0.9]], ids=["apart", "touching"])
def test_separable_trials_are_held_by_a_ridge_that_is_told(scores: list[float]) -> None:
    found = affine(scores, [0, 0, 1, 1])
    assert found.ridge == RIDGE
    assert 0 < found.scale < 1e4
    assert np.all(np.diff(found(scores)) >= 0)
    assert np.abs(found(scores)).max() <= math.log(3) + 1e-12


def test_trials_separable_only_with_a_measure_are_held_too() -> None:
    scores, labels = drawn(40, 40)
    assert affine(scores, labels).ridge == 0.0
    assert affine(scores, labels, measures={"tells": labels + 0.1 * scores}).ridge == RIDGE


def test_no_llr_is_larger_than_the_trials_speak_for() -> None:
    found = affine(*drawn(99, 999))
    assert found.bounds == (-math.log(100), math.log(1000))
    assert found([-50.0, 50.0]).tolist() == list(found.bounds)


def test_isotonic_is_that_of_scikit_learn_between_its_ends() -> None:
    scores, labels = np.round(drawn(300, 900)[0], 2), drawn(300, 900)[1]
    found = isotonic(scores, labels)
    ends = [scores.min(), scores.max()]
    oracle = pytest.importorskip("sklearn.isotonic", reason=ORACLE)
    peer = oracle.IsotonicRegression().fit(np.r_[scores, ends], np.r_[labels, 1, 0])
    prior = 301 / 1202
    for score, llr in found.knots[1:-1]:
        inside = peer.y_thresholds_[np.argmin(np.abs(peer.X_thresholds_ - score))]
        share = 1 / (1 + math.exp(-(llr + math.log(prior / (1 - prior)))))
        assert np.abs(peer.y_thresholds_ - share).min() < 1e-9, (score, inside)
    assert np.isfinite(found.knots).all()
    assert cllr(found(scores), labels) < 1.05 * min_cllr(scores, labels)


def values() -> st.SearchStrategy[list[tuple[float, int]]]:
    return st.lists(st.tuples(st.floats(-1, 1, width=32), st.integers(0, 1)), min_size=2, max_size=40)


@settings(deadline=None, max_examples=40)
@given(values())
def test_llrs_rise_with_scores_whatever_the_trials(trials: list[tuple[float, int]]) -> None:
    scores, labels = map(np.array, zip(*trials, strict=True))
    for fit in (affine, isotonic, lambda *trials: shrunk(*trials, speakers=5)):
        try:
            found = fit(scores, labels)
        except BadInput:
            continue
        llrs = found(np.linspace(-1.5, 1.5, 31))
        assert np.isfinite(llrs).all()
        assert np.all(np.diff(llrs) >= -1e-12)
        assert from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.1, np.nan, 0.3]}, "nan"),
        ({"labels": [1, 1, 1]}, "need both"),
        ({"prior": 1.0}, "prior of 1.0"),
        ({"measures": {"snr": [3.0, 3.0, 3.0]}}, "'snr' is the same"),
        ({"measures": {"snr": [3.0, np.inf, 3.0]}}, "finite"),
        ({"measures": {"snr": [3.0]}}, "one for each score"),
        ({"labels": [1, 1, 0]}, "the right way round"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict[str, Any], message: str) -> None:
    given_: dict[str, Any] = {"scores": [0.1, 0.2, 0.3], "labels": [0, 0, 1], **change}
    with pytest.raises(BadInput, match=message):
        affine(**given_)


@pytest.mark.parametrize(
    "change",
    [{"scale": -1}, {"scale": "x"}, {"scale": math.nan}, {"method": "guess"}, {"targets": 0}, {"weights": [1]}]
    + [{"method": "isotonic", "knots": knots} for knots in ([], [[0, 1], [1, 0]], [[0]])],
)
def test_damaged_entries_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="calibrat"):
        from_dict({**affine(*drawn(20, 20)).as_dict(), **change})
    with pytest.raises(BadInput, match="damaged"):
        from_dict({})


def test_a_probability_is_that_of_bayes() -> None:
    assert probability(0.0, 0.25) == pytest.approx(0.25)
    assert probability(math.log(3), 0.5) == pytest.approx(0.75)
    assert probability(-2000.0, 0.5) == 0.0
    assert probability(2000.0, 0.5) == 1.0
    with pytest.raises(BadInput, match="prior"):
        probability(0.0, 0.0)


def test_without_a_minimum_none_is_invented() -> None:
    table = np.c_[[-1.0, 1.0], [1.0, 1.0]]
    found = minimum(table, np.array([False, True]), 0.5, 0.0)
    assert found is None or abs(found[0]) > 15
    assert minimum(table, np.array([False, True]), 0.5, 0.1) is not None


def test_a_calibration_is_a_value() -> None:
    assert Calibration("affine", 1, 1, scale=2.0, offset=-1.0)([1.0]).tolist() == pytest.approx([math.log(2)])
