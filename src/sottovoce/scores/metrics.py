"""Error rates of a set of trials: EER, detection costs, and what log-likelihood ratios are worth.

The curve that they are read from is in `curves`, their intervals are made in `resampling`; the names of both can be
imported from here too.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from sottovoce.scores.curves import (
    Curve,
    Det,
    Rate,
    Real,
    check_prior,
    checked,
    crossing,
    curve,
    det,
    detection_costs,
    equal_error,
    least_cost,
    probit,
)
from sottovoce.scores.isotonic import pool_adjacent
from sottovoce.scores.resampling import bootstrap, intervals, redrawn

__all__ = [
    "Curve",
    "Det",
    "Rate",
    "act_dcf",
    "bayes_threshold",
    "bootstrap",
    "cllr",
    "curve",
    "det",
    "eer",
    "equal_error",
    "errors_at",
    "intervals",
    "least_cost",
    "min_cllr",
    "min_dcf",
    "probit",
    "redrawn",
    "too_few",
]

FEWEST_ERRORS: Final = 30


def eer(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Equal error rate, a fraction, and its threshold: where the two rates cross, linear between points of the curve.

    scores: (trials,)   labels: (trials,) 1 for target, 0 for nontarget. Raises BadInput for NaN or a single class.
    """
    found = curve(scores, labels)
    below, part = crossing(found.misses, found.accepts)
    threshold = found.thresholds[below] + part * (found.thresholds[below + 1] - found.thresholds[below])
    return equal_error(found.misses, found.accepts), float(threshold)


def min_dcf(
    scores: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0
) -> tuple[float, float]:
    """Smallest normalised detection cost over all thresholds (NIST), and the lowest threshold that reaches it.

    p_target: prior of a target trial; 1 is the cost of always giving the cheaper of the two answers. Raises BadInput as
    `eer`, and for a prior outside (0, 1).
    """
    check_prior("minDCF", p_target)
    found = curve(scores, labels)
    costs = detection_costs(found.misses, found.accepts, p_target, c_miss, c_fa)
    best = int(np.argmin(costs))
    return float(costs[best]), float(found.thresholds[best])


def bayes_threshold(p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """The log-likelihood ratio, in nats, from which accepting is the cheaper answer at this prior and these costs.

    Raises BadInput for a prior outside (0, 1).
    """
    check_prior("Bayes threshold", p_target)
    return math.log(c_fa * (1.0 - p_target)) - math.log(c_miss * p_target)


def act_dcf(llrs: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Normalised detection cost of deciding at the Bayes threshold: what the calibration costs beside minDCF.

    llrs: (trials,) natural log-likelihood ratios   labels: (trials,) 1 for target. Raises BadInput as `min_dcf`.
    """
    threshold = bayes_threshold(p_target, c_miss, c_fa)
    values, target = checked(llrs, labels)
    misses, accepts = np.mean(values[target] < threshold), np.mean(values[~target] >= threshold)
    return float(detection_costs(np.asarray(misses), np.asarray(accepts), p_target, c_miss, c_fa))


def cllr(llrs: ArrayLike, labels: ArrayLike) -> float:
    """Cost of log-likelihood ratios over all priors, in bits: 0 for perfect ones, 1 for llrs that are all 0.

    llrs: (trials,) natural log-likelihood ratios   labels: (trials,) 1 for target. Raises BadInput for values that are
    not finite and for a single class. Source: Brümmer and du Preez 2006, "Application-independent evaluation of
    speaker detection".
    """
    values, target = checked(llrs, labels)
    return _mean_bits(values, target.astype(np.float64), (~target).astype(np.float64))


def min_cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """The Cllr that is left when scores are mapped to llrs by the best rising function: what they tell apart at all.

    scores: (trials,) of any scale; equal scores get one llr. Raises BadInput as `cllr`. Source: Brümmer and du Preez
    2006, optimal calibration by pooling adjacent violators.
    """
    values, target = checked(scores, labels)
    _, place = np.unique(values, return_inverse=True)
    each: list[Real] = [np.bincount(place, weights=kind).astype(np.float64) for kind in (target, ~target)]
    runs = np.flatnonzero(np.diff(each[0] / (each[0] + each[1]), prepend=-1.0))  # equal neighbours are pooled anyhow
    targets, nontargets = (np.add.reduceat(kind, runs) for kind in each)
    trials = targets + nontargets
    posterior, prior = pool_adjacent(targets / trials, trials), float(target.mean())
    with np.errstate(divide="ignore"):  # where one class is alone the llr is infinite, and right
        llrs = np.log(posterior / (1.0 - posterior)) - np.log(prior / (1.0 - prior))
    return _mean_bits(llrs, targets, nontargets)


def errors_at(scores: ArrayLike, labels: ArrayLike, threshold: float) -> tuple[int, int]:
    """How many targets are missed and how many nontargets accepted at a threshold. Raises BadInput as `eer`."""
    values, target = checked(scores, labels)
    return int((values[target] < threshold).sum()), int((values[~target] >= threshold).sum())


def too_few(*errors: float) -> bool:
    """Whether a rate stands on fewer than 30 errors of some kind, so that it may be off by a third and more.

    Source: Doddington et al. 2000, the rule of 30: from 30 errors on, the true rate is within 30 % of the measured one
    with a confidence of 90 %.
    """
    return min(errors) < FEWEST_ERRORS


def _mean_bits(llrs: Real, targets: Real, nontargets: Real) -> float:
    """Cllr of as many targets and nontargets at each llr; no llr that a class does not have may cost it anything."""
    hit, false = targets > 0, nontargets > 0
    miss = np.dot(targets[hit], np.logaddexp(0.0, -llrs[hit])) / targets.sum()
    accept = np.dot(nontargets[false], np.logaddexp(0.0, llrs[false])) / nontargets.sum()
    return float((miss + accept) / 2.0 / math.log(2.0))
