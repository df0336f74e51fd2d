"""How sure a rate is: its interval by drawing speakers again, with replacement.

Trials of one speaker stand or fall together, so it is the speakers that are drawn, never the trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput
from sottovoce.scores.curves import Rate, Real, checked, distinct, equal_error


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
    advance: Callable[[int], object] | None = None,
) -> list[tuple[float, float]]:
    """95 % intervals of several figures by drawing speakers with replacement, all figures from the same draws.

    A trial weighs as often as its speaker was drawn; a trial of two speakers, the product. Draws that lose a whole
    class are left out. enrol_speaker, test_speaker: (trials,) names or numbers. Raises BadInput as `eer`, for fewer
    than two speakers, and when no draw is left.   advance: called with 1 after each draw.
    """
    found = redrawn([scores], labels, enrol_speaker, test_speaker, metrics, draws, seed, advance)[:, 0]
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
    advance: Callable[[int], object] | None = None,
) -> Real:
    """Figures of several systems on the same trials under the same draws of speakers, so that they can be subtracted.

    systems: one row of scores each, (trials,)   returns: (draws, systems, metrics), NaN where a draw lost a whole
    class. Trials are weighted as in `intervals`. Raises BadInput as `eer`, and for fewer than two speakers.
    """
    valued = [checked(scores, labels) for scores in systems]
    first, second, speakers = speaker_numbers(enrol_speaker, test_speaker, len(valued[0][0]))
    sides = []
    for values, target in valued:
        thresholds = distinct(values)
        sides.append([_Side(values, first, second, kept, thresholds) for kept in (target, ~target)])
    rng = np.random.default_rng(seed)
    found = np.full((draws, len(valued), len(metrics)), np.nan)
    for draw in range(draws):
        times = np.bincount(rng.integers(speakers, size=speakers), minlength=speakers).astype(np.float64)
        for system, pair in enumerate(sides):
            misses, rejects = (side.below(times) for side in pair)
            if misses is not None and rejects is not None:
                found[draw, system] = [metric(misses, 1.0 - rejects) for metric in metrics]
        if advance:
            advance(1)
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


def speaker_numbers(enrol: ArrayLike, test: ArrayLike, trials: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The speakers of both sides of each trial as numbers, (trials,) each, and how many speakers there are.

    Raises BadInput for sides that do not fit the trials, and for fewer than two speakers.
    """
    first, second = np.asarray(enrol), np.asarray(test)
    if first.shape != (trials,) or second.shape != (trials,):
        raise BadInput(f"bootstrap: {first.shape} and {second.shape} speakers for {trials} trials")
    names, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    if len(names) < 2:
        raise BadInput(f"bootstrap: {len(names)} speaker; resampling needs two or more")
    return numbers[:trials], numbers[trials:], len(names)
