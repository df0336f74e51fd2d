"""What every threshold costs on a set of trials: the curve that all error rates are read from.

A trial is accepted when its score is at least the threshold. The curve has one point for each distinct score, and one
above all of them, so ties are never split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput

Real = NDArray[np.float64]
Rate = Callable[[Real, Real], float]  # (miss rates, false-accept rates) of the curve's points → a figure


@dataclass(frozen=True)
class Curve:
    """What every threshold costs: thresholds ascending, misses rise from 0 to 1, false accepts fall from 1 to 0."""

    thresholds: Real  # (points,)
    misses: Real  # (points,) share of targets below the threshold
    accepts: Real  # (points,) share of nontargets at or above it


def curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Both error rates at every threshold that matters. Raises BadInput for NaN scores or a single class."""
    values, target = checked(scores, labels)
    thresholds = distinct(values)
    misses = np.searchsorted(np.sort(values[target]), thresholds) / target.sum()
    accepts = 1.0 - np.searchsorted(np.sort(values[~target]), thresholds) / (~target).sum()
    return Curve(thresholds, misses, accepts)


@dataclass(frozen=True)
class Det:
    """A detection error trade-off: points with both rates inside (0, 1), false accepts falling, and their probits."""

    accepts: Real  # (points,)
    misses: Real  # (points,)
    x: Real  # (points,) probit of the false accepts
    y: Real  # (points,) probit of the misses


def det(scores: ArrayLike, labels: ArrayLike, most: int | None = None) -> Det:
    """The DET curve: on probit axes it is a straight line where both classes have normal scores.

    most: points to keep, evenly along the curve; left out, all. Points with a rate of 0 or 1 have no place on these
    axes and are left out, so perfect scores give no points. Raises BadInput as `curve`. Source: Martin et al. 1997.
    """
    found = curve(scores, labels)
    inside = np.flatnonzero((found.misses > 0) & (found.misses < 1) & (found.accepts > 0) & (found.accepts < 1))
    accepts, misses = found.accepts[inside], found.misses[inside]
    x, y = probit(accepts), probit(misses)
    kept = _evenly(x, y, most) if most is not None and len(x) > most else slice(None)
    return Det(accepts[kept], misses[kept], x[kept], y[kept])


def probit(rates: ArrayLike) -> Real:
    """The standard normal value below which this share lies; rates within (0, 1), else BadInput."""
    given = np.asarray(rates, dtype=np.float64)
    if not ((given > 0) & (given < 1)).all():
        raise BadInput("probit: a rate is not between 0 and 1; such points have no place on probit axes")
    levels, place = np.unique(given, return_inverse=True)
    inverse = NormalDist().inv_cdf
    return np.array([inverse(level) for level in levels.tolist()], dtype=np.float64)[place].reshape(given.shape)


def _evenly(x: Real, y: Real, most: int) -> NDArray[np.int64]:
    """Places of at most `most` points, first and last among them, at even distances along the curve."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    return np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], max(most, 2)))).astype(np.int64)


def equal_error(misses: Real, accepts: Real) -> float:
    """The equal error rate of a curve."""
    below, part = crossing(misses, accepts)
    return float(misses[below] + part * (misses[below + 1] - misses[below]))


def least_cost(p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> Rate:
    """The function that gives a curve's minDCF at one prior."""
    return partial(_least_cost, p_target=p_target, c_miss=c_miss, c_fa=c_fa)


def checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Real, NDArray[np.bool_]]:
    """Scores as float64 and which trials are targets; BadInput for what no rate can be read from."""
    values, marks = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != marks.shape:
        raise BadInput(f"trials: {values.shape} scores and {marks.shape} labels are not two rows of the same length")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise BadInput(f"trials: score {bad[0]} of {len(values)} is {values[bad[0]]}; scores must be finite")
    if not np.isin(marks, (0, 1)).all():
        raise BadInput("trials: labels must be 1 (target) or 0 (nontarget)")
    target = marks.astype(bool)
    if target.all() or not target.any():
        raise BadInput(f"trials: {target.sum()} of {len(target)} are targets; error rates need both classes")
    return values, target


def check_prior(what: str, p_target: float) -> None:
    """Raises BadInput, which begins with `what`, for a prior that is none."""
    if not 0.0 < p_target < 1.0:
        raise BadInput(f"{what}: a prior of {p_target} is not between 0 and 1")


def distinct(values: Real) -> Real:
    """The thresholds of a curve: every score once, ascending, and one above all."""
    found = np.unique(values)
    return np.append(found, np.nextafter(found[-1], np.inf))


def crossing(misses: Real, accepts: Real) -> tuple[int, float]:
    """The last point whose misses do not exceed its false accepts, and how far towards the next one they are equal."""
    below = int(np.searchsorted(misses - accepts, 0.0, side="right")) - 1
    gap, next_gap = accepts[below] - misses[below], misses[below + 1] - accepts[below + 1]
    return below, float(gap / (gap + next_gap))


def detection_costs(misses: Real, accepts: Real, p_target: float, c_miss: float, c_fa: float) -> Real:
    """Normalised detection cost at every pair of rates (NIST): 1 is that of always giving the cheaper answer."""
    miss, accept = c_miss * p_target, c_fa * (1.0 - p_target)
    return (miss * misses + accept * accepts) / min(miss, accept)


def _least_cost(misses: Real, accepts: Real, p_target: float, c_miss: float, c_fa: float) -> float:
    return float(detection_costs(misses, accepts, p_target, c_miss, c_fa).min())
