"""Whose errors a decision cost stands on: a hundred false accepts of one pair of speakers are one accident."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.scores.curves import checked
from sottovoce.scores.metrics import bayes_threshold, too_few
from sottovoce.scores.resampling import speaker_numbers

MAJORITY = 0.5  # of the errors of a kind: more from one speaker or pair, and the cost is theirs alone


def support(
    llrs: ArrayLike, labels: ArrayLike, enrol_speaker: ArrayLike, test_speaker: ArrayLike, p_target: float
) -> dict[str, Any]:
    """What actDCF at a prior stands on: errors at the Bayes threshold, and how many speakers they come from.

    All (trials,). Misses are counted by speaker, false accepts by pair of speakers. `miss_speakers` and
    `false_accept_pairs` are effective numbers, (Σ n)² / Σ n² over the errors n of each (Kish 1965, effective sample
    size): of errors that are all one pair's, 1. `few`: a kind has fewer than 30 errors (Doddington's rule, see
    `too_few`), or more than half of them from one speaker or pair (our reading: the rule is of independent errors).
    Raises BadInput as `eer` and `bootstrap`.
    """
    values, target = checked(llrs, labels)
    first, second, speakers = speaker_numbers(enrol_speaker, test_speaker, len(values))
    accepted = values >= bayes_threshold(p_target)
    pair = np.minimum(first, second) * speakers + np.maximum(first, second)
    misses, accepts = (_counts(rows) for rows in (first[target & ~accepted], pair[~target & accepted]))
    shares = [float(one.max(initial=0) / max(one.sum(), 1)) for one in (misses, accepts)]
    return {
        "misses": int(misses.sum()),
        "miss_speakers": _effective(misses),
        "misses_of_one_speaker": shares[0],
        "false_accepts": int(accepts.sum()),
        "false_accept_pairs": _effective(accepts),
        "false_accepts_of_one_pair": shares[1],
        "few": bool(too_few(misses.sum(), accepts.sum()) or max(shares) > MAJORITY),
    }


def _counts(of: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(of, return_counts=True)[1].astype(np.int64)


def _effective(counts: NDArray[np.int64]) -> float:
    return float(counts.sum() ** 2 / (counts**2).sum()) if len(counts) else 0.0
