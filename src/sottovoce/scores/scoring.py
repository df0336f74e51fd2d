"""Scores of trials, in bounded memory: dot products of the vectors that stand for recordings (`views`)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput

_BLOCK_BYTES = 1 << 21  # of gathered rows
_TABLE_ENTRIES = 1 << 24  # of one block of a score matrix
_DENSE = 1 / 8  # share of a score matrix from which computing all of it is faster than pair by pair; measured


Advance = Callable[[int], object]


def cosine_trials(
    embeddings: NDArray[np.float32], enrol: ArrayLike, test: ArrayLike, advance: Advance | None = None
) -> NDArray[np.float32]:
    """The dot product of each trial's two rows, which is the cosine where they have unit length: (trials,) float32.

    embeddings: (n, dim)   enrol, test: (trials,) rows of `embeddings`   advance: called with the number of trials of
    each finished block. Raises BadInput for rows out of range. Trials that share many rows are computed as blocks of a
    matrix product, others pair by pair.
    """
    table = np.ascontiguousarray(embeddings, dtype=np.float32)
    left, right = np.asarray(enrol, dtype=np.int64), np.asarray(test, dtype=np.int64)
    if table.ndim != 2 or left.ndim != 1 or left.shape != right.shape:
        raise BadInput(f"trials: embeddings {table.shape}, enrolment {left.shape} and test {right.shape} do not fit")
    if not left.size:
        return np.zeros(0, dtype=np.float32)
    if min(left.min(), right.min()) < 0 or max(left.max(), right.max()) >= len(table):
        raise BadInput(f"trials: a row outside 0..{len(table) - 1} is asked for")
    rows, row = _numbered(left, len(table))
    columns, column = _numbered(right, len(table))
    if len(left) >= _DENSE * len(rows) * len(columns):
        return _by_product(table[rows], table[columns], row, column, advance)
    return _by_pair(table, left, right, advance)


def _numbered(chosen: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct values of `chosen`, which are below `count`, and the place of each among them, without sorting."""
    there = np.zeros(count, dtype=bool)
    there[chosen] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[chosen]


def _by_pair(
    table: NDArray[np.float32], left: NDArray[np.int64], right: NDArray[np.int64], advance: Advance | None
) -> NDArray[np.float32]:
    scores = np.empty(len(left), dtype=np.float32)
    step = max(1, _BLOCK_BYTES // (8 * table.shape[1] + 1))
    for start in range(0, len(left), step):
        block = slice(start, start + step)
        np.einsum("td,td->t", table[left[block]], table[right[block]], out=scores[block])
        if advance:
            advance(len(scores[block]))
    return scores


def _by_product(
    enrolled: NDArray[np.float32],
    tested: NDArray[np.float32],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    advance: Advance | None,
) -> NDArray[np.float32]:
    """enrolled: (rows, dim)   tested: (columns, dim)   row, column: (trials,) of the score matrix."""
    scores = np.empty(len(row), dtype=np.float32)
    order = np.argsort(row, kind="stable")
    step = max(1, _TABLE_ENTRIES // len(tested))
    edges = np.searchsorted(row[order], np.arange(0, len(enrolled) + step, step))
    for block, (start, stop) in enumerate(pairwise(edges)):
        first, chosen = block * step, order[start:stop]
        matrix = enrolled[first : first + step] @ tested.T
        scores[chosen] = matrix[row[chosen] - first, column[chosen]]
        if advance:
            advance(len(chosen))
    return scores
