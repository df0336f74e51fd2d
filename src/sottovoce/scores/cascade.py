"""A cascade: a cheap score answers where it is far from the threshold, a dearer one is asked where it is near.

Every stage's score is mapped to the scale of the last one by a rising map, so one threshold holds for all stages. A
gate says from where on a stage answers; `gates` finds them. After arXiv 2606.08078, whose text is not public: the
formulas are our reading. There the maps lead to the float network's scores; here to the last stage's, so that a cascade
needs no file that it does not run.

Ours: a stage may weigh the evidence of all stages asked so far. What it goes by is then the weighted sum of their
scores, and the scale of all is that of the last stage's sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput
from sottovoce.scores.calibration import minimum
from sottovoce.scores.curves import checked
from sottovoce.scores.isotonic import pool_adjacent

Real = NDArray[np.float64]
Rows = NDArray[np.int64]
Score = Callable[[int, Rows], ArrayLike]  # (stage from 0, numbers of trials) → their scores by that stage
Weights = Sequence[Sequence[float]]  # for each stage the weights of the scores of all stages up to it
RIDGE = 1e-3  # of the weights, in a loss of about 0.1: holds them where stages are nearly alike


@dataclass(frozen=True)
class Map:
    """A rising map from one scale of scores to another: linear between knots, of slope 1 beyond them (our reading).

    Nowhere flat, unlike the steps of isotonic regression, so a stage's error rates are the same on both scales.
    """

    knots: tuple[float, ...]  # scores of a stage, rising
    values: tuple[float, ...]  # what they stand for on the last stage's scale, rising

    def __post_init__(self) -> None:
        if not self.knots or len(self.knots) != len(self.values):
            raise BadInput(f"map: {len(self.knots)} knots and {len(self.values)} values are not two rows alike")
        for row in (self.knots, self.values):
            if not np.isfinite(row).all() or not (np.diff(row) > 0).all():
                raise BadInput("map: knots and values must be finite and rise")

    def __call__(self, scores: ArrayLike) -> Real:
        """(trials,) scores of the stage → (trials,) on the last stage's scale."""
        found = np.asarray(scores, dtype=np.float64)
        beyond = np.minimum(found - self.knots[0], 0.0) + np.maximum(found - self.knots[-1], 0.0)
        return np.asarray(np.interp(found, self.knots, self.values) + beyond, dtype=np.float64)

    @property
    def back(self) -> Map:
        """The map from the last stage's scale to this one's."""
        return Map(self.values, self.knots)


SAME = Map((0.0,), (0.0,))  # the last stage's own scale


@dataclass(frozen=True)
class Gate:
    """Where a stage answers, on the last stage's scale: below `low` or above `high`. Between them the next is asked.

    below, above: at most this share of the answers given there would be another by the last stage; None: not bounded.
    """

    low: float
    high: float
    below: float | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise BadInput(f"gate: {self.low} to {self.high} is not a range of scores")

    @classmethod
    def around(cls, threshold: float, distance: float) -> Gate:
        """Answers where |score - threshold| > distance: the gate of arXiv 2606.08078. Infinite: never answers."""
        if math.isnan(distance) or distance < 0:
            raise BadInput(f"gate: a distance of {distance} is not 0 or more")
        return cls(threshold - distance, threshold + distance)

    def stops(self, scores: Real) -> NDArray[np.bool_]:
        """Whether the stage answers, for each mapped score."""
        return (scores < self.low) | (scores > self.high)


@dataclass(frozen=True)
class Outcome:
    """What a cascade gave for each trial."""

    scores: Real  # (trials,) on the last stage's scale
    stage: Rows  # (trials,) the stage that answered, from 0


def run(
    score: Score, trials: int, maps: Sequence[Map], gates: Sequence[Gate], weights: Weights | None = None
) -> Outcome:
    """Ask the stages in turn; each sees only the trials that none before it has answered.

    score: called once for each stage that is reached   maps: one a stage   gates: one a stage but the last   weights:
    of the evidence of all stages so far, as `fit_weights` gives them; left out, a stage goes by its own score alone.
    Raises BadInput for a score that is not finite, naming stage and trial, and for maps, gates and weights that do not
    fit.
    """
    if len(maps) < 2 or len(gates) != len(maps) - 1:
        raise BadInput(
            f"cascade: {len(maps)} maps and {len(gates)} gates; needs two stages or more, a gate between them"
        )
    heavy = check_weights(weights, len(maps))
    seen = np.zeros((len(maps), trials))
    scores, stage = np.zeros(trials), np.zeros(trials, dtype=np.int64)
    left = np.arange(trials)
    for number, to_last in enumerate(maps):
        if not len(left):
            break
        seen[number, left] = _finite(score(number, left), number, left)
        found = to_last(_sum(seen[: number + 1, left], heavy[number]))
        scores[left], stage[left] = found, number
        if number < len(gates):
            left = left[~gates[number].stops(found)]
    return Outcome(scores, stage)


def _finite(scores: ArrayLike, stage: int, rows: Rows) -> Real:
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != rows.shape:
        raise BadInput(f"cascade: stage {stage + 1} gave {values.shape} scores for {len(rows)} trials")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise BadInput(
            f"cascade: the score of trial {rows[bad[0]]} by stage {stage + 1} is {values[bad[0]]}; run its self-test"
        )
    return values


# ---- evidence of several stages


def check_weights(weights: Weights | None, stages: int) -> list[tuple[float, ...]]:
    """The weights of each stage; None: each goes by its own score alone. Raises BadInput for what does not fit.

    Weights are finite, 0 or more, and not all 0 in a stage.
    """
    if weights is None:
        return [(*(0.0 for _ in range(number)), 1.0) for number in range(stages)]
    rows = [tuple(float(weight) for weight in row) for row in weights]
    if [len(row) for row in rows] != list(range(1, stages + 1)):
        raise BadInput(f"cascade: weights {rows} do not fit {stages} stages: 1 for the first, 2 for the second, …")
    if not all(math.isfinite(sum(row)) and min(row) >= 0 and sum(row) > 0 for row in rows):
        raise BadInput(f"cascade: weights {rows} must be finite, 0 or more, and in each stage one above 0")
    return rows


def evidence(scores: Sequence[ArrayLike], weights: Weights | None = None) -> list[Real]:
    """What each stage goes by where all are asked: (trials,) for each stage. scores: (trials,) for each stage."""
    rows = np.stack([np.asarray(row, dtype=np.float64) for row in scores])
    return [_sum(rows[: number + 1], heavy) for number, heavy in enumerate(check_weights(weights, len(rows)))]


def _sum(rows: Real, weights: Sequence[float]) -> Real:
    """Weighted sum of rows. In order, so that a trial has the same sum among many as alone."""
    total = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total += weight * row
    return total


def fit_weights(scores: Sequence[ArrayLike], labels: ArrayLike) -> list[tuple[float, ...]]:
    """For each stage the weights, together 1, whose sum of the scores so far tells targets best from nontargets.

    scores: (trials,) for each stage   labels: (trials,) 1 for target. Logistic regression, targets weighing one half,
    with a small ridge; a stage whose weight would be below 0 gets 0. Raises BadInput for scores that are not finite or
    of one class, and where no stage's scores rise towards targets. Source: linear fusion by prior-weighted logistic
    regression, Brümmer et al. 2007; in a cascade ours.
    """
    rows = [checked(row, labels) for row in scores]
    table, target = np.stack([values for values, _ in rows], axis=1), rows[0][1]
    return [_fused(table[:, : number + 1], target) for number in range(table.shape[1])]


def _fused(table: Real, target: NDArray[np.bool_]) -> tuple[float, ...]:
    """Weights of the columns, none below 0, together 1: those that fall are left out, the steepest first."""
    kept = list(range(table.shape[1]))
    scale = np.maximum(table.std(axis=0), 1e-12)
    while kept:
        found = minimum(np.hstack([(table / scale)[:, kept], np.ones((len(table), 1))]), target, 0.5, RIDGE)
        assert found is not None, "a ridge makes the loss strictly convex"
        if found[:-1].min() >= 0 and found[:-1].max() > 0:
            weights = np.zeros(table.shape[1])
            weights[kept] = found[:-1] / scale[kept]
            return tuple((weights / weights.sum()).tolist())
        kept.pop(int(np.argmin(found[:-1])))
    raise BadInput("cascade: no stage's scores rise from nontargets to targets; are the labels the right way round?")


# ---- what it costs


def reached(stage: Rows, stages: int) -> Real:
    """The share of trials that each stage was asked for: (stages,), 1 for the first."""
    return np.array([float((stage >= number).mean()) for number in range(stages)])


def stopped(stage: Rows, stages: int) -> Real:
    """The share of trials that each stage answered: (stages,), together 1."""
    return np.bincount(stage, minlength=stages) / len(stage)


def mean_cost(costs: Sequence[float], stage: Rows) -> float:
    """Mean cost of a trial when each stage that is asked adds its own.

    costs: one a stage; with (2, 3, 4) bits, 2 + 3 P(reach 3) + 4 P(reach 4), the cost of arXiv 2606.08078.
    """
    return float(np.dot(costs, reached(stage, len(costs))))


# ---- maps


def fit_map(scores: ArrayLike, last: ArrayLike) -> Map:
    """The rising map from a stage's scores to the last stage's: isotonic regression, its steps joined at their middles.

    scores, last: (trials,) by both stages. A knot is the mean score of a step. Raises BadInput for rows that differ in
    length, scores that are not finite, and fewer than two different ones.
    Source: arXiv 2606.08078 (isotonic regression); joining the steps is ours.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(last, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise BadInput(f"map: {x.shape} and {y.shape} scores must be two rows of the same length, and finite")
    distinct, place, times = np.unique(x, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise BadInput(f"map: {len(distinct)} different scores; a map needs two or more")
    steps = pool_adjacent(np.bincount(place, y) / times, times)
    values, step = np.unique(steps, return_inverse=True)
    knots = np.bincount(step, distinct * times) / np.bincount(step, times)
    return Map(tuple(knots.tolist()), tuple(values.tolist()))
