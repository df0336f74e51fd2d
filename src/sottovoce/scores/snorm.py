"""Adaptive symmetric score normalisation (AS-norm): each score against the scores its two sides have with strangers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput
from sottovoce.scores.views import mean_of_units

DEVIATIONS = {"population": 0, "sample": 1}  # what is taken from the count before dividing: WeSpeaker 0, Kiwano 1
_BLOCK_ENTRIES = 1 << 22  # of one block of scores with the cohort; fastest of the powers of two, measured

Real = NDArray[np.float64]


def check_top(top: int, members: int, what: str = "cohort") -> None:
    """Raises BadInput when the `top` members of a cohort, which must be two or more, cannot be had."""
    if top < 2:
        raise BadInput(f"AS-norm: top {top} of the cohort has no deviation; take 2 or more")
    if members < top:
        raise BadInput(f"AS-norm: {what} has {members} members, fewer than the top {top}; bring more or lower --top")


def cohort_statistics(
    vectors: NDArray[np.float32],
    cohort: NDArray[np.float32],
    top: int = 300,
    deviation: str = "population",
    advance: Callable[[int], object] | None = None,
) -> Real:
    """Mean and deviation of each recording's `top` highest scores with the cohort: (n, 2) float64.

    vectors: (n, dim)   cohort: (members, dim)   deviation: a name in DEVIATIONS   advance: called with the number of
    rows of each finished block. Memory is bounded by a block. Raises BadInput for a cohort smaller than `top`, shapes
    that do not fit, and vectors that are not finite.
    """
    if vectors.ndim != 2 or cohort.ndim != 2 or vectors.shape[1] != cohort.shape[1]:
        raise BadInput(f"AS-norm: vectors {vectors.shape} and cohort {cohort.shape} do not fit")
    if deviation not in DEVIATIONS:
        raise BadInput(f"AS-norm: deviation {deviation!r} is unknown; known: {', '.join(DEVIATIONS)}")
    check_top(top, len(cohort))
    if not (np.isfinite(cohort).all() and np.isfinite(vectors).all()):
        raise BadInput("AS-norm: vectors hold NaN or infinite numbers; embed the recordings again")
    found = np.empty((len(vectors), 2))
    across = np.ascontiguousarray(cohort.T)
    step = max(1, _BLOCK_ENTRIES // len(cohort))
    for start in range(0, len(vectors), step):
        scores = vectors[start : start + step] @ across
        scores.partition(len(cohort) - top, axis=1)
        _moments(scores[:, len(cohort) - top :], DEVIATIONS[deviation], found[start : start + step])
        if advance:
            advance(len(scores))
    return found


def _moments(highest: NDArray[np.float32], less: int, out: Real) -> None:
    """Mean and deviation of every row, into `out`."""
    exact = highest.astype(np.float64)
    out[:, 0] = exact.mean(axis=1)
    exact -= out[:, :1]
    out[:, 1] = np.sqrt(np.einsum("nt,nt->n", exact, exact) / (exact.shape[1] - less))


def as_norm(scores: ArrayLike, enrol: Real, test: Real) -> Real:
    """Scores in deviations from what their two sides score with strangers, the mean of both: (trials,) float64.

    scores: (trials,)   enrol, test: (trials, 2) mean and deviation of each trial's sides, rows of `cohort_statistics`.
    Raises BadInput where a deviation is 0: the cohort scores all the same. Source: Matějka et al. 2017, the adaptive
    symmetric form; s' = ((s - mean_e) / dev_e + (s - mean_t) / dev_t) / 2.
    """
    plain = np.asarray(scores, dtype=np.float64)
    if plain.ndim != 1 or enrol.shape != (len(plain), 2) or test.shape != enrol.shape:
        raise BadInput(f"AS-norm: {plain.shape} scores, statistics {enrol.shape} and {test.shape} do not fit")
    if not ((enrol[:, 1] > 0).all() and (test[:, 1] > 0).all()):
        raise BadInput("AS-norm: a recording has the same score with all of its top cohort; bring another cohort")
    sides = [(plain - side[:, 0]) / side[:, 1] for side in (enrol, test)]
    return np.asarray((sides[0] + sides[1]) / 2.0, dtype=np.float64)


def speaker_means(vectors: NDArray[np.float32], speakers: Sequence[str], views: int = 1) -> NDArray[np.float32]:
    """One vector a speaker, of unit length, in order of appearance: (speakers, dim).

    vectors: (n, dim)   speakers: (n,) names. Raises BadInput for a recording without a speaker.
    """
    if not all(speakers):
        raise BadInput("cohort: a recording has no speaker, so speakers cannot be averaged; take --cohort-by utterance")
    rows: dict[str, list[int]] = {}
    for row, speaker in enumerate(speakers):
        rows.setdefault(speaker, []).append(row)
    return np.stack([mean_of_units(vectors[chosen], views) for chosen in rows.values()])
