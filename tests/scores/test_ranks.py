"""Rank correlation: SciPy where it is there, and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.ranks import rank_correlation, ranks

values = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=40)


def test_ranks_by_hand() -> None:
    assert ranks([30.0, 10.0, 20.0, 20.0]).tolist() == [4.0, 1.0, 2.5, 2.5]


def test_it_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.integers(-3, 4, size=(2, rng.integers(3, 40))).astype(float)
        found, _ = rank_correlation(a, b, permutations=0)
        assert found is None or found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        assert (found is None) == (not np.ptp(a) or not np.ptp(b))


@given(values)
def test_a_rising_map_changes_nothing_and_a_falling_one_the_sign(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(row, dtype=float) for row in zip(*pairs, strict=True))
    found, _ = rank_correlation(a, b, permutations=0)
    assert rank_correlation(np.exp(a), b, permutations=0)[0] == (found if found is None else pytest.approx(found))
    assert rank_correlation(-a, b, permutations=0)[0] == (found if found is None else pytest.approx(-found))


def test_p_is_the_share_of_orders_that_give_as_much() -> None:
    """Of the 24 orders of four values two, the rising and the falling one, give a correlation of one."""
    found, p = rank_correlation([1, 2, 3, 4], [10, 20, 30, 40], permutations=20_000)
    assert found == pytest.approx(1.0)
    assert p == pytest.approx(2 / 24, abs=0.01)
    assert rank_correlation([1, 2, 3, 4], [2, 4, 1, 3])[1] == pytest.approx(1.0)  # a correlation of nothing


def test_what_has_no_order_has_no_correlation() -> None:
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == (None, None)
    assert rank_correlation([1, 2], [1, 2]) == (None, None)
    with pytest.raises(BadInput, match="finite"):
        rank_correlation([1, 2, np.nan], [1, 2, 3])
    with pytest.raises(BadInput, match="one length"):
        rank_correlation([1, 2, 3, 4], [1, 2, 3])
