"""Operating points: thresholds with a name and with what they were measured on, refused where trials are too few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sottovoce.errors import BadInput
from sottovoce.scores.curves import checked
from sottovoce.scores.metrics import FEWEST_ERRORS, bootstrap, curve, eer, errors_at

BALANCED = "balanced"
RATES: Mapping[str, float | None] = {  # name → share of nontargets that is accepted; None: as many as are missed
    "convenience": 0.01,
    BALANCED: None,
    "secure": 0.001,
}


def operating_points(
    scores: ArrayLike,
    labels: ArrayLike,
    enrol_speaker: ArrayLike | None = None,
    test_speaker: ArrayLike | None = None,
    draws: int = 300,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The points of RATES that the trials can support, and for each other one the reason why it is refused.

    scores: (trials,) cosines or llrs   enrol_speaker, test_speaker: (trials,), for 95 % intervals by bootstrap over
    speakers. Each point: threshold (of `scores`, accepted from it on), false_accepts and misses (shares expected, with
    `_interval`), trials, targets, nontargets, rule. A rate needs 30 false accepts behind it: from there on the true
    rate is within 30 % of the measured one with a confidence of 90 %, where trials are independent; trials of few
    speakers are not, which the intervals show. Raises BadInput as `metrics.eer`. Source: Doddington et al. 2000, the
    rule of 30.
    """
    values, target = checked(scores, labels)
    nontargets = int((~target).sum())
    points: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for name, rate in RATES.items():
        expected = (eer(values, target)[0] if rate is None else rate) * nontargets
        if expected < FEWEST_ERRORS:
            refused[name] = _refusal(rate, expected, nontargets)
            continue
        threshold = eer(values, target)[1] if rate is None else _threshold(values, target, rate)
        points[name] = point(values, target, threshold, rate)
        if enrol_speaker is not None and test_speaker is not None:
            sides = np.asarray(enrol_speaker), np.asarray(test_speaker)
            points[name].update(_intervals(values, target, *sides, threshold, draws, seed))
    return points, refused


def point(scores: ArrayLike, labels: ArrayLike, threshold: float, rate: float | None = None) -> dict[str, Any]:
    """What a threshold does on these trials, as plain values for JSON. rate: of false accepts that was aimed at."""
    values, target = checked(scores, labels)
    missed, accepted = errors_at(values, target, threshold)
    targets = int(target.sum())
    aim = "as many misses as false accepts (EER)" if rate is None else f"at most {100 * rate:g} % false accepts"
    return {
        "threshold": float(threshold),
        "false_accepts": accepted / (len(target) - targets),
        "misses": missed / targets,
        "trials": len(target),
        "targets": targets,
        "nontargets": len(target) - targets,
        "rule": f"{aim}, all trials pooled",
    }


def _refusal(rate: float | None, expected: float, nontargets: int) -> str:
    aim = "the equal error rate" if rate is None else f"a false-accept rate of {100 * rate:g} %"
    more = f"; {round(FEWEST_ERRORS / rate):,} nontarget trials are needed" if rate else "; more trials are needed"
    return (
        f"{aim} would stand on {expected:.1f} false accepts in {nontargets:,} nontarget trials, "
        f"fewer than {FEWEST_ERRORS:g}{more}"
    )


def _threshold(values: ArrayLike, target: ArrayLike, rate: float) -> float:
    """The lowest threshold whose false accepts are at most a rate."""
    found = curve(values, target)
    return float(found.thresholds[int(np.argmax(found.accepts <= rate + 1e-12))])  # 1e-12: of 1 - share


def _intervals(
    values: ArrayLike,
    target: ArrayLike,
    enrol_speaker: ArrayLike,
    test_speaker: ArrayLike,
    threshold: float,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """95 % intervals of both rates at a threshold; None where the speakers are too few to be drawn anew."""
    at = int(np.searchsorted(curve(values, target).thresholds, threshold))
    found: dict[str, Any] = {}
    for name, rate in (("false_accepts", lambda _, accepts: accepts[at]), ("misses", lambda misses, _: misses[at])):
        try:
            pair = bootstrap(values, target, enrol_speaker, test_speaker, rate, draws, seed)
            found[f"{name}_interval"] = [float(edge) for edge in pair]
        except BadInput:
            found[f"{name}_interval"] = None
    return found
