"""Isotonic regression: the nearest rising values, by pooling adjacent violators (PAV)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput

Real = NDArray[np.float64]


def pool_adjacent(values: ArrayLike, weights: ArrayLike | None = None) -> Real:
    """The non-decreasing sequence of least weighted squared distance to `values`.

    values: (n,) in the order of what they must rise with   weights: (n,) positive; left out, all 1
    returns: (n,). Raises BadInput for shapes that differ, values that are not finite, weights that are not positive.
    Source: pool adjacent violators, Ayer et al. 1955.
    """
    given = np.asarray(values, dtype=np.float64)
    heavy = np.ones_like(given) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.ndim != 1 or given.shape != heavy.shape:
        raise BadInput(f"isotonic: {given.shape} values and {heavy.shape} weights are not two rows of the same length")
    if not np.isfinite(given).all() or not (np.isfinite(heavy).all() and (heavy > 0).all()):
        raise BadInput("isotonic: values must be finite and weights positive")
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for mean, mass in zip(given.tolist(), heavy.tolist(), strict=True):
        size = 1
        while means and means[-1] >= mean:
            before, heavier = means.pop(), masses.pop()
            mean = (before * heavier + mean * mass) / (heavier + mass)
            mass += heavier
            size += sizes.pop()
        means.append(mean)
        masses.append(mass)
        sizes.append(size)
    return np.repeat(means, sizes).astype(np.float64)
