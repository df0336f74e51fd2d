"""Score → llr by a smooth rising curve, the default calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput
from sottovoce.scores.calibration import TURNED, Calibration, in_cells, line_of, minimum
from sottovoce.scores.isotonic import pool_adjacent

STIFFNESS = 0.25  # nats; weight of the squared bend of one speaker's curve
NODES = 48  # that the curve is made of

Real = NDArray[np.float64]


def spline(scores: ArrayLike, labels: ArrayLike, speakers: int, prior: float = 0.5) -> Calibration:
    """Logistic regression on a curve: almost a line where speakers are few, of their own shape where they are many.

    f, joined by lines at NODES equal steps, of least prior-weighted logistic loss + STIFFNESS / (2 speakers) ∫ f''(z)²
    dz, where z is the llr of the affine calibration: so the unit of the score does not matter, and a line costs
    nothing. Then f is made to rise (PAV, nodes weighing what lies at them). Scores are taken in cells; knots are
    rounded. Trials that one threshold separates are given the affine calibration.
    scores: (trials,)   labels: (trials,) 1 for target   speakers: how many are heard in the trials: they, not trials,
    are what is independent   prior: weight of the targets in all. Raises BadInput as `affine`, and for fewer than one
    speaker. Source: splines of degree 1 with a difference penalty of order 2, Eilers and Marx 1996; as a calibration:
    Lucena 2018, arXiv 1809.07751. That the penalty falls with speakers, and z, are ours.
    """
    centres, *counts = in_cells(scores, labels, speakers)
    hits, misses = counts
    slope, offset, ridge = line_of(centres, (hits, misses), prior)
    line = slope * centres + offset
    nodes = np.linspace(line[0], line[-1], NODES)
    near = _shares(line, nodes)
    found = None
    if not ridge:
        rows = [np.flatnonzero(count) for count in counts]
        target = np.repeat([True, False], [len(row) for row in rows])
        trials = np.concatenate([count[row] for count, row in zip(counts, rows, strict=True)]).astype(np.float64)
        found = minimum(near[np.concatenate(rows)], target, prior, 0.0, trials, STIFFNESS / speakers * _bend(nodes))
    mass = near.T @ (prior * hits / hits.sum() + (1.0 - prior) * misses / misses.sum())
    risen = pool_adjacent(nodes if found is None else found, mass + 1e-9)
    if risen[-1] <= risen[0]:
        raise BadInput(TURNED)
    places = (nodes - offset) / slope
    knots = tuple((round(float(score), 6), round(float(llr), 5)) for score, llr in zip(places, risen, strict=True))
    trials_of = int(hits.sum()), int(misses.sum())
    return Calibration("spline", *trials_of, prior, ridge=ridge, knots=knots, stiffness=STIFFNESS)


def _shares(values: Real, nodes: Real) -> Real:
    """What each node has of a value in a curve joined by lines: (values, nodes), rows sum to 1. nodes: equal steps."""
    place = (values - nodes[0]) / (nodes[1] - nodes[0])
    left = np.clip(place.astype(np.int64), 0, len(nodes) - 2)
    shares = np.zeros((len(values), len(nodes)))
    rows = np.arange(len(values))
    shares[rows, left], shares[rows, left + 1] = 1.0 - (place - left), place - left
    return shares


def _bend(nodes: Real) -> Real:
    """M such that f · M · f is ∫ f''² by second differences, f (nodes,) at equal steps."""
    second = np.diff(np.eye(len(nodes)), 2, axis=0)
    return np.asarray(second.T @ second / (nodes[1] - nodes[0]) ** 3, dtype=np.float64)
