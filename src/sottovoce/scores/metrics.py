"""Error rates of a set of trials, and their intervals by resampling speakers.

A trial is accepted when its score is at least the threshold. The curve has one point for each distinct score, and one
above all of them, so ties are never split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput
from sottovoce.scores.isotonic import pool_adjacent

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
    values, target = _checked(scores, labels)
    thresholds = _thresholds(values)
    misses = np.searchsorted(np.sort(values[target]), thresholds) / target.sum()
    accepts = 1.0 - np.searchsorted(np.sort(values[~target]), thresholds) / (~target).sum()
    return Curve(thresholds, misses, accepts)


def eer(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Equal error rate, a fraction, and its threshold: where the two rates cross, linear between points of the curve.

    scores: (trials,)   labels: (trials,) 1 for target, 0 for nontarget. Raises BadInput for NaN or a single class.
    """
    found = curve(scores, labels)
    below, part = _crossing(found.misses, found.accepts)
    threshold = found.thresholds[below] + part * (found.thresholds[below + 1] - found.thresholds[below])
    return equal_error(found.misses, found.accepts), float(threshold)


def min_dcf(
    scores: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0
) -> tuple[float, float]:
    """Smallest normalised detection cost over all thresholds (NIST), and the lowest threshold that reaches it.

    p_target: prior of a target trial; 1 is the cost of always giving the cheaper of the two answers. Raises BadInput as
    `eer`, and for a prior outside (0, 1).
    """
    _check_prior("minDCF", p_target)
    found = curve(scores, labels)
    costs = _costs(found.misses, found.accepts, p_target, c_miss, c_fa)
    best = int(np.argmin(costs))
    return float(costs[best]), float(found.thresholds[best])


def bayes_threshold(p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """The log-likelihood ratio, in nats, from which accepting is the cheaper answer at this prior and these costs.

    Raises BadInput for a prior outside (0, 1).
    """
    _check_prior("Bayes threshold", p_target)
    return math.log(c_fa * (1.0 - p_target)) - math.log(c_miss * p_target)


def act_dcf(llrs: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Normalised detection cost of deciding at the Bayes threshold: what the calibration costs beside minDCF.

    llrs: (trials,) natural log-likelihood ratios   labels: (trials,) 1 for target. Raises BadInput as `min_dcf`.
    """
    threshold = bayes_threshold(p_target, c_miss, c_fa)
    values, target = _checked(llrs, labels)
    misses, accepts = np.mean(values[target] < threshold), np.mean(values[~target] >= threshold)
    return float(_costs(np.asarray(misses), np.asarray(accepts), p_target, c_miss, c_fa))


def cllr(llrs: ArrayLike, labels: ArrayLike) -> float:
    """Cost of log-likelihood ratios over all priors, in bits: 0 for perfect ones, 1 for llrs that are all 0.

    llrs: (trials,) natural log-likelihood ratios   labels: (trials,) 1 for target. Raises BadInput for values that are
    not finite and for a single class. Source: Brümmer and du Preez 2006, "Application-independent evaluation of
    speaker detection".
    """
    values, target = _checked(llrs, labels)
    return _mean_bits(values, target.astype(np.float64), (~target).astype(np.float64))


def min_cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """The Cllr that is left when scores are mapped to llrs by the best rising function: what they tell apart at all.

    scores: (trials,) of any scale; equal scores get one llr. Raises BadInput as `cllr`. Source: Brümmer and du Preez
    2006, optimal calibration by pooling adjacent violators.
    """
    values, target = _checked(scores, labels)
    _, place = np.unique(values, return_inverse=True)
    each: list[Real] = [np.bincount(place, weights=kind).astype(np.float64) for kind in (target, ~target)]
    runs = np.flatnonzero(np.diff(each[0] / (each[0] + each[1]), prepend=-1.0))  # equal neighbours are pooled anyhow
    targets, nontargets = (np.add.reduceat(kind, runs) for kind in each)
    trials = targets + nontargets
    posterior, prior = pool_adjacent(targets / trials, trials), float(target.mean())
    with np.errstate(divide="ignore"):  # where one class is alone the llr is infinite, and right
        llrs = np.log(posterior / (1.0 - posterior)) - np.log(prior / (1.0 - prior))
    return _mean_bits(llrs, targets, nontargets)


def equal_error(misses: Real, accepts: Real) -> float:
    """The equal error rate of a curve."""
    below, part = _crossing(misses, accepts)
    return float(misses[below] + part * (misses[below + 1] - misses[below]))


def least_cost(p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> Rate:
    """The function that gives a curve's minDCF at one prior."""
    return partial(_least_cost, p_target=p_target, c_miss=c_miss, c_fa=c_fa)


def bootstrap(
    scores: ArrayLike,
    labels: ArrayLike,
    enrol_speaker: ArrayLike,
    test_speaker: ArrayLike,
    metric: Rate = equal_error,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of one figure; see `intervals`."""
    return intervals(scores, labels, enrol_speaker, test_speaker, [metric], draws, seed)[0]


def intervals(
    scores: ArrayLike,
    labels: ArrayLike,
    enrol_speaker: ArrayLike,
    test_speaker: ArrayLike,
    metrics: Sequence[Rate],
    draws: int = 1000,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """95 % intervals of several figures by drawing speakers with replacement, all figures from the same draws.

    A trial weighs as often as its speaker was drawn; a trial of two speakers, the product. Draws that lose a whole
    class are left out. enrol_speaker, test_speaker: (trials,) names or numbers. Raises BadInput as `eer`, for fewer
    than two speakers, and when no draw is left.
    """
    found = redrawn([scores], labels, enrol_speaker, test_speaker, metrics, draws, seed)[:, 0]
    kept = found[~np.isnan(found).any(axis=1)]
    if not len(kept):
        raise BadInput(f"bootstrap: none of {draws} draws of the speakers has both targets and nontargets")
    low, high = np.percentile(kept, [2.5, 97.5], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def redrawn(
    systems: Sequence[ArrayLike],
    labels: ArrayLike,
    enrol_speaker: ArrayLike,
    test_speaker: ArrayLike,
    metrics: Sequence[Rate],
    draws: int = 1000,
    seed: int = 0,
) -> Real:
    """Figures of several systems on the same trials under the same draws of speakers, so that they can be subtracted.

    systems: one row of scores each, (trials,)   returns: (draws, systems, metrics), NaN where a draw lost a whole
    class. Trials are weighted as in `intervals`. Raises BadInput as `eer`, and for fewer than two speakers.
    """
    checked = [_checked(scores, labels) for scores in systems]
    first, second, speakers = _speaker_numbers(enrol_speaker, test_speaker, len(checked[0][0]))
    sides = []
    for values, target in checked:
        thresholds = _thresholds(values)
        sides.append([_Side(values, first, second, kept, thresholds) for kept in (target, ~target)])
    rng = np.random.default_rng(seed)
    found = np.full((draws, len(checked), len(metrics)), np.nan)
    for draw in range(draws):
        times = np.bincount(rng.integers(speakers, size=speakers), minlength=speakers).astype(np.float64)
        for system, pair in enumerate(sides):
            misses, rejects = (side.below(times) for side in pair)
            if misses is not None and rejects is not None:
                found[draw, system] = [metric(misses, 1.0 - rejects) for metric in metrics]
    return found


class _Side:
    """The trials of one class in the order of their scores, so that a draw costs a few passes and no sorting."""

    def __init__(
        self,
        values: Real,
        first: NDArray[np.int64],
        second: NDArray[np.int64],
        kept: NDArray[np.bool_],
        thresholds: Real,
    ) -> None:
        order = np.flatnonzero(kept)[np.argsort(values[kept], kind="stable")]
        self.first, self.second = first[order], second[order]
        self.alone = self.first == self.second
        self.counts = np.searchsorted(values[order], thresholds)  # trials below each threshold

    def below(self, times: Real) -> Real | None:
        """Weighted share of the class below each threshold; None when nothing of it was drawn."""
        weights = times[self.first] * np.where(self.alone, 1.0, times[self.second])
        total = np.concatenate([[0.0], np.cumsum(weights)])
        return total[self.counts] / total[-1] if total[-1] else None


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Real, NDArray[np.bool_]]:
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


def _check_prior(what: str, p_target: float) -> None:
    if not 0.0 < p_target < 1.0:
        raise BadInput(f"{what}: a prior of {p_target} is not between 0 and 1")


def _mean_bits(llrs: Real, targets: Real, nontargets: Real) -> float:
    """Cllr of as many targets and nontargets at each llr; no llr that a class does not have may cost it anything."""
    hit, false = targets > 0, nontargets > 0
    miss = np.dot(targets[hit], np.logaddexp(0.0, -llrs[hit])) / targets.sum()
    accept = np.dot(nontargets[false], np.logaddexp(0.0, llrs[false])) / nontargets.sum()
    return float((miss + accept) / 2.0 / math.log(2.0))


def _thresholds(values: Real) -> Real:
    distinct = np.unique(values)
    return np.append(distinct, np.nextafter(distinct[-1], np.inf))


def _crossing(misses: Real, accepts: Real) -> tuple[int, float]:
    """The last point whose misses do not exceed its false accepts, and how far towards the next one they are equal."""
    below = int(np.searchsorted(misses - accepts, 0.0, side="right")) - 1
    gap, next_gap = accepts[below] - misses[below], misses[below + 1] - accepts[below + 1]
    return below, float(gap / (gap + next_gap))


def _costs(misses: Real, accepts: Real, p_target: float, c_miss: float, c_fa: float) -> Real:
    miss, accept = c_miss * p_target, c_fa * (1.0 - p_target)
    return (miss * misses + accept * accepts) / min(miss, accept)


def _least_cost(misses: Real, accepts: Real, p_target: float, c_miss: float, c_fa: float) -> float:
    return float(_costs(misses, accepts, p_target, c_miss, c_fa).min())


def _speaker_numbers(
    enrol: ArrayLike, test: ArrayLike, trials: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    first, second = np.asarray(enrol), np.asarray(test)
    if first.shape != (trials,) or second.shape != (trials,):
        raise BadInput(f"bootstrap: {first.shape} and {second.shape} speakers for {trials} trials")
    names, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    if len(names) < 2:
        raise BadInput(f"bootstrap: {len(names)} speaker; resampling needs two or more")
    return numbers[:trials], numbers[trials:], len(names)
