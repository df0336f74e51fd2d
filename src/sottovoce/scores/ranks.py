"""Rank correlation, and how likely chance alone gives as much."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput

PERMUTATIONS = 10_000


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """The rank of every value, from 1; equal values share the mean of their ranks: (n,) → (n,)."""
    _, of, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[of]


def rank_correlation(
    a: ArrayLike, b: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float | None, float | None]:
    """Spearman's correlation of two rows, and the share of permutations that give as much or more, either sign.

    a, b: (n,)   returns: (correlation, p), None where a row is constant or has fewer than three values. The p counts
    the observed order too, so it is never 0. Raises BadInput for rows of other lengths, or values that are not finite.
    """
    first, second = (np.asarray(row, dtype=np.float64) for row in (a, b))
    if first.ndim != 1 or first.shape != second.shape or not np.isfinite([first, second]).all():
        raise BadInput(f"rank correlation: rows {first.shape} and {second.shape} must be finite and of one length")
    if len(first) < 3 or not np.ptp(first) or not np.ptp(second):
        return None, None
    x, y = (ranks(row) - (len(first) + 1) / 2 for row in (first, second))
    length = np.sqrt((x @ x) * (y @ y))
    found = float(x @ y / length)
    rng = np.random.default_rng(seed)
    drawn = np.array([x @ rng.permutation(y) for _ in range(permutations)]) / length
    as_much = int((np.abs(drawn) >= abs(found) - 1e-12).sum())
    return found, (as_much + 1) / (permutations + 1)
