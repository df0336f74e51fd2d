"""The spline calibration against the loss that its docstring states, and against what it is for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.calibration import CELLS, RIDGE, affine, from_dict, isotonic
from sottovoce.scores.metrics import cllr, min_cllr
from sottovoce.scores.splines import NODES, STIFFNESS, spline


def drawn(targets: int, nontargets: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose llr is 6 * score - 1.5, five times as steep below 0.25: no line makes llrs of them."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [targets, nontargets])
    scores = rng.normal(0.5 * labels, math.sqrt(0.5 / 6))
    return np.where(scores < 0.25, 0.25 + 5.0 * (scores - 0.25), scores), labels


@pytest.mark.parametrize(("speakers", "prior"), [(5, 0.5), (400, 0.2)])
def test_no_curve_of_the_same_nodes_costs_less(speakers: int, prior: float) -> None:
    scores, labels = drawn(300, 900)
    scores = np.round((scores - scores.min()) / np.ptp(scores) * (CELLS - 1)) / (CELLS - 1)  # a cell for each score
    line, found = affine(scores, labels, prior), spline(scores, labels, speakers, prior)
    nodes = np.linspace(line.offset, line.scale + line.offset, NODES)
    step = nodes[1] - nodes[0]

    def loss(curve: np.ndarray) -> float:
        odds = np.interp(line.scale * scores + line.offset, nodes, curve) + math.log(prior / (1 - prior))
        hit, false = np.logaddexp(0, -odds)[labels == 1].mean(), np.logaddexp(0, odds)[labels == 0].mean()
        bends = (curve[2:] - 2 * curve[1:-1] + curve[:-2]) / step**2
        return float(prior * hit + (1 - prior) * false + STIFFNESS / (2 * speakers) * (bends**2).sum() * step)

    llrs = np.array([llr for _, llr in found.knots])
    assert np.all(np.diff(llrs) > 0), "these trials need no pooling, or the two would differ"
    assert [score for score, _ in found.knots] == pytest.approx(((nodes - line.offset) / line.scale).tolist(), abs=2e-6)
    assert np.abs(slopes(loss, llrs)).max() < 1e-4, "the loss is convex: where it is flat, it is least"
    assert np.abs(slopes(loss, nodes)).max() > 2e-3, "the line is not yet the best curve"


def slopes(loss: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Derivatives of a loss by central differences."""
    step = 1e-4
    return np.array([(loss(at + step * one) - loss(at - step * one)) / (2 * step) for one in np.eye(len(at))])


def test_one_speaker_is_given_the_line_and_many_the_shape() -> None:
    scores, labels = drawn(2000, 8000)
    line, shape = affine(scores, labels), isotonic(scores, labels)
    inside = np.linspace(*np.quantile(scores, [0.1, 0.9]), 50)
    apart = np.abs(line(inside) - shape(inside)).mean()
    ways = [np.abs(spline(scores, labels, speakers)(inside) - line(inside)).mean() for speakers in (1, 10**4)]
    assert ways[0] < 0.5 * ways[1]
    assert np.abs(spline(scores, labels, 10**4)(inside) - shape(inside)).mean() < 0.3 * apart
    new, kinds = drawn(2000, 8000, seed=1)
    assert cllr(spline(scores, labels, 150)(new), kinds) < 1.02 * min_cllr(new, kinds)
    assert cllr(line(new), kinds) > 1.05 * min_cllr(new, kinds)


def test_the_unit_of_the_scores_does_not_matter() -> None:
    scores, labels = drawn(200, 800)
    there = spline(scores, labels, 40)
    moved = spline(100 * scores - 7, labels, 40)
    assert np.allclose(moved(100 * scores - 7), there(scores), atol=1e-3)
    turned = np.random.default_rng(0).permutation(1000)
    assert spline(scores[turned], labels[turned], 40).knots == there.knots


def test_trials_that_one_threshold_separates_are_given_the_held_line() -> None:
    found = spline([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], speakers=2)
    assert found.ridge == RIDGE
    inside = np.linspace(0.1, 0.9, 9)
    assert np.allclose(found(inside), affine([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])(inside), atol=1e-4)


def test_it_is_small_and_says_how_stiff_it_is() -> None:
    found = spline(*drawn(4000, 90000), speakers=149)
    assert len(json.dumps(found.as_dict())) < 2000
    assert (found.method, found.stiffness) == ("spline", STIFFNESS)
    assert from_dict(json.loads(json.dumps(found.as_dict()))) == found
    with pytest.raises(BadInput, match="does not rise"):
        from_dict({**found.as_dict(), "knots": [[0, 1], [1, 0]]})


@pytest.mark.parametrize(
    ("scores", "labels", "speakers", "message"),
    [
        ([0.1, 0.5], [0, 1], 0, "0 speakers"),
        ([0.9, 0.8, 0.1, 0.2], [0, 0, 1, 1], 2, "right way round"),
        ([0.5, 0.5, 0.5], [0, 0, 1], 2, "the same in all trials"),
        ([0.1, np.nan], [0, 1], 2, "nan"),
        ([0.1, 0.2], [1, 1], 2, "need both"),
    ],
)
def test_what_cannot_be_fitted_is_refused(scores: list[float], labels: list[int], speakers: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        spline(scores, labels, speakers)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-1, 1, width=32), st.integers(0, 1)), min_size=2, max_size=40), st.integers(1, 10**6)
)
def test_llrs_rise_with_scores_whatever_the_trials(trials: list[tuple[float, int]], speakers: int) -> None:
    scores, labels = map(np.array, zip(*trials, strict=True))
    try:
        found = spline(scores, labels, speakers)
    except BadInput:
        return
    llrs = found(np.linspace(-1.5, 1.5, 61))
    assert np.isfinite(llrs).all()
    assert np.all(np.diff(llrs) >= 0)
    assert from_dict(json.loads(json.dumps(found.as_dict()))) == found
