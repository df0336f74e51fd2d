"""Cosine scores of trials against one dot product after the other."""

from __future__ import annotations

import numpy as np
import pytest

from sottovoce.errors import BadInput
from sottovoce.scores import scoring
from sottovoce.scores.scoring import cosine_trials


def units(rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    table = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


@pytest.mark.parametrize(("rows", "trials"), [(500, 300), (8, 2000), (1, 1), (40, 401)])
@pytest.mark.parametrize("small", [True, False])
def test_equals_a_loop(rows: int, trials: int, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse and dense trials, in one block and in many."""
    if small:
        monkeypatch.setattr(scoring, "_BLOCK_BYTES", 1000)
        monkeypatch.setattr(scoring, "_TABLE_ENTRIES", 3 * rows)
    table = units(rows)
    enrol, test = np.random.default_rng(1).integers(rows, size=(2, trials))
    looped = [
        sum(float(a) * float(b) for a, b in zip(table[i], table[j], strict=True))
        for i, j in zip(enrol, test, strict=True)
    ]
    scores = cosine_trials(table, enrol, test)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, looped, atol=2e-6)  # float32 sums of 16 products


def test_worked_by_hand() -> None:
    table = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    np.testing.assert_allclose(cosine_trials(table, [0, 0, 2, 1], [1, 2, 2, 2]), [0.0, 0.6, 1.0, 0.8], atol=1e-7)


def test_both_ways_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few trials a pair of rows go pair by pair, many by a matrix product."""
    taken = []
    for name in ("_by_pair", "_by_product"):
        inner = getattr(scoring, name)
        monkeypatch.setattr(scoring, name, lambda *a, inner=inner, name=name: taken.append(name) or inner(*a))
    rng = np.random.default_rng(0)
    cosine_trials(units(1000), *rng.integers(1000, size=(2, 50)))
    cosine_trials(units(10), *rng.integers(10, size=(2, 500)))
    assert taken == ["_by_pair", "_by_product"]


def test_no_trials() -> None:
    assert cosine_trials(units(3), [], []).shape == (0,)


@pytest.mark.parametrize(("enrol", "test"), [([0], [3]), ([-1], [0]), ([0, 1], [0]), ([[0]], [[1]])])
def test_rows_that_do_not_fit(enrol: list, test: list) -> None:
    with pytest.raises(BadInput, match="trials"):
        cosine_trials(units(3), enrol, test)
