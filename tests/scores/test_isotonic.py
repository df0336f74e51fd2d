"""Pooling adjacent violators against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.isotonic import pool_adjacent

VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=60)


@settings(deadline=None)  # the first example imports scikit-learn
@given(VALUES, st.integers(0, 2**31))
def test_agrees_with_scikit_learn(values: list[float], seed: int) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic", reason="scikit-learn is no part of the base install")
    weights = np.random.default_rng(seed).uniform(0.1, 3.0, len(values))
    wanted = isotonic.isotonic_regression(values, sample_weight=weights)
    np.testing.assert_allclose(pool_adjacent(values, weights), wanted, atol=1e-9)


@given(VALUES)
def test_rises_and_keeps_the_mean(values: list[float]) -> None:
    found = pool_adjacent(values)
    assert (np.diff(found) >= 0).all()
    assert np.isclose(found.mean(), np.mean(values), atol=1e-9)


def test_pools_by_hand() -> None:
    assert pool_adjacent([1.0, 3.0, 2.0, 4.0]).tolist() == [1.0, 2.5, 2.5, 4.0]


@pytest.mark.parametrize(("values", "weights"), [([1.0, np.nan], None), ([1.0], [0.0]), ([1.0, 2.0], [1.0])])
def test_what_cannot_be_fitted_is_refused(values: list[float], weights: list[float] | None) -> None:
    with pytest.raises(BadInput, match="isotonic"):
        pool_adjacent(values, weights)
